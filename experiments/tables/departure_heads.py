"""What departures of two-stage eDALD's released code change in heads that learn and are judged (for departures.py).

Every function of a group returns {departure: numbers}; a list holds a value for each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from departure_choices import SEEDS, bought
from fixed_state import (
    CANDIDATES,
    PICKS,
    ROUNDS,
    SIZE,
    Lesson,
    State,
    Table,
    candidates_of,
    confusions,
    grid_table,
    herded,
    learn,
    miou,
    yx,
)
from released_faults import dropout_on
from torch import Tensor

from adaptseg.classes import VOID
from adaptseg.data.scenes import Scenes
from adaptseg.methods.head_training import HeadTraining
from adaptseg.networks.feature_bank import fixed_sample
from adaptseg.networks.feature_maps import DiffusionFeatures, FeatureMaps
from adaptseg.networks.pixel_segmenter import PixelHead


class Judge:
    """mIoU on the val split, in per cent, of heads that read the same features."""

    def __init__(self, features: FeatureMaps, scenes: Scenes) -> None:
        self.features, self.scenes = features, scenes
        self.keys = scenes.keys[::2]

    def __call__(self, heads: Sequence[PixelHead]) -> list[float]:
        return [miou(one) for one in confusions(self.features, self.scenes, self.keys, heads)]


def training_group(state: State, judge: Judge) -> dict[str, Any]:
    """Ways to train, and labels that the release would have: heads of three seeds each, judged on val."""
    without_void = state.local[state.truth[state.local] != VOID].sort().values
    allowed = without_void[herded(state.features(without_void), ROUNDS * PICKS, "global/0")]
    long = HeadTraining(patience=None)
    lessons: dict[str, tuple[Tensor, Lesson, list[Table] | None]] = {
        "reference": (state.labelled, Lesson(), None),
        "norm_grid": (state.labelled, Lesson(), [grid_table(state)]),
        "norm_labelled": (state.labelled, Lesson(statistics="labelled"), None),
        "no_early_stop": (state.labelled, Lesson(long, passes=25), None),
        "one_fall": (state.labelled, Lesson(HeadTraining(patience=None, half_period=25), passes=25), None),
        "pool_of_one": (state.labelled[: PICKS + ROUNDS - 1], Lesson(), None),
        "no_void": (allowed, Lesson(), None),
    }
    found: dict[str, Any] = {}
    for name, (points, lesson, tables) in lessons.items():
        trained = [learn(state, points, seed, lesson, tables) for seed in SEEDS]
        found[name] = {"miou": judge([one.last for one in trained]), "steps": [one.steps for one in trained]}
        if name == "reference":
            found["best_weights"] = {"miou": judge([one.best for one in trained]), "steps": found[name]["steps"]}
    found["bought"] = {"ours": bought(state, state.labelled), "no_void": bought(state, allowed)}
    return found


def dropout_group(state: State, judge: Judge, denoiser: DiffusionFeatures) -> dict[str, Any]:
    """Heads that learn from features with the denoiser's dropout on: three noisy tables in turn, a pass each."""
    noisy = []
    for seed in SEEDS:
        state.bank.forget_maps()
        with dropout_on(denoiser, seed):
            points, norm = [], []
            for key in state.keys:
                extra = fixed_sample(0, "norm", key, SIZE, state.table.norm.shape[1])
                both = state.bank.at(key, torch.cat([yx(candidates_of(key)), extra])).half()
                points.append(both[:CANDIDATES])
                norm.append(both[CANDIDATES:])
        noisy.append(Table(torch.cat(points), torch.stack(norm)))
    found = {}
    for name, tables in (("off", None), ("on", noisy)):
        trained = [learn(state, state.labelled, seed, tables=tables).last for seed in SEEDS]
        found[name] = {"miou": judge(trained)}
    moved = [(one.points.float() * state.table.points.float()).sum(1).mean() for one in noisy]
    return {**found, "cosine": [float(value) for value in moved]}


def evaluation_group(state: State, judge: Judge, other: Scenes) -> dict[str, Any]:
    """Counting training pixels, and absent classes as 0, with the reference heads; `other` is a second split."""
    trained = [learn(state, state.labelled, seed) for seed in SEEDS]
    heads = [one.last for one in trained]
    found: dict[str, Any] = {}
    for split, scenes, keys in (("val", judge.scenes, judge.keys), ("test", other, other.keys[::2])):
        counts = confusions(judge.features, scenes, keys, heads)
        names = scenes.class_table.names
        found[split] = {
            "images": len(keys),
            "miou": [miou(one) for one in counts],
            "absent_as_zero": [miou(one, absent=0) for one in counts],
            "absent": [name for name, row in zip(names, counts[0].sum(1).tolist(), strict=True) if not row],
        }
        if split == "val":
            pairs = zip(counts, trained, strict=True)
            found[split]["with_training_pixels"] = [miou(one + lesson.confusion) for one, lesson in pairs]
            found[split]["training_pixels"] = [int(one.confusion.sum()) for one in trained]
            found[split]["pixels"] = int(counts[0].sum())
    return found
