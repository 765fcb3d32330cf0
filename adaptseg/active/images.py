"""Acquisition of whole images, the classical baseline: the unit that labelling tools and most papers know."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from adaptseg.active.costs import LabelCost, Work
from adaptseg.active.dense import ClassTarget, DenseAcquisition, DensePredictor, Schedule
from adaptseg.active.herding import k_center
from adaptseg.active.oracles import Oracle
from adaptseg.active.ranks import salt_of
from adaptseg.active.rounds import tracked
from adaptseg.active.stopping import Stopping
from adaptseg.data.pair import pair_of
from adaptseg.distributed import gather
from adaptseg.errors import AdaptSegError
from adaptseg.networks import Inference
from adaptseg.tensors import likeliest


class WholeImages(DenseAcquisition):
    """Buys whole images of the pool in rounds: those of the largest mean score, or those that represent it best.

    An image that does not fit into what is left of a round's budget ends the round; the rest goes to the next one.

    Args:
        budget: how much may be bought in all rounds together, in `budget_unit`.
        budget_unit: `fraction` of all pool pixels, in (0, 1]; `pixels` or `images` in total; `hours` of a person's time
            by `cost`.
        schedule: `original`, `spread` (CBDA, section 4), `source_free` (RIPU), or a list of fractions of max_steps; 0 =
            before the first step.
        shares: share of the budget of each round, summing to 1; null = equal.
        score: its mean over an image's pixels ranks the images; `random` = any image as soon as any other; `core_set`
            picks by k-centre instead (Sener and Savarese, ICLR 2018): always the image whose encoder features, averaged
            over the coarsest map, lie farthest from those of all images chosen or labelled. `bald` and
            `balanced_entropy` (its mean over the pixels that have one: inferred) need a network with dropout.
        draws: passes with dropout of `bald` and `balanced_entropy`.
        mode: of the score `ripu`: `region` or `pixel`.
        radius: of the window of the score `ripu`.
        balance: weight each pixel's score, before the mean, with CBDA's class weight of its predicted class.
        class_target: ideal class budget: `total` = B / C, `cumulative` = i B / (I C) (inferred).
        epsilon: least class weight, in (0, 1].
        inference: how the network reads the pool; null = as in `model.inference`.
        cost: what a label costs a person.
        oracle: who answers; default: ground truth.
        scratch: folder for the query of a round; default: the run directory.
        stop: rules that end buying before the schedule does; null = none.
        seed: filled in from `seed_everything`.
    """

    def __init__(
        self,
        *,
        budget: float = 0.05,
        budget_unit: Literal["fraction", "pixels", "images", "hours"] = "fraction",
        schedule: Schedule = "spread",
        shares: list[float] | None = None,
        score: Literal[
            "random", "entropy", "margin", "least_confidence", "ripu", "bald", "balanced_entropy", "core_set"
        ] = "entropy",
        draws: int = 10,
        mode: Literal["region", "pixel"] = "region",
        radius: int = 1,
        balance: bool = False,
        class_target: ClassTarget = "total",
        epsilon: float = 0.01,
        inference: Inference | None = None,
        cost: LabelCost = LabelCost(),
        oracle: Oracle | None = None,
        scratch: str | None = None,
        stop: Stopping | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            budget=budget,
            budget_unit=budget_unit,
            schedule=schedule,
            shares=shares,
            score=score,
            mode=mode,
            radius=radius,
            draws=draws,
            balance=balance,
            class_target=class_target,
            epsilon=epsilon,
            inference=inference,
            cost=cost,
            oracle=oracle,
            scratch=scratch,
            stop=stop,
            seed=seed,
        )
        self.require_sound()

    def problems(self) -> dict[str, bool]:
        return {
            **super().problems(),
            "active.balance weights scores, but active.score core_set has none": (
                self.balance and self.score == "core_set"
            ),
        }

    def settings(self) -> dict[str, Any]:
        names = "budget budget_unit schedule shares score draws mode radius balance class_target epsilon"
        return {name: getattr(self, name) for name in names.split()} | super().settings()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.score == "core_set":
            network = cast(DensePredictor, pl_module).evaluated
            if not network.shows_features:
                raise AdaptSegError(
                    f"active.score core_set compares encoder features, and {type(network).__name__} shows none; "
                    "choose another score or network"
                )

    # ---- how much

    @property
    def counts_images(self) -> bool:
        """Whether the budget is a number of images; else one of pixels."""
        return self.budget_unit in ("images", "hours")

    def _total(self, pixels: int) -> int:
        """The whole budget, in images or pixels."""
        match self.budget_unit:
            case "fraction":
                return round(self.budget * pixels)
            case "hours":
                return math.floor(self.budget * 3600 / self.cost.image_seconds)
            case _:
                return round(self.budget)

    def total_budget(self, pixels: int, images: int) -> int:
        """Pixels that may be bought in all rounds from `images` images of `pixels` pixels together; a budget of images
        counts their mean size.
        """
        return round(self._total(pixels) * (pixels / images if self.counts_images else 1))

    def _units(self, sizes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """What each image takes of the budget."""
        return {key: 1 if self.counts_images else math.prod(size) for key, size in sizes.items()}

    def check_budget(self, sizes: dict[str, tuple[int, int]]) -> None:
        pixels, units = sum(math.prod(size) for size in sizes.values()), self._units(sizes)
        total, unit = self._total(pixels), "images" if self.counts_images else "pixels"
        if total > sum(units.values()):
            raise AdaptSegError(f"active.budget asks for {total} {unit}; the pool has {sum(units.values())}")
        if total * min(self.shares) < max(units.values()) - 1e-6:
            raise AdaptSegError(
                f"active.budget {self.budget} ({self.budget_unit}) leaves less than one image of "
                f"{max(units.values())} {unit} per round: raise it, or use fewer rounds"
            )

    def scratch_bytes(self, sizes: dict[str, tuple[int, int]]) -> int:
        return sum(math.prod(size) // 8 + 129 for size in sizes.values())

    # ---- one round

    def query(self, trainer: Trainer, module: LightningModule, folder: Path) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        view = self.store.view(self.round)
        labelled = [key for key in self.store.sizes if view.has(key)]
        units = self._units(self.store.sizes)
        due = round(self._total(self.pool_totals()[0]) * math.fsum(self.shares[: self.round + 1]))
        left = due - sum(units[key] for key in labelled)
        order = self._farthest_first if self.score == "core_set" else self._best_first
        most = max(0, left // min(units.values()))
        chosen = fitting(order(trainer, module, labelled, most), units, left)
        if not chosen and trainer.is_global_zero:
            warnings.warn(f"round {self.round + 1}: no image is left that fits the budget", stacklevel=2)
        for key in chosen:
            if key in self._mine(trainer):
                yield key, np.ones(self.store.sizes[key], bool)

    def work(self, key: str, wanted: NDArray[np.bool_]) -> Work:
        return Work(images=1)

    def _mine(self, trainer: Trainer) -> set[str]:
        return set(pair_of(trainer).pool.keys[trainer.global_rank :: trainer.world_size])

    def _best_first(
        self, trainer: Trainer, module: LightningModule, labelled: Sequence[str], most: int
    ) -> Sequence[str]:
        """Open images by mean score; equal ones by a hash, so that no file name is favoured."""
        mine = [(key, mean_of_scored(score.numpy())) for key, score in self.scored(trainer, module)]
        means = {key: mean for shard in gather(mine) for key, mean in shard if key not in set(labelled)}
        if broken := [key for key, mean in means.items() if math.isnan(mean)]:
            raise AdaptSegError(f"active.score {self.score} is NaN in image '{min(broken)}'")
        seed = self.seed + self.round
        return sorted(means, key=lambda key: (-means[key], salt_of(seed, key)))[:most]

    def _score(self, method: DensePredictor, key: str, image: Tensor, probabilities: Tensor) -> Tensor:
        if self.score == "random":  # one number for the image: the mean of many would favour small images
            return self.noise(key)[:1, :1].expand(self.store.sizes[key])
        return super()._score(method, key, image, probabilities)

    def _farthest_first(
        self, trainer: Trainer, module: LightningModule, labelled: Sequence[str], most: int
    ) -> Sequence[str]:
        """Open images by k-centre, from those that are labelled on; without any from the one nearest to the mean."""
        data, method = pair_of(trainer), cast(DensePredictor, module)
        mine: list[tuple[str, NDArray[np.float32]]] = []
        self.snapshots = {}
        loader = data.pool_loader(trainer.global_rank, trainer.world_size)
        for batch in tracked(trainer, loader, f"round {self.round + 1}: reading the pool"):
            if self.stop_set is not None:
                self.note_prediction(
                    batch.keys[0], likeliest(self.probabilities(method, batch.keys[0], batch.image), 0)
                )
            coarsest = method.evaluated.encoded(batch.image.to(method.device))[-1]
            mine.append((batch.keys[0], coarsest.float().mean((-2, -1))[0].cpu().numpy()))
        features = {key: torch.from_numpy(feature) for shard in gather(mine) for key, feature in shard}
        known = set(labelled)
        candidates = [key for key in self.store.sizes if key not in known]
        if not candidates:
            return []
        conditioned_on = torch.stack([features[key] for key in labelled]) if labelled else None
        pool = torch.stack([features[key] for key in candidates])
        chosen, _ = k_center(pool, min(most, len(candidates)), conditioned_on=conditioned_on)
        return [candidates[i] for i in chosen.tolist()]


def mean_of_scored(score: NDArray[np.float32]) -> float:
    """Mean in float64 of the pixels (H, W) that have a score; minus infinity, which says that a pixel has none (such as
    `balanced_entropy` of draws near one-hot), if that is all there is. NaN stays NaN."""
    scored = score[score != -np.inf]
    return float(scored.mean(dtype=np.float64)) if scored.size else -math.inf


def fitting(order: Sequence[str], units: Mapping[str, int], left: int) -> list[str]:
    """The first images of `order` that fit into `left` together, up to the first that does not."""
    chosen: list[str] = []
    for key in order:
        if units[key] > left:
            break
        left -= units[key]
        chosen.append(key)
    return chosen
