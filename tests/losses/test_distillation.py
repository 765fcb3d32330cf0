"""Distillation against a naive float64 loop, KL's identities, means of teachers, the ramp."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adaptseg.errors import AdaptSegError
from adaptseg.losses.distillation import divergence, mean_log_probabilities, ramp
from adaptseg.losses.reduce import global_mean

SHAPE = (2, 5, 3, 4)
EVERYWHERE = torch.ones(2, 3, 4, dtype=torch.bool)


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(teacher: Tensor, student: Tensor, mask: Tensor, weights: Tensor, temperature: float) -> float:
    total = 0.0
    for b, y, x in mask.nonzero().tolist():
        p, q = ((z[b, :, y, x] / temperature).exp() for z in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        total += float(weights[b, y, x]) * sum(float(a) * math.log(float(a) / float(c)) for a, c in zip(p, q))  # noqa: B905
    return temperature**2 * total


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_that_of_the_naive_loop(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 3, 4, generator=generator) < 0.6
    weights = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    teacher, student = logits(1), logits(2)
    total, count = divergence(
        teacher.log_softmax(1), student.log_softmax(1), mask, temperature=temperature, pixel_weights=weights
    )
    assert float(total) == pytest.approx(naive(teacher, student, mask, weights, temperature), rel=1e-12)
    assert int(count) == int(mask.sum())


def test_gradient_goes_to_the_student_alone() -> None:
    teacher, student = logits(1).requires_grad_(), logits(2).requires_grad_()
    total, _ = divergence(teacher.log_softmax(1), student.log_softmax(1), EVERYWHERE)
    total.backward()
    assert teacher.grad is None
    assert student.grad is not None
    # d KL / d z = softmax(student) - softmax(teacher)
    torch.testing.assert_close(student.grad, student.detach().softmax(1) - teacher.detach().softmax(1))


def test_identities() -> None:
    same = logits(1).log_softmax(1)
    assert float(divergence(same, same, EVERYWHERE)[0]) == 0
    shifted = (logits(1) + 7).log_softmax(1)
    other = logits(2).log_softmax(1)
    torch.testing.assert_close(divergence(shifted, other, EVERYWHERE)[0], divergence(same, other, EVERYWHERE)[0])
    assert float(divergence(same, other, EVERYWHERE)[0]) > 0
    nothing = divergence(same, other, torch.zeros_like(EVERYWHERE))
    assert float(global_mean(*nothing)) == 0


def test_half_precision_is_computed_in_float32() -> None:
    teacher, student = logits(1).log_softmax(1).bfloat16(), logits(2).log_softmax(1).bfloat16()
    total, _ = divergence(teacher, student, EVERYWHERE)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, divergence(teacher.float(), student.float(), EVERYWHERE)[0])


def test_mean_of_teachers() -> None:
    said = [logits(seed).log_softmax(1) for seed in range(3)]
    torch.testing.assert_close(mean_log_probabilities(said).exp(), sum(p.exp() for p in said) / 3)
    weighted = mean_log_probabilities(said, [1.0, 2.0, 5.0]).exp()
    torch.testing.assert_close(weighted, (said[0].exp() + 2 * said[1].exp() + 5 * said[2].exp()) / 8)
    assert mean_log_probabilities(said[:1]) is said[0]
    sure = torch.tensor([0.0, -500.0]).view(1, 2, 1, 1)
    assert torch.isfinite(mean_log_probabilities([sure, sure])).all()


def test_ramp() -> None:
    assert [ramp(step, 10, 20) for step in (0, 10, 15, 20, 99)] == [0, 0, 0.5, 1, 1]


def test_nonsense_is_refused() -> None:
    same = logits(1)
    with pytest.raises(AdaptSegError, match="at one size"):
        divergence(same, same[..., :2], EVERYWHERE)
    with pytest.raises(AdaptSegError, match="temperature 0"):
        divergence(same, same, EVERYWHERE, temperature=0)
    with pytest.raises(AdaptSegError, match="no teacher"):
        mean_log_probabilities([])
    with pytest.raises(AdaptSegError, match="2 positive numbers"):
        mean_log_probabilities([same, same], [1.0, 0.0])
