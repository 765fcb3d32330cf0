"""What further labels are expected to bring, from the few points of mIoU over labels spent that a run has (pure).

The curve is y = a + b g(x), x = labels spent over what is spent at the last point, g(x) = (1 - x^-e) / e (log x for
e = 0): a power law that levels off (e > 0), logarithmic, or growing faster. Bayesian linear regression for each e,
averaged by how well each explains the points, gives an honest spread with as few as two of them. All priors are
inferred:

* e is one of EXPONENTS, equally likely: from growth by the square root of the labels to almost level.
* the noise of a point has a scale of NOISE, which counts as NOISE_WEIGHT points against what the data say.
* the slope b, mIoU per factor e of labels at the last point, is 0 give or take SLOPE times the noise: hardly a prior.
* nothing is assumed about a.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from adaptseg.errors import AdaptSegError

EXPONENTS = tuple(0.25 * i for i in range(-2, 9))
NOISE = 0.007
"""0.7 points of mIoU; over seeds the project's tables spread by 0.1 to 1."""
NOISE_WEIGHT = 4.0
SLOPE = 10.0
LEAST_POINTS = 2
"""A single point has no slope."""
STEP = 0.01
"""Advice is about a further 1 % of the pool, or about doubling what is spent where that is less."""
COVERED = 0.9
"""Probability of the interval."""


class Gain(NamedTuple):
    """A difference of mIoU, in [-1, 1]: expected, and the ends of its 90 % interval."""

    gain: float
    low: float
    high: float


class GainPosterior(NamedTuple):
    """What is known of f(end) - f(start) of a curve f: a mixture of Student's t distributions, one per exponent."""

    weight: NDArray[np.float64]
    location: NDArray[np.float64]
    scale: NDArray[np.float64]
    freedom: float

    @property
    def mean(self) -> float:
        return float(self.weight @ self.location)

    def below(self, value: float) -> float:
        """Probability that the gain is less than this."""
        return float(self.weight @ special.stdtr(self.freedom, (value - self.location) / self.scale))

    def quantile(self, probability: float) -> float:
        """The gain that is exceeded with 1 - probability."""
        ends = self.location + self.scale * special.stdtrit(self.freedom, probability)
        low, high = float(ends.min()), float(ends.max())  # the mixture's lies between those of its parts
        if high - low < 1e-12:
            return low
        root: Any = optimize.brentq(lambda value: self.below(value) - probability, low, high)
        return float(root)


def gain_posterior(spent: Sequence[float], miou: Sequence[float], start: float, end: float) -> GainPosterior:
    """What the points say of f(end) - f(start), where f is the curve itself, without the noise of a single validation.

    Args:
        spent: labels behind each point, positive, in any unit.
        miou: in [0, 1].
        start, end: labels, in the same unit, positive; outside the points as well.

    Raises:
        AdaptSegError: fewer than LEAST_POINTS points, unequal numbers, or a value outside its range.
    """
    x, y = np.asarray(spent, np.float64), np.asarray(miou, np.float64)
    if len(x) != len(y) or len(x) < LEAST_POINTS:
        raise AdaptSegError(f"{len(x)} budgets and {len(y)} mIoU are given; {LEAST_POINTS} or more of both are needed")
    if not (min(*x, start, end) > 0 and np.isfinite([*x, *y, start, end]).all()):
        raise AdaptSegError(f"budgets {list(spent)}, {start} and {end} must be positive, mIoU {list(miou)} finite")
    exponents = np.array(EXPONENTS)[:, None]
    g = special.boxcox(x / x[-1], -exponents)
    g -= g.mean(1, keepdims=True)
    y = y - y.mean()
    # Conjugate regression, the mean of y integrated out: slope ~ N(0, (SLOPE noise)^2), noise^2 ~ inverse gamma.
    precision = (g**2).sum(1) + SLOPE**-2
    slope = g @ y / precision
    rest = np.maximum(y @ y - slope**2 * precision, 0) + NOISE_WEIGHT * NOISE**2
    freedom = NOISE_WEIGHT + len(x) - 1
    evidence = -0.5 * np.log(precision) - 0.5 * freedom * np.log(rest)
    reach = np.diff(special.boxcox(np.array([start, end]) / x[-1], -exponents), axis=1)[:, 0]
    spread = np.sqrt(rest / freedom / precision)
    scale = np.maximum(np.abs(reach) * spread, np.finfo(np.float64).tiny)
    return GainPosterior(special.softmax(evidence), slope * reach, scale, freedom)


def expected_gain(
    spent: Sequence[float], miou: Sequence[float], *, now: float | None = None, further: float | None = None
) -> Gain | None:
    """mIoU that further labels are expected to bring; None while it is too early to say.

    The points of a run that trains on between its rounds hold what training alone brought as well, so that the gain is
    rather overrated there. The point of a network that had seen no label is left out: the first labels of a domain
    bring a jump that says nothing about the next ones (inferred).

    Args:
        spent: shares of the pool behind each point, in [0, 1].
        miou: of the networks trained on them, in [0, 1].
        now: share that is spent now; default: that of the last point.
        further: share to be bought beyond; default: STEP, or as much as is spent now where that is less.

    Raises:
        AdaptSegError: unequal numbers of shares and mIoU, or a value outside its range.
    """
    points = [(x, y) for x, y in zip(spent, miou, strict=True) if x > 0]
    if len(points) < LEAST_POINTS:
        return None
    start = points[-1][0] if now is None else now
    end = start + (step_beyond(start) if further is None else further)
    posterior = gain_posterior([x for x, _ in points], [y for _, y in points], start, end)
    tail = (1 - COVERED) / 2
    return Gain(posterior.mean, posterior.quantile(tail), posterior.quantile(1 - tail))


def step_beyond(now: float) -> float:
    """The further share of the pool that advice is about when the share `now` is spent; 0 once all is bought."""
    return min(STEP, now, 1 - now)


def learning_curve(history: Sequence[Mapping[str, Any]], final: float | None = None) -> tuple[list[float], list[float]]:
    """Shares of the pool spent, and the mIoU of the network trained on just those labels.

    Args:
        history: rows of the table of rounds: `spent_before`, `spent`, `pool_pixels`; `miou` where the network that
            chose the round's pixels was judged.
        final: mIoU of the last network, which has seen the labels of all rounds.
    """
    points = [(row["spent_before"] / row["pool_pixels"], row["miou"]) for row in history if "miou" in row]
    if history and final is not None:
        points.append((history[-1]["spent"] / history[-1]["pool_pixels"], final))
    return [x for x, _ in points], [y for _, y in points]


def advice(history: Sequence[Mapping[str, Any]], final: float | None = None) -> tuple[str, Gain | None]:
    """One line for a person after the last of these rounds, and the gain that it names; arguments as `learning_curve`.

    `history` must not be empty.
    """
    spent, miou = learning_curve(history, final)
    now = history[-1]["spent"] / history[-1]["pool_pixels"]
    points = sum(share > 0 for share in spent)
    if step_beyond(now) <= 0:
        return "the whole pool is bought" if now > 0 else "nothing is bought yet", None
    what = f"a further {100 * step_beyond(now):.2g} % of the pool"
    gain = expected_gain(spent, miou, now=now)
    if gain is None:
        return f"too early to say what {what} would bring (rounds judged: {points}, needed: {LEAST_POINTS})", None
    percent = [f"{100 * value:+.1f}" for value in gain]
    interval = f"90 % interval {percent[1]} to {percent[2]}"
    return f"from {points} rounds: {what} is expected to bring {percent[0]} mIoU ({interval})", gain
