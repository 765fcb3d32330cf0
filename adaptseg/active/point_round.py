"""One round of two-stage eDALD: what its stages leave of the pool's pixels, on all processes alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor

from adaptseg.active import balancing
from adaptseg.active.herding import k_center, max_herding
from adaptseg.active.labels import LabelStore
from adaptseg.active.oracles import Oracle
from adaptseg.active.point_scores import PointScore, point_score
from adaptseg.active.point_stages import LengthScale, PointPredictor, length_scale_of, locally_herded, passes, yx_of
from adaptseg.active.points import Points, announced, best, best_rows, merged
from adaptseg.active.ranks import salt_of
from adaptseg.active.rounds import tracked
from adaptseg.active.scores import random_score
from adaptseg.active.stopping import StopSet
from adaptseg.data.pair import pair_of
from adaptseg.errors import AdaptSegError
from adaptseg.networks.feature_bank import fixed_sample

Stage = Literal["local", "global", "score"]
GlobalRule = Literal["herding", "k_center"]


class PointPlan(Protocol):
    """What a round reads of its acquisition: arguments of `TwoStageEDALD`, which says what they mean, and its state."""

    round: int
    seed: int
    store: LabelStore
    oracle: Oracle
    candidates: int | None
    all_pixels: bool
    local_picks: int
    keep: float
    draws: int
    length_scale: LengthScale
    global_by: GlobalRule
    condition_on_source: bool
    balance: bool
    epsilon: float
    forbid_void: bool

    @property
    def rounds(self) -> int: ...

    def planned(self, sizes: dict[str, tuple[int, int]], round: int) -> int: ...


class PointRound:
    """The round in the making; everything in it is as of the labels bought before.

    Attributes:
        mine: (index, key) of the pool's images that this process looks at.

    Args:
        how: the acquisition, whose arguments say what the stages do.
        trainer: of the run.
        method: whose features are herded and whose head scores.
    """

    def __init__(self, how: PointPlan, trainer: Trainer, method: PointPredictor) -> None:
        self._how, self._trainer, self._method, self._round = how, trainer, method, how.round
        self._labels = how.store.view(how.round)
        self._sizes = {key: (height, width) for key, (height, width) in how.store.sizes.items()}
        self._keys = list(self._sizes)
        self.mine = list(enumerate(self._keys))[trainer.global_rank :: trainer.world_size]
        self._offered: Points | None = None

    def chosen(self, stages: list[Stage], score: PointScore, count: int) -> Points:
        """The `count` pixels that the stages choose, or fewer if no more are left. Every process must call it."""
        left = None if stages == ["score"] else self._local(herded="local" in stages)
        self._offered = left
        if left is not None and "global" in stages:
            left = self._global(left, count=None if "score" in stages else count)
        if "score" in stages:
            left = self._best(left, score, count)
        assert left is not None
        return left

    def note_predictions(self, stop_set: StopSet) -> None:
        """Tell the stop set what the head says of its pixels in this process' images."""
        for _, key in self._tracked("reading the stop set"):
            features = self._method.pool_features.at(key, stop_set.positions(key))
            stop_set.note(key, self._method.probabilities_at(features).argmax(1))

    def _tracked(self, what: str) -> Iterable[tuple[int, str]]:
        return tracked(self._trainer, self.mine, f"round {self._round + 1}: {what}")

    def _open(self, key: str, *, everywhere: bool = False) -> NDArray[np.int64]:
        """Flat positions of the candidates of one image, or of all its pixels, that are not bought yet."""
        size = self._sizes[key]
        closed = self._labels.bought(key)
        if self._how.forbid_void:
            closed = closed | self._how.oracle.void(key, size)
        if everywhere:
            return np.flatnonzero(~closed)
        # Of seed 0 in every run: what is computed on these pixels can be shared by runs.
        yx = fixed_sample(0, "candidates", key, size, self._how.candidates or math.prod(size)).numpy()
        flat = yx[:, 0] * size[1] + yx[:, 1]
        return flat[~closed.reshape(-1)[flat]]

    # ---- stage 1: coverage

    def _local(self, *, herded: bool) -> Points:
        """This process' candidates, by image."""
        parts = []
        how, bank = self._how, self._method.pool_features
        for index, key in self._tracked("choosing in each image"):
            flat = self._open(key)
            if herded:
                flat = locally_herded(bank, key, flat, how.local_picks, how.length_scale)
            parts.append((index, flat))
        return Points.of(parts)

    def _global(self, mine: Points, count: int | None) -> Points:
        """Herding over the candidates of all images, conditioned on what is labelled: `count`, or the share `keep`."""
        how = self._how
        known = Points.of([(index, np.flatnonzero(self._labels.bought(key))) for index, key in self.mine])
        pool = merged(mine, self._features(mine, "reading candidates"))
        covered = merged(known, self._features(known, "reading labels"))
        if pool is None or covered is None:
            return announced(None)
        points, (features,) = pool
        if len(points) == 0:
            return announced(points)
        device = self._method.pool_features.device
        x = torch.from_numpy(features).to(device).float()
        conditioned_on = torch.from_numpy(covered[1][0]).to(device).float()
        if how.condition_on_source:
            conditioned_on = torch.cat([conditioned_on, self._method.source_features()])
        picks = min(count if count is not None else round(how.keep * len(points)), len(points))
        if how.global_by == "k_center":
            chosen, _ = k_center(x, picks, conditioned_on=conditioned_on)
        else:
            scale = length_scale_of(how.length_scale, torch.cat([x, conditioned_on]), f"global/{self._round}")
            chosen, _ = max_herding(x, picks, length_scale=scale, conditioned_on=conditioned_on)
        return announced(points.at(np.sort(chosen.cpu().numpy())))

    def _features(self, points: Points, what: str) -> NDArray[np.float16]:
        """(n, D) float16: exactly what the bank keeps, at half the memory."""
        rows = [np.empty((0, self._method.pool_features.channels), np.float16)]
        for index in tracked(self._trainer, np.unique(points.image).tolist(), f"round {self._round + 1}: {what}"):
            yx = self._yx(self._keys[index], points.of_image(index))
            rows.append(self._method.pool_features.at(self._keys[index], yx).half().cpu().numpy())
        return np.concatenate(rows)

    # ---- stage 2: uncertainty

    def _best(self, left: Points | None, score: PointScore, count: int) -> Points:
        """The best by score of what herding left in all processes; None = of everything that may be bought."""
        weights = self._class_weights() if self._how.balance and self._round else None
        kept, values = [], [np.empty(0, np.float32)]
        for index, key in self._tracked("scoring"):
            flat = self._open(key, everywhere=self._how.all_pixels) if left is None else left.of_image(index)
            if not len(flat):
                continue
            value = self._scored(index, flat, score, weights)
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

    def _scored(self, index: int, flat: NDArray[np.int64], score: PointScore, weights: Tensor | None) -> Tensor:
        """(n,) float32 scores of pixels of one image."""
        how, key = self._how, self._keys[index]
        yx = self._yx(key, flat)
        uniform = random_score(self._sizes[key], seed=how.seed, round=self._round, key=key)[yx[:, 0], yx[:, 1]]
        if score == "random" and weights is None:
            return uniform  # asks no network: before the first round there is none
        offered = None if how.all_pixels else flat if self._offered is None else self._offered.of_image(index)
        generator = torch.Generator().manual_seed(salt_of(how.seed, f"{self._round}/{key}") % 2**63)
        fixed, drawn = passes(self._method, key, flat, score, draws=how.draws, offered=offered, generator=generator)
        value = point_score(score, fixed, drawn, uniform.to(fixed.device))
        if weights is not None:
            value = balancing.balance_scores(value[None], weights.to(value), fixed.argmax(1)[None])[0]
        return value

    def _class_weights(self) -> Tensor:
        how = self._how
        target = balancing.class_budget(
            how.planned(self._sizes, how.rounds),
            pair_of(self._trainer).num_classes,
            round=self._round + 1,
            rounds=how.rounds,
        )
        counts = torch.from_numpy(how.store.class_counts(self._round))
        return balancing.class_balance_weights(counts, target, how.epsilon)

    def _yx(self, key: str, flat: NDArray[np.int64]) -> Tensor:
        return yx_of(flat, self._sizes[key][1])
