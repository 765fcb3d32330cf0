"""What members said, read back: label and certainty maps of a `PredictMember` folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adaptseg import storage
from adaptseg.classes import VOID
from adaptseg.data.label_folder import CERTAINTY, LabelFolder, read_map
from adaptseg.data.pair import DomainPair
from adaptseg.errors import AdaptSegError


class MemberMaps:
    """One member's maps of the pool.

    Args:
        name: of the member.
        folder: where they lie.
        classes: names of the data's classes that the member has.
        data: whose pool it labelled.
    """

    def __init__(self, name: str, folder: Path, classes: Sequence[str], data: DomainPair) -> None:
        self.name, self.folder, self._pool = name, folder, data.pool
        self.classes = tuple(classes)
        self._labels = LabelFolder(folder, data.class_table, data.pool.keys)

    @classmethod
    def open(cls, stage: str | Path, data: DomainPair) -> MemberMaps:
        """The maps that `PredictMember` left in its folder."""
        about = storage.read_json(Path(stage) / "member.json")
        return cls(about["name"], Path(stage) / "predictions", about["classes"], data)

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        """(H, W) uint8 train ids, 255 = the member abstains; AdaptSegError unless of the scene's native size."""
        labels = self._labels.labels(key)
        if labels.shape != (size := self._pool.size(key)):
            raise AdaptSegError(f"member {self.name}: {key}.png is {labels.shape}, its scene {size}")
        return labels

    def certainty(self, key: str) -> npt.NDArray[np.float32]:
        """(H, W) float32 in 0..1, in hundredths."""
        # 90 / 100 must reach a threshold of 0.9: division, not multiplication by 0.01, rounds to the same float.
        return read_map(self.folder / f"{key}{CERTAINTY}").astype(np.float32) / np.float32(100)

    def count(self) -> npt.NDArray[np.int64]:
        """(C,) pixels that it gives each class, over all scenes."""
        total = np.zeros(VOID + 1, np.int64)
        for key in self._pool.keys:
            total += np.bincount(self.labels(key).ravel(), minlength=VOID + 1)
        return total[: self._labels.class_table.num_classes]

    def bytes_per_image(self) -> float:
        """Mean size on disk of what is kept of a scene."""
        endings = (".png", CERTAINTY)
        sizes = [(self.folder / f"{key}{ending}").stat().st_size for key in self._pool.keys for ending in endings]
        return sum(sizes) / len(self._pool.keys)


def open_members(stages: Sequence[str], data: DomainPair) -> list[MemberMaps]:
    """The members of several `PredictMember` folders; AdaptSegError where there is none, or two share a name."""
    members = [MemberMaps.open(stage, data) for stage in stages]
    names = [member.name for member in members]
    if not members:
        raise AdaptSegError("no member is given; an ensemble needs at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise AdaptSegError(f"two members are named '{twice[0]}'; give each a name of its own")
    return members


def has_classes(members: Sequence[MemberMaps], names: Sequence[str]) -> Tensor:
    """(T, C) bool: which member has which class at all."""
    return torch.tensor([[name in member.classes for name in names] for member in members])
