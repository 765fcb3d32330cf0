"""Class Balanced Dynamic Acquisition (CBDA) and RIPU's region acquisition, which it extends.

CBDA: Schachtsiek, Rossi, Hannagan, "Class Balanced Dynamic Acquisition for Domain Adaptive Semantic Segmentation using
Active Learning", 2023. RIPU: Xie et al., CVPR 2022. Two switches span the paper's ablation: `selection` (per image =
RA, over the whole pool = DA) and `balance` (CB). What the texts leave open is an argument; its docstring says
"inferred".
"""

from __future__ import annotations

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

from adaptseg.active import balancing
from adaptseg.active.costs import LabelCost, Work, work_of_regions
from adaptseg.active.dense import MAYBE_NEGATIVE, ClassTarget, DenseAcquisition, DensePredictor, Schedule
from adaptseg.active.oracles import Oracle
from adaptseg.active.ranks import salt_of
from adaptseg.active.regions import dilate, squares
from adaptseg.active.selection import GlobalSelector, noise_within_best, select_regions
from adaptseg.active.stopping import Stopping
from adaptseg.errors import AdaptSegError
from adaptseg.networks import Inference


class CBDA(DenseAcquisition):
    """Buys pixels or regions of the pool in rounds.

    Args:
        budget: how much may be bought in all rounds together, in `budget_unit`.
        budget_unit: `fraction` of all pool pixels, in (0, 1]; `pixels` in total; `pixels_per_image` on average; `hours`
            of a person's time by `cost` (single pixels only: how long a region takes is known once it is labelled).
        schedule: `original`, `spread` (CBDA, section 4), `source_free` (RIPU), or a list of fractions of max_steps; 0 =
            before the first step.
        shares: share of the budget of each round, summing to 1; null = equal.
        score: what makes a pixel worth buying. `bald` (mutual information), `power_bald` (a draw without replacement in
            proportion to it, by Gumbel noise) and `balanced_entropy` (BalEntAcq, ICLR 2023; on pixels: Didari et al.,
            2024) need a network with dropout.
        first_round: `scored`, or `random` = by chance, whatever the score, since the network knows nothing (PixelPick).
        draws: passes with dropout of `bald`, `power_bald` and `balanced_entropy`.
        mode: of the score `ripu`: `region` (RA) or `pixel` (PA).
        radius: k of the score's window and, for regions, of the square that is bought (side 2k + 1); RA: 1, PA: 32.
        unit: buy the (2k + 1)-sided square round a pick, clipped at the border, or the picked pixel alone.
        suppress_radius: Chebyshev distance within which no second centre is picked, ever; null = 2k for regions, 0 for
            pixels (inferred for DA; RIPU-PA: 32).
        selection: `image` = the same number from every image (RA); `pool` = the best of the whole pool (DA).
        rounding: of the number of picks per image: `exact` never exceeds the budget and makes up for what borders and
            earlier rounds lost; `ceil` is RIPU's release, slightly above the budget, for parity. `pool` is always
            exact.
        random_within: pick at random among this share of each image's pixels, its best by score (PixelPick, ICCVW 2021:
            0.05): the same number in every image, or, with `selection: pool`, by one draw over all of them (inferred:
            for budgets below a pixel an image). null = the best themselves.
        per_cost: divide each region's score by what labelling it would cost by `cost` if the predicted classes were its
            labels: gain per second instead of gain per pixel (inferred).
        balance: multiply scores with class weights from the labels bought so far (CB).
        class_target: ideal class budget: `total` = B / C, `cumulative` = i B / (I C) (inferred).
        epsilon: least class weight, in (0, 1] (inferred: 0.01).
        weight_by: class of a candidate: the predicted class of the `pixel`, or the mix within its `region` (inferred).
        max_share_per_image: most of an image's pixels that may ever be bought, in (0, 1].
        forbid_void: never buy pixels that the oracle knows to be void. Simulation only, an advantage over real life.
        inference: how the network reads the pool; null = as in `model.inference`. RIPU's release averages mirror images
            when it judges, not when it scores, and there up-samples in two steps: {align_corners: true, stepwise:
            true}.
        cost: what a label costs a person.
        oracle: who answers; default: ground truth.
        scratch: folder for score maps; default: the run directory.
        stop: rules that end buying before the schedule does; null = none.
        seed: filled in from `seed_everything`.
    """

    def __init__(
        self,
        *,
        budget: float = 0.05,
        budget_unit: Literal["fraction", "pixels", "pixels_per_image", "hours"] = "fraction",
        schedule: Schedule = "spread",
        shares: list[float] | None = None,
        score: Literal[
            "random", "entropy", "margin", "least_confidence", "ripu", "bald", "power_bald", "balanced_entropy"
        ] = "ripu",
        first_round: Literal["scored", "random"] = "scored",
        draws: int = 10,
        mode: Literal["region", "pixel"] = "region",
        radius: int = 1,
        unit: Literal["region", "pixel"] = "region",
        suppress_radius: int | None = None,
        selection: Literal["image", "pool"] = "pool",
        rounding: Literal["exact", "ceil"] = "exact",
        random_within: float | None = None,
        per_cost: bool = False,
        balance: bool = True,
        class_target: ClassTarget = "total",
        epsilon: float = 0.01,
        weight_by: Literal["pixel", "region"] = "pixel",
        max_share_per_image: float = 1.0,
        forbid_void: bool = False,
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
        self.first_round = first_round
        self.unit, self.selection, self.rounding = unit, selection, rounding
        self.side = 2 * radius + 1 if unit == "region" else 1
        self.suppress_radius = self.side - 1 if suppress_radius is None else suppress_radius
        self.random_within, self.per_cost = random_within, per_cost
        self.weight_by, self.max_share_per_image, self.forbid_void = weight_by, max_share_per_image, forbid_void
        self.require_sound()

    def problems(self) -> dict[str, bool]:
        within = self.random_within
        return {
            **super().problems(),
            f"active.suppress_radius is {self.suppress_radius}; regions of side {self.side} overlap below "
            f"{self.side - 1}, and no pixel is bought twice": self.suppress_radius < self.side - 1,
            f"active.max_share_per_image is {self.max_share_per_image}; a share in (0, 1] is expected": (
                not 0 < self.max_share_per_image <= 1
            ),
            "active.first_round is random, but active.score is random in every round already": (
                self.first_round == self.score
            ),
            "active.rounding is ceil, which belongs to active.selection: image": (
                self.rounding == "ceil" and self.selection == "pool"
            ),
            f"active.random_within is {within}; null or a share in (0, 1] is expected": (
                within is not None and not 0 < within <= 1
            ),
            "active.random_within picks at random among the best by score, but active.score is random already": (
                within is not None and self.score == "random"
            ),
            "active.budget_unit is hours, but what a region takes is known only once it is labelled; give another unit "
            "or active.unit: pixel": self.budget_unit == "hours" and self.unit == "region",
            "active.per_cost divides by what a region costs, but single pixels all cost the same; give active.unit: "
            "region": self.per_cost and self.unit == "pixel",
            f"active.per_cost divides scores of 0 or more; {self.score} has negative ones": (
                self.per_cost and self.score in MAYBE_NEGATIVE
            ),
        }

    def settings(self) -> dict[str, Any]:
        names = (
            "budget budget_unit schedule shares score first_round draws mode radius unit suppress_radius selection "
            "rounding random_within per_cost balance class_target epsilon weight_by max_share_per_image forbid_void"
        )
        return {name: getattr(self, name) for name in names.split()} | super().settings()

    # ---- how much

    def total_budget(self, pixels: int, images: int) -> int:
        """Pixels that may be bought in all rounds from `images` images of `pixels` pixels together."""
        match self.budget_unit:
            case "fraction":
                return round(self.budget * pixels)
            case "hours":
                return math.floor(self.budget * 3600 / self.cost.click_seconds)
            case unit:
                return round(self.budget * (images if unit == "pixels_per_image" else 1))

    def check_budget(self, sizes: dict[str, tuple[int, int]]) -> None:
        pixels = sum(math.prod(size) for size in sizes.values())
        total = self.total_budget(pixels, len(sizes))
        if total > pixels:
            raise AdaptSegError(f"active.budget asks for {total} pixels; the pool has {pixels}")
        if self.random_within is not None:
            # Each pick blocks a square, so only this many of the best are sure to hold all picks of a round.
            needed = total / pixels * max(self.shares) * (2 * self.suppress_radius + 1) ** 2 / self.side**2
            if needed > self.random_within:
                raise AdaptSegError(
                    f"active.random_within is {self.random_within:g} of an image, but a round may need {needed:.3g} of "
                    "it: raise it, buy less in a round, or lower active.suppress_radius"
                )
        images = len(sizes) if self.selection == "image" else 1
        if self.rounding == "exact" and total / images * min(self.shares) < self.side**2:
            raise AdaptSegError(
                f"active.budget {self.budget} ({self.budget_unit}) leaves less than one {self.unit} of "
                f"{self.side**2} px per round{' and image' if images > 1 else ''}: raise it, use fewer rounds, or "
                "active.unit: pixel"
            )

    def scratch_bytes(self, sizes: dict[str, tuple[int, int]]) -> int:
        pixels = sum(math.prod(size) for size in sizes.values())
        bits = pixels // 8 + 129 * len(sizes)  # the query itself: packed, with a header and a last byte per image
        if self.unit == "region":  # its centres; a region in a corner is the smallest
            bits += 8 * self.total_budget(pixels, len(sizes)) // (self.radius + 1) ** 2 + 128 * len(sizes)
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
        self._centres: dict[str, Path] = {}
        for key, yx in pick(trainer, module, folder):
            size = self.store.sizes[key]
            if self.unit == "region":
                self._note_centres(folder, key, yx)
            yield key, squares(size, yx, self.side // 2) & ~self._closed(key)

    def _picks_per_image(self, trainer: Trainer, module: LightningModule, folder: Path) -> Iterator[tuple[str, Tensor]]:
        pixels, images = self.pool_totals()
        for key, score, forbidden in self._ranked(trainer, module):
            budget = self.total_budget(pixels, images) * score.numel() / pixels
            yield key, self._best_of_image(key, score, forbidden, self._count_per_image(key, budget))

    def _count_per_image(self, key: str, budget: float) -> int:
        if self.rounding == "ceil":
            return math.ceil(budget * self.shares[self.round] / self.side**2)
        # Rounded down: an image's budget is no whole number, and half a pixel up in each would exceed the total.
        due = math.floor(budget * math.fsum(self.shares[: self.round + 1]) + 1e-6)
        return max(0, due - self.store.spent_on(key, self.round)) // self.side**2

    def _picks_over_pool(self, trainer: Trainer, module: LightningModule, folder: Path) -> Iterator[tuple[str, Tensor]]:
        pixels, images = self.pool_totals()
        spent = self.store.spent(self.round)
        wanted = balancing.round_budget(self.total_budget(pixels, images), self.round + 1, self.shares, spent)
        count = wanted // self.side**2
        with GlobalSelector(count, scratch=folder, seed=self.seed + self.round) as selector:
            for key, score, forbidden in self._ranked(trainer, module):
                if self.suppress_radius == 0 and self.max_share_per_image == 1:
                    selector.add(key, score, forbidden)
                else:
                    yx = self._best_of_image(key, score, forbidden, count)
                    selector.add_points(key, yx, score[yx[:, 0], yx[:, 1]], self.store.sizes[key])
            yield from selector.finish()
            if selector.shortfall and trainer.is_global_zero:
                warnings.warn(
                    f"round {self.round + 1}: the pool has {selector.shortfall} {self.unit}s less than the budget asks",
                    stacklevel=2,
                )

    def _ranked(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(key, what ranks its pixels (H, W), bool (H, W) that closes some) of this rank's share of the pool."""
        for key, score in self.scored(trainer, module):
            forbidden = torch.from_numpy(self._forbidden(key))
            if self.random_within is not None:
                best = round(self.random_within * score.numel())
                noise, salt = self.noise(key, "/within"), salt_of(self.seed + self.round, key)
                score = noise_within_best(score, best, noise, salt=salt, forbidden=forbidden)
            yield key, score, forbidden

    def _best_of_image(self, key: str, score: Tensor, forbidden: Tensor, count: int) -> Tensor:
        """Up to `count` centres of one image, best first, within the image's own cap."""
        cap = int(self.max_share_per_image * score.numel()) - self.store.spent_on(key, self.round)
        count = min(count, max(cap, 0) // self.side**2)
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

    def _score(self, method: DensePredictor, key: str, image: Tensor, probabilities: Tensor) -> Tensor:
        if self.round == 0 and self.first_round == "random":
            return self.noise(key)
        return super()._score(method, key, image, probabilities)

    def valued(self, score: Tensor, predicted: Tensor, weights: Tensor | None) -> Tensor:
        if weights is not None and self.weight_by == "region":
            score = balancing.balance_scores_by_region(score, weights.to(score), predicted, self.radius)
        else:
            score = super().valued(score, predicted, weights)
        if not self.per_cost:
            return score
        classes = self.store.class_table.num_classes
        return score / self.cost.region_map(predicted, classes, self.radius).to(score)

    # ---- what it cost

    def _note_centres(self, folder: Path, key: str, yx: Tensor) -> None:
        """Regions can touch, so the pixels that were bought do not tell them apart; their centres do."""
        self._centres[key] = folder / f"centres{len(self._centres)}.npy"
        np.save(self._centres[key], yx.numpy().astype(np.int32))

    def work(self, key: str, wanted: NDArray[np.bool_]) -> Work:
        if self.unit == "pixel":
            return super().work(key, wanted)
        labels = torch.from_numpy(self.store.labels(key, self.round + 1))
        centres = torch.from_numpy(np.load(self._centres[key]).astype(np.int64))
        return work_of_regions(labels, torch.from_numpy(wanted), centres, self.radius)
