"""Features read from low-resolution maps equal those of the dense maps that are never made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adaptseg.errors import AdaptSegError
from adaptseg.networks.point_features import gather, norm_map, project

SIZE = (12, 17)
GRIDS = {
    "several": [(3, 4, 5), (2, 6, 9), (4, 2, 2)],
    "equal": [(3, 12, 17), (2, 3, 4)],
    "larger": [(3, 30, 40), (2, 12, 40), (2, 5, 17)],
    "one cell": [(3, 1, 1), (2, 1, 6), (2, 4, 1)],
    "same": [(3, 4, 5), (2, 4, 5), (1, 4, 5)],
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def made(grids: list[tuple[int, int, int]], dtype: torch.dtype, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, *grid, generator=generator, dtype=torch.float64).to(dtype) for grid in grids]


def dense(maps: list[Tensor], *, normalize: bool) -> Tensor:
    """(B, D, H, W), the definition."""
    resized = [F.interpolate(m, size=SIZE, mode="bilinear", align_corners=False) for m in maps]
    features = torch.cat(resized, 1)
    return F.normalize(features, dim=1) if normalize else features


@pytest.fixture(params=GRIDS)
def grids(request: pytest.FixtureRequest) -> list[tuple[int, int, int]]:
    return GRIDS[request.param]


@pytest.fixture(params=TOLERANCES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("normalize", [True, False])
def test_gather_is_the_dense_map_at_its_points(
    grids: list[tuple[int, int, int]], dtype: torch.dtype, normalize: bool
) -> None:
    maps = made(grids, dtype)
    yx = torch.cartesian_prod(torch.arange(SIZE[0]), torch.arange(SIZE[1]))  # every border and corner among them
    for image in range(2):
        points = gather([m[image] for m in maps], yx, SIZE, normalize=normalize)
        wanted = dense(maps, normalize=normalize)[image].flatten(1).T
        assert points.dtype == dtype
        torch.testing.assert_close(points, wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)


def test_norm_map_is_the_norm_of_the_dense_map(grids: list[tuple[int, int, int]], dtype: torch.dtype) -> None:
    maps = made(grids, dtype)
    found = norm_map(maps, SIZE)
    assert found.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found, dense(maps, normalize=False).norm(dim=1), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("normalize", [True, False])
def test_project_is_a_linear_layer_on_the_dense_map(
    grids: list[tuple[int, int, int]], dtype: torch.dtype, normalize: bool
) -> None:
    maps = made(grids, dtype)
    weight = torch.randn(4, sum(g[0] for g in grids), generator=torch.Generator().manual_seed(5)).to(dtype)
    wanted = torch.einsum("od,bdhw->bohw", weight, dense(maps, normalize=normalize))
    # Specification 12.3: 1e-4 relative in float32.
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-11, 1e-12)
    found = project(maps, weight, SIZE, norms=norm_map(maps, SIZE) if normalize else None)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


def test_half_precision_maps_are_computed_with_in_float32() -> None:
    maps = made(GRIDS["several"], torch.float16)
    wide = [m.float() for m in maps]
    yx = torch.tensor([[0, 0], [11, 16], [5, 8]])
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(gather([m[0] for m in maps], yx, SIZE), gather([m[0] for m in wide], yx, SIZE))
    torch.testing.assert_close(norm_map(maps, SIZE), norm_map(wide, SIZE))
    torch.testing.assert_close(project(maps, weight, SIZE, norms=None), project(wide, weight, SIZE, norms=None))


def test_features_of_zeros_stay_zero() -> None:
    maps = [torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 3, 3)]
    assert gather([m[0] for m in maps], torch.tensor([[1, 1]]), SIZE).eq(0).all()
    assert norm_map(maps, SIZE).eq(0).all()
    assert project(maps, torch.ones(2, 4), SIZE, norms=norm_map(maps, SIZE)).eq(0).all()


def test_opposite_neighbours_cancel_to_a_norm_of_zero() -> None:
    """Where a square could round below zero."""
    cells = torch.tensor([0.3, -0.3]).reshape(1, 1, 1, 2).repeat(1, 7, 1, 1)
    assert norm_map([cells], (1, 5))[0, 0, 2] == pytest.approx(0, abs=1e-3)
    assert norm_map([cells], (1, 5)).isfinite().all()


def test_no_points() -> None:
    assert gather([torch.ones(3, 2, 2)], torch.empty(0, 2, dtype=torch.int64), SIZE).shape == (0, 3)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, Tensor):
                self.elements = max(self.elements, made.numel())
        return result


def test_the_watch_sees_dense_maps() -> None:
    maps = made(GRIDS["several"], torch.float32, 1)
    with Largest() as largest:
        dense(maps, normalize=True)
    assert largest.elements >= 9 * SIZE[0] * SIZE[1]


def test_nothing_as_large_as_a_dense_map_is_made() -> None:
    """The largest tensor is a map itself (with a rim), or the O projected channels."""
    maps = [torch.randn(1, 96, 4, 4), torch.randn(1, 48, 8, 8), torch.randn(1, 24, 32, 32)]
    size = (64, 64)
    yx = torch.randint(64, (25, 2))
    weight = torch.randn(6, 168)
    bounds = {
        "gather": (lambda: gather([m[0] for m in maps], yx, size), 24 * 32 * 32),
        "norm_map": (lambda: norm_map(maps, size), 24 * 33 * 33),
        "project": (lambda: project(maps, weight, size, norms=None), 24 * 33 * 33),
    }
    for name, (function, bound) in bounds.items():
        with Largest() as largest:
            function()
        assert largest.elements <= bound < 168 * 64 * 64, name


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gather([], torch.zeros(1, 2, dtype=torch.int64), SIZE), "(C, h, w) expected, none given"),
        (lambda: norm_map([torch.ones(3, 2, 2)], SIZE), "(B, C, h, w) expected, (3, 2, 2) given"),
        (lambda: gather([torch.ones(3, 2, 2)], torch.tensor([[0, 17]]), SIZE), "12 rows, 17 columns"),
        (lambda: gather([torch.ones(3, 2, 2)], torch.tensor([[-1, 0]]), SIZE), "from [-1, 0]"),
        (lambda: gather([torch.ones(3, 2, 2)], torch.tensor([[0.0, 0.0]]), SIZE), "int64 expected"),
        (lambda: project([torch.ones(1, 3, 2, 2)], torch.ones(2, 4), SIZE, norms=None), "(O, 3) expected"),
    ],
)
def test_refusals(call: Any, said: str) -> None:
    with pytest.raises(AdaptSegError) as error:
        call()
    assert said in str(error.value)
