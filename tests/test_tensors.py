"""The fast argmax against a loop; the fast seed against torch's."""

from __future__ import annotations

import pytest
import torch

from adaptseg.tensors import likeliest, seed_device


@pytest.mark.parametrize("classes", [2, 19, 255])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_index_of_the_largest(classes: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    shape = [3, 4, 5]
    shape[dim] = classes
    scores = torch.randn(shape, generator=generator)
    assert torch.equal(likeliest(scores, dim), scores.argmax(dim))
    assert likeliest(scores.half(), dim).dtype == torch.int64


def test_nan_stays_in_range() -> None:
    assert likeliest(torch.full((1, 4, 2, 2), float("nan")), 1).tolist() == [[[3, 3], [3, 3]]]


def test_of_equal_ones_the_lowest() -> None:
    scores = torch.randint(0, 3, (2, 7, 4, 5), generator=torch.Generator().manual_seed(0)).float()
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        column = scores[b, :, y, x].tolist()
        assert int(likeliest(scores, 1)[b, y, x]) == column.index(max(column))


@pytest.mark.parametrize("seed", [0, 3, 2**60 + 5])
def test_seeds_as_torch_does(seed: int) -> None:
    devices = [torch.device(kind) for kind in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]]
    for device in devices:
        torch.manual_seed(seed)
        expected = torch.rand(3), torch.rand(3, device=device)
        torch.rand(5), torch.rand(5, device=device)
        seed_device(seed, device)
        assert all(map(torch.equal, (torch.rand(3), torch.rand(3, device=device)), expected))
