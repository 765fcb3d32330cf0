"""Inconsistency of two networks by class and its weights: the specification's vectors, loops, and rules for absence."""

import math

import pytest
import torch
from scipy.optimize import minimize

from adaptseg.errors import AdaptSegError
from adaptseg.losses.inconsistency import (
    class_inconsistency,
    divergence_by_class,
    inconsistency_weights,
    present_classes,
)


def test_golden() -> None:
    inconsistency = class_inconsistency(torch.tensor([[8, 2], [1, 9]]))
    assert inconsistency.tolist() == pytest.approx([3 / 11, 3 / 12])
    assert inconsistency_weights(inconsistency).tolist() == pytest.approx([1.0435, 0.9565], abs=5e-5)
    assert class_inconsistency(torch.tensor([[8, 2], [1, 9]]), kind="recall").tolist() == pytest.approx([0.2, 0.1])


def test_against_pixel_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    large = torch.randint(0, 5, (400,), generator=generator)
    small = torch.randint(0, 4, (400,), generator=generator)
    large[large == 3] = 2  # 3: small alone; 4: large alone; 5: neither
    confusion = torch.zeros(6, 6, dtype=torch.int64)
    for a, b in zip(large.tolist(), small.tolist(), strict=True):
        confusion[a, b] += 1
    iou, recall = [], []
    for c in range(6):
        a = {i for i, value in enumerate(large.tolist()) if value == c}
        b = {i for i, value in enumerate(small.tolist()) if value == c}
        iou.append(1 - len(a & b) / len(a | b) if a | b else math.nan)
        recall.append(1 - len(a & b) / len(a) if a else math.nan)
    assert class_inconsistency(confusion).tolist() == pytest.approx(iou, nan_ok=True)
    assert class_inconsistency(confusion, kind="recall").tolist() == pytest.approx(recall, nan_ok=True)
    assert iou[3:5] == [1, 1]
    assert present_classes(confusion).tolist() == [True] * 5 + [False]
    assert present_classes(confusion, minimum=10**6).any().item() is False
    weights = inconsistency_weights(class_inconsistency(confusion), present=present_classes(confusion))
    assert weights[5].item() == 1
    assert weights.mean().item() == pytest.approx(1)


def test_divergence_against_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    large, small = (torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    large[:, 3] = -9
    trusted = torch.rand(2, 3, 5, generator=generator) < 0.7
    sums, counts = [0.0] * 4, [0] * 4
    for b, y, x in trusted.nonzero().tolist():
        p, q = (
            [math.exp(v) / sum(math.exp(w) for w in z[b, :, y, x].tolist()) for v in z[b, :, y, x].tolist()]
            for z in (large, small)
        )
        c = p.index(max(p))
        sums[c] += sum(u * math.log(u / v) for u, v in zip(p, q, strict=True))
        counts[c] += 1
    total, pixels = divergence_by_class(large, small, trusted)
    assert total.tolist() == pytest.approx(sums)
    assert pixels.tolist() == counts
    assert (total / pixels)[3].isnan()
    shifted, _ = divergence_by_class(large, small + 7, trusted)
    torch.testing.assert_close(shifted, total)
    assert divergence_by_class(large, large, trusted)[0].abs().max() < 1e-12
    assert divergence_by_class(large, small, torch.zeros_like(trusted))[1].sum() == 0


def test_normalisations() -> None:
    values = torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64)
    wide = (0.0, 10.0)
    for name, expected in (
        ("mean1", [0.25, 1.0, 1.75]),
        ("max", [1 / 7, 4 / 7, 1.0]),
        ("minmax", [0.0, 0.5, 1.0]),
        ("softmax", [3 * math.exp(v / 0.5) / sum(math.exp(w / 0.5) for w in (0.1, 0.4, 0.7)) for v in (0.1, 0.4, 0.7)]),
    ):
        weights = inconsistency_weights(values, normalisation=name, temperature=0.5, bounds=wide, keep_mean=False)
        assert weights.tolist() == pytest.approx(expected)
        kept = inconsistency_weights(values, normalisation=name, temperature=0.5, bounds=wide)
        shift = 1 - sum(expected) / 3
        assert kept.tolist() == pytest.approx([v + shift for v in expected])
    halved = inconsistency_weights(values, strength=0.5)
    assert halved.tolist() == pytest.approx([0.625, 1.0, 1.375])
    assert inconsistency_weights(values, strength=0.0).tolist() == [1, 1, 1]


def test_bounds_with_mean_one_is_the_nearest_such_vector() -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(8):
        values = torch.rand(6, generator=generator, dtype=torch.float64) ** 4
        bounds = (0.5, 1.5)
        weights = inconsistency_weights(values, bounds=bounds)
        assert weights.mean().item() == pytest.approx(1, abs=1e-6)
        assert bounds[0] <= weights.min().item()
        assert weights.max().item() <= bounds[1]
        wanted = (values / values.mean()).numpy()
        best = minimize(
            lambda w, wanted=wanted: ((w - wanted) ** 2).sum(),
            [1.0] * 6,
            jac=lambda w, wanted=wanted: 2 * (w - wanted),
            bounds=[bounds] * 6,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 6},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        assert weights.tolist() == pytest.approx(best.x.tolist(), abs=1e-5)


def test_one_class_far_ahead() -> None:
    values = torch.zeros(19)
    values[18] = 1
    weights = inconsistency_weights(values)
    assert weights[18].item() == 4
    assert weights[:18].tolist() == pytest.approx([15 / 18] * 18)
    assert inconsistency_weights(values, keep_mean=False)[:2].tolist() == [0.25, 0.25]


def test_absent_unknown_and_agreeing_classes_weigh_one() -> None:
    nan = math.nan
    assert inconsistency_weights(torch.zeros(3)).tolist() == [1, 1, 1]
    assert inconsistency_weights(torch.tensor([nan, nan])).tolist() == [1, 1]
    for bounds in ((1.0, 1.0), (0.25, 4.0)):
        assert inconsistency_weights(torch.tensor([0.5, nan]), bounds=bounds).tolist() == [1, 1]
    present = torch.tensor([True, True, False, True])
    weights = inconsistency_weights(torch.tensor([0.2, 0.6, 0.9, nan]), present=present)
    assert weights.tolist() == pytest.approx([0.5, 1.5, 1, 1])
    assert weights.dtype == torch.float32
    same = inconsistency_weights(torch.tensor([0.3, 0.3]), normalisation="minmax")
    assert same.tolist() == pytest.approx([1, 1])


def test_bad_input() -> None:
    with pytest.raises(AdaptSegError, match="iou, recall"):
        class_inconsistency(torch.ones(2, 2), kind="kl")  # type: ignore[arg-type]
    with pytest.raises(AdaptSegError, match=r"\(C, C\)"):
        class_inconsistency(torch.ones(2, 3))
    with pytest.raises(AdaptSegError, match="not negative"):
        inconsistency_weights(torch.tensor([0.1, -0.1]))
    with pytest.raises(AdaptSegError, match="bounds"):
        inconsistency_weights(torch.ones(2), bounds=(1.5, 2.0))
    with pytest.raises(AdaptSegError, match="mean1"):
        inconsistency_weights(torch.ones(2), normalisation="sum")  # type: ignore[arg-type]
    with pytest.raises(AdaptSegError, match="present"):
        inconsistency_weights(torch.ones(2), present=torch.ones(3, dtype=torch.bool))
    with pytest.raises(AdaptSegError, match="temperature"):
        inconsistency_weights(torch.ones(2), temperature=0.0)
    with pytest.raises(AdaptSegError, match="one size"):
        divergence_by_class(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2), torch.ones(1, 4, 4, dtype=torch.bool))
