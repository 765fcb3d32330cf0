"""Features of single pixels, and linear maps of them, read from low-resolution maps without ever making dense ones.

The feature z of a pixel is what every map says there after bilinear resizing (`F.interpolate`, align_corners=False),
concatenated in the order of the maps. With D = 6,144 channels the dense map of one 256x256 image fills 1.6 GB; all that
is needed of it comes from four taps a pixel (two-stage eDALD; specification 9.2, where the three functions are (a) to
(c); the identities are exact).

Maps of half precision are computed with in float32; float64 stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptseg.errors import AdaptSegError

Size = tuple[int, int]

_SHORTEST = 1e-12
"""Floor of a norm that is divided by, as in `F.normalize`: a feature of zeros stays zero."""


def gather(maps: Sequence[Tensor], yx: Tensor, size: Size, *, normalize: bool = True) -> Tensor:
    """Features of some pixels of one image.

    Args:
        maps: of one image, each (C_i, h_i, w_i), any resolutions.
        yx: (Q, 2) int64 rows and columns on the grid of `size`.
        size: (H, W) of the grid that the maps are resized to.
        normalize: divide by the Euclidean norm over all D channels.

    Returns:
        (Q, D) float32 (float64 for float64 maps), D = sum of C_i, on the device of the maps.

    Raises:
        AdaptSegError: a wrong shape, or a pixel outside the grid.
    """
    _require_maps(maps, 3)
    _require_inside(yx, size)
    found: list[Tensor] = []
    for cells in maps:
        (height, width), dtype = cells.shape[-2:], _wide(cells.dtype)
        y, x = yx.to(cells.device).unbind(1)
        rows, columns = _taps(y, height, size[0], dtype), _taps(x, width, size[1], dtype)
        flat = cells.reshape(-1, height * width)
        features = torch.zeros(len(flat), len(yx), dtype=dtype, device=cells.device)
        for y, a in ((rows.first, 1 - rows.share), (rows.second, rows.share)):
            for x, b in ((columns.first, 1 - columns.share), (columns.second, columns.share)):
                features += flat[:, y * width + x] * (a * b)
        found.append(features)
    points = torch.cat(found).T
    return F.normalize(points, dim=1, eps=_SHORTEST) if normalize else points


def norm_map(maps: Sequence[Tensor], size: Size) -> Tensor:
    """Euclidean norm of every pixel's feature.

    The square is a quadratic form in a pixel's four taps. Its ten products are inner products of a cell with itself and
    with its right, lower and both diagonal neighbours, taken at the resolution of the maps.

    Args:
        maps: each (B, C_i, h_i, w_i).
        size: (H, W) of the result.

    Returns:
        (B, H, W) float32 (float64 for float64 maps), 0 or more.
    """
    _require_maps(maps, 4)
    products: dict[Size, list[Tensor]] = {}
    for cells in maps:  # maps of one resolution are resized once, together
        grid = (cells.shape[-2], cells.shape[-1])
        own = _neighbour_products(cells)
        products[grid] = [a + b for a, b in zip(products[grid], own, strict=True)] if grid in products else own
    squared = sum(_quadratic_form(own, grid, size) for grid, own in products.items())
    assert isinstance(squared, Tensor)
    return squared.clamp(min=0).sqrt()  # rounding may leave a square below zero


def project(maps: Sequence[Tensor], weight: Tensor, size: Size, *, norms: Tensor | None) -> Tensor:
    """A linear layer without bias on every pixel's feature: W z / ||z||.

    A 1x1 convolution commutes with resizing: it runs on the maps, and O channels are resized instead of D.

    Args:
        maps: each (B, C_i, h_i, w_i).
        weight: W, (O, D), with D = sum of C_i.
        size: (H, W) of the result.
        norms: ||z||, (B, H, W), of `norm_map`; None: W z.

    Returns:
        (B, O, H, W) float32 (float64 for float64 maps), as a rule with channels last in memory.

    Raises:
        AdaptSegError: W has another number of columns than the maps have channels.
    """
    _require_maps(maps, 4)
    channels = [cells.shape[1] for cells in maps]
    if weight.ndim != 2 or weight.shape[1] != sum(channels):
        raise AdaptSegError(f"weight: (O, {sum(channels)}) expected for these maps, {tuple(weight.shape)} given")
    sums: dict[Size, Tensor] = {}
    for cells, part in zip(maps, weight.split(channels, 1), strict=True):
        grid = (cells.shape[-2], cells.shape[-1])
        dtype = _wide(cells.dtype)
        own = F.conv2d(cells.to(dtype), part.to(dtype)[:, :, None, None])
        sums[grid] = sums[grid] + own if grid in sums else own
    # Channels last, all channels of a pixel share their taps: measured at 128x128, half the time on a CPU.
    sums = {grid: own.contiguous(memory_format=torch.channels_last) for grid, own in sums.items()}
    resized = (F.interpolate(own, size=size, mode="bilinear", align_corners=False) for own in sums.values())
    total = next(resized)
    for own in resized:  # in place: memory, not arithmetic, is what a whole image costs
        total += own
    return total if norms is None else total.div_(norms.clamp(min=_SHORTEST)[:, None])


class _Taps(NamedTuple):
    """The two cells along one axis that a pixel lies between, and the share of the second."""

    first: Tensor
    second: Tensor
    share: Tensor


def _taps(positions: Tensor, cells: int, pixels: int, dtype: torch.dtype) -> _Taps:
    """Taps, each (N,), of pixel positions (N,) int64 on an axis of `pixels` pixels and `cells` cells.

    `dtype` is that of the maps: `F.interpolate` rounds its coordinates to it, and so do we, to agree with it.
    """
    source = ((positions.to(dtype) + 0.5) * (cells / pixels) - 0.5).clamp(min=0)
    first = source.long()  # the floor: no number here is negative
    return _Taps(first, (first + 1).clamp(max=cells - 1), source - first)


def _neighbour_products(cells: Tensor) -> list[Tensor]:
    """Inner products over channels, five of (B, h, w): with itself, right, below, diagonal, and right with below.

    Beyond the last row and column lies its repetition, as for the taps of `_taps`.
    """
    here = cells.to(_wide(cells.dtype))
    beyond = F.pad(here, (0, 1, 0, 1), mode="replicate")
    right, below, diagonal = beyond[..., :-1, 1:], beyond[..., 1:, :-1], beyond[..., 1:, 1:]
    pairs = ((here, here), (here, right), (here, below), (here, diagonal), (right, below))
    return [(one * other).sum(1) for one, other in pairs]


def _quadratic_form(products: Sequence[Tensor], grid: Size, size: Size) -> Tensor:
    """(B, H, W) squared norms of what bilinear resizing makes of maps with these neighbour products."""
    device, dtype = products[0].device, products[0].dtype
    rows, columns = (_taps(torch.arange(size[i], device=device), grid[i], size[i], dtype) for i in (0, 1))
    lower, right = rows.share[:, None], columns.share
    upper, left = 1 - lower, 1 - right
    own, with_right, with_below, diagonal, across = products

    def at(product: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return product[:, y[:, None], x]

    y0, y1, x0, x1 = rows.first, rows.second, columns.first, columns.second
    total = (upper * left) ** 2 * at(own, y0, x0) + (upper * right) ** 2 * at(own, y0, x1)
    total += (lower * left) ** 2 * at(own, y1, x0) + (lower * right) ** 2 * at(own, y1, x1)
    total += 2 * left * right * (upper**2 * at(with_right, y0, x0) + lower**2 * at(with_right, y1, x0))
    total += 2 * upper * lower * (left**2 * at(with_below, y0, x0) + right**2 * at(with_below, y0, x1))
    total += 2 * upper * lower * left * right * (at(diagonal, y0, x0) + at(across, y0, x0))
    return total


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _require_maps(maps: Sequence[Tensor], dimensions: int) -> None:
    if not maps or any(cells.ndim != dimensions or 0 in cells.shape for cells in maps):
        shapes = ", ".join(str(tuple(cells.shape)) for cells in maps) or "none"
        form = "(C, h, w)" if dimensions == 3 else "(B, C, h, w)"
        raise AdaptSegError(f"maps: one or more of {form} expected, {shapes} given")


def _require_inside(yx: Tensor, size: Size) -> None:
    if yx.ndim != 2 or yx.shape[1] != 2 or yx.dtype != torch.int64:
        raise AdaptSegError(f"yx: (Q, 2) int64 expected, {tuple(yx.shape)} {yx.dtype} given")
    if len(yx) and not (int(yx.min()) >= 0 and all(int(yx[:, axis].max()) < size[axis] for axis in (0, 1))):
        low, high = yx.amin(0).tolist(), yx.amax(0).tolist()
        raise AdaptSegError(f"yx: pixels from {low} to {high} given; the grid has {size[0]} rows, {size[1]} columns")
