"""Advice on further labels: the regression against numerical integration, its interval against simulated curves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from adaptseg.active.advice import (
    EXPONENTS,
    NOISE,
    NOISE_WEIGHT,
    SLOPE,
    advice,
    expected_gain,
    gain_posterior,
    learning_curve,
    step_beyond,
)
from adaptseg.errors import AdaptSegError


def shape(x: NDArray[np.float64] | float, exponent: float) -> NDArray[np.float64]:
    """The curve's shape with slope 1 per factor e at x = 1."""
    values = np.asarray(x, np.float64)
    return np.log(values) if exponent == 0 else (1 - values**-exponent) / exponent


def integrated(x: NDArray[np.float64], y: NDArray[np.float64], start: float, end: float) -> tuple[float, float]:
    """Mean and standard deviation of the gain by brute force over exponent, slope and noise; the level is integrated
    analytically, as the sum of squares about the mean."""
    noise = np.geomspace(3e-4, 0.3, 500)[:, None]
    # Noise squared ~ inverse gamma; in log steps of noise its density takes a factor 2 noise^2.
    prior = stats.invgamma.pdf(noise**2, NOISE_WEIGHT / 2, scale=NOISE_WEIGHT * NOISE**2 / 2) * noise**2
    mass = first = second = 0.0
    for exponent in EXPONENTS:
        g = shape(x / x[-1], exponent)
        reach = float(shape(end / x[-1], exponent) - shape(start / x[-1], exponent))
        center = float((g - g.mean()) @ (y - y.mean()) / ((g - g.mean()) ** 2).sum())
        slopes = center + np.linspace(-1, 1, 4001)[None] * 0.5
        rest = (y - y.mean())[:, None] - slopes * (g - g.mean())[:, None]
        squares = (rest**2).sum(0)[None]
        density = prior * noise ** -(len(x) - 1.0) * np.exp(-0.5 * squares / noise**2)
        density = density * stats.norm.pdf(slopes, 0, SLOPE * noise)
        mass += density.sum()
        first += (density * slopes * reach).sum()
        second += (density * (slopes * reach) ** 2).sum()
    return first / mass, math.sqrt(second / mass - (first / mass) ** 2)


@pytest.mark.parametrize("points", [2, 3, 5])
def test_posterior_against_brute_force(points: int):
    rng = np.random.default_rng(points)
    x = np.sort(rng.uniform(0.005, 0.3, points))
    y = 0.4 + 0.02 * shape(x / x[-1], 0.3) + 0.004 * rng.standard_normal(points)
    posterior = gain_posterior(x.tolist(), y.tolist(), x[-1], x[-1] + 0.02)
    mean, deviation = integrated(x, y, x[-1], x[-1] + 0.02)
    assert posterior.mean == pytest.approx(mean, abs=0.02 * deviation)
    second = posterior.location**2 + posterior.scale**2 * posterior.freedom / (posterior.freedom - 2)
    assert math.sqrt(posterior.weight @ second - posterior.mean**2) == pytest.approx(deviation, rel=0.02)


def test_quantiles_and_probabilities_are_inverse():
    posterior = gain_posterior([0.01, 0.02, 0.05], [0.30, 0.33, 0.37], 0.05, 0.08)
    values = [posterior.quantile(p) for p in (0.01, 0.05, 0.5, 0.95, 0.99)]
    assert values == sorted(values)
    for p, value in zip((0.01, 0.05, 0.5, 0.95, 0.99), values, strict=True):
        assert posterior.below(value) == pytest.approx(p, abs=1e-9)


def test_exact_curves_are_found():
    """A dozen points without noise leave little doubt about the gain of any shape."""
    x = 0.01 * np.arange(1, 13)
    for exponent in (0.0, 0.5, 1.0, -0.25):
        y = 0.4 + 0.03 * shape(x / x[-1], exponent)
        gain = expected_gain(x.tolist(), y.tolist(), further=0.03)
        assert gain is not None
        assert gain.gain == pytest.approx(0.03 * float(shape(0.15 / 0.12, exponent)), abs=6e-4)
        assert gain.low < gain.gain < gain.high


def test_gains_do_not_depend_on_the_unit_or_the_level():
    x, y = [0.01, 0.03, 0.04], [0.31, 0.36, 0.35]
    one = gain_posterior(x, y, 0.04, 0.05)
    other = gain_posterior([1e6 * v for v in x], [v + 0.2 for v in y], 4e4, 5e4)
    for probability in (0.05, 0.5, 0.95):
        assert other.quantile(probability) == pytest.approx(one.quantile(probability), abs=1e-9)


@pytest.mark.parametrize("points", [2, 3, 4, 5])
def test_the_interval_covers_what_it_says(points: int):
    """Curves of any exponent between the grid's, rising or flat, at several levels of noise: 90 % with a margin for
    chance (a standard deviation of 300 trials is 1.7 %) and no more than cautious."""
    rng = np.random.default_rng(points)
    covered, trials = 0, 300
    x = 0.01 * np.arange(1, points + 1)
    for _ in range(trials):
        exponent, slope, noise = rng.uniform(-0.25, 1.5), abs(rng.normal(0, 0.03)), rng.uniform(0.002, 0.012)
        y = 0.4 + slope * shape(x / x[-1], exponent) + noise * rng.standard_normal(points)
        gain = expected_gain(x.tolist(), y.tolist())
        assert gain is not None
        truth = slope * float(shape((x[-1] + 0.01) / x[-1], exponent))
        covered += gain.low <= truth <= gain.high
    assert 0.85 <= covered / trials <= 0.98


def test_more_points_leave_less_doubt():
    widths = []
    for points in (2, 4, 8):
        x = 0.01 * np.arange(1, points + 1)
        gain = expected_gain(x.tolist(), (0.4 + 0.02 * np.log(x / x[-1])).tolist())
        assert gain is not None
        widths.append(gain.high - gain.low)
    assert widths[0] > widths[1] > widths[2]


def test_a_falling_curve_is_called_one():
    gain = expected_gain([0.01, 0.02, 0.03, 0.04, 0.05], [0.40, 0.39, 0.37, 0.36, 0.34])
    assert gain is not None
    assert gain.high < 0


def test_too_few_points():
    assert expected_gain([], []) is None
    assert expected_gain([0.0, 0.02], [0.25, 0.40]) is None  # the network without labels is not on the curve
    assert expected_gain([0.0, 0.02, 0.04], [0.25, 0.40, 0.42]) == expected_gain([0.02, 0.04], [0.40, 0.42])


@pytest.mark.parametrize(
    ("spent", "miou", "message"),
    [
        ([0.01], [0.3], "1 budgets and 1 mIoU are given; 2 or more"),
        ([0.01, 0.02], [0.3], "2 budgets and 1 mIoU"),
        ([0.0, 0.02], [0.3, 0.3], "must be positive"),
        ([0.01, 0.02], [0.3, math.nan], "finite"),
    ],
)
def test_bad_curves_are_refused(spent: list[float], miou: list[float], message: str):
    with pytest.raises(AdaptSegError, match=message):
        gain_posterior(spent, miou, 0.01, 0.02)


# ---- the line for a person


def history(*rounds: tuple[int, float | None], pool: int = 1000) -> list[dict[str, float]]:
    """Rows of rounds that each bought so many pixels; mIoU of the network before."""
    rows, spent = [], 0
    for bought, miou in rounds:
        row = {"spent_before": spent, "spent": spent + bought, "pool_pixels": pool}
        rows.append(row if miou is None else row | {"miou": miou})
        spent += bought
    return rows


def test_which_score_belongs_to_which_labels():
    rows = history((20, 0.25), (20, 0.30), (40, 0.33))
    assert learning_curve(rows) == ([0.0, 0.02, 0.04], [0.25, 0.30, 0.33])
    assert learning_curve(rows, 0.36) == ([0.0, 0.02, 0.04, 0.08], [0.25, 0.30, 0.33, 0.36])
    assert learning_curve(history((20, None), (20, 0.30))) == ([0.02], [0.30])  # nothing learned before round 1
    assert learning_curve([], 0.3) == ([], [])


def test_the_line_after_a_round():
    rows = history((20, 0.25), (20, 0.30), (40, 0.33))
    line, gain = advice(rows)
    assert gain == expected_gain([0.02, 0.04], [0.30, 0.33], now=0.08, further=0.01)
    assert gain is not None
    assert line == (
        f"from 2 rounds: a further 1 % of the pool is expected to bring {100 * gain.gain:+.1f} mIoU (90 % interval "
        f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    )
    assert advice(rows, 0.36)[0].startswith("from 3 rounds: ")


def test_the_line_when_there_is_nothing_to_say():
    line, gain = advice(history((20, 0.25), (20, 0.30)))
    assert gain is None
    assert line == "too early to say what a further 1 % of the pool would bring (rounds judged: 1, needed: 2)"
    assert advice(history((500, 0.2), (500, 0.3)), 0.4) == ("the whole pool is bought", None)
    assert advice(history((0, 0.2))) == ("nothing is bought yet", None)


def test_of_a_tiny_budget_the_line_speaks_of_doubling_it():
    assert step_beyond(0.0004) == 0.0004
    assert step_beyond(0.995) == pytest.approx(0.005)
    line, _ = advice(history((2, None), (2, 0.1), pool=10_000), 0.2)
    assert "a further 0.04 % of the pool" in line
