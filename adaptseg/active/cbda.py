"""Class Balanced Dynamic Acquisition (CBDA) and RIPU's region acquisition, which it extends.

CBDA: Schachtsiek, Rossi, Hannagan, "Class Balanced Dynamic Acquisition for Domain Adaptive Semantic Segmentation using
Active Learning", 2023. RIPU: Xie et al., CVPR 2022. Two switches span the paper's ablation: `selection` (per image =
RA, over the whole pool = DA) and `balance` (CB). What the texts leave open is an argument; its docstring says
"inferred".
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from adaptseg.active import balancing, scores
from adaptseg.active.oracles import Oracle
from adaptseg.active.regions import dilate, squares
from adaptseg.active.rounds import Acquisition, Snapshot, probabilities_of, tracked
from adaptseg.active.selection import GlobalSelector, select_regions
from adaptseg.active.stopping import Stopping
from adaptseg.console import say
from adaptseg.data.pair import pair_of
from adaptseg.errors import AdaptSegError
from adaptseg.networks import Inference
from adaptseg.tensors import likeliest

SCHEDULES = {
    # RIPU and CBDA, original: iterations 10k, 12k, 14k, 16k, 18k of 40k.
    "original": (0.25, 0.30, 0.35, 0.40, 0.45),
    # CBDA, spread (reported to be better): iterations 10k, 18k, 24k, 28k, 30k of 40k.
    "spread": (0.25, 0.45, 0.60, 0.70, 0.75),
    # RIPU without source data: before the first step, then at iterations 2k, 4k, 6k, 8k of 30k (data.tick: 2000).
    "source_free": (0.0, 1 / 15, 2 / 15, 3 / 15, 4 / 15),
}
SNAPSHOTS = 4
"""Pool images whose score maps are kept for pictures."""


class CBDA(Acquisition):
    """Buys pixels or regions of the pool in rounds.

    Args:
        budget: how much may be bought in all rounds together, in `budget_unit`.
        budget_unit: `fraction` of all pool pixels, in (0, 1]; `pixels` in total; `pixels_per_image` on average.
        schedule: `original`, `spread` (CBDA, section 4), `source_free` (RIPU), or a list of fractions of max_steps; 0 =
            before the first step.
        shares: share of the budget of each round, summing to 1; null = equal.
        score: what makes a pixel worth buying.
        first_round: `scored`, or `random` = by chance, whatever the score, since the network knows nothing (PixelPick).
        mode: of the score `ripu`: `region` (RA) or `pixel` (PA).
        radius: k of the score's window and, for regions, of the square that is bought (side 2k + 1); RA: 1, PA: 32.
        unit: buy the (2k + 1)-sided square round a pick, clipped at the border, or the picked pixel alone.
        suppress_radius: Chebyshev distance within which no second centre is picked, ever; null = 2k for regions, 0 for
            pixels (inferred for DA; RIPU-PA: 32).
        selection: `image` = the same number from every image (RA); `pool` = the best of the whole pool (DA).
        rounding: of the number of picks per image: `exact` never exceeds the budget and makes up for what borders and
            earlier rounds lost; `ceil` is RIPU's release, slightly above the budget, for parity. `pool` is always
            exact.
        balance: multiply scores with class weights from the labels bought so far (CB).
        class_target: ideal class budget: `total` = B / C, `cumulative` = i B / (I C) (inferred).
        epsilon: least class weight, in (0, 1] (inferred: 0.01).
        weight_by: class of a candidate: the predicted class of the `pixel`, or the mix within its `region` (inferred).
        max_share_per_image: most of an image's pixels that may ever be bought, in (0, 1].
        forbid_void: never buy pixels that the oracle knows to be void. Simulation only, an advantage over real life.
        inference: how the network reads the pool; null = as in `model.inference`. RIPU's release averages mirror images
            when it judges, not when it scores, and there up-samples in two steps: {align_corners: true, stepwise:
            true}.
        oracle: who answers; default: ground truth.
        scratch: folder for score maps; default: the run directory.
        stop: rules that end buying before the schedule does; null = none.
        seed: filled in from `seed_everything`.
    """

    def __init__(
        self,
        *,
        budget: float = 0.05,
        budget_unit: Literal["fraction", "pixels", "pixels_per_image"] = "fraction",
        schedule: Literal["original", "spread", "source_free"] | list[float] = "spread",
        shares: list[float] | None = None,
        score: Literal["random", "entropy", "margin", "least_confidence", "ripu"] = "ripu",
        first_round: Literal["scored", "random"] = "scored",
        mode: Literal["region", "pixel"] = "region",
        radius: int = 1,
        unit: Literal["region", "pixel"] = "region",
        suppress_radius: int | None = None,
        selection: Literal["image", "pool"] = "pool",
        rounding: Literal["exact", "ceil"] = "exact",
        balance: bool = True,
        class_target: Literal["total", "cumulative"] = "total",
        epsilon: float = 0.01,
        weight_by: Literal["pixel", "region"] = "pixel",
        max_share_per_image: float = 1.0,
        forbid_void: bool = False,
        inference: Inference | None = None,
        oracle: Oracle | None = None,
        scratch: str | None = None,
        stop: Stopping | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(oracle=oracle, scratch=scratch, stop=stop, seed=seed)
        self.budget, self.budget_unit = budget, budget_unit
        self.schedule = list(SCHEDULES[schedule]) if isinstance(schedule, str) else schedule
        self.shares = [1 / len(self.schedule) for _ in self.schedule] if shares is None else shares
        self.score, self.first_round, self.radius = score, first_round, radius
        self.mode: Literal["region", "pixel"] = mode
        self.unit, self.selection, self.rounding = unit, selection, rounding
        self.side = 2 * radius + 1 if unit == "region" else 1
        self.suppress_radius = self.side - 1 if suppress_radius is None else suppress_radius
        self.balance, self.epsilon = balance, epsilon
        self.class_target: Literal["total", "cumulative"] = class_target
        self.weight_by, self.max_share_per_image, self.forbid_void = weight_by, max_share_per_image, forbid_void
        self.inference = inference
        self._check()

    def _check(self) -> None:
        limit = 1.0 if self.budget_unit == "fraction" else math.inf
        problems = {
            f"active.budget is {self.budget}; a {self.budget_unit} in (0, {limit:g}] is expected": (
                not 0 < self.budget <= limit or math.isinf(self.budget)
            ),
            f"active.schedule is {self.schedule}; ascending fractions of max_steps in [0, 1) are expected": (
                not self.schedule
                or self.schedule != sorted(self.schedule)
                or not all(0 <= fraction < 1 for fraction in self.schedule)
            ),
            f"active.shares is {self.shares}; {len(self.schedule)} positive shares that sum to 1 are expected": (
                len(self.shares) != len(self.schedule)
                or min(self.shares, default=0) <= 0
                or not math.isclose(sum(self.shares), 1, abs_tol=1e-6)
            ),
            f"active.radius is {self.radius}; 0 or more pixels are expected": self.radius < 0,
            f"active.suppress_radius is {self.suppress_radius}; regions of side {self.side} overlap below "
            f"{self.side - 1}, and no pixel is bought twice": self.suppress_radius < self.side - 1,
            f"active.epsilon is {self.epsilon}; a weight in (0, 1] is expected": not 0 < self.epsilon <= 1,
            f"active.max_share_per_image is {self.max_share_per_image}; a share in (0, 1] is expected": (
                not 0 < self.max_share_per_image <= 1
            ),
            "active.first_round is random, but active.score is random in every round already": (
                self.first_round == self.score
            ),
            "active.rounding is ceil, which belongs to active.selection: image": (
                self.rounding == "ceil" and self.selection == "pool"
            ),
        }
        for message, is_wrong in problems.items():
            if is_wrong:
                raise AdaptSegError(message)

    def settings(self) -> dict[str, Any]:
        names = (
            "budget budget_unit schedule shares score first_round mode radius unit suppress_radius selection rounding "
            "balance class_target epsilon weight_by max_share_per_image forbid_void"
        )
        read = None if self.inference is None else dataclasses.asdict(self.inference)
        return {**{name: getattr(self, name) for name in names.split()}, "inference": read}

    # ---- when and how much

    @property
    def rounds(self) -> int:
        return len(self.schedule)

    def round_steps(self, max_steps: int, tick: int) -> list[int]:
        """Fractions of max_steps, rounded up to whole ticks."""
        # The tolerance keeps 0.35 * 2000 = 700.0000000000001 from spilling into the next tick.
        return [math.ceil(fraction * max_steps / tick - 1e-9) * tick for fraction in self.schedule]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero:
            for fraction, step in zip(self.schedule, self.fire_at, strict=True):
                if step - fraction * trainer.max_steps > 1e-6 * trainer.max_steps:
                    say(
                        f"active.schedule: {fraction:g} of {trainer.max_steps:,} steps falls inside a tick; that round "
                        f"fires after step {step:,}, at the tick's end (data.tick says how long ticks are)"
                    )

    def total_budget(self, pixels: int, images: int) -> int:
        """Pixels that may be bought in all rounds from `images` images of `pixels` pixels together."""
        if self.budget_unit == "fraction":
            return round(self.budget * pixels)
        return round(self.budget * (images if self.budget_unit == "pixels_per_image" else 1))

    def check_budget(self, sizes: dict[str, tuple[int, int]]) -> None:
        pixels = sum(math.prod(size) for size in sizes.values())
        total = self.total_budget(pixels, len(sizes))
        if total > pixels:
            raise AdaptSegError(f"active.budget asks for {total} pixels; the pool has {pixels}")
        images = len(sizes) if self.selection == "image" else 1
        if self.rounding == "exact" and total / images * min(self.shares) < self.side**2:
            raise AdaptSegError(
                f"active.budget {self.budget} ({self.budget_unit}) leaves less than one {self.unit} of "
                f"{self.side**2} px per round{' and image' if images > 1 else ''}: raise it, use fewer rounds, or "
                "active.unit: pixel"
            )

    def planned(self, sizes: dict[str, tuple[int, int]], round: int) -> int:
        total = self.total_budget(sum(math.prod(size) for size in sizes.values()), len(sizes))
        return math.floor(total * math.fsum(self.shares[:round]) + 1e-6)

    def scratch_bytes(self, sizes: dict[str, tuple[int, int]]) -> int:
        pixels = sum(math.prod(size) for size in sizes.values())
        bits = pixels // 8 + 129 * len(sizes)  # the query itself: packed, with a header and a last byte per image
        if self.selection == "image":
            return bits
        spacing = self.suppress_radius + 1  # of an independent set: at most one candidate in such a square
        candidates = sum(math.ceil(h / spacing) * math.ceil(w / spacing) for h, w in sizes.values())
        dense = self.suppress_radius == 0 and self.max_share_per_image == 1
        # The selector sets aside pixels whose score shares 16 bits with the threshold, with their positions. A fortieth
        # is more than continuous scores bring; should ties bring more than the disk has, the spool says so.
        kept, aside = (4 * pixels, 8 * pixels // 40) if dense else (8 * candidates, 8 * candidates // 40)
        return bits + kept + aside

    # ---- one round

    def query(self, trainer: Trainer, module: LightningModule, folder: Path) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        pick = self._picks_over_pool if self.selection == "pool" else self._picks_per_image
        for key, yx in pick(trainer, module, folder):
            size = self.store.sizes[key]
            yield key, squares(size, yx, self.side // 2) & ~self._closed(key)

    def _picks_per_image(self, trainer: Trainer, module: LightningModule, folder: Path) -> Iterator[tuple[str, Tensor]]:
        pixels, images = self._pool_totals()
        for key, score in self._scored(trainer, module):
            size = self.store.sizes[key]
            budget = self.total_budget(pixels, images) * math.prod(size) / pixels
            yield key, self._best_of_image(key, score, self._count_per_image(key, budget))

    def _count_per_image(self, key: str, budget: float) -> int:
        if self.rounding == "ceil":
            return math.ceil(budget * self.shares[self.round] / self.side**2)
        # Rounded down: an image's budget is no whole number, and half a pixel up in each would exceed the total.
        due = math.floor(budget * math.fsum(self.shares[: self.round + 1]) + 1e-6)
        return max(0, due - self.store.spent_on(key, self.round)) // self.side**2

    def _picks_over_pool(self, trainer: Trainer, module: LightningModule, folder: Path) -> Iterator[tuple[str, Tensor]]:
        pixels, images = self._pool_totals()
        spent = self.store.spent(self.round)
        wanted = balancing.round_budget(self.total_budget(pixels, images), self.round + 1, self.shares, spent)
        count = wanted // self.side**2
        with GlobalSelector(count, scratch=folder, seed=self.seed + self.round) as selector:
            for key, score in self._scored(trainer, module):
                if self.suppress_radius == 0 and self.max_share_per_image == 1:
                    selector.add(key, score, torch.from_numpy(self._forbidden(key)))
                else:
                    yx = self._best_of_image(key, score, count)
                    selector.add_points(key, yx, score[yx[:, 0], yx[:, 1]], self.store.sizes[key])
            yield from selector.finish()
            if selector.shortfall and trainer.is_global_zero:
                warnings.warn(
                    f"round {self.round + 1}: the pool has {selector.shortfall} {self.unit}s less than the budget asks",
                    stacklevel=2,
                )

    def _best_of_image(self, key: str, score: Tensor, count: int) -> Tensor:
        """Up to `count` centres of one image, best first, within the image's own cap."""
        cap = int(self.max_share_per_image * score.numel()) - self.store.spent_on(key, self.round)
        count = min(count, max(cap, 0) // self.side**2)
        forbidden = torch.from_numpy(self._forbidden(key))
        return select_regions(score, count, suppress_radius=self.suppress_radius, forbidden=forbidden)

    def _forbidden(self, key: str) -> NDArray[np.bool_]:
        """Pixels that may not become a centre: around earlier centres, and void ones if so asked.

        Earlier centres are not stored: squares of radius k, dilated by r - k, are the squares of radius r round them.
        """
        bought = self.store.bought(key, self.round)
        forbidden = dilate(bought, self.suppress_radius - self.side // 2) if bought.any() else bought
        return forbidden | self._void(key) if self.forbid_void else forbidden

    def _closed(self, key: str) -> NDArray[np.bool_]:
        """Pixels that are not bought even inside a picked square."""
        bought = self.store.bought(key, self.round)
        return bought | self._void(key) if self.forbid_void else bought

    def _void(self, key: str) -> NDArray[np.bool_]:
        return self.oracle.void(key, self.store.sizes[key])

    def _pool_totals(self) -> tuple[int, int]:
        return sum(math.prod(size) for size in self.store.sizes.values()), len(self.store.sizes)

    # ---- scores

    def _scored(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Tensor]]:
        """(key, weighted score (H, W) float32 on the CPU) of this rank's share of the pool."""
        data = pair_of(trainer)
        weights = self._class_weights(data.num_classes)
        loader = data.pool_loader(trainer.global_rank, trainer.world_size)
        watched = set(data.pool.keys[:: max(1, len(data.pool.keys) // SNAPSHOTS)][:SNAPSHOTS])
        self.snapshots = {}
        for batch in tracked(trainer, loader, f"round {self.round + 1}: scoring the pool"):
            key = batch.keys[0]
            probabilities = probabilities_of(module, batch.image, self.store.sizes[key], self.inference)
            predicted = likeliest(probabilities, 0)
            if self.stop_set is not None:
                self.stop_set.note(key, predicted[tuple(self.stop_set.positions(key).T)])
            score = self._weighted(self._score(key, probabilities), predicted, weights).cpu()
            if key in watched:
                self.snapshots[key] = Snapshot(predicted.cpu().numpy(), score.numpy())
            yield key, score

    def _class_weights(self, num_classes: int) -> Tensor | None:
        if not self.balance:
            return None
        pixels, images = self._pool_totals()
        target = balancing.class_budget(
            self.total_budget(pixels, images),
            num_classes,
            target=self.class_target,
            round=self.round + 1,
            rounds=self.rounds,
        )
        counts = torch.from_numpy(self.store.class_counts(self.round))
        return balancing.class_balance_weights(counts, target, self.epsilon)

    def _score(self, key: str, probabilities: Tensor) -> Tensor:
        match "random" if self.round == 0 and self.first_round == "random" else self.score:
            case "random":
                size = (probabilities.shape[-2], probabilities.shape[-1])
                return scores.random_score(size, seed=self.seed, round=self.round, key=key)
            case "entropy":
                return scores.entropy(probabilities)
            case "margin":
                # Shifted into [0, 1], so that class weights rank it as they rank every other score (margin is <= 0).
                return scores.margin(probabilities) + 1
            case "least_confidence":
                return scores.least_confidence(probabilities)
            case _:
                return scores.ripu(probabilities, self.radius, mode=self.mode)

    def _weighted(self, score: Tensor, predicted: Tensor, weights: Tensor | None) -> Tensor:
        score = score.to(predicted.device)
        if weights is None:
            return score
        weights = weights.to(score)
        if self.weight_by == "pixel":
            return balancing.balance_scores(score, weights, predicted)
        return balancing.balance_scores_by_region(score, weights, predicted, self.radius)
