"""Entropy maps and domain losses against naive float64 loops, autograd and SciPy; GBW from an entropy's gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, xlogy
from scipy.stats import entropy as scipy_entropy
from torch import Tensor

from adaptseg.errors import AdaptSegError
from adaptseg.losses import gbw
from adaptseg.losses.adversarial import discriminator_loss, domain_loss
from adaptseg.losses.entropy import normalised_entropy, self_information


def random_log_p(seed: int, shape: tuple[int, ...] = (2, 5, 4, 3), scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(1)


@pytest.mark.parametrize("seed", range(3))
def test_maps_are_those_of_a_naive_loop(seed: int) -> None:
    log_p = random_log_p(seed)
    batch, classes, height, width = log_p.shape
    information, entropy = self_information(log_p), normalised_entropy(log_p)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                p = [math.exp(log_p[b, c, y, x]) for c in range(classes)]
                released = [-v * math.log2(v + 1e-30) / math.log2(classes) for v in p]
                np.testing.assert_allclose(information[b, :, y, x], released, atol=1e-13)
                np.testing.assert_allclose(entropy[b, y, x], sum(released), atol=1e-13)


def test_maps_agree_with_scipy_and_keep_their_ranges() -> None:
    log_p = random_log_p(3, scale=8.0)
    p = log_p.exp().numpy()
    np.testing.assert_allclose(self_information(log_p), -xlogy(p, p) / math.log(5), atol=1e-13)
    np.testing.assert_allclose(normalised_entropy(log_p), scipy_entropy(p, base=5, axis=1), atol=1e-12)
    assert float(self_information(log_p).min()) >= 0
    assert float(self_information(log_p).max()) <= 1 / (math.e * math.log(5)) + 1e-12
    uniform = torch.zeros(1, 7, 2, 2).log_softmax(1)
    torch.testing.assert_close(normalised_entropy(uniform), torch.ones(1, 2, 2))


def test_certain_predictions_have_no_entropy_and_a_finite_gradient() -> None:
    logits = torch.tensor([500.0, 0.0, -500.0]).view(1, 3, 1, 1).requires_grad_()
    entropy = normalised_entropy(logits.log_softmax(1))
    entropy.sum().backward()
    assert float(entropy.detach()) == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_is_computed_in_float32() -> None:
    log_p = random_log_p(4).bfloat16()
    assert self_information(log_p).dtype == torch.float32
    torch.testing.assert_close(normalised_entropy(log_p), normalised_entropy(log_p.float()))


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 1, 4, 4)])
def test_maps_of_no_classes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AdaptSegError, match=r"2 or more classes"):
        normalised_entropy(torch.zeros(shape))


def test_nan_stays_nan() -> None:
    log_p = random_log_p(0)
    log_p[0, 0, 0, 0] = math.nan
    assert normalised_entropy(log_p)[0, 0, 0].isnan()
    assert domain_loss(log_p, "source", "vanilla").isnan()


# ---- domains


def naive_domain_loss(scores: Tensor, label: int, objective: str) -> float:
    total = 0.0
    for score in scores.flatten().tolist():
        if objective == "least_squares":
            total += (score - label) ** 2
        else:
            p = float(expit(score))
            total += -math.log(p if label else 1 - p)
    return total / scores.numel()


@pytest.mark.parametrize("objective", ["vanilla", "least_squares"])
def test_domain_losses_are_those_of_a_naive_loop(objective: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = 3 * torch.randn(2, 2, 1, 3, 4, generator=generator, dtype=torch.float64)
    for scores in (source, target):
        for label, domain in enumerate(("source", "target")):
            expected = naive_domain_loss(scores, label, objective)
            assert float(domain_loss(scores, domain, objective)) == pytest.approx(expected, rel=1e-12)
    expected = (naive_domain_loss(source, 0, objective) + naive_domain_loss(target, 1, objective)) / 2
    assert float(discriminator_loss(source, target, objective)) == pytest.approx(expected, rel=1e-12)


def test_the_student_pulls_the_scores_where_the_discriminator_pushes_them_from() -> None:
    scores = torch.zeros(4, requires_grad=True)
    domain_loss(scores, "source", "vanilla").backward()
    student = scores.grad
    scores.grad = None
    discriminator_loss(torch.zeros(4), scores, "vanilla").backward()
    assert student is not None
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, -student / 2)


@pytest.mark.parametrize(("domain", "objective"), [("pool", "vanilla"), ("source", "hinge")])
def test_unknown_names_are_refused(domain: Any, objective: Any) -> None:
    with pytest.raises(AdaptSegError, match=r"is 'pool'; one of source, target|is 'hinge'; one of vanilla"):
        domain_loss(torch.zeros(3), domain, objective)


# ---- GBW from the entropy's gradient


@pytest.mark.parametrize("gradient", ["channel", "class_loss", "mean_residual"])
def test_entropy_statistics_are_those_of_autograd(gradient: gbw.Gradient) -> None:
    logits = 2 * torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels = logits.argmax(1)
    labels[0, 0, :2] = 255
    found = gbw.statistics_from_log_probabilities(logits.log_softmax(1), labels, objective="entropy", gradient=gradient)
    squares = torch.zeros(5, dtype=torch.float64)
    for c in range(5):
        z = logits.clone().requires_grad_()
        p = z.softmax(1)
        entropy = -(p * p.log()).sum(1) / math.log(5)
        entropy[labels == c].sum().backward()
        assert z.grad is not None
        residual = z.grad.square().sum((0, 2, 3))
        count = int((labels == c).sum())
        assert int(found.pixels[c]) == count
        if gradient == "channel":
            squares += residual / (count + 1) ** 2
        else:
            squares[c] = residual.sum()
    torch.testing.assert_close(found.squares, squares, rtol=1e-10, atol=1e-14)


def test_an_unknown_objective_is_refused() -> None:
    log_p = random_log_p(0)
    with pytest.raises(AdaptSegError, match=r"objective is 'margin'"):
        gbw.statistics_from_log_probabilities(log_p, log_p.argmax(1), objective="margin")  # type: ignore[arg-type]
