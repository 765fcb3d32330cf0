"""Which source scenes and crops a run draws, and the counts of the source's classes that this needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adaptseg.data.class_balance import BalancedScenes, ClassBalancedSampling
from adaptseg.data.rare_classes import RareClasses, RareClassSampling
from adaptseg.data.scenes import Scenes
from adaptseg.data.statistics import ClassStatistics, class_statistics, read_statistics
from adaptseg.errors import AdaptSegError


@dataclass
class SourceDrawing:
    """How a domain pair draws from its source. Arguments as of `DomainPair`; counts are made on first use.

    Raises:
        AdaptSegError: a rule without a source or without crops, a share out of range, or two rules for one draw.
    """

    source: Scenes | None
    crop: tuple[int, int] | None
    rare_class_sampling: RareClassSampling | None
    class_balanced_sampling: ClassBalancedSampling | None
    max_class_share: float | None
    cache: str
    statistics_file: str | None
    seed: int
    _statistics: ClassStatistics | None = field(default=None, init=False)
    _rare_classes: RareClasses | None = field(default=None, init=False)
    _balanced: BalancedScenes | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        share = self.max_class_share
        if share is not None:
            if not 0 < share <= 1:
                raise AdaptSegError(f"data.max_class_share is {share}; a share in (0, 1] is expected")
            if self.crop is None:
                raise AdaptSegError("data.max_class_share is about crops; set data.crop, or max_class_share: null")
        names = "max_class_share", "rare_class_sampling", "class_balanced_sampling"
        for name in names:
            if getattr(self, name) is not None and self.source is None:
                raise AdaptSegError(f"data.{name} is about the source; give data.source, or {name}: null")
        if self.rare_class_sampling is not None and self.class_balanced_sampling is not None:
            raise AdaptSegError(f"data.{names[1]} and data.{names[2]} both draw the source's scenes; set one to null")

    def statistics(self) -> ClassStatistics:
        """Class statistics of the source, counted on first use. Under DDP every process must call it.

        Raises:
            AdaptSegError: there is no source, its labels cannot be counted, or the file given is not about it.
        """
        if self.source is None:
            raise AdaptSegError("data.source is missing: class statistics are counted on its labels")
        if self._statistics is None:
            if self.statistics_file is not None:
                self._statistics = read_statistics(Path(self.statistics_file), self.source)
            else:
                self._statistics = class_statistics(self.source, Path(self.cache))
        return self._statistics

    def rare_classes(self) -> RareClasses | None:
        """What rare-class sampling draws from; None without it."""
        if self._rare_classes is None and self.rare_class_sampling is not None:
            self._rare_classes = RareClasses.prepare(self.rare_class_sampling, self.statistics())
        return self._rare_classes

    def balanced_scenes(self) -> BalancedScenes | None:
        """What class-balanced sampling draws; None without it."""
        if self._balanced is None and self.class_balanced_sampling is not None:
            self._balanced = BalancedScenes(self.class_balanced_sampling, self.statistics(), seed=self.seed)
        return self._balanced
