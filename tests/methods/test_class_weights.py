"""Class weights on both methods: weighted cross-entropies against naive float64 sums, their statistics, their log."""

from __future__ import annotations

import math
import statistics as python_statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_method_base import pair, quiet, trainer
from tiny import tiny_network
from torch import Tensor, nn

from adaptseg.callbacks.curves import class_weight_curves
from adaptseg.classes import STREETS, VOID
from adaptseg.data.batch import Batch, Labelled, Target
from adaptseg.data.statistics import ClassStatistics
from adaptseg.errors import AdaptSegError
from adaptseg.loggers import CsvLogger
from adaptseg.losses import gbw
from adaptseg.methods import Masking, Method, SelfTraining, Supervised, self_training
from adaptseg.methods.class_weights import (
    GBW,
    ClassWeights,
    EffectiveNumber,
    FixedWeights,
    InverseFrequency,
    MedianFrequency,
)
from adaptseg.methods.lessons import Lesson, taught_cross_entropy
from adaptseg.methods.training_pass import TrainingPass

CLASSES = STREETS.num_classes
ABSENT = 5
LOSSES = ("source", "mixed", "masked")


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


# ---- what the source holds, and weights worked out from it class by class


def source_statistics() -> ClassStatistics:
    """Three scenes; class 5 is in none, class 1 in one only."""
    counts = np.random.default_rng(0).integers(1, 400, (3, CLASSES))
    counts[:, ABSENT] = 0
    counts[1:, 1] = 0
    return ClassStatistics(("a", "b", "c"), counts, counts.sum(1) + np.array([7, 0, 31]))


def mean_one(values: dict[int, float]) -> list[float]:
    mean = sum(values.values()) / len(values)
    return [values[c] / mean if c in values else 1.0 for c in range(CLASSES)]


def totals() -> dict[int, int]:
    counts = source_statistics().counts
    return {c: int(counts[:, c].sum()) for c in range(CLASSES) if c != ABSENT}


def inverse(power: float) -> list[float]:
    return mean_one({c: (n / sum(totals().values())) ** -power for c, n in totals().items()})


def median() -> list[float]:
    given = source_statistics()
    frequencies = {
        c: n / sum(int(given.pixels[i]) for i in range(3) if given.counts[i, c]) for c, n in totals().items()
    }
    middle = python_statistics.median(frequencies.values())
    return mean_one({c: middle / f for c, f in frequencies.items()})


def effective(beta: float) -> list[float]:
    return mean_one({c: (1 - beta) / (1 - beta**n) for c, n in totals().items()})


def projected(squares: list[float], lam: float) -> list[float]:
    """max(0, g^2 / (2 lam) - theta) that sums to C; theta by bisection."""
    a = [g / (2 * lam) for g in squares]
    low, high = min(a) - 2, max(a)
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if sum(max(0, v - theta) for v in a) > len(a) else (low, theta)
    return [max(0, v - low) for v in a]


def channel_gradients(log_p: Tensor, labels: Tensor) -> list[float]:
    """By autograd, as the release does it: one backward pass of the class-balanced cross-entropy."""
    z = log_p.detach().double().requires_grad_()
    balanced = torch.zeros((), dtype=torch.float64)
    for c in range(CLASSES):
        mask = labels == c
        balanced = balanced - z.log_softmax(1)[:, c][mask].sum() / (int(mask.sum()) + 1)
    (gradient,) = torch.autograd.grad(balanced, z)
    return gradient.square().sum((0, 2, 3)).tolist()


def naive_gbw(log_p: Tensor, labels: Tensor) -> list[float]:
    return projected(channel_gradients(log_p, labels), 1e-3)


Naive = Callable[[Tensor, Tensor], list[float]]
FIXED: list[float] = [c % 4 for c in range(CLASSES)]  # whole numbers are numbers too
WEIGHTINGS: dict[str, tuple[Callable[[], ClassWeights], Naive]] = {
    "gbw": (lambda: GBW(regularization=1e-3), naive_gbw),
    "inverse": (lambda: InverseFrequency(), lambda *_: inverse(1)),
    "root": (lambda: InverseFrequency(power=0.5), lambda *_: inverse(0.5)),
    "median": (lambda: MedianFrequency(), lambda *_: median()),
    "effective": (lambda: EffectiveNumber(beta=0.998), lambda *_: effective(0.998)),
    "fixed": (lambda: FixedWeights(FIXED), lambda *_: FIXED),
}


# ---- a batch, both methods


def batch() -> Batch:
    """Two scenes of each domain with labels in blocks, void, and a few bought pixels."""
    generator = torch.Generator().manual_seed(1)

    def labels() -> Tensor:
        blocks = torch.randint(CLASSES, (2, 8, 16), generator=generator)
        blocks[torch.rand(blocks.shape, generator=generator) < 0.1] = VOID
        return blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)

    images = torch.randn(2, 2, 3, 32, 64, generator=generator)
    bought = torch.where(torch.rand(2, 32, 64, generator=generator) < 0.2, labels(), VOID)
    target = Target(["c", "d"], images[1], torch.ones_like(bought, dtype=torch.bool), bought, int((bought < 255).sum()))
    return Batch(Labelled(["a", "b"], images[0], labels()), target, [4, 5])


def prepared(kind: type[Method], weights: ClassWeights, **settings: Any) -> Any:
    model = kind(network=tiny_network, class_table=STREETS, seed=3, class_weights=weights, **settings)  # type: ignore[call-arg]
    weights.prepare(STREETS, model.weighted_losses, source_statistics)
    return model


def log_p(network: nn.Module, images: Tensor) -> Tensor:
    return nn.functional.interpolate(network(images).logits, size=images.shape[-2:], mode="bilinear").log_softmax(1)


def weighted_sum(log_p: Tensor, labels: Tensor, weights: list[float], pixel_weights: Tensor | None = None) -> float:
    values = log_p.detach().double() * (1 if pixel_weights is None else pixel_weights[:, None])
    return -sum(weights[c] * float(values[:, c][labels == c].sum()) for c in range(CLASSES))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_supervised_losses_are_naive_weighted_sums_over_labelled_pixels(name: str) -> None:
    made, naive = WEIGHTINGS[name]
    model, given = prepared(Supervised, made()), batch()
    assert given.source is not None
    assert given.target is not None
    logs = model.step(given).logs
    for loss, images, labels in (
        ("source", given.source.image, given.source.labels),
        ("target", given.target.image, given.target.bought),
    ):
        p = log_p(model.student, images)
        weights = naive(p, labels)
        expected = weighted_sum(p, labels, weights) / int((labels != VOID).sum())
        assert float(logs[loss].detach()) == pytest.approx(expected, rel=1e-4), loss
        latest = model.class_weights.latest[loss]
        assert latest.dtype == torch.float32
        assert not latest.requires_grad
        assert latest.tolist() == pytest.approx(weights, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_self_training_losses_are_naive_weighted_sums_over_all_pixels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, naive = WEIGHTINGS[name]
    settings = {"masking": Masking(block=8), "confidence_threshold": 0.0705, "jitter": None, "blur": None}
    model = prepared(SelfTraining, made(), **settings)
    seen: dict[str, tuple[Tensor, Any]] = {}

    def watched(loss: str, said: TrainingPass, lesson: Lesson, weights_of: Any) -> Tensor:
        seen[loss] = (said.log_p.detach(), lesson)
        return taught_cross_entropy(loss, said, lesson, weights_of)

    monkeypatch.setattr(self_training, "taught_cross_entropy", watched)
    logs = model.step(batch()).logs
    assert tuple(seen) == LOSSES
    assert 0.01 < float(logs["confidence"]) < 0.99  # pixel weights and class weights multiply
    for loss, (p, lesson) in seen.items():
        expected = weighted_sum(p, lesson.labels, naive(p, lesson.labels), lesson.weights) / lesson.labels.numel()
        assert float(logs[loss]) == pytest.approx(expected, rel=1e-4), loss


def test_no_weights_and_weights_of_one_are_the_same() -> None:
    one = prepared(SelfTraining, FixedWeights([1.0] * CLASSES)).step(batch())
    none = SelfTraining(network=tiny_network, class_table=STREETS, seed=3).step(batch())
    assert one.logs.keys() == none.logs.keys()
    assert all(torch.equal(one.logs[name], none.logs[name]) for name in none.logs)


# ---- classes that the source does not have


@pytest.mark.parametrize("name", ["inverse", "root", "median", "effective"])
def test_a_class_without_source_pixels_weighs_one(name: str) -> None:
    weights = WEIGHTINGS[name][0]()
    weights.prepare(STREETS, LOSSES, source_statistics)
    given = weights("source", torch.zeros(1, CLASSES, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64))
    assert float(given[ABSENT]) == 1
    present = torch.arange(CLASSES) != ABSENT
    assert float(given[present].mean()) == pytest.approx(1, rel=1e-6)
    assert not weights.state_dict()  # they are counted anew after a resume


@pytest.mark.parametrize(("known_only", "expected"), [(False, CLASSES), (True, CLASSES - 1)])
def test_known_only_leaves_classes_out_that_the_source_never_shows(known_only: bool, expected: int) -> None:
    weights = GBW(regularization=10.0, known_only=known_only)
    weights.prepare(STREETS, LOSSES, source_statistics)
    p = torch.randn(2, CLASSES, 8, 8, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    given = weights("source", p, torch.randint(CLASSES, (2, 8, 8), generator=torch.Generator().manual_seed(0)))
    assert float(given.sum()) == pytest.approx(expected, rel=1e-5)
    assert (float(given[ABSENT]) == 0) == known_only
    assert not weights.state_dict()


# ---- running statistics


def test_smoothing_is_the_bias_corrected_exponential_mean_of_each_loss_by_itself() -> None:
    weights, share = GBW(regularization=1e-3, smoothing=0.7), 0.7
    weights.prepare(STREETS, ("source", "mixed"), source_statistics)
    generator = torch.Generator().manual_seed(2)
    history: dict[str, list[list[float]]] = {"source": [], "mixed": []}
    for step in range(7):
        for loss in ("source", "mixed") if step != 3 else ("mixed",):
            p = torch.randn(2, CLASSES, 8, 8, generator=generator, dtype=torch.float64).log_softmax(1)
            labels = torch.randint(CLASSES, (2, 8, 8), generator=generator)
            history[loss].append(channel_gradients(p, labels))
            given = weights(loss, p.float(), labels)
            factors = [share**age for age in reversed(range(len(history[loss])))]
            mean = [
                sum(f * g[c] for f, g in zip(factors, history[loss], strict=True)) / sum(factors)
                for c in range(CLASSES)
            ]
            assert given.tolist() == pytest.approx(projected(mean, 1e-3), rel=1e-3, abs=1e-4)
    fields = (*gbw.Statistics._fields, "share")
    assert set(weights.state_dict()) == {f"{loss}_{field}" for loss in ("source", "mixed") for field in fields}
    assert float(weights.state_dict()["mixed_share"]) == pytest.approx(1 - share**7)


# ---- refusals


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FixedWeights([1.0, -2.0]), r"class_weights\.weights holds -2\.0; finite numbers from 0 on"),
        (lambda: FixedWeights([1.0, math.nan]), r"class_weights\.weights holds nan"),
        (lambda: FixedWeights([1.0, math.inf]), r"class_weights\.weights holds inf"),
        (lambda: GBW(regularization=0), r"class_weights\.regularization is 0"),
        (lambda: GBW(min_pixels=-1), r"class_weights\.min_pixels is -1"),
        (lambda: GBW(smoothing=1.0), r"class_weights\.smoothing is 1\.0"),
    ],
)
def test_nonsense_is_refused(make: Callable[[], ClassWeights], said: str) -> None:
    with pytest.raises(AdaptSegError, match=said):
        make()


@pytest.mark.parametrize("count", [0, CLASSES - 1, CLASSES + 1])
def test_a_list_of_another_length_is_refused(tmp_path: Path, count: int) -> None:
    model = Supervised(network=tiny_network, class_table=STREETS, class_weights=FixedWeights([1.0] * count))
    with pytest.raises(AdaptSegError, match=rf"has {count} numbers; class table 'streets' has {CLASSES} classes"):
        trainer(tmp_path, steps=1).fit(model, pair())


@pytest.mark.parametrize("make", [lambda: InverseFrequency(), lambda: GBW(known_only=True)])
def test_frequencies_need_a_source(tmp_path: Path, make: Callable[[], ClassWeights]) -> None:
    model = Supervised(network=tiny_network, class_table=STREETS, class_weights=make())
    with pytest.raises(AdaptSegError, match=r"data\.source is missing: class statistics"):
        trainer(tmp_path, steps=1).fit(model, pair(source=None, cache=str(tmp_path)))


# ---- the log


@pytest.mark.slow
def test_each_loss_logs_c_numbers_at_log_steps_only_and_they_are_drawn(tmp_path: Path) -> None:
    model = SelfTraining(
        network=tiny_network, class_table=STREETS, masking=Masking(block=8), class_weights=GBW(regularization=1e-3)
    )
    run = trainer(tmp_path, steps=7, logger=CsvLogger(tmp_path), log_every_n_steps=3)
    run.fit(model, pair())
    lines = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    steps: dict[str, list[int]] = {}
    for step, name, _ in lines[1:]:
        if name.startswith("class_weights/"):
            steps.setdefault(name, []).append(int(step))
    assert steps == {f"class_weights/{loss}/{name}": [2, 5] for loss in LOSSES for name in STREETS.names}
    for loss in LOSSES:
        values = [float(value) for step, name, value in lines[1:] if name.startswith(f"class_weights/{loss}/")]
        assert sum(values) == pytest.approx(2 * CLASSES, rel=1e-5)
    figure = class_weight_curves(tmp_path / "metrics.csv", STREETS)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [f"class weights, {loss}" for loss in sorted(LOSSES)]
    assert [len(axes.lines) for axes in figure.axes] == [CLASSES] * 3


def test_without_class_weights_there_is_nothing_to_log_or_draw(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=2, logger=CsvLogger(tmp_path), log_every_n_steps=1)
    run.fit(Supervised(network=tiny_network, class_table=STREETS), pair())
    assert "class_weights" not in (tmp_path / "metrics.csv").read_text()
    assert class_weight_curves(tmp_path / "metrics.csv", STREETS) is None
