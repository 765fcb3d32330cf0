"""Rare-class sampling: source scenes drawn for a class, the rarer the likelier.

DAFormer: Hoyer, Dai, Van Gool, "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive
Semantic Segmentation", CVPR 2022, "Rare Class Sampling". Differs from the release: thresholds are shares, so that any
image size works; what is drawn is a function of (seed, sample number), so that resumes and ranks agree; a class too
small in every scene is drawn from the scenes that show most of it, where the release raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adaptseg.classes import ClassTable
from adaptseg.data.sampling import generator
from adaptseg.data.statistics import ClassStatistics
from adaptseg.errors import AdaptSegError


@dataclass(frozen=True)
class RareClassSampling:
    """How a source scene is drawn for a class.

    Args:
        temperature: T of P(c) = softmax((1 - f_c) / T); the smaller, the more the rare classes are preferred.
        min_share: a scene may be drawn for a class that fills more than this share of its pixels. 0.0015 is the
            published 3000 pixels in GTA5's 1914x1052.
        min_crop_share: the crop is drawn anew until its class fills more than this share of it. 0.0057 is DAFormer's
            1500 pixels in 512x512; HRDA and MIC: 0.0057 as well (6000 in 1024x1024). Unused without a crop.
        attempts: how often the crop is drawn anew at most; the last one is kept. Released code: 10.

    Raises:
        AdaptSegError: an argument is outside what is allowed.
    """

    temperature: float = 0.01
    min_share: float = 0.0015
    min_crop_share: float = 0.0057
    attempts: int = 10

    def __post_init__(self) -> None:
        where = "data.rare_class_sampling"
        if not 0 < self.temperature < float("inf"):
            raise AdaptSegError(f"{where}.temperature is {self.temperature}; a positive number is expected")
        for name, share in (("min_share", self.min_share), ("min_crop_share", self.min_crop_share)):
            if not 0 <= share < 1:
                raise AdaptSegError(f"{where}.{name} is {share}; a share in [0, 1) is expected")
        if self.attempts < 0:
            raise AdaptSegError(f"{where}.attempts is {self.attempts}; 0 or more is allowed")


class RareDraw(NamedTuple):
    """A class and the scene that is to show it, by index."""

    class_id: int
    scene: int


@dataclass(frozen=True, eq=False)
class RareClasses:
    """What is drawn from one data set; small, since every worker gets a copy.

    Attributes:
        rule: the settings.
        probabilities: (C,) float64, P(c); 0 for absent classes.
        scenes: per class the ascending indices, int32, of the scenes it is drawn from; empty for absent classes.
        scarce: classes that no scene shows above `rule.min_share`. Each is drawn from the scenes that show it at least
            half as large as the scene that shows it largest does.
    """

    rule: RareClassSampling
    probabilities: npt.NDArray[np.float64]
    scenes: tuple[npt.NDArray[np.int32], ...]
    scarce: tuple[int, ...]

    @classmethod
    def prepare(cls, rule: RareClassSampling, statistics: ClassStatistics) -> RareClasses:
        """Turn statistics into what `draw` needs."""
        probabilities = class_probabilities(statistics.frequencies, rule.temperature)
        shares, totals = statistics.shares, statistics.totals
        shown = shares > rule.min_share
        scarce = ~shown.any(0) & (totals > 0)
        shown |= scarce & (shares >= shares.max(0) / 2)
        scenes = tuple(np.flatnonzero(column).astype(np.int32) for column in shown.T)
        return cls(rule, probabilities, scenes, tuple(int(c) for c in np.flatnonzero(scarce)))

    def draw(self, sample: int, *, seed: int) -> RareDraw:
        """The class and the scene of one sample number: P(c) over classes, then uniform over the scenes of c."""
        rng = generator(seed, "rare class", sample)
        cumulative = self.probabilities.cumsum()
        # A number below 1 times the last sum, not 1: rounding may leave that sum below 1, beyond which is no class.
        class_id = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        candidates = self.scenes[class_id]
        return RareDraw(class_id, int(candidates[rng.integers(len(candidates))]))

    def notes(self, class_table: ClassTable) -> list[str]:
        """What a user should know of the data: absent and scarce classes, by name."""
        absent = [class_table.names[c] for c, candidates in enumerate(self.scenes) if not len(candidates)]
        scarce = [class_table.names[c] for c in self.scarce]
        notes = []
        if absent:
            notes.append(f"rare-class sampling: no source scene shows {', '.join(absent)}; never drawn")
        if scarce:
            notes.append(
                f"rare-class sampling: no source scene shows more than {self.rule.min_share:.2%} of "
                f"{', '.join(scarce)}; drawn from the scenes that show most"
            )
        return notes


def class_probabilities(frequencies: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    """P(c) = softmax((1 - f_c) / T) over the classes that occur, 0 for the others.

    Args:
        frequencies: (C,) share of each class in the labelled pixels; 0 = absent.
        temperature: T > 0.

    Returns:
        (C,) float64, sum 1.

    Raises:
        AdaptSegError: no class occurs.
    """
    present = frequencies > 0
    if not present.any():
        raise AdaptSegError("data.source has no labelled pixel: rare-class sampling has nothing to draw")
    # Relative to the rarest class, whose term is then exp(0): the sum neither overflows nor vanishes.
    excess = np.maximum(frequencies - frequencies[present].min(), 0)
    weights = np.where(present, np.exp(-excess / temperature), 0.0)
    return weights / weights.sum()
