import math
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adaptseg.active import herding
from adaptseg.active.herding import k_center, max_herding, median_length_scale, smallest_distance
from adaptseg.errors import AdaptSegError


def points(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.double()[:, None] - b.double()).square().sum(-1).sqrt()


def plain_loop(
    features: Tensor, budget: int, scale: float, conditioned_on: Tensor | None = None, weights: Tensor | None = None
) -> tuple[list[int], list[float]]:
    """Greedy coverage with the whole kernel in float64 and every gain anew for every pick."""
    n = len(features)
    kernel = (-distances(features, features).square() / scale**2).exp()
    covered = torch.zeros(n, dtype=torch.float64)
    if conditioned_on is not None and len(conditioned_on):
        covered = (-distances(features, conditioned_on).square() / scale**2).exp().amax(1)
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights.double()
    indices, gains = [], []
    for _ in range(budget):
        gain = weights @ (kernel - covered[:, None]).clamp(min=0)
        gain[indices] = -1
        best = int((gain >= gain.max() - 1e-9 * weights.sum()).nonzero()[0])
        indices.append(best)
        gains.append(float(gain[best]) / n)
        covered = torch.maximum(covered, kernel[:, best])
    return indices, gains


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labelled", [None, 0, 9])
@pytest.mark.parametrize("factor", [0.2, 1.0])
def test_equals_the_plain_loop(dtype: torch.dtype, weighted: bool, labelled: int | None, factor: float) -> None:
    features = functional.normalize(points(150, 12, dtype=dtype), dim=1)
    weights = torch.rand(150, generator=torch.Generator().manual_seed(1)) if weighted else None
    conditioned_on = None if labelled is None else functional.normalize(points(labelled, 12, 5, dtype), dim=1)
    scale = factor * median_length_scale(features, generator=torch.Generator().manual_seed(2))
    expected, expected_gains = plain_loop(features, 150, scale, conditioned_on, weights)
    for block in (1, 16, 256):
        indices, gains = max_herding(
            features, 150, length_scale=scale, conditioned_on=conditioned_on, weights=weights, block=block
        )
        assert indices.tolist() == expected
        assert indices.dtype == torch.int64
        torch.testing.assert_close(gains, torch.tensor(expected_gains, dtype=torch.float64), atol=1e-9, rtol=1e-9)
        assert (gains.diff() <= 1e-9).all()


def test_ties_on_a_lattice_and_duplicates_go_to_the_lowest_index() -> None:
    lattice = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    features = torch.cat([lattice, lattice[:20]])
    expected, _ = plain_loop(features, 84, 1.5)
    for block in (1, 5, 200):
        indices, gains = max_herding(features, 84, length_scale=1.5, block=block)
        assert indices.tolist() == expected
    assert gains[64:].abs().max() < 1e-9  # every place is taken
    assert indices[64:].tolist() == sorted(indices[64:].tolist())


def test_constant_features_are_picked_in_order() -> None:
    indices, gains = max_herding(torch.full((40, 3), 0.7), 40, length_scale=2.0, block=4)
    assert indices.tolist() == list(range(40))
    assert gains[0].item() == pytest.approx(1)
    assert gains[1:].abs().max() < 1e-9


def test_far_from_the_origin_float32_bounds_do_no_harm() -> None:
    features = (points(120, 4) + 300).float()
    expected, _ = plain_loop(features, 60, 1.0)
    assert max_herding(features, 60, length_scale=1.0, block=32)[0].tolist() == expected


def test_half_precision_features() -> None:
    features = points(90, 6).half()
    expected, _ = plain_loop(features, 45, 2.0)
    assert max_herding(features, 45, length_scale=2.0)[0].tolist() == expected


def test_what_is_labelled_is_not_bought_again() -> None:
    features = points(60, 5)
    first, _ = max_herding(features, 20, length_scale=2.0)
    labelled = features[first]
    later, _ = max_herding(features, 20, length_scale=2.0, conditioned_on=labelled)
    whole, _ = max_herding(features, 40, length_scale=2.0)
    assert later.tolist() == whole[20:].tolist()


def test_weights() -> None:
    features = points(50, 3)
    weights = torch.rand(50, generator=torch.Generator().manual_seed(3))
    sharp, _ = max_herding(features, 10, length_scale=1e-4, weights=weights)  # nobody covers anybody else
    assert sharp.tolist() == weights.argsort(descending=True)[:10].tolist()
    nothing, gains = max_herding(features, 5, length_scale=1.0, weights=torch.zeros(50))
    assert nothing.tolist() == [0, 1, 2, 3, 4]
    assert gains.tolist() == [0.0] * 5
    doubled, _ = max_herding(
        torch.cat([features, features[:20]]), 10, length_scale=1.0, weights=torch.cat([weights, torch.zeros(20)])
    )
    assert doubled.tolist() == max_herding(features, 10, length_scale=1.0, weights=weights)[0].tolist()


def test_coverage_is_near_the_optimum() -> None:
    features = points(12, 2, dtype=torch.float64)
    kernel = (-distances(features, features).square()).exp()
    optimum = max(kernel[:, list(chosen)].amax(1).mean().item() for chosen in combinations(range(12), 3))
    indices, gains = max_herding(features, 3, length_scale=1.0)
    assert gains.sum().item() == pytest.approx(kernel[:, indices].amax(1).mean().item())
    assert (1 - 1 / math.e) * optimum <= gains.sum().item() <= optimum + 1e-12


def test_never_more_than_a_block_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 0
    for name in ("_fast_rows", "_columns"):
        real = getattr(herding.HerdingSearch, name)

        def spy(self: object, rows: Tensor, real: object = real) -> Tensor:
            nonlocal widest
            widest = max(widest, len(rows))
            return real(self, rows)  # type: ignore[operator]

        monkeypatch.setattr(herding.HerdingSearch, name, spy)
    features = points(300, 8)
    max_herding(features, 150, length_scale=4.0, block=20, conditioned_on=features[:90])
    assert 0 < widest <= 20


def test_the_work_does_not_grow_with_the_budget() -> None:
    features = functional.normalize(points(600, 16), dim=1)
    search = herding.HerdingSearch(features, 2.0, None, None, 64)
    search.pick(300)
    assert search.kernel_rows < 12 * 600  # the plain loop without a stored kernel: 300 x 600


def test_k_center() -> None:
    features = points(40, 3)
    for labelled in (None, features[:0], points(4, 3, 9)):
        indices, radii = k_center(features, 40, conditioned_on=labelled)
        chosen, centres = [], [] if labelled is None else list(labelled)
        for i in range(40):
            if centres:
                nearest = distances(features, torch.stack(centres)).amin(1)
            else:
                nearest = -distances(features, features.double().mean(0, keepdim=True))[:, 0]
            nearest[chosen] = -math.inf
            best = int(nearest.argmax())
            assert radii[i].item() == (pytest.approx(nearest[best].item()) if centres else math.inf)
            chosen.append(best)
            centres.append(features[best])
        assert indices.tolist() == chosen
    same, radii = k_center(torch.ones(5, 2), 5)
    assert same.tolist() == [0, 1, 2, 3, 4]
    assert radii[1:].tolist() == [0.0] * 4


def test_k_center_is_a_two_approximation() -> None:
    features = points(11, 2)
    every = distances(features, features)
    optimum = min(every[:, list(chosen)].amin(1).max().item() for chosen in combinations(range(11), 3))
    assert every[:, k_center(features, 3)[0]].amin(1).max().item() <= 2 * optimum


def test_length_scales() -> None:
    features = points(9, 3)
    expected = sorted(distances(features[i : i + 1], features[j : j + 1]).item() for i, j in combinations(range(9), 2))
    generator = torch.Generator().manual_seed(0)
    assert median_length_scale(features, generator=generator) == pytest.approx(expected[17] + expected[18])
    assert smallest_distance(features) == pytest.approx(expected[0])
    assert smallest_distance(torch.cat([features, features])) == pytest.approx(expected[0])
    assert median_length_scale(torch.ones(30, 2), generator=generator) == 2.0
    assert smallest_distance(torch.ones(3, 2)) == smallest_distance(torch.ones(1, 2), default=1.0) == 1.0
    many = points(3000, 3)
    scales = [median_length_scale(many, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert scales[0] == scales[1] != scales[2]


def test_empty() -> None:
    for budget, features in ((0, points(5, 2)), (0, points(0, 2))):
        for indices, gains in (max_herding(features, budget, length_scale=1.0), k_center(features, budget)):
            assert indices.shape == gains.shape == (0,)
            assert indices.dtype == torch.int64


def test_bad_input() -> None:
    features = points(5, 2)
    with pytest.raises(AdaptSegError, match="budget is 6 with 5"):
        max_herding(features, 6, length_scale=1.0)
    with pytest.raises(AdaptSegError, match="budget is -1"):
        k_center(features, -1)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(AdaptSegError, match="length_scale"):
            max_herding(features, 1, length_scale=scale)
    with pytest.raises(AdaptSegError, match="NaN"):
        max_herding(features.where(features > features.min(), math.nan), 1, length_scale=1.0)
    with pytest.raises(AdaptSegError, match="floating"):
        max_herding(torch.ones(5, 2, dtype=torch.int64), 1, length_scale=1.0)
    with pytest.raises(AdaptSegError, match="conditioned_on"):
        max_herding(features, 1, length_scale=1.0, conditioned_on=points(3, 4))
    with pytest.raises(AdaptSegError, match="one per point"):
        max_herding(features, 1, length_scale=1.0, weights=torch.ones(4))
    with pytest.raises(AdaptSegError, match="negative"):
        max_herding(features, 1, length_scale=1.0, weights=-torch.ones(5))
    with pytest.raises(AdaptSegError, match="block"):
        max_herding(features, 1, length_scale=1.0, block=0)
    with pytest.raises(AdaptSegError, match="share"):
        median_length_scale(features, generator=torch.Generator(), share=0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_picks_what_the_cpu_picks() -> None:
    features = functional.normalize(points(200, 16), dim=1)
    expected = max_herding(features, 100, length_scale=2.0)[0].tolist()
    assert max_herding(features.cuda(), 100, length_scale=2.0)[0].tolist() == expected
