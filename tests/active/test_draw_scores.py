import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from adaptseg.active import scores
from adaptseg.errors import AdaptSegError


def distributions(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-3)


def columns(draws: Tensor) -> list[list[list[float]]]:
    """Per pixel the K draws as lists of C numbers."""
    return draws.permute(2, 3, 0, 1).flatten(0, 1).tolist()


def plogp(p: list[float]) -> float:
    return sum(q * math.log(q) for q in p if q)


def test_edald() -> None:
    draws, fixed = distributions(5, 4, 3, 2), distributions(4, 3, 2, seed=1)
    expected = []
    for pixel, p in zip(columns(draws), columns(fixed[None]), strict=True):
        mean = [sum(c) / 5 for c in zip(*pixel, strict=True)]
        expected.append(-plogp(mean) + sum(map(plogp, pixel)) / 5 - plogp(p[0]))
    result = scores.edald(draws, fixed)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.tensor(expected).view(3, 2))
    torch.testing.assert_close(scores.edald(draws.movedim(1, -1), fixed.movedim(0, -1), dim=3), result)
    torch.testing.assert_close(result - scores.entropy(fixed), scores.mutual_information(draws))
    torch.testing.assert_close(scores.edald(fixed[None], fixed), scores.entropy(fixed))  # K = 1 informs nobody
    certain = torch.eye(3)[..., None, None]
    torch.testing.assert_close(scores.edald(certain, certain[0]), torch.full((1, 1), math.log(3)))


def test_edald_released() -> None:
    draws, fixed = distributions(5, 4, 3, 2), distributions(4, 3, 2, seed=1)
    expected = []
    for pixel, p in zip(columns(draws), columns(fixed[None]), strict=True):
        q = [[math.exp(x) for x in draw] for draw in pixel]
        mean = [sum(c) / 5 for c in zip(*q, strict=True)]
        expected.append(sum(map(plogp, q)) / 5 - plogp(mean) - sum(x * math.log(x + 1e-8) for x in p[0]))
    torch.testing.assert_close(scores.edald_released(draws, fixed), torch.tensor(expected).view(3, 2))
    both = scores.edald_released(draws.movedim(1, -1), fixed.movedim(0, -1), dim=-1)
    torch.testing.assert_close(both, scores.edald_released(draws, fixed))


@pytest.mark.parametrize("denominator", ["paper", "released"])
def test_balanced_entropy(denominator: str) -> None:
    # Concentrated draws and draws of low concentration: both signs of the balance.
    concentration = torch.tensor([0.3, 0.5, 30.0]).double().view(3, 1).expand(3, 60).repeat(1, 2).reshape(-1)
    generator = torch.Generator().manual_seed(0)
    alpha = concentration[:, None] * torch.rand(360, 4, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    draws = torch.distributions.Dirichlet(alpha + 0.2).sample((50,)).movedim(-1, 1)[..., None]
    result = scores.balanced_entropy(draws, denominator=denominator)[:, 0]  # type: ignore[arg-type]
    assert result.isfinite().all()
    expected = []
    for pixel in columns(draws):
        total, entropy = 0.0, 0.0
        for p in zip(*pixel, strict=True):
            m = sum(p) / 50
            v = max(sum((x - m) ** 2 for x in p) / 49, 1e-9)
            a = m * m * (1 - m) / v - m
            total += min(m * float(stats.beta(a + 1, (1 / m - 1) * a).entropy()), 0)
            entropy -= m * math.log(m)
        balance = (total + entropy) / (entropy + math.log(2) if denominator == "paper" else total + 2 * entropy)
        expected.append(1 / balance if balance >= 0 else balance)
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert (result < 0).any()
    assert (result > 0).any()


@pytest.mark.parametrize("denominator", ["paper", "released"])
def test_running_balance_equals_that_of_all_draws(denominator: scores.Denominator) -> None:
    draws = torch.cat([distributions(7, 5, 6, 40), distributions(1, 5, 6, 40).expand(7, -1, -1, -1)], -1)
    draws[..., 40:60] += 1e-4 * distributions(7, 5, 6, 20, seed=1)  # variances near their floor
    draws[..., -5:] = torch.eye(5)[:, :, None, None].repeat(2, 1, 6, 5)[:7]  # no Beta distribution
    running = scores.RunningBalance(7, denominator=denominator)
    for draw in draws:
        running.add(draw.float())
    expected = scores.balanced_entropy(draws.float(), denominator=denominator)
    torch.testing.assert_close(running.result(), expected, rtol=1e-5, atol=1e-6)
    assert running.result().dtype == torch.float32
    assert (expected == -math.inf).any()
    last = scores.RunningBalance(7, dim=-1, denominator=denominator)
    for draw in draws.movedim(1, -1):
        last.add(draw.float())
    torch.testing.assert_close(last.result(), expected, rtol=1e-5, atol=1e-6)


def test_balanced_entropy_without_a_beta_distribution() -> None:
    opposite = torch.eye(2)[..., None, None]
    assert scores.balanced_entropy(opposite, denominator="paper").item() == -math.inf
    same = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).repeat(3, 1, 1, 1)
    assert scores.balanced_entropy(same, denominator="paper").item() == -math.inf
    draws = distributions(6, 3, 4, 4)
    empty_class = torch.cat([draws, torch.zeros(6, 1, 4, 4)], 1)
    torch.testing.assert_close(
        scores.balanced_entropy(empty_class, denominator="paper"), scores.balanced_entropy(draws, denominator="paper")
    )


def test_power_score_draws_in_proportion_to_the_score() -> None:
    score = torch.tensor([0.1, 0.2, 0.0, 0.7])
    uniform = torch.rand(20000, 4, generator=torch.Generator().manual_seed(0))
    picks = scores.power_score(score.expand(20000, 4), uniform).argmax(-1).bincount(minlength=4)
    assert picks[2] == 0
    observed, expected = picks[[0, 1, 3]].tolist(), [2000.0, 4000.0, 14000.0]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    squared = scores.power_score(score.expand(20000, 4), uniform, 2.0).argmax(-1).bincount(minlength=4)
    assert stats.chisquare(squared[[0, 1, 3]].tolist(), [20000 * w / 54 for w in (1, 4, 49)]).pvalue > 1e-3


def test_power_scores_value_by_value() -> None:
    score, uniform = torch.tensor([0.5, 0.0, 2.0]), torch.tensor([0.25, 0.5, 0.9])
    pairs = list(zip([0.5, 1e-9, 2.0], uniform.tolist(), strict=True))
    gumbel = torch.tensor([3 * math.log(s) - math.log(-math.log(u)) for s, u in pairs])
    torch.testing.assert_close(scores.power_score(score, uniform, 3.0), gumbel)
    pareto = torch.tensor([math.log(s) + 1 / (1 - u) for s, u in pairs])
    torch.testing.assert_close(scores.power_score_released(score, uniform), pareto)
    for u in (torch.zeros(3), torch.ones(3)):
        assert scores.power_score(score, u).isfinite().all()
        assert scores.power_score_released(score, u).isfinite().all()


def test_bad_input() -> None:
    draws = distributions(2, 3, 4, 4)
    with pytest.raises(AdaptSegError, match="shape of one draw"):
        scores.edald(draws, draws)
    with pytest.raises(AdaptSegError, match="shape of one draw"):
        scores.edald_released(draws, draws[0, :2])
    with pytest.raises(AdaptSegError, match="K > 0"):
        scores.edald(draws[:0], draws[0])
    with pytest.raises(AdaptSegError, match="1 draws"):
        scores.balanced_entropy(draws[:1], denominator="paper")
    with pytest.raises(AdaptSegError, match="1 draws"):
        scores.RunningBalance(1)
    with pytest.raises(AdaptSegError, match="denominator 'other'"):
        scores.balanced_entropy(draws, denominator="other")  # type: ignore[arg-type]
    with pytest.raises(AdaptSegError, match="beta"):
        scores.power_score(torch.ones(2), torch.rand(3))
