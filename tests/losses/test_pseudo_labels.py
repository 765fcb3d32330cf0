"""Pseudo-labels and their weights against a loop over pixels."""

from __future__ import annotations

import pytest
import torch

from adaptseg.classes import VOID
from adaptseg.errors import AdaptSegError
from adaptseg.losses.pseudo_labels import confidence_weights, pseudo_labels, with_bought


def test_labels_and_confidence_are_those_of_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 5, 6, 7, generator=generator, dtype=torch.float64)
    labels, confident = pseudo_labels(logits, 0.8)
    probabilities = logits.softmax(1)
    assert torch.equal(labels, probabilities.argmax(1))
    assert torch.equal(confident, probabilities.amax(1) >= 0.8)
    assert 0.1 < confident.double().mean() < 0.9


def test_extreme_logits_give_finite_answers() -> None:
    logits = torch.tensor([1e4, -1e4, 0.0]).reshape(1, 3, 1, 1)
    labels, confident = pseudo_labels(logits, 0.968)
    assert labels.item() == 0
    assert confident.item()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5])
def test_a_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    with pytest.raises(AdaptSegError, match=r"inside \(0, 1\)"):
        pseudo_labels(torch.zeros(1, 2, 1, 1), threshold)


def test_one_share_for_the_batch_or_one_for_each_image() -> None:
    confident = torch.zeros(2, 2, 2, dtype=torch.bool)
    confident[0] = True
    confident[1, 0, 0] = True
    trusted = torch.ones(2, 2, 2, dtype=torch.bool)
    trusted[:, 1] = False  # an untrusted pixel counts in the share and weighs nothing
    whole = confidence_weights(confident, trusted, scope="batch")
    assert whole[:, 0].tolist() == [[5 / 8, 5 / 8]] * 2
    assert whole[:, 1].tolist() == [[0, 0]] * 2
    each = confidence_weights(confident, trusted, scope="image")
    assert each[:, 0].tolist() == [[1, 1], [0.25, 0.25]]
    given = confidence_weights(confident, trusted, scope="batch", share=torch.tensor(0.1))
    assert given[:, 0].unique().tolist() == [pytest.approx(0.1)]


def test_bought_labels_win_everywhere() -> None:
    labels = torch.tensor([[[1, 2, 3]]])
    weights = torch.tensor([[[0.5, 0.0, 0.5]]])
    bought = torch.tensor([[[VOID, 4, 0]]])
    labels, weights = with_bought(labels, weights, bought)
    assert labels.tolist() == [[[1, 4, 0]]]
    assert weights.tolist() == [[[0.5, 1.0, 1.0]]]
