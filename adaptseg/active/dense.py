"""What acquisitions that score every pixel of the pool share: when they fire, how pixels are scored and weighted."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from adaptseg.active import balancing, scores
from adaptseg.active.costs import LabelCost
from adaptseg.active.oracles import Oracle
from adaptseg.active.ranks import salt_of
from adaptseg.active.rounds import Acquisition, Snapshot, tracked
from adaptseg.active.stopping import Stopping
from adaptseg.console import say
from adaptseg.data.pair import pair_of
from adaptseg.errors import AdaptSegError
from adaptseg.networks import Inference, Segmenter, dropout_layers
from adaptseg.tensors import likeliest

SCHEDULES = {
    # RIPU and CBDA, original: iterations 10k, 12k, 14k, 16k, 18k of 40k.
    "original": (0.25, 0.30, 0.35, 0.40, 0.45),
    # CBDA, spread (reported to be better): iterations 10k, 18k, 24k, 28k, 30k of 40k.
    "spread": (0.25, 0.45, 0.60, 0.70, 0.75),
    # RIPU without source data: before the first step, then at iterations 2k, 4k, 6k, 8k of 30k (data.tick: 2000).
    "source_free": (0.0, 1 / 15, 2 / 15, 3 / 15, 4 / 15),
}
BY_DROPOUT = ("bald", "power_bald", "balanced_entropy")
"""Scores that need several passes with dropout."""
MAYBE_NEGATIVE = ("power_bald", "balanced_entropy")
"""Scores that no weight below 1 can rank."""
SNAPSHOTS = 4
"""Pool images whose score maps are kept for pictures."""

Schedule = Literal["original", "spread", "source_free"] | list[float]
ClassTarget = Literal["total", "cumulative"]


class DensePredictor(Protocol):
    """What an acquisition that scores every pixel needs of a method."""

    @property
    def device(self) -> torch.device: ...

    @property
    def evaluated(self) -> Segmenter: ...

    def predict_probabilities(
        self, images: Tensor, *, size: tuple[int, int], draws: int = 1, generator: torch.Generator | None = None
    ) -> Tensor: ...


class DenseAcquisition(Acquisition):
    """Base of acquisitions that fire at fractions of the training and score all pixels of the pool. The arguments are
    those of the subclasses, which say what they mean.
    """

    def __init__(
        self,
        *,
        budget: float,
        budget_unit: str,
        schedule: Schedule,
        shares: list[float] | None,
        score: str,
        mode: Literal["region", "pixel"],
        radius: int,
        draws: int,
        balance: bool,
        class_target: ClassTarget,
        epsilon: float,
        inference: Inference | None,
        cost: LabelCost,
        oracle: Oracle | None,
        scratch: str | None,
        stop: Stopping | None,
        seed: int,
    ) -> None:
        super().__init__(cost=cost, oracle=oracle, scratch=scratch, stop=stop, seed=seed)
        self.budget, self.budget_unit = budget, budget_unit
        self.schedule = list(SCHEDULES[schedule]) if isinstance(schedule, str) else schedule
        self.shares = [1 / len(self.schedule) for _ in self.schedule] if shares is None else shares
        self.score, self.radius, self.draws = score, radius, draws
        self.mode: Literal["region", "pixel"] = mode
        self.balance, self.epsilon = balance, epsilon
        self.class_target: ClassTarget = class_target
        self.inference = inference

    def problems(self) -> dict[str, bool]:
        """What to say of the arguments -> whether it is true."""
        limit = 1.0 if self.budget_unit == "fraction" else math.inf
        return {
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
            f"active.draws is {self.draws}; 2 or more are expected for {self.score}": (
                self.score in BY_DROPOUT and self.draws < 2
            ),
            f"active.balance weights scores of 0 or more; {self.score} has negative ones, which no weight can rank": (
                self.balance and self.score in MAYBE_NEGATIVE
            ),
            f"active.epsilon is {self.epsilon}; a weight in (0, 1] is expected": not 0 < self.epsilon <= 1,
        }

    def require_sound(self) -> None:
        """AdaptSegError names the first argument that is wrong."""
        for message, is_wrong in self.problems().items():
            if is_wrong:
                raise AdaptSegError(message)

    def settings(self) -> dict[str, Any]:
        read = None if self.inference is None else asdict(self.inference)
        return {"inference": read, "cost": asdict(self.cost)}

    @abstractmethod
    def total_budget(self, pixels: int, images: int) -> int:
        """Pixels that may be bought in all rounds from `images` images of `pixels` pixels together."""

    def planned(self, sizes: dict[str, tuple[int, int]], round: int) -> int:
        total = self.total_budget(sum(math.prod(size) for size in sizes.values()), len(sizes))
        return math.floor(total * math.fsum(self.shares[:round]) + 1e-6)

    # ---- when

    @property
    def rounds(self) -> int:
        return len(self.schedule)

    def round_steps(self, max_steps: int, tick: int) -> list[int]:
        """Fractions of max_steps, rounded up to whole ticks."""
        # The tolerance keeps 0.35 * 2000 = 700.0000000000001 from spilling into the next tick.
        return [math.ceil(fraction * max_steps / tick - 1e-9) * tick for fraction in self.schedule]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.score in BY_DROPOUT:
            network = cast(DensePredictor, pl_module).evaluated
            if not dropout_layers(network):
                raise AdaptSegError(
                    f"active.score {self.score} draws by dropout, of which the {type(network).__name__} of "
                    f"{type(pl_module).__name__} has no active layer: give the network some, as "
                    "model.network.dropout of SmpSegmenter does, or choose another score"
                )
        if trainer.is_global_zero:
            for fraction, step in zip(self.schedule, self.fire_at, strict=True):
                if step - fraction * trainer.max_steps > 1e-6 * trainer.max_steps:
                    say(
                        f"active.schedule: {fraction:g} of {trainer.max_steps:,} steps falls inside a tick; that round "
                        f"fires after step {step:,}, at the tick's end (data.tick says how long ticks are)"
                    )

    # ---- scores

    def scored(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Tensor]]:
        """(key, `valued` score (H, W) float32 on the CPU) of this rank's share of the pool."""
        method = cast(DensePredictor, module)
        data = pair_of(trainer)
        weights = self._class_weights(data.num_classes)
        loader = data.pool_loader(trainer.global_rank, trainer.world_size)
        watched = set(data.pool.keys[:: max(1, len(data.pool.keys) // SNAPSHOTS)][:SNAPSHOTS])
        self.snapshots = {}
        for batch in tracked(trainer, loader, f"round {self.round + 1}: scoring the pool"):
            key = batch.keys[0]
            probabilities = self.probabilities(method, key, batch.image)
            predicted = likeliest(probabilities, 0)
            self.note_prediction(key, predicted)
            score = self._score(method, key, batch.image, probabilities).to(predicted.device)
            score = self.valued(score, predicted, weights).cpu()
            if key in watched:
                self.snapshots[key] = Snapshot(predicted.cpu().numpy(), score.numpy())
            yield key, score

    def probabilities(
        self, method: DensePredictor, key: str, image: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(C, *size) float32 of one normalised image (1, 3, H, W) of the pool, on the method's device; with a generator
        one pass that draws.
        """
        predict: Any = method.predict_probabilities
        predict = predict if self.inference is None else partial(predict, inference=self.inference)
        return predict(image.to(method.device), size=self.store.sizes[key], generator=generator)[0, 0]

    def note_prediction(self, key: str, predicted: Tensor) -> None:
        """Tell the stop set, if there is one, what the network says of an image (H, W)."""
        if self.stop_set is not None:
            self.stop_set.note(key, predicted[tuple(self.stop_set.positions(key).T)])

    def _score(self, method: DensePredictor, key: str, image: Tensor, probabilities: Tensor) -> Tensor:
        match self.score:
            case "random":
                return self.noise(key)
            case "entropy":
                return scores.entropy(probabilities)
            case "margin":
                # Shifted into [0, 1], so that class weights rank it as they rank every other score (margin is <= 0).
                return scores.margin(probabilities) + 1
            case "least_confidence":
                return scores.least_confidence(probabilities)
            case "bald":
                return self._drawn(scores.RunningInformation(self.draws), method, key, image)
            case "power_bald":
                information = self._drawn(scores.RunningInformation(self.draws), method, key, image)
                return scores.power_score(information, self.noise(key).to(information.device))
            case "balanced_entropy":
                return self._drawn(scores.RunningBalance(self.draws), method, key, image)
            case _:
                return scores.ripu(probabilities, self.radius, mode=self.mode)

    def noise(self, key: str, use: str = "") -> Tensor:
        """(H, W) float32 uniform in [0, 1), a pure function of seed, round and image; another one for each `use`."""
        return scores.random_score(self.store.sizes[key], seed=self.seed, round=self.round, key=key + use)

    def _drawn(self, score: scores.RunningScore, method: DensePredictor, key: str, image: Tensor) -> Tensor:
        """A score of passes with dropout. Masks depend on (seed, round, image, pass) alone, whoever scores it."""
        for draw in range(self.draws):
            salt = salt_of(self.seed, f"{self.round}/{key}/{draw}")
            generator = torch.Generator().manual_seed(salt % 2**63)
            score.add(self.probabilities(method, key, image, generator))
        return score.result()

    def valued(self, score: Tensor, predicted: Tensor, weights: Tensor | None) -> Tensor:
        """What a pixel is worth: its score (H, W) times the weight of its predicted class, on the device of both."""
        return score if weights is None else balancing.balance_scores(score, weights.to(score), predicted)

    def _class_weights(self, num_classes: int) -> Tensor | None:
        if not self.balance:
            return None
        pixels, images = self.pool_totals()
        target = balancing.class_budget(
            self.total_budget(pixels, images),
            num_classes,
            target=self.class_target,
            round=self.round + 1,
            rounds=self.rounds,
        )
        counts = torch.from_numpy(self.store.class_counts(self.round))
        return balancing.class_balance_weights(counts, target, self.epsilon)

    def pool_totals(self) -> tuple[int, int]:
        """Pixels and images of the pool."""
        return sum(math.prod(size) for size in self.store.sizes.values()), len(self.store.sizes)
