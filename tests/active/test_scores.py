import math

import pytest
import torch
from scipy.ndimage import generic_filter
from torch import Tensor

from adaptseg.active import scores
from adaptseg.active.windows import box_mean
from adaptseg.errors import AdaptSegError


def distributions(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits.softmax(-3).to(dtype)


def naive_ripu(p: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Spec 2.1 word by word on Python numbers, undivided: impurity, uncertainty, entropy of the pixel."""
    num_classes, height, width = p.shape
    values, predicted = p.tolist(), p.argmax(0).tolist()
    h = [
        [-sum(values[c][y][x] * math.log(values[c][y][x] + 1e-6) for c in range(num_classes)) for x in range(width)]
        for y in range(height)
    ]
    impurity, uncertainty = torch.zeros(height, width), torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            window = [
                (v, u)
                for v in range(max(0, y - radius), min(height, y + radius + 1))
                for u in range(max(0, x - radius), min(width, x + radius + 1))
            ]
            q = [sum(predicted[v][u] == c for v, u in window) / len(window) for c in range(num_classes)]
            impurity[y, x] = -sum(share * math.log(share + 1e-6) for share in q)
            uncertainty[y, x] = sum(h[v][u] for v, u in window) / len(window)
    return impurity, uncertainty, torch.tensor(h)


def test_entropy() -> None:
    p = distributions(5, 3, 4)
    expected = [[-sum(q * math.log(q) for q in p[:, y, x].tolist()) for x in range(4)] for y in range(3)]
    result = scores.entropy(p)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.tensor(expected))
    torch.testing.assert_close(scores.entropy(p.movedim(0, 2), dim=2), result)
    torch.testing.assert_close(scores.entropy(torch.stack([p, p])), torch.stack([result, result]))
    certain = torch.tensor([[0.0, 0.25], [1.0, 0.25], [0.0, 0.5]])[..., None]
    torch.testing.assert_close(scores.entropy(certain)[:, 0], torch.tensor([0.0, 1.5 * math.log(2)]))
    assert scores.entropy(p.to(torch.bfloat16)).dtype == torch.float32


def test_margin_and_least_confidence() -> None:
    p = distributions(6, 5, 7, dtype=torch.float32)
    ordered = p.sort(dim=0, descending=True).values
    assert torch.equal(scores.margin(p), ordered[1] - ordered[0])
    assert torch.equal(scores.least_confidence(p), 1 - ordered[0])
    assert torch.equal(scores.margin(p[None].movedim(1, -1), dim=-1)[0], scores.margin(p))
    tie = torch.tensor([0.4, 0.2, 0.4]).view(3, 1, 1)
    assert scores.margin(tie).item() == 0
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]):
        p = torch.tensor([0.6, 0.3, 0.1])[order].view(3, 1, 1)
        assert scores.margin(p).item() == pytest.approx(-0.3)
    with pytest.raises(AdaptSegError, match="two classes"):
        scores.margin(torch.ones(1, 2, 2))


def test_mutual_information() -> None:
    draws = distributions(4, 2, 5, 3, 6)
    log = draws.log()
    mean = draws.mean(0)
    # another form of the same: mean Kullback-Leibler divergence of the draws from their mean
    expected = (draws * (log - mean.log())).sum(-3).mean(0)
    result = scores.mutual_information(draws)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected.float())
    torch.testing.assert_close(scores.mutual_information(draws, dim=2), result)
    torch.testing.assert_close(scores.mutual_information(draws.movedim(2, -1), dim=-1), result)
    assert scores.mutual_information(draws[:1].float()).abs().max() == 0
    opposite = torch.eye(2).view(2, 2, 1, 1)
    assert scores.mutual_information(opposite).item() == pytest.approx(math.log(2))
    for bad, dim in ((draws[:0], -3), (draws, 0), (draws, -5), (draws, 7)):
        with pytest.raises(AdaptSegError, match="draws"):
            scores.mutual_information(bad, dim=dim)


@pytest.mark.parametrize(
    ("size", "radius"), [((6, 9), 1), ((9, 6), 0), ((5, 7), 2), ((4, 4), 3), ((7, 3), 32), ((1, 8), 1), ((1, 1), 5)]
)
def test_ripu_against_the_plain_formula(size: tuple[int, int], radius: int) -> None:
    p = distributions(4, *size, seed=radius)
    impurity, uncertainty, entropy = naive_ripu(p, radius)
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(scores.region_impurity(p.argmax(0), 4, radius), impurity, **close)
    torch.testing.assert_close(scores.prediction_uncertainty(p, radius), uncertainty, **close)
    region, pixel = scores.ripu(p, radius), scores.ripu(p, radius, mode="pixel")
    torch.testing.assert_close(region, (impurity * uncertainty / math.log(4) ** 2).clamp_min(0), **close)
    torch.testing.assert_close(pixel, (impurity * entropy).clamp_min(0), **close)
    for score in (region, pixel):
        assert score.dtype == torch.float32
        assert score.shape == size
        assert score.min() >= 0


def test_ripu_predicts_the_first_of_equal_classes() -> None:
    p = torch.tensor([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4], [0.4, 0.2, 0.4]]).T[:, None]  # classes 0, 1, 0
    impurity, _, entropy = naive_ripu(p, 1)
    expected = -sum(s * math.log(s) for s in (1 / 3, 2 / 3)) * entropy[0, 1].item()
    assert impurity[0, 1].item() == pytest.approx(expected / entropy[0, 1].item(), abs=1e-5)
    assert scores.ripu(p, 1, mode="pixel")[0, 1].item() == pytest.approx(expected, abs=1e-5)


def test_region_impurity_vectors() -> None:
    halves = torch.tensor([[0, 0, 1, 1]])
    q = [[1.0], [2 / 3, 1 / 3], [2 / 3, 1 / 3], [1.0]]
    expected = torch.tensor([[-sum(s * math.log(s + 1e-6) for s in shares) for shares in q]])
    torch.testing.assert_close(scores.region_impurity(halves, 2, 1), expected)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(scores.region_impurity(halves.to(dtype), 19, 1), expected)
    assert scores.region_impurity(torch.zeros(3, 3, dtype=torch.int64), 2, 1).max() < 0  # released 1e-6


def test_counts_beyond_16_bits() -> None:
    predicted = torch.zeros(400, 400, dtype=torch.int64)
    predicted[:, 200:] = 1
    torch.testing.assert_close(
        scores.region_impurity(predicted, 2, 200)[200, 200].item(), math.log(2), atol=1e-4, rtol=0
    )
    assert scores.region_impurity(predicted, 2, 90)[:, :100].abs().max() < 2e-6


def test_pure_certain_images_score_zero_not_below() -> None:
    p = torch.zeros(19, 8, 8)
    p[3] = 1
    for mode in ("region", "pixel"):
        assert scores.ripu(p, 1, mode=mode).abs().max() == 0


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 7, 40])
def test_box_mean(radius: int) -> None:
    x = torch.rand(13, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window = 2 * radius + 1
    padded = generic_filter(x.numpy(), lambda v: v[v > -1].mean(), size=window, mode="constant", cval=-2)
    result = box_mean(torch.stack([x, 2 * x])[None], radius)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[0], torch.stack([torch.from_numpy(padded), torch.from_numpy(2 * padded)]).float())


def test_box_mean_keeps_precision_beside_huge_values() -> None:
    # a difference of float32 cumulative sums would lose the small values behind the large one
    x = torch.full((1, 1000), 1e-3)
    x[0, 0] = 1e6
    assert box_mean(x, 32)[0, 500].item() == pytest.approx(1e-3, rel=1e-6)


def test_inputs_stay_as_they_were() -> None:
    p = distributions(3, 5, 6, dtype=torch.float32)
    before = p.clone()
    scores.entropy(p), scores.margin(p), scores.ripu(p, 1), scores.mutual_information(p[None]), box_mean(p, 1)
    assert torch.equal(p, before)


def test_refusals() -> None:
    with pytest.raises(AdaptSegError, match="2 of 2"):
        scores.region_impurity(torch.tensor([[0, 2]]), 2, 1)
    with pytest.raises(AdaptSegError, match="-1"):
        scores.region_impurity(torch.tensor([[0, -1]]), 2, 1)
    with pytest.raises(AdaptSegError, match="integer"):
        scores.region_impurity(torch.zeros(2, 2), 2, 1)
    for bad in (torch.ones(1, 2, 2), torch.ones(2, 2)):
        with pytest.raises(AdaptSegError, match=r"\(C, H, W\)"):
            scores.ripu(bad, 1)
    with pytest.raises(AdaptSegError, match="radius"):
        box_mean(torch.ones(2, 2), -1)


def test_random_score_is_a_pure_function_of_its_arguments() -> None:
    score = scores.random_score((60, 50), seed=1, round=2, key="a/b")
    assert score.dtype == torch.float32
    assert score.shape == (60, 50)
    assert 0 <= score.min() < 0.01
    assert 0.99 < score.max() < 1
    assert abs(score.mean().item() - 0.5) < 0.03
    torch.rand(3)
    assert torch.equal(score, scores.random_score((60, 50), seed=1, round=2, key="a/b"))
    for other in ({"seed": 2}, {"round": 1}, {"key": "a/c"}):
        arguments = {"seed": 1, "round": 2, "key": "a/b", **other}
        assert not torch.equal(score, scores.random_score((60, 50), **arguments))  # pyright: ignore
