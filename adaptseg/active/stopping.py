"""When buying labels ends before the schedule does: by budget, by a plateau of mIoU, by predictions that settle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptseg.active.advice import gain_posterior
from adaptseg.distributed import gather
from adaptseg.errors import AdaptSegError
from adaptseg.networks.feature_bank import fixed_sample

Size = tuple[int, int]


class Progress(NamedTuple):
    """What the rules judge when a round is due; all of it is equal on all processes."""

    spent: int
    """Pixels bought so far, void included."""
    wanted: int
    """Pixels that the round would buy."""
    pool: int
    """Pixels of the pool."""
    curve: tuple[list[float], list[float]]
    """Shares of the pool spent, and mIoU of the network trained on just those labels, of this moment included."""
    agreements: list[float]
    """Kappa of the pool's predictions with those of the round before, of this moment included."""


@dataclass(frozen=True)
class Stopping:
    """Rules that end buying when a round is due, before it buys; the first that holds decides.

    Nothing but predictions on the pool and mIoU on data.val is looked at, never the pool's truth.

    Attributes:
        budget: share of the pool's pixels, in (0, 1]. A round that would exceed it is not bought, nor any after it.
        plateau: points of mIoU (per cent) on data.val. Stops once the last `rounds` rounds brought less than that, with
            probability `confidence` under the noise of the curve (active/advice.py). The network without any label does
            not count. A method that keeps its networks is then validated before each round.
        agreement: Cohen's kappa, in (0, 1], between predictions of two successive rounds on a fixed sample of the pool.
            Stops once it was no less in each of the last `rounds` rounds (stabilising predictions: Bloodgood and
            Vijay-Shanker, CoNLL 2009: 0.99 in the mean over three rounds).
        rounds: rounds that `plateau` and `agreement` look back over.
        confidence: of `plateau`, in [0.5, 1) (inferred).
        sample: pixels of the pool that `agreement` looks at, the same number in each image, the same in every run.
        then: `train` on to max_steps with the labels there are, or `end` the run at the end of that tick.
    """

    budget: float | None = None
    plateau: float | None = None
    agreement: float | None = None
    rounds: int = 2
    confidence: float = 0.9
    sample: int = 20_000
    then: Literal["train", "end"] = "train"

    def __post_init__(self) -> None:
        problems = {
            "active.stop has no rule: give budget, plateau or agreement, or leave out `stop:`": (
                self.budget is None and self.plateau is None and self.agreement is None
            ),
            f"active.stop.budget is {self.budget}; a share of the pool in (0, 1] is expected": (
                self.budget is not None and not 0 < self.budget <= 1
            ),
            f"active.stop.plateau is {self.plateau}; points of mIoU in (0, 100] are expected": (
                self.plateau is not None and not 0 < self.plateau <= 100
            ),
            f"active.stop.agreement is {self.agreement}; a kappa in (0, 1] is expected": (
                self.agreement is not None and not 0 < self.agreement <= 1
            ),
            f"active.stop.rounds is {self.rounds}; 1 or more are expected": self.rounds < 1,
            f"active.stop.confidence is {self.confidence}; a probability in [0.5, 1) is expected": (
                not 0.5 <= self.confidence < 1
            ),
            f"active.stop.sample is {self.sample}; 1 or more pixels are expected": self.sample < 1,
        }
        for message, is_wrong in problems.items():
            if is_wrong:
                raise AdaptSegError(message)

    @property
    def needs_scores(self) -> bool:
        """Whether the network must be judged when a round is due: for the rule, or because the run may end there."""
        return self.plateau is not None or self.then == "end"

    # ---- before the first step

    def check(self, planned: Sequence[int], pool: int, *, is_judged: bool, begins_untrained: bool) -> None:
        """Refuse rules that could never hold, or that would leave nothing to learn from.

        Args:
            planned: pixels that will have been bought after each round.
            pool: pixels of the pool.
            is_judged: whether there is a validation set.
            begins_untrained: whether the first round is bought before the first step.

        Raises:
            AdaptSegError: such a rule.
        """
        if self.budget is not None:
            limit = self._limit(pool)
            if limit >= planned[-1]:
                raise AdaptSegError(
                    f"active.stop.budget {self.budget} is {limit} pixels, and active.budget buys {planned[-1]} in all: "
                    "it could never stop; lower it, or leave it out"
                )
            if limit < planned[0]:
                raise AdaptSegError(
                    f"active.stop.budget {self.budget} is {limit} pixels, and the first round buys {planned[0]}: "
                    "nothing would be bought; raise it"
                )
        if self.plateau is not None and not is_judged:
            raise AdaptSegError("active.stop.plateau looks at mIoU on data.val, which is null: give one of both up")
        # A plateau needs rounds + 1 points with labels, the first of which is judged when the second round is due.
        for name, given, first in (
            ("plateau", self.plateau, 2),
            ("agreement", self.agreement, 2 if begins_untrained else 1),
        ):
            needed = first + self.rounds
            if given is not None and len(planned) < needed:
                raise AdaptSegError(
                    f"active.stop.{name} looks back over {self.rounds} rounds, which takes {needed} rounds; this "
                    f"acquisition has {len(planned)}: it could never stop; plan more, or lower active.stop.rounds"
                )

    # ---- when a round is due

    def verdict(self, progress: Progress) -> str | None:
        """Why buying ends now, for a person; None to go on."""
        rules = (self._by_budget, self._by_plateau, self._by_agreement)
        return next((why for rule in rules if (why := rule(progress)) is not None), None)

    def _limit(self, pool: int) -> int:
        return round((self.budget or 0) * pool)

    def _by_budget(self, progress: Progress) -> str | None:
        if self.budget is None or progress.spent + progress.wanted <= self._limit(progress.pool):
            return None
        return f"another round would spend more than {100 * self.budget:g} % of the pool (active.stop.budget)"

    def _by_plateau(self, progress: Progress) -> str | None:
        if self.plateau is None:
            return None
        points = [(x, y) for x, y in zip(*progress.curve, strict=True) if x > 0]
        if len(points) <= self.rounds:
            return None
        spent, miou = zip(*points, strict=True)
        probability = gain_posterior(spent, miou, spent[-1 - self.rounds], spent[-1]).below(self.plateau / 100)
        if probability < self.confidence:
            return None
        span = "the last round" if self.rounds == 1 else f"the last {self.rounds} rounds"
        return (
            f"{span} brought less than {self.plateau:g} points of mIoU with probability "
            f"{probability:.2f} (active.stop.plateau)"
        )

    def _by_agreement(self, progress: Progress) -> str | None:
        latest = progress.agreements[-self.rounds :]
        if self.agreement is None or len(latest) < self.rounds or min(latest) < self.agreement:
            return None
        listed = ", ".join(f"{value:.4f}" for value in latest)
        return f"predictions on the pool settled, kappa {listed} between rounds (active.stop.agreement)"


class StopSet:
    """A fixed sample of the pool's pixels, and what the network says of them in the round under way.

    Args:
        sizes: (H, W) of the pool grid per image key.
        sample: pixels in all, shared out equally and rounded up; small images give all they have.
    """

    def __init__(self, sizes: Mapping[str, Size], sample: int) -> None:
        self.sizes = sizes
        self._per_image = math.ceil(sample / len(sizes))
        self._said: dict[str, NDArray[np.uint8]] = {}

    def positions(self, key: str) -> Tensor:
        """(n, 2) int64 pixels of one image, the same in every run."""
        return fixed_sample(0, "stop", key, self.sizes[key], self._per_image)

    def note(self, key: str, classes: Tensor) -> None:
        """Keep the predicted classes (n,) at the `positions` of one image of this process."""
        self._said[key] = classes.to(torch.uint8).cpu().numpy()

    def collect(self) -> Tensor | None:
        """What all processes noted since the last call: (n,) uint8, images in the order of the pool; None if nothing.
        Every process must call it.
        """
        everything = {key: said for part in gather(self._said) for key, said in part.items()}
        self._said = {}
        return torch.from_numpy(np.concatenate([everything[key] for key in self.sizes])) if everything else None


def cohens_kappa(one: Tensor, other: Tensor) -> float:
    """Agreement of two labellings (n,), integer classes from 0 on, beyond that by chance: 1 = equal, 0 = by chance.

    (p - e) / (1 - e), p = share of equal labels, e = the share expected if both drew from their class frequencies
    (Cohen 1960); 1 where both say one class throughout.
    """
    a, b = one.long(), other.long()
    classes = int(max(a.max(), b.max())) + 1
    confusion = torch.bincount(a * classes + b, minlength=classes**2).view(classes, classes).double() / len(a)
    chance = float(confusion.sum(0) @ confusion.sum(1))
    return 1.0 if chance == 1 else (float(confusion.trace()) - chance) / (1 - chance)


def stopped_note(stopped: Mapping[str, Any]) -> str:
    """One line for a person on how buying ended, from an acquisition's `stopped`."""
    then = "the run ends" if stopped["then"] == "end" else "training goes on with the labels there are"
    return f"buying ends after round {stopped['round']}, at step {stopped['step']}: {stopped['reason']}; {then}"
