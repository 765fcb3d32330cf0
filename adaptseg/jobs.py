"""What a light job is: the work between the trainings of a staged recipe, each a class with `run`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch

from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError


@dataclass(frozen=True)
class Workplace:
    """What a job is given to work with.

    Attributes:
        folder: where it leaves what it makes. A job that was killed is run again in the same folder, from the same
            inputs: files it finds there, all written whole or not at all, are its own.
        data: the domain pair of the recipe; None where the recipe has no `data:`.
        device: where networks run.
        seed: `seed_everything`.
    """

    folder: Path
    data: DomainPair | None
    device: torch.device
    seed: int

    def require_data(self) -> DomainPair:
        """The domain pair; AdaptSegError where there is none."""
        if self.data is None:
            raise AdaptSegError("no `data:` block is given, whose target images this job reads; name a recipe with one")
        return self.data


class Job(ABC):
    """Some work that needs no optimiser. Its constructor takes plain arguments, as YAML holds them."""

    @abstractmethod
    def run(self, place: Workplace) -> None:
        """Do it. AdaptSegError for everything the user can mend."""
