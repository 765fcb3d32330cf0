"""Feature distance and majority labels against naive loops; no NaN where nothing is selected or nothing differs."""

import math
from collections import Counter

import pytest
import torch

from adaptseg.errors import AdaptSegError
from adaptseg.losses.feature_distance import feature_distance, majority_labels, projected_distance
from adaptseg.losses.reduce import global_mean

THINGS = torch.tensor([False, True, False, True])


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (2, 5, 3, 4) of both networks, labels (2, 12, 16) of cells that are more or less pure."""
    generator = torch.Generator().manual_seed(seed)
    features, reference = torch.randn(2, 2, 5, 3, 4, generator=generator, dtype=torch.float64)
    cells = torch.tensor([0, 1, 2, 3, 255])[torch.randint(0, 5, (2, 3, 4), generator=generator)]
    labels = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    noise = torch.rand(labels.shape, generator=generator) < 0.3
    labels[noise] = torch.randint(0, 4, labels.shape, generator=generator)[noise]
    return features, reference, labels


def naive_majority(labels: torch.Tensor, size: tuple[int, int], min_share: float) -> torch.Tensor:
    """Cell (i, j) holds the pixels with i <= y h / H < i + 1 and j <= x w / W < j + 1."""
    (height, width), (rows, columns) = labels.shape[-2:], size
    result = torch.full((len(labels), rows, columns), 255)
    for b in range(len(labels)):
        for i in range(rows):
            for j in range(columns):
                top, bottom = -(-i * height // rows), -(-(i + 1) * height // rows)
                left, right = -(-j * width // columns), -(-(j + 1) * width // columns)
                window = labels[b, top:bottom, left:right].flatten().tolist()
                label, count = max(Counter(window).items(), key=lambda item: (item[1], -item[0]))
                if count >= min_share * len(window):
                    result[b, i, j] = label
    return result


@pytest.mark.parametrize("size", [(3, 4), (5, 7), (12, 16), (1, 1)])
@pytest.mark.parametrize("min_share", [0.3, 0.75, 1.0])
def test_majority_against_naive_loops(size: tuple[int, int], min_share: float) -> None:
    for seed in range(3):
        labels = random_case(seed)[2]
        majority = majority_labels(labels, size, 4, min_share)
        assert majority.dtype == torch.int64
        assert torch.equal(majority, naive_majority(labels, size, min_share))


def test_majority_of_exactly_the_share_and_void_as_a_bin() -> None:
    labels = torch.full((1, 4, 12), 255)
    labels[0, :3, :4] = 2  # exactly three quarters
    labels[0, :3, 4:8], labels[0, 0, 4] = 1, 255  # one pixel fewer
    assert majority_labels(labels, (1, 3), 4, 0.75).tolist() == [[[2, 255, 255]]]
    assert majority_labels(torch.full((1, 2, 2), 3), (1, 1), 4, 1.0, ignore_index=3).tolist() == [[[3]]]


def naive_distance(features, reference, labels, min_share: float) -> tuple[float, int]:
    total, count = 0.0, 0
    for (b, i, j), label in zip(
        torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist(),
        naive_majority(labels, (3, 4), min_share).flatten().tolist(),
        strict=True,
    ):
        if label in (1, 3):
            total += math.dist(features[b, :, i, j].tolist(), reference[b, :, i, j].tolist())
            count += 1
    return total, count


def test_distance_against_naive_loops() -> None:
    cells = 0
    for seed in range(5):
        features, reference, labels = random_case(seed)
        total, count = feature_distance(features, reference, labels, THINGS)
        expected, number = naive_distance(features, reference, labels, 0.75)
        assert total.item() == pytest.approx(expected, rel=1e-12)
        assert count.item() == number
        assert count.dtype == torch.int64
        cells += number
    assert cells > 5


def test_gradient_flows_into_the_student_alone() -> None:
    features, reference, labels = random_case(6)
    labels[0, :4, :4] = 1
    reference.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f: feature_distance(f, reference, labels, THINGS)[0], (features.requires_grad_(),)
    )
    feature_distance(features, reference, labels, THINGS)[0].backward()
    assert reference.grad is None


def test_equal_features_have_a_finite_gradient() -> None:
    features, _, labels = random_case(7)
    labels[:] = 3
    reference = features.clone()
    reference[1, :, 2, 3] += 2.0
    total, count = feature_distance(features.requires_grad_(), reference, labels, THINGS)
    total.backward()
    assert count.item() == 24
    assert total.item() == pytest.approx(2 * math.sqrt(5))
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad[0].abs().max() == 0
    torch.testing.assert_close(features.grad[1, :, 2, 3], torch.full((5,), -(5**-0.5), dtype=torch.float64))


@pytest.mark.parametrize("label", [255, 0])
def test_nothing_selected_gives_zero_with_zero_gradient(label: int) -> None:
    features, reference, labels = random_case(8)
    labels[:] = label
    mean = global_mean(*feature_distance(features.requires_grad_(), reference, labels, THINGS))
    mean.backward()
    assert mean.item() == 0
    assert features.grad is not None
    assert (features.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    features, reference, labels = random_case(9)
    labels[0, :8, :8] = 3
    features = (1000 * features).to(dtype).requires_grad_()  # squares overflow float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = feature_distance(features, reference.to(dtype), labels, THINGS)
    assert total.dtype == torch.float32
    expected, _ = naive_distance(features.double(), reference.to(dtype).double(), labels, 0.75)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_errors() -> None:
    features, reference, labels = random_case(10)
    with pytest.raises(AdaptSegError, match="the same"):
        feature_distance(features, reference[:, :3], labels, THINGS)
    with pytest.raises(AdaptSegError, match="coarser"):
        feature_distance(features, reference, labels[:, :2], THINGS)
    for min_share in (0.0, 1.5, math.nan):
        with pytest.raises(AdaptSegError, match="min_share"):
            majority_labels(labels, (3, 4), 4, min_share)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_synchronisation_with_the_device() -> None:
    features, reference, labels = random_case(11)
    expected = feature_distance(features, reference, labels, THINGS)
    given = features.cuda(), reference.cuda(), labels.cuda(), THINGS.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = feature_distance(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close([r.cpu() for r in result], list(expected))


def test_projected_distance_against_naive_loops() -> None:
    features, reference, _ = random_case(5)
    features = (features * 2).requires_grad_()
    total = 0.0
    for b in range(2):
        for i in range(3):
            for j in range(4):
                own, fixed = features[b, :, i, j].tolist(), reference[b, :, i, j].tolist()
                dot = sum(x * y for x, y in zip(own, fixed, strict=True))
                cosine = dot / math.sqrt(sum(x * x for x in own) * sum(y * y for y in fixed))
                gaps = [abs(x - y) for x, y in zip(own, fixed, strict=True)]
                smooth = sum(gap - 0.5 if gap > 1 else gap * gap / 2 for gap in gaps) / len(gaps)
                total += 0.9 * (1 - cosine) + 0.1 * smooth
    distance = projected_distance(features, reference.clone().requires_grad_())
    assert float(distance.detach()) == pytest.approx(total / 24, rel=1e-9)
    distance.backward()
    assert features.grad is not None
    assert float(projected_distance(reference, reference)) == pytest.approx(0, abs=1e-9)
    assert projected_distance(features.detach().half(), reference.half()).dtype == torch.float32
    with pytest.raises(AdaptSegError, match=r"projected distance: features \(2, 5, 3, 4\), reference \(2, 5, 4, 3\)"):
        projected_distance(features, reference.mT)
