import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adaptseg.active.balancing import (
    balance_scores,
    balance_scores_by_region,
    class_balance_weights,
    class_budget,
    round_budget,
)
from adaptseg.active.selection import GlobalSelector
from adaptseg.errors import AdaptSegError


def test_weights_of_the_specification() -> None:
    weights = class_balance_weights(torch.tensor([0, 50, 140]), 100, 0.01)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([1, 0.5, 0.01]))
    assert class_balance_weights(torch.tensor([1 << 40]), 1e9, 1).tolist() == [1]


@pytest.mark.parametrize(
    ("counts", "budget", "epsilon", "word"),
    [
        ([0.0], 0, 0.1, "class_budget"),
        ([0.0], -5, 0.1, "class_budget"),
        ([0.0], math.nan, 0.1, "class_budget"),
        ([0.0], 10, 0, "epsilon"),
        ([0.0], 10, 1.1, "epsilon"),
        ([0.0], 10, math.nan, "epsilon"),
        ([-1.0], 10, 0.1, "counts"),
        ([math.nan], 10, 0.1, "counts"),
        ([[1.0]], 10, 0.1, "counts"),
    ],
)
def test_weights_refuse(counts: list[float], budget: float, epsilon: float, word: str) -> None:
    with pytest.raises(AdaptSegError, match=word):
        class_balance_weights(torch.tensor(counts), budget, epsilon)


def test_class_budget() -> None:
    assert class_budget(1900, 19, target="total", round=2, rounds=5) == pytest.approx(100)
    assert class_budget(1900, 19, target="cumulative", round=2, rounds=5) == pytest.approx(40)
    assert class_budget(1900, 19, target="cumulative", round=5, rounds=5) == pytest.approx(100)
    # Specification 3.8: 5 % of a pool over 19 classes is 0.263 % of its pixels.
    assert class_budget(0.05, 19, round=1, rounds=1) == pytest.approx(0.00263, rel=1e-3)
    for total, classes, i in ((0, 19, 1), (10, 0, 1), (10, 19, 0), (10, 19, 6)):
        with pytest.raises(AdaptSegError):
            class_budget(total, classes, round=i, rounds=5)


def test_balanced_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    predicted = torch.randint(0, 3, (4, 5), generator=generator)
    weights = torch.tensor([1, 0.5, 0.01])
    expected = [[max(score[y, x].item(), 0) * weights[predicted[y, x]].item() for x in range(5)] for y in range(4)]
    result = balance_scores(score, weights, predicted)
    assert result.dtype == score.dtype
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(balance_scores(score, weights, predicted.to(torch.uint8)), result)
    for y in range(4):
        for x in range(5):
            window = predicted[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].flatten()
            weight = sum(weights[c].item() for c in window) / len(window)
            balanced = balance_scores_by_region(score, weights, predicted, 1)[y, x].item()
            assert balanced == pytest.approx(weight * max(score[y, x].item(), 0), rel=1e-6)
    torch.testing.assert_close(balance_scores_by_region(score, weights, predicted, 0), result)


def test_saturated_classes_do_not_win_below_zero() -> None:
    score = torch.full((1, 3), -3e-7)  # what the released score gives pure regions
    balanced = balance_scores(score, torch.tensor([1, 0.01]), torch.tensor([[0, 1, 1]]))
    assert balanced.tolist() == [[0, 0, 0]]


def test_unchoosable_stays_unchoosable() -> None:
    score = torch.tensor([[-math.inf, math.inf, -1.0]])
    for balanced in (
        balance_scores(score, torch.tensor([0.5]), torch.zeros(1, 3, dtype=torch.int64)),
        balance_scores_by_region(score, torch.tensor([0.5]), torch.zeros(1, 3, dtype=torch.int64), 1),
    ):
        assert balanced.tolist() == [[-math.inf, math.inf, 0]]


@pytest.mark.parametrize(
    ("weights", "predicted", "word"),
    [
        ([1.0, 0.0], [[0, 1]], "weights"),
        ([1.0, math.nan], [[0, 1]], "weights"),
        ([1.0, 1.0], [[0, 2]], "from 0 to 2"),
        ([1.0, 1.0], [[-1, 0]], "from -1"),
        ([1.0, 1.0], [[0]], "same size"),
        ([1.0, 1.0], [[0.0, 1.0]], "integer"),
    ],
)
def test_balanced_scores_refuse(weights: list[float], predicted: list[list[float]], word: str) -> None:
    with pytest.raises(AdaptSegError, match=word):
        balance_scores(torch.ones(1, 2), torch.tensor(weights), torch.tensor(predicted))


@pytest.mark.parametrize("total", [0, 1, 3, 17, 1001, 1_247_805_440])
@pytest.mark.parametrize("rounds", [1, 2, 5, 7, [0.5, 0.3, 0.2], [0.1] * 10, [0.0, 1.0]])
def test_rounds_meet_the_total_exactly(total: int, rounds: int | list[float]) -> None:
    spent = 0
    number = rounds if isinstance(rounds, int) else len(rounds)
    for i in range(1, number + 1):
        bought = round_budget(total, i, rounds, spent)
        assert bought >= 0
        spent += bought
        due = total * (i / number if isinstance(rounds, int) else sum(rounds[:i]))
        assert abs(spent - due) <= 0.51
    assert spent == total


def test_equal_shares_equal_rounds() -> None:
    for i in range(1, 6):
        assert round_budget(100, i, 5, 20 * (i - 1)) == round_budget(100, i, [0.2] * 5, 20 * (i - 1)) == 20


def test_round_budget_after_over_and_underspending() -> None:
    assert round_budget(100, 2, 5, 25) == 15
    assert round_budget(100, 2, 5, 41) == 0
    assert round_budget(100, 2, 5, 3) == 37
    for total, i, rounds, spent in (
        (-1, 1, 5, 0),
        (10, 0, 5, 0),
        (10, 6, 5, 0),
        (10, 1, 0, 0),
        (10, 1, 5, -1),
        (10, 1, [0.5, 0.4], 0),
        (10, 1, [1.5, -0.5], 0),
        (10, 1, [], 0),
        (10, 3, [0.5, 0.5], 0),
    ):
        with pytest.raises(AdaptSegError):
            round_budget(total, i, rounds, spent)


# --- the acquisition in the small -------------------------------------------------------------------------------------


def acquire(
    folder: Path, scores: list[Tensor], classes: list[Tensor], total: int, rounds: int, epsilon: float | None
) -> list[Tensor]:
    """CBDA with a perfect model on a pool in memory: class counts after each round. epsilon None = weights off (DA)."""
    num_classes = 1 + max(int(c.max()) for c in classes)
    bought = [torch.zeros(s.shape, dtype=torch.bool) for s in scores]
    counts, history, spent = torch.zeros(num_classes, dtype=torch.int64), [], 0
    for i in range(1, rounds + 1):
        budget = class_budget(total, num_classes, round=i, rounds=rounds)
        with GlobalSelector(round_budget(total, i, rounds, spent), scratch=folder, seed=i) as selector:
            for j, (score, predicted) in enumerate(zip(scores, classes, strict=True)):
                if epsilon is not None:
                    score = balance_scores(score, class_balance_weights(counts, budget, epsilon), predicted)
                selector.add(f"{j}", score, bought[j])
            for key, yx in selector.finish():
                j = int(key)
                assert not bought[j][yx[:, 0], yx[:, 1]].any()  # nothing is bought twice
                bought[j][yx[:, 0], yx[:, 1]] = True
                counts = counts + torch.bincount(classes[j][yx[:, 0], yx[:, 1]], minlength=num_classes)
        spent = sum(int(b.sum()) for b in bought)
        assert spent == round_budget(total, i, rounds, 0) == int(counts.sum())
        history.append(counts)
    return history


def balance(counts: Tensor) -> float:
    share = counts / counts.sum()
    return -torch.xlogy(share, share).sum().item()


def test_two_classes_95_to_5(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = [(torch.rand(100, 100, generator=generator) < 0.05).long() for _ in range(4)]
    scores = [torch.ones(100, 100) for _ in classes]
    cbda = acquire(tmp_path, scores, classes, 8000, 5, 0.01)
    da = acquire(tmp_path, scores, classes, 8000, 5, None)
    first = cbda[0] / cbda[0].sum()
    assert torch.equal(cbda[0], da[0])  # round 1 is unweighted
    assert first[1].item() == pytest.approx(0.05, abs=0.02)
    assert cbda[1][1] / cbda[1].sum() > 2 * first[1]
    assert balance(cbda[-1]) > balance(da[-1])


def test_equal_weights_make_cbda_da(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    classes = [torch.randint(0, 3, (30, 40), generator=generator) for _ in range(3)]
    scores = [torch.randn(30, 40, generator=generator).clamp_min(0) for _ in classes]
    # epsilon 1 keeps every weight at 1
    cbda, da = (acquire(tmp_path, scores, classes, 1001, 3, epsilon) for epsilon in (1.0, None))
    assert all(torch.equal(a, b) for a, b in zip(cbda, da, strict=True))
