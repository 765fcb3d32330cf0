"""Block masks: the grid's rounding, whole blocks, and the share that stays visible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adaptseg.augment.masking import block_mask, grid_size, hidden_cells
from adaptseg.errors import AdaptSegError


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("size", "block", "expected"),
    [
        ((512, 512), 64, (8, 8)),
        ((128, 256), 32, (4, 8)),
        ((160, 224), 64, (2, 4)),  # 2.5 and 3.5 to the even number
        ((180, 240), 64, (3, 4)),
        ((20, 300), 64, (1, 5)),  # never no block at all
    ],
)
def test_grid(size: tuple[int, int], block: int, expected: tuple[int, int]) -> None:
    assert grid_size(size, block) == expected


@pytest.mark.parametrize(("size", "grid"), [((8, 12), (2, 3)), ((7, 11), (2, 3)), ((5, 5), (5, 1)), ((9, 4), (1, 1))])
def test_against_a_naive_up_sampling(size: tuple[int, int], grid: tuple[int, int]) -> None:
    values = draws(3, *grid, seed=1)
    mask = block_mask(values, size, 0.5)
    assert mask.dtype == torch.bool
    for b in range(3):
        expected = [
            [bool(values[b, y * grid[0] // size[0], x * grid[1] // size[1]] >= 0.5) for x in range(size[1])]
            for y in range(size[0])
        ]
        assert mask[b].tolist() == expected


def test_blocks_are_constant_and_images_independent() -> None:
    size, block = (64, 96), 16
    values = draws(4, *grid_size(size, block), seed=2)
    mask = block_mask(values, size, 0.7)
    blocks = mask.view(4, 4, block, 6, block).transpose(2, 3).flatten(3)
    assert torch.equal(blocks.all(-1), blocks.any(-1))
    assert torch.equal(blocks.all(-1), values >= 0.7)
    assert torch.equal(block_mask(values[1:2], size, 0.7)[0], mask[1])


def test_share_that_stays_visible() -> None:
    kept = block_mask(draws(200, 8, 8, seed=3), (16, 16), 0.7).float().mean().item()
    assert kept == pytest.approx(0.3, abs=0.02)  # 12,800 blocks: standard deviation 0.004


def test_nothing_and_everything_hidden() -> None:
    values = draws(2, 3, 3)
    values[0, 0, 0] = 0.0
    assert block_mask(values, (6, 6), 0.0).all()
    assert not block_mask(values, (6, 6), 1.0).any()


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(AdaptSegError, match="mask block of 0 pixels"):
        grid_size((8, 8), 0)
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(AdaptSegError, match="mask ratio"):
            block_mask(draws(1, 2, 2), (4, 4), ratio)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_hidden_cells_are_those_whose_draw_is_below_the_ratio(ratio: float) -> None:
    values = draws(2, 5, 7, seed=3).double()
    values[0, 0, :3] = torch.tensor([0.3, 0.7, 0.0])  # a draw of exactly the ratio is kept
    hidden = hidden_cells(values, ratio)
    assert hidden.shape == values.shape
    assert hidden.tolist() == [[[v < ratio for v in row] for row in image] for image in values.tolist()]
    if ratio in (0.0, 1.0):
        assert hidden.float().mean() == ratio


def test_the_share_of_hidden_cells_is_the_ratio_within_its_spread() -> None:
    shares = hidden_cells(draws(50, 80, 80, seed=4), 0.7).double().mean((1, 2))
    spread = (0.7 * 0.3 / 80**2) ** 0.5
    assert float((shares - 0.7).abs().max()) < 4 * spread
    assert float(shares.std()) == pytest.approx(spread, rel=0.3)  # independent cells
    with pytest.raises(AdaptSegError, match=r"mask ratio 1\.1"):
        hidden_cells(draws(1, 1, 1), 1.1)
