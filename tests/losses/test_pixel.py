"""Pixel cross-entropy against naive loops, and the rule that weights never enter the count."""

import math

import pytest
import torch

from adaptseg.losses.pixel import cross_entropy


def random_case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=dtype) * 3
    labels = torch.randint(0, 4, (2, 3, 5), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    return logits, labels


def naive(logits, labels, class_weights=None, pixel_weights=None, ignore_index: int = 255) -> tuple[float, int]:
    total, count = 0.0, 0
    batch, _, height, width = logits.shape
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                label = int(labels[b, y, x])
                if label == ignore_index:
                    continue
                z = logits[b, :, y, x].tolist()
                loss = math.log(sum(math.exp(v) for v in z)) - z[label]
                loss *= 1 if class_weights is None else float(class_weights[label])
                loss *= 1 if pixel_weights is None else float(pixel_weights[b, y, x])
                total, count = total + loss, count + 1
    return total, count


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("by_pixel", [False, True])
def test_against_naive_loops(by_class: bool, by_pixel: bool) -> None:
    for seed in range(3):
        logits, labels = random_case(seed)
        class_weights = torch.rand(4, dtype=torch.float64) * 5 if by_class else None
        pixel_weights = torch.rand(2, 3, 5, dtype=torch.float64) if by_pixel else None
        total, count = cross_entropy(logits, labels, class_weights=class_weights, pixel_weights=pixel_weights)
        expected, pixels = naive(logits, labels, class_weights, pixel_weights)
        assert total.item() == pytest.approx(expected, rel=1e-12)
        assert count.item() == pixels
        assert count.dtype == torch.int64


def test_gradient() -> None:
    logits, labels = random_case(4)
    logits.requires_grad_()
    weights = torch.rand(4, dtype=torch.float64), torch.rand(2, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: cross_entropy(z, labels, class_weights=weights[0], pixel_weights=weights[1])[0], (logits,)
    )


def test_weights_scale_the_sum_but_not_the_count() -> None:
    logits, labels = random_case(5)
    total, count = cross_entropy(logits, labels)
    threefold, same = cross_entropy(logits, labels, class_weights=torch.full((4,), 3.0))
    zero, still = cross_entropy(logits, labels, pixel_weights=torch.zeros(2, 3, 5))
    assert threefold.item() == pytest.approx(3 * total.item())
    assert zero.item() == 0
    assert count == same == still == (labels != 255).sum()


def test_pixel_weights_get_no_gradient_and_broadcast() -> None:
    logits, labels = random_case(6)
    per_image = torch.tensor([2.0, 0.5], dtype=torch.float64, requires_grad=True)
    total, _ = cross_entropy(logits.requires_grad_(), labels, pixel_weights=per_image[:, None, None])
    total.backward()
    assert per_image.grad is None
    expected, _ = naive(logits, labels, pixel_weights=per_image.detach()[:, None, None].expand(2, 3, 5))
    assert total.item() == pytest.approx(expected)


def test_all_void_gives_zero_with_zero_gradient() -> None:
    logits, labels = random_case(7)
    total, count = cross_entropy(logits.requires_grad_(), torch.full_like(labels, 255))
    total.backward()
    assert total.item() == 0
    assert count.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_other_ignore_index() -> None:
    logits, labels = random_case(8)
    labels[labels == 255] = 3
    total, count = cross_entropy(logits, labels, ignore_index=3)
    assert (total.item(), count.item()) == pytest.approx(naive(logits, labels, ignore_index=3))


def test_unknown_label_is_an_error() -> None:
    logits, labels = random_case(9)
    labels[0, 0, 0] = 4
    with pytest.raises(IndexError):
        cross_entropy(logits, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = random_case(10)
    half = logits.to(dtype).requires_grad_()
    weights = torch.tensor([1000.0, 1, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = cross_entropy(half, labels, class_weights=weights, pixel_weights=torch.full((2, 3, 5), 1000.0))
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(naive(half.double(), labels, weights)[0] * 1000, rel=1e-5)
    total.backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype
