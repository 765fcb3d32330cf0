"""RIPU's two losses against naive loops (values) and finite differences (gradients)."""

import math

import pytest
import torch
import torch.nn.functional as F

from adaptseg.errors import AdaptSegError
from adaptseg.losses import ripu
from adaptseg.losses.reduce import global_mean
from adaptseg.losses.ripu import boundary_pixels


def boundary_consistency(p: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of probabilities; the logarithm's gradient comes from autograd."""
    return ripu.boundary_consistency(p.log(), labels)


def negative_learning(p: torch.Tensor, threshold: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    return ripu.negative_learning(p.log(), threshold)


def random_labels(seed: int, shape: tuple[int, int, int], classes: int, void: float) -> torch.Tensor:
    """Blocks of 3x3 pixels of one class, so that there are boundaries and insides."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = shape
    blocks = torch.randint(0, classes, (batch, -(-height // 3), -(-width // 3)), generator=generator)
    labels = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :height, :width].contiguous()
    labels[torch.rand(shape, generator=generator) < void] = 255
    return labels


def random_probabilities(seed: int, shape: tuple[int, ...], sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(1)


def naive_boundary(labels: torch.Tensor, ignore_index: int = 255) -> list[tuple[int, int, int]]:
    batch, height, width = labels.shape
    chosen = []
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                laplacian = 0
                for v in range(y - 1, y + 2):
                    for u in range(x - 1, x + 2):
                        inside = 0 <= v < height and 0 <= u < width
                        laplacian += (8 if (v, u) == (y, x) else -1) * (int(labels[b, v, u]) if inside else 0)
                if laplacian != 0 and labels[b, y, x] != ignore_index:
                    chosen.append((b, y, x))
    return chosen


def naive_consistency(p: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    _, classes, height, width = p.shape
    total = 0.0
    chosen = naive_boundary(labels)
    for b, y, x in chosen:
        for c in range(classes):
            near = [
                float(p[b, c, min(max(v, 0), height - 1), min(max(u, 0), width - 1)])
                for v in range(y - 1, y + 2)
                for u in range(x - 1, x + 2)
            ]
            total += abs(float(p[b, c, y, x]) - sum(near) / 9)
    return total, len(chosen)


SHAPES = [(2, 7, 9), (1, 1, 1), (1, 1, 6), (1, 5, 1), (2, 2, 2), (1, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("void", [0.0, 0.2])
def test_consistency_against_naive_loops(shape: tuple[int, int, int], void: float) -> None:
    for seed in range(3):
        labels = random_labels(seed, shape, 4, void)
        p = random_probabilities(seed, (shape[0], 4, *shape[1:]))
        total, count = boundary_consistency(p, labels)
        expected, pixels = naive_consistency(p, labels)
        assert total.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
        assert count.item() == pixels
        assert count.dtype == torch.int64
        assert boundary_pixels(labels).nonzero().tolist() == [list(at) for at in naive_boundary(labels)]


@pytest.mark.parametrize("shape", [(2, 5, 4), (1, 1, 6), (1, 5, 1), (1, 2, 2)])
def test_consistency_gradient(shape: tuple[int, int, int]) -> None:
    labels = random_labels(11, shape, 3, 0.0) + 1  # no class 0: the image's edge is a boundary
    labels[0, 0, 0] = 255
    p = random_probabilities(11, (shape[0], 3, *shape[1:])).requires_grad_()
    assert boundary_pixels(labels).any()
    assert torch.autograd.gradcheck(lambda q: 2.5 * boundary_consistency(q, labels)[0], (p,))


def test_consistency_gradient_equals_recorded_operations() -> None:
    labels = random_labels(12, (2, 20, 30), 19, 0.05)
    p = random_probabilities(12, (2, 19, 20, 30)).requires_grad_()
    mean = F.avg_pool2d(F.pad(p, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    ((p - mean).abs().sum(1) * boundary_pixels(labels)).sum().backward()
    expected, p.grad = p.grad, None
    boundary_consistency(p, labels)[0].backward()
    torch.testing.assert_close(p.grad, expected, rtol=0, atol=1e-12)


def test_boundary_keeps_the_oddities_of_the_released_code() -> None:
    assert not boundary_pixels(torch.zeros(1, 4, 4, dtype=torch.int64)).any()
    ones = boundary_pixels(torch.ones(1, 4, 4, dtype=torch.int64))  # the edge meets the zeros outside
    assert ones.sum() == 12
    assert not ones[0, 1:3, 1:3].any()
    ramp = torch.arange(6).repeat(5, 1)[None]  # neighbours average to the pixel's own id
    assert not boundary_pixels(ramp)[0, 1:-1, 1:-1].any()
    high = torch.full((1, 3, 3), 254)
    high[0, 1, 1] = 253
    assert boundary_pixels(high).all()  # sums of nine large ids do not overflow


def test_no_boundary_and_all_void_give_zero_with_zero_gradient() -> None:
    for labels in (torch.zeros(2, 6, 6, dtype=torch.int64), torch.full((2, 6, 6), 255)):
        p = random_probabilities(1, (2, 3, 6, 6)).requires_grad_()
        total, count = boundary_consistency(p, labels)
        loss = global_mean(total, count)
        loss.backward()
        assert loss.item() == 0
        assert count.item() == 0
        assert p.grad is not None
        assert (p.grad == 0).all()


def test_void_pixels_are_neighbours_but_never_counted() -> None:
    labels = torch.zeros(1, 5, 5, dtype=torch.int64)
    labels[0, 2, 2] = 255
    boundary = boundary_pixels(labels)
    assert boundary.sum() == 8
    assert not boundary[0, 2, 2]


def naive_negative(p: torch.Tensor, threshold: float) -> tuple[float, int]:
    chosen = [v for v in p.flatten().tolist() if v < threshold]
    return -math.fsum(math.log(1 - v + 1e-6) for v in chosen), len(chosen)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 1.0])
def test_negative_learning_against_naive_loops(threshold: float) -> None:
    for seed in range(3):
        p = random_probabilities(seed, (2, 19, 5, 7), sharpness=3)
        total, count = negative_learning(p, threshold)
        expected, pairs = naive_negative(p, threshold)
        assert total.item() == pytest.approx(expected, rel=1e-11)
        assert count.item() == pairs
        assert count.dtype == torch.int64
        assert not count.requires_grad


def test_negative_learning_gradient() -> None:
    p = random_probabilities(21, (2, 6, 3, 4), sharpness=3).requires_grad_()
    assert (p < 0.05).any()
    log_p = p.detach().log().requires_grad_()  # a finite difference of p would reach below 0
    assert torch.autograd.gradcheck(lambda q: 1.5 * ripu.negative_learning(q)[0], (log_p,))
    p.grad = None
    negative_learning(p)[0].backward()
    torch.testing.assert_close(p.grad, torch.where(p < 0.05, 1 / (1 - p + 1e-6), 0.0).detach())


def test_negative_learning_of_a_near_uniform_softmax_is_zero() -> None:
    p = torch.full((1, 19, 4, 4), 1 / 19, requires_grad=True)  # 1/19 > 0.05: the mask is empty
    total, count = negative_learning(p)
    loss = global_mean(total, count)
    loss.backward()
    assert loss.item() == 0
    assert count.item() == 0
    assert p.grad is not None
    assert (p.grad == 0).all()


def test_negative_learning_extremes_are_finite() -> None:
    one_hot = F.one_hot(torch.randint(0, 19, (1, 4, 4)), 19).movedim(-1, 1).float().log().requires_grad_()
    total, count = ripu.negative_learning(one_hot, 1.0)
    total.backward()
    assert count.item() == 18 * 16
    assert total.item() == pytest.approx(-18 * 16 * math.log1p(1e-6), rel=0.1)
    assert one_hot.grad is not None
    assert one_hot.grad.isfinite().all()
    many = torch.full((1, 200, 2, 2), 1 / 200)  # 200 classes below the threshold: the product does not underflow
    assert negative_learning(many)[0].item() == pytest.approx(-800 * math.log(1 - 1 / 200 + 1e-6), rel=1e-5)


def test_float32_is_close_to_float64() -> None:
    p = random_probabilities(31, (2, 19, 32, 48), sharpness=4)
    labels = random_labels(31, (2, 32, 48), 19, 0.1)
    for fine, coarse in (
        (negative_learning(p)[0], negative_learning(p.float())[0]),
        (boundary_consistency(p, labels)[0], boundary_consistency(p.float(), labels)[0]),
    ):
        assert coarse.item() == pytest.approx(fine.item(), rel=2e-5)


def test_half_precision_and_layouts() -> None:
    p = random_probabilities(32, (2, 19, 8, 8))
    labels = random_labels(32, (2, 8, 8), 19, 0.1)
    half = p.bfloat16().requires_grad_()
    total = negative_learning(half)[0] + boundary_consistency(half, labels)[0]
    total.backward()
    assert total.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    last = p.contiguous(memory_format=torch.channels_last)
    assert negative_learning(last)[0].item() == pytest.approx(negative_learning(p)[0].item())
    assert boundary_consistency(last, labels)[0].item() == pytest.approx(boundary_consistency(p, labels)[0].item())


def test_nan_shows() -> None:
    p = torch.full((1, 3, 4, 4), math.nan)
    assert negative_learning(p)[0].isnan()
    assert boundary_consistency(p, torch.eye(4, dtype=torch.int64)[None])[0].isnan()


def test_inputs_are_left_alone() -> None:
    p = random_probabilities(33, (1, 5, 6, 6))
    labels = random_labels(33, (1, 6, 6), 5, 0.1)
    before = p.clone(), labels.clone()
    negative_learning(p)
    boundary_consistency(p, labels)
    assert torch.equal(p, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.5, math.nan])
def test_threshold_is_checked(threshold: float) -> None:
    with pytest.raises(AdaptSegError, match="threshold"):
        negative_learning(torch.full((1, 2, 1, 1), 0.5), threshold)
