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
from lightning import LightningModule, Trainer
from numpy.typing import NDArray

from adaptseg.active.costs import LabelCost
from adaptseg.active.oracles import Oracle
from adaptseg.active.point_round import GlobalRule, PointRound, Stage
from adaptseg.active.point_scores import MAYBE_NEGATIVE, WITHOUT_DRAWS, PointScore
from adaptseg.active.point_stages import LengthScale, PointPredictor
from adaptseg.active.rounds import Acquisition, final_scores
from adaptseg.active.stopping import Stopping
from adaptseg.errors import AdaptSegError


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
        global_by: GlobalRule = "herding",
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
        self.global_by: GlobalRule = global_by
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
        current = PointRound(self, trainer, method)
        count = self.per_round(self._sizes()) * (self.round + 1) - self.store.spent(self.round)
        if self.round == 0:
            left = current.chosen(["local", "global"] if self.first_round == "herding" else ["score"], "random", count)
        else:
            left = current.chosen(self.stages, self.score, count)
        if self.round and self.stop_set is not None:
            current.note_predictions(self.stop_set)
        if len(left) < count and trainer.is_global_zero:
            warnings.warn(
                f"round {self.round + 1}: {len(left)} candidates for {count} pixels; all are bought", stacklevel=2
            )
        method.pool_features.forget_maps()
        for index, key in current.mine:
            height, width = self.store.sizes[key]
            wanted = np.zeros(height * width, bool)
            wanted[left.of_image(index)] = True
            yield key, wanted.reshape(height, width)

    def _sizes(self) -> dict[str, tuple[int, int]]:
        return {key: (height, width) for key, (height, width) in self.store.sizes.items()}
