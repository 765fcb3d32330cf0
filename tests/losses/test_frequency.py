"""Fixed class weights against plain Python, and what happens to classes without pixels."""

import math
import statistics
from typing import Any

import pytest
import torch

from adaptseg.errors import AdaptSegError
from adaptseg.losses.frequency import effective_number, inverse_frequency, median_frequency

COUNTS = [4_000_000_000, 37_000_000, 0, 120_000, 3]


def scaled(weights: list[float]) -> torch.Tensor:
    """Mean 1 over finite weights; 1 for the others."""
    mean = statistics.fmean(w for w in weights if math.isfinite(w))
    return torch.tensor([w / mean if math.isfinite(w) else 1.0 for w in weights])


@pytest.mark.parametrize("power", [1.0, 0.5, 0.3])
def test_inverse_frequency(power: float) -> None:
    expected = scaled([(n / sum(COUNTS)) ** -power if n else math.inf for n in COUNTS])
    weights = inverse_frequency(torch.tensor(COUNTS), power=power)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected)


def test_power_zero_is_no_weighting() -> None:
    assert inverse_frequency(torch.tensor(COUNTS), power=0).tolist() == [1.0] * 5


def test_median_frequency() -> None:
    """Three images of 100 pixels; class 2 fills half of the one image it is in, class 3 is nowhere."""
    counts, image_pixels = torch.tensor([200, 50, 50, 0]), torch.tensor([300, 300, 100, 0])
    frequencies = [200 / 300, 50 / 300, 50 / 100]
    median = statistics.median(frequencies)
    expected = scaled([*(median / f for f in frequencies), math.inf])
    torch.testing.assert_close(median_frequency(counts, image_pixels), expected)


def test_median_frequency_of_classes_in_every_image_is_inverse_frequency() -> None:
    counts = torch.tensor(COUNTS)
    everywhere = torch.full_like(counts, sum(COUNTS))
    torch.testing.assert_close(median_frequency(counts, everywhere), inverse_frequency(counts))


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.999999])
def test_effective_number(beta: float) -> None:
    counts = [5000, 300, 0, 20, 1]
    expected = scaled([(1 - beta) / (1 - beta**n) if n else math.inf for n in counts])
    torch.testing.assert_close(effective_number(torch.tensor(counts), beta), expected)


def test_limits_of_effective_number() -> None:
    counts = torch.tensor(COUNTS)
    assert effective_number(counts, 0).tolist() == [1.0] * 5
    torch.testing.assert_close(effective_number(counts, 1 - 1e-15), inverse_frequency(counts), rtol=1e-4, atol=0)
    paper = effective_number(torch.tensor([4_000_000_000, 37_000_000, 120_000]), 0.9999)
    torch.testing.assert_close(paper, torch.ones(3), rtol=1e-4, atol=0)  # as the docstring warns


def test_mean_one_and_neutral_where_there_are_no_pixels() -> None:
    counts = torch.tensor(COUNTS)
    present = counts > 0
    for weights in (
        inverse_frequency(counts),
        median_frequency(counts, 2 * counts),
        effective_number(counts, 1 - 1e-6),
    ):
        assert weights[present].double().mean().item() == pytest.approx(1)
        assert weights[2] == 1
        assert weights.isfinite().all()


@pytest.mark.parametrize("counts", [[0, 0], [1, -1], [1, math.nan], [1, math.inf], [[1, 2]]])
def test_wrong_counts(counts: Any) -> None:
    for call in (inverse_frequency, lambda n: effective_number(n, 0.9), lambda n: median_frequency(n, n)):
        with pytest.raises(AdaptSegError, match="numbers of pixels are expected"):
            call(torch.tensor(counts))


def test_wrong_settings() -> None:
    counts = torch.tensor([1, 2])
    for power in (-1.0, math.nan, math.inf):
        with pytest.raises(AdaptSegError, match="power"):
            inverse_frequency(counts, power=power)
    for beta in (-0.1, 1.0, math.nan):
        with pytest.raises(AdaptSegError, match="beta"):
            effective_number(counts, beta)
    for image_pixels in ([1, 1], [3, 3, 3]):
        with pytest.raises(AdaptSegError, match="image_pixels"):
            median_frequency(counts, torch.tensor(image_pixels))
