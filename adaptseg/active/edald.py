"""Two-stage eDALD: coverage first, uncertainty second, for budgets near one pixel per image.

"Diffusion-driven two-stage active learning for low-budget semantic segmentation" (NeurIPS 2025, arXiv 2510.22229); the
full text was not available, so formulas are the slides' and what they leave open is the released code's (specification
2.5, 2.6). Each stage can be left out, which gives the single-stage baselines and herding before any score.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from lightning import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from adaptseg.active import balancing
from adaptseg.active.costs import LabelCost
from adaptseg.active.herding import k_center, max_herding
from adaptseg.active.oracles import Oracle
from adaptseg.active.point_scores import MAYBE_NEGATIVE, WITHOUT_DRAWS, PointScore, point_score
from adaptseg.active.point_stages import (
    LengthScale,
    PointPredictor,
    length_scale_of,
    locally_herded,
    passes,
    yx_of,
)
from adaptseg.active.points import Points, announced, best, best_rows, merged
from adaptseg.active.ranks import salt_of
from adaptseg.active.rounds import Acquisition, final_scores, tracked
from adaptseg.active.scores import random_score
from adaptseg.active.stopping import Stopping, StopSet
from adaptseg.data.pair import pair_of
from adaptseg.errors import AdaptSegError
from adaptseg.networks.feature_bank import fixed_sample

Stage = Literal["local", "global", "score"]


class TwoStageEDALD(Acquisition):
    """Buys single pixels in equal rounds, the first before any training; the head starts anew after each.

    A round: `candidates` random pixels of every image -> local herding keeps `local_picks` of each image -> global
    herding, conditioned on what is labelled, keeps the share `keep` of all -> the best by `score` are bought.

    Args:
        budget: how much may be bought in all rounds together, in `budget_unit`.
        budget_unit: `pixels_per_image` on average, `pixels` in total, or `fraction` of all pool pixels.
        rounds: R; the budget is spent in equal parts and max_steps / R steps follow each. max_steps must divide.
        stages: which stages a round has, in order. Without `score`, global herding alone chooses what is bought;
            without `global`, the score ranks what local herding leaves; `[score]` is the single-stage baseline.
        first_round: nothing is known before the first: `herding` (local, then global down to the budget; published) or
            `random` pixels.
        candidates: random pixels of each image that may be bought at all, the same in every run and round; null = all.
        all_pixels: a round of `stages: [score]` ranks every pixel of the pool instead of the candidates, which herding
            of the first round still has. Nothing is cached for it: each round reads every image anew.
        local_picks: K, kept per image by local herding.
        keep: share of them that global herding keeps for the score, in (0, 1].
        score: what ranks the candidates of the last stage. `dald` draws by fresh noise, `bald` by dropout;
            `_released` are the formulas of the released code, errors included.
        draws: stochastic passes of a score that needs them.
        length_scale: of the herding kernel: `median` = twice the median distance of a hundredth of the points, per
            image and call (released), or a number.
        global_by: what global herding picks by: coverage, or `k_center`, always the candidate farthest from all that is
            chosen or labelled (core-set; Sener and Savarese, ICLR 2018).
        condition_on_source: global herding also counts as covered what the method's source pixels cover.
        balance: multiply scores with CBDA's class weights of the predicted class, from the labels bought so far.
        epsilon: least class weight, in (0, 1].
        forbid_void: never buy pixels that the oracle knows to be void (as released). Simulation only, an advantage over
            real life.
        cost: what a label costs a person.
        oracle: who answers; default: ground truth.
        scratch: folder for the query of a round; default: the run directory.
        stop: rules that end buying before the schedule does; null = none. Its `agreement` reads each image once more.
        seed: filled in from `seed_everything`.
    """

    def __init__(
        self,
        *,
        budget: float = 1.0,
        budget_unit: Literal["pixels_per_image", "pixels", "fraction"] = "pixels_per_image",
        rounds: int = 10,
        stages: list[Stage] | None = None,
        first_round: Literal["herding", "random"] = "herding",
        candidates: int | None = 10_000,
        all_pixels: bool = False,
        local_picks: int = 50,
        keep: float = 0.5,
        score: PointScore = "edald",
        draws: int = 5,
        length_scale: LengthScale = "median",
        global_by: Literal["herding", "k_center"] = "herding",
        condition_on_source: bool = False,
        balance: bool = False,
        epsilon: float = 0.01,
        forbid_void: bool = False,
        cost: LabelCost = LabelCost(),
        oracle: Oracle | None = None,
        scratch: str | None = None,
        stop: Stopping | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(cost=cost, oracle=oracle, scratch=scratch, stop=stop, seed=seed)
        self.budget, self.budget_unit, self.number_of_rounds = budget, budget_unit, rounds
        self.stages: list[Stage] = ["local", "global", "score"] if stages is None else stages
        self.first_round, self.candidates, self.local_picks, self.keep = first_round, candidates, local_picks, keep
        self.all_pixels = all_pixels
        self.score: PointScore = score
        self.draws = draws
        self.length_scale: LengthScale = length_scale
        self.global_by = global_by
        self.condition_on_source, self.balance, self.epsilon = condition_on_source, balance, epsilon
        self.forbid_void = forbid_void
        self._check()

    def _check(self) -> None:
        allowed = [s for s in get_args(Stage) if s in self.stages]
        about = "condition_on_source" if self.condition_on_source else "global_by"
        problems = {
            f"active.budget is {self.budget}; a positive number is expected": not 0 < self.budget < math.inf,
            f"active.rounds is {self.number_of_rounds}; 1 or more are expected": self.number_of_rounds < 1,
            f"active.stages is {self.stages}; local, global and score in this order, the last of them global or score, "
            "are expected": self.stages != allowed or self.stages in ([], ["local"]),
            f"active.candidates is {self.candidates}; null or 1 or more pixels are expected": (
                self.candidates is not None and self.candidates < 1
            ),
            f"active.all_pixels is about rounds of the score alone; active.stages is {self.stages}, give [score]": (
                self.all_pixels and self.stages != ["score"]
            ),
            f"active.local_picks is {self.local_picks}; 1 or more are expected": self.local_picks < 1,
            f"active.keep is {self.keep}; a share in (0, 1] is expected": not 0 < self.keep <= 1,
            f"active.draws is {self.draws}; 2 or more are expected for {self.score}": (
                self.draws < 2 and self.score not in WITHOUT_DRAWS
            ),
            f"active.length_scale is {self.length_scale}; median or a positive number is expected": (
                not isinstance(self.length_scale, str) and not 0 < self.length_scale < math.inf
            ),
            f"active.epsilon is {self.epsilon}; a weight in (0, 1] is expected": not 0 < self.epsilon <= 1,
            "active.balance weights scores, but active.stages has none": self.balance and "score" not in self.stages,
            f"active.balance weights scores of 0 or more; {self.score} has negative ones, which no weight can rank": (
                self.balance and self.score in MAYBE_NEGATIVE
            ),
            f"active.{about} is about global herding, which neither active.stages nor active.first_round has": (
                (self.condition_on_source or self.global_by != "herding")
                and "global" not in self.stages
                and self.first_round != "herding"
            ),
        }
        for message, is_wrong in problems.items():
            if is_wrong:
                raise AdaptSegError(message)

    def settings(self) -> dict[str, Any]:
        names = (
            "budget budget_unit number_of_rounds stages first_round candidates all_pixels local_picks keep score draws "
            "length_scale global_by condition_on_source balance epsilon forbid_void"
        )
        return {name: getattr(self, name) for name in names.split()}

    # ---- when and how much

    @property
    def rounds(self) -> int:
        return self.number_of_rounds

    @property
    def judged_in_rounds(self) -> bool:
        """Only if `stop` needs it: reading images is costly, and the heads of all rounds share it at the end."""
        return self.stop is not None and self.stop.needs_scores

    def round_steps(self, max_steps: int, tick: int) -> list[int]:
        """0, then equal parts of max_steps."""
        length = max_steps // self.rounds
        if max_steps % self.rounds or length % tick:
            raise AdaptSegError(
                f"trainer.max_steps {max_steps} in {self.rounds} rounds: give a multiple of {self.rounds} whose share "
                f"is a multiple of data.tick (now {tick} steps)"
            )
        return [length * i for i in range(self.rounds)]

    def per_round(self, sizes: dict[str, tuple[int, int]]) -> int:
        """Pixels of one round, b = round(B / R) (released: of B = N)."""
        units = {
            "pixels": 1,
            "pixels_per_image": len(sizes),
            "fraction": sum(math.prod(size) for size in sizes.values()),
        }
        return round(self.budget * units[self.budget_unit] / self.rounds)

    def planned(self, sizes: dict[str, tuple[int, int]], round: int) -> int:
        return self.per_round(sizes) * round

    def check_budget(self, sizes: dict[str, tuple[int, int]]) -> None:
        wanted = self.planned(sizes, self.rounds)
        offered = sum(min(math.prod(size), self.candidates or math.inf) for size in sizes.values())
        if not 0 < wanted <= offered:
            raise AdaptSegError(
                f"active.budget {self.budget} ({self.budget_unit}) means {wanted} pixels in {self.rounds} rounds, of "
                f"{offered:.0f} candidates; give at least one a round and no more than there are"
            )

    def scratch_bytes(self, sizes: dict[str, tuple[int, int]]) -> int:
        return sum(math.prod(size) // 8 + 129 for size in sizes.values())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not hasattr(type(pl_module), "pool_features"):
            raise AdaptSegError(
                f"active: {type(self).__name__} needs features of single pixels, which model: "
                f"{type(pl_module).__name__} does not have; start from configs/edald.yaml"
            )
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.global_step >= trainer.max_steps:
            for row in self.history[1:]:  # the network that chose the first pixels had learned nothing
                row |= final_scores(trainer, f"round_{row['round'] - 1:02d}/val")

    # ---- one round

    def query(self, trainer: Trainer, module: LightningModule, folder: Path) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        method = cast(PointPredictor, module)
        self._keys = list(self.store.sizes)
        self._mine = range(trainer.global_rank, len(self._keys), trainer.world_size)
        self._known = self.store.view(self.round)
        count = self.per_round(self._sizes()) * (self.round + 1) - self.store.spent(self.round)
        if self.round == 0:
            stages: list[Stage] = ["local", "global"] if self.first_round == "herding" else ["score"]
            score: PointScore = "random"
        else:
            stages, score = self.stages, self.score
        left = None if stages == ["score"] else self._local(trainer, method, herded="local" in stages)
        self._offered = left
        if left is not None and "global" in stages:
            left = self._global(trainer, method, left, count=None if "score" in stages else count)
        if "score" in stages:
            left = self._best(trainer, method, left, score, count)
        assert left is not None
        if self.round and self.stop_set is not None:
            self._note_predictions(trainer, method, self.stop_set)
        if len(left) < count and trainer.is_global_zero:
            warnings.warn(
                f"round {self.round + 1}: {len(left)} candidates for {count} pixels; all are bought", stacklevel=2
            )
        method.pool_features.forget_maps()
        for index in self._mine:
            height, width = self.store.sizes[self._keys[index]]
            wanted = np.zeros(height * width, bool)
            wanted[left.of_image(index)] = True
            yield self._keys[index], wanted.reshape(height, width)

    def _note_predictions(self, trainer: Trainer, method: PointPredictor, stop_set: StopSet) -> None:
        for index in tracked(trainer, self._mine, f"round {self.round + 1}: reading the stop set"):
            yx = stop_set.positions(key := self._keys[index])
            stop_set.note(key, method.probabilities_at(method.pool_features.at(key, yx)).argmax(1))

    def _sizes(self) -> dict[str, tuple[int, int]]:
        return {key: (height, width) for key, (height, width) in self.store.sizes.items()}

    def _open(self, key: str, *, everywhere: bool = False) -> NDArray[np.int64]:
        """Flat positions of the candidates of one image, or of all its pixels, that are not bought yet."""
        size = self._sizes()[key]
        closed = self._known.bought(key)
        if self.forbid_void:
            closed = closed | self.oracle.void(key, size)
        if everywhere:
            return np.flatnonzero(~closed)
        # Of seed 0 in every run: what is computed on these pixels can be shared by runs.
        yx = fixed_sample(0, "candidates", key, size, self.candidates or math.prod(size)).numpy()
        flat = yx[:, 0] * size[1] + yx[:, 1]
        return flat[~closed.reshape(-1)[flat]]

    # ---- stage 1: coverage

    def _local(self, trainer: Trainer, method: PointPredictor, *, herded: bool) -> Points:
        """This process' candidates, by image."""
        parts = []
        for index in tracked(trainer, self._mine, f"round {self.round + 1}: choosing in each image"):
            key = self._keys[index]
            flat = self._open(key)
            if herded:
                flat = locally_herded(method.pool_features, key, flat, self.local_picks, self.length_scale)
            parts.append((index, flat))
        return Points.of(parts)

    def _global(self, trainer: Trainer, method: PointPredictor, mine: Points, count: int | None) -> Points:
        """Herding over the candidates of all images, conditioned on what is labelled: `count`, or the share `keep`."""
        labelled = [(i, np.flatnonzero(self._known.bought(self._keys[i]))) for i in self._mine]
        known = Points.of(labelled)
        pool = merged(mine, self._features(trainer, method, mine, "reading candidates"))
        covered = merged(known, self._features(trainer, method, known, "reading labels"))
        if pool is None or covered is None:
            return announced(None)
        points, (features,) = pool
        if len(points) == 0:
            return announced(points)
        device = method.pool_features.device
        x = torch.from_numpy(features).to(device).float()
        conditioned_on = torch.from_numpy(covered[1][0]).to(device).float()
        if self.condition_on_source:
            conditioned_on = torch.cat([conditioned_on, method.source_features()])
        picks = min(count if count is not None else round(self.keep * len(points)), len(points))
        if self.global_by == "k_center":
            chosen, _ = k_center(x, picks, conditioned_on=conditioned_on)
        else:
            scale = length_scale_of(self.length_scale, torch.cat([x, conditioned_on]), f"global/{self.round}")
            chosen, _ = max_herding(x, picks, length_scale=scale, conditioned_on=conditioned_on)
        return announced(points.at(np.sort(chosen.cpu().numpy())))

    def _features(self, trainer: Trainer, method: PointPredictor, points: Points, what: str) -> NDArray[np.float16]:
        """(n, D) float16: exactly what the bank keeps, at half the memory."""
        rows = [np.empty((0, method.pool_features.channels), np.float16)]
        for index in tracked(trainer, np.unique(points.image).tolist(), f"round {self.round + 1}: {what}"):
            yx = self._yx(self._keys[index], points.of_image(index))
            rows.append(method.pool_features.at(self._keys[index], yx).half().cpu().numpy())
        return np.concatenate(rows)

    # ---- stage 2: uncertainty

    def _best(
        self, trainer: Trainer, method: PointPredictor, left: Points | None, score: PointScore, count: int
    ) -> Points:
        """The best by score of what herding left in all processes; None = of everything that may be bought."""
        weights = self._class_weights(trainer) if self.balance and self.round else None
        kept, values = [], [np.empty(0, np.float32)]
        for index in tracked(trainer, self._mine, f"round {self.round + 1}: scoring"):
            key = self._keys[index]
            flat = self._open(key, everywhere=self.all_pixels) if left is None else left.of_image(index)
            if not len(flat):
                continue
            value = self._scored(method, index, flat, score, weights)
            if broken := int(value.isnan().sum()):
                raise AdaptSegError(f"active.score {score} is NaN at {broken} pixels of image '{key}'")
            value = value.cpu().numpy()
            # No image has more of the best than all have together: whole images need not be remembered.
            rows = best_rows(Points.of([(index, flat)]), value, count)
            kept.append((index, flat[rows]))
            values.append(value[rows])
        everything = merged(Points.of(kept), np.concatenate(values))
        if everything is None:
            return announced(None)
        points, (value,) = everything
        return announced(best(points, value, count))

    def _scored(
        self, method: PointPredictor, index: int, flat: NDArray[np.int64], score: PointScore, weights: Tensor | None
    ) -> Tensor:
        """(n,) float32 scores of pixels of one image."""
        key = self._keys[index]
        yx = self._yx(key, flat)
        uniform = random_score(self._sizes()[key], seed=self.seed, round=self.round, key=key)[yx[:, 0], yx[:, 1]]
        if score == "random" and weights is None:
            return uniform  # asks no network: before the first round there is none
        offered = None if self.all_pixels else flat if self._offered is None else self._offered.of_image(index)
        generator = torch.Generator().manual_seed(salt_of(self.seed, f"{self.round}/{key}") % 2**63)
        fixed, drawn = passes(method, key, flat, score, draws=self.draws, offered=offered, generator=generator)
        value = point_score(score, fixed, drawn, uniform.to(fixed.device))
        if weights is not None:
            value = balancing.balance_scores(value[None], weights.to(value), fixed.argmax(1)[None])[0]
        return value

    def _class_weights(self, trainer: Trainer) -> Tensor:
        total = self.planned(self._sizes(), self.rounds)
        classes = pair_of(trainer).num_classes
        target = balancing.class_budget(total, classes, round=self.round + 1, rounds=self.rounds)
        return balancing.class_balance_weights(
            torch.from_numpy(self.store.class_counts(self.round)), target, self.epsilon
        )

    def _yx(self, key: str, flat: NDArray[np.int64]) -> Tensor:
        return yx_of(flat, self.store.sizes[key][1])
