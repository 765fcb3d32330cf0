import json
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from adaptseg.active import ranks
from adaptseg.active.selection import GlobalSelector, select_regions
from adaptseg.errors import AdaptSegError

INF = math.inf


def greedy_loop(score: Tensor, count: int, radius: int, forbidden: Tensor | None = None) -> list[list[int]]:
    """The loop select_regions must equal: argmax, blank, repeat. Written on Python numbers, to share nothing."""
    left = {
        (y, x): v
        for y, row in enumerate(score.tolist())
        for x, v in enumerate(row)
        if v != -INF and not (forbidden is not None and forbidden[y, x])
    }
    picks: list[list[int]] = []
    while left and len(picks) < count:
        y, x = min(left, key=lambda p: (-left[p], p))
        picks.append([y, x])
        left = {p: v for p, v in left.items() if max(abs(p[0] - y), abs(p[1] - x)) > radius}
    return picks


def fields(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h, w = (int(torch.randint(1, 14, (), generator=generator)) for _ in range(2))
    yield torch.rand(h, w, generator=generator)
    yield torch.randint(-2, 3, (h, w), generator=generator).float()
    yield torch.randint(-2, 3, (h, w), generator=generator).clamp_min(0).double() * 1e-30
    yield torch.zeros(h, w)
    signed = torch.randint(0, 2, (h, w), generator=generator).float() * -0.0
    yield torch.where(torch.rand(h, w, generator=generator) < 0.5, signed, torch.zeros(()))
    wild = torch.randn(h, w, generator=generator)
    wild[torch.rand(h, w, generator=generator) < 0.2] = -INF
    wild[torch.rand(h, w, generator=generator) < 0.2] = INF
    yield wild
    yield torch.rand(h, w, generator=generator).bfloat16()
    yield torch.rand(w, h, generator=generator).T


@pytest.mark.parametrize("seed", range(12))
def test_select_regions_equals_the_greedy_loop(seed: int) -> None:
    for score in fields(seed):
        forbidden = torch.rand(score.shape, generator=torch.Generator().manual_seed(seed + 99)) < 0.3
        for radius in (0, 1, 2, 5, 40):
            for count in (0, 1, 3, 1000):
                for mask in (None, forbidden):
                    picked = select_regions(score, count, suppress_radius=radius, forbidden=mask)
                    assert picked.dtype == torch.int64
                    assert picked.shape[1:] == (2,)
                    assert picked.tolist() == greedy_loop(score, count, radius, mask)


def test_float64_is_not_rounded() -> None:
    score = torch.full((1, 4), 1.0, dtype=torch.float64)
    score[0, 2] += 1e-12
    assert select_regions(score, 2, suppress_radius=0).tolist() == [[0, 2], [0, 0]]


def test_chunked_scan_of_a_larger_image() -> None:
    score = torch.randint(0, 50, (300, 400), generator=torch.Generator().manual_seed(0)).float()
    left, picks = score.clone(), []
    for _ in range(200):
        y, x = divmod(int(left.argmax()), 400)
        picks.append([y, x])
        left[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = -INF
    assert select_regions(score, 200, suppress_radius=3).tolist() == picks
    everything = select_regions(score, 300 * 400, suppress_radius=3)
    assert everything[:200].tolist() == picks
    blanked = torch.zeros(300, 400, dtype=torch.bool)
    for y, x in everything.tolist():
        assert not blanked[y, x]
        blanked[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = True
    assert blanked.all()  # maximal


def test_inputs_stay_as_they_were() -> None:
    score = torch.tensor([[1.0, -0.0], [0.0, -1.0]])
    forbidden = torch.tensor([[True, False], [False, False]])
    before = score.clone(), forbidden.clone()
    select_regions(score.requires_grad_(), 3, suppress_radius=1, forbidden=forbidden)
    assert torch.equal(score.detach().view(torch.int32), before[0].view(torch.int32))
    assert torch.equal(forbidden, before[1])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_image(shape: tuple[int, int], tmp_path: Path) -> None:
    assert select_regions(torch.zeros(shape), 3, suppress_radius=1).shape == (0, 2)
    selector = GlobalSelector(3, scratch=tmp_path, seed=0)
    selector.add("empty", torch.zeros(shape))
    assert list(selector.finish()) == []
    assert selector.shortfall == 3


@pytest.mark.parametrize(
    ("score", "keywords", "word"),
    [
        (torch.tensor([[1.0, math.nan]]), {}, "NaN"),
        (torch.zeros(3), {}, r"\(H, W\)"),
        (torch.zeros(2, 2, dtype=torch.int64), {}, "floating"),
        (torch.zeros(2, 2), {"count": -1}, "count"),
        (torch.zeros(2, 2), {"suppress_radius": -1}, "suppress_radius"),
        (torch.zeros(2, 2), {"forbidden": torch.zeros(2, 3, dtype=torch.bool)}, "forbidden"),
        (torch.zeros(2, 2), {"forbidden": torch.zeros(2, 2)}, "forbidden"),
    ],
)
def test_select_regions_refuses(score: Tensor, keywords: dict[str, object], word: str) -> None:
    arguments = {"count": 1, "suppress_radius": 0, **keywords}
    with pytest.raises(AdaptSegError, match=word):
        select_regions(score, **arguments)  # pyright: ignore[reportArgumentType]


# --- the whole pool ---------------------------------------------------------------------------------------------------

Shard = Iterable[tuple[str, Tensor, Tensor | None]]


def choose(maps: Shard, count: int, folder: Path, seed: int = 0) -> dict[str, list[list[int]]]:
    selector = GlobalSelector(count, scratch=folder, seed=seed)
    for key, score, forbidden in maps:
        selector.add(key, score, forbidden)
    chosen = {key: yx.tolist() for key, yx in selector.finish()}
    assert list(folder.iterdir()) == []
    return chosen


def stacked_sort(maps: Shard, count: int, seed: int = 0) -> dict[str, list[list[int]]]:
    """Sort every candidate of the pool at once."""
    pool = []
    for key, score, forbidden in maps:
        ties = ranks.tie_rank(ranks.salt_of(seed, key), np.arange(score.numel(), dtype=np.uint32)).tolist()
        for i, (v, tie) in enumerate(zip(score.float().flatten().tolist(), ties, strict=True)):
            if v != -INF and not (forbidden is not None and forbidden.flatten()[i]):
                pool.append((-v, -tie, key, i, score.shape[1]))
    chosen: dict[str, list[list[int]]] = {}
    for _, _, key, i, width in sorted(pool)[:count]:
        chosen.setdefault(key, []).append([i // width, i % width])
    return {key: sorted(chosen[key]) for key, _, _ in maps if key in chosen}


def pool(seed: int, kind: str) -> list[tuple[str, Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(seed)
    maps: list[tuple[str, Tensor, Tensor | None]] = []
    for i in range(5):
        h, w = (int(torch.randint(1, 20, (), generator=generator)) for _ in range(2))
        score = torch.randn(h, w, generator=generator)
        match kind:
            case "ties":
                score = score.round().clamp_min(0)
            case "close":  # one bucket of the first digit, so that the second decides
                score = 1 + 1e-6 * score
            case "wild":
                score[score > 1] = INF
                score[score < -1] = -INF
                score[score.abs() < 0.2] = -0.0
                score[score.abs() < 0.1] = 0.0
                score[score.abs() < 0.05] *= 1e-40  # subnormal
            case "equal":
                score.zero_()
            case _:
                score *= 10.0 ** float(torch.randint(-20, 20, (), generator=generator))
        forbidden = torch.rand(h, w, generator=generator) < 0.3 if i % 2 else None
        maps.append((f"city/{i:03}", score, forbidden))
    return maps


@pytest.mark.parametrize("kind", ["random", "ties", "close", "wild", "equal"])
@pytest.mark.parametrize("seed", range(4))
def test_global_selection_equals_a_stacked_sort(kind: str, seed: int, tmp_path: Path) -> None:
    maps = pool(seed, kind)
    total = sum(m.numel() for _, m, _ in maps)
    for count in (0, 1, 2, 17, total // 3, total // 2, total, 2 * total):
        expected = stacked_sort(maps, count, seed)
        chosen = choose(maps, count, tmp_path, seed)
        assert chosen == expected
        assert list(chosen) == list(expected)  # order of the add calls
        assert sum(map(len, chosen.values())) <= count
        backwards = choose(maps[::-1], count, tmp_path, seed)
        assert backwards == chosen


@pytest.mark.parametrize("kind", ["random", "ties", "wild", "equal"])
def test_points_equal_the_dense_map(kind: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    maps = pool(3, kind)
    for count in (1, 20, 90):
        points = GlobalSelector(count, scratch=tmp_path, seed=1)
        dense: list[tuple[str, Tensor, Tensor | None]] = []
        for key, score, _ in maps:
            flat = torch.randperm(score.numel(), generator=generator)[: score.numel() // 2]
            yx = torch.stack([flat // score.shape[1], flat % score.shape[1]], 1)
            points.add_points(key, yx, score.flatten()[flat], (score.shape[0], score.shape[1]))
            sparse = torch.full_like(score, -INF)
            sparse.view(-1)[flat] = score.flatten()[flat]
            dense.append((key, sparse, None))
        assert {key: yx.tolist() for key, yx in points.finish()} == choose(dense, count, tmp_path, seed=1)


def test_colliding_hashes_are_decided_by_key_and_index(tmp_path: Path) -> None:
    # Among 2 * 300_000 hashes of 32 bits about 42 pairs collide; the cut is put between two of a pair, and beside it.
    maps = {key: torch.zeros(500, 600) for key in ("b", "a")}
    indices = np.arange(300_000, dtype=np.uint32)
    ties = {key: ranks.tie_rank(ranks.salt_of(0, key), indices) for key in maps}
    values, times = np.unique(np.concatenate([*ties.values()]), return_counts=True)
    colliding = values[times > 1]
    assert len(colliding) > 10
    within = next(v for v in colliding if (ties["a"] == v).sum() == 2)
    across = next(v for v in colliding if (ties["a"] == v).sum() == (ties["b"] == v).sum() == 1)
    for value in (within, across):
        above = sum(int((t > value).sum()) for t in ties.values())
        pixels = [(key, i) for key in ("a", "b") for i in np.flatnonzero(ties[key] == value).tolist()]
        for extra in (0, 1, 2):
            selector = GlobalSelector(above + extra, scratch=tmp_path, seed=0)
            for key, score in maps.items():
                selector.add(key, score)
            flat = {key: set((yx[:, 0] * 600 + yx[:, 1]).tolist()) for key, yx in selector.finish()}
            assert sum(map(len, flat.values())) == above + extra
            assert [i in flat[key] for key, i in pixels] == [extra > 0, extra > 1]


def test_ties_are_spread_over_images_and_depend_on_the_seed(tmp_path: Path) -> None:
    maps: Shard = [(f"{i}", torch.zeros(50, 50), None) for i in range(4)]
    chosen = choose(maps, 4000, tmp_path, seed=0)
    # 2500 pixels an image at probability 0.4, hypergeometric: sd 21
    assert all(abs(len(yx) - 1000) < 100 for yx in chosen.values())
    rows = np.bincount([y for yx in chosen.values() for y, _ in yx], minlength=50)
    assert rows.min() > 40  # mean 80, sd 6.9
    assert choose(maps, 4000, tmp_path, seed=1) != chosen
    assert chosen["0"] != chosen["1"]


def test_one_image_of_regions_is_the_greedy_prefix(tmp_path: Path) -> None:
    score = torch.randperm(60 * 70, generator=torch.Generator().manual_seed(0)).view(60, 70).float()
    candidates = select_regions(score, score.numel(), suppress_radius=2)
    for count in (1, 10, 77):
        with GlobalSelector(count, scratch=tmp_path, seed=0) as selector:
            selector.add_points("a", candidates, score[candidates[:, 0], candidates[:, 1]], (60, 70))
            ((_, yx),) = selector.finish()
        prefix = select_regions(score, count, suppress_radius=2)
        assert sorted(yx.tolist()) == sorted(prefix.tolist())
        assert yx.tolist() == sorted(yx.tolist())


def test_weights_all_equal_change_nothing(tmp_path: Path) -> None:
    maps = pool(1, "ties")
    halved: Shard = [(key, score * 0.5, forbidden) for key, score, forbidden in maps]
    assert choose(maps, 100, tmp_path) == choose(halved, 100, tmp_path)


def test_float64_below_float32_stays_a_candidate(tmp_path: Path) -> None:
    assert choose([("a", torch.tensor([[-1e300, -INF]], dtype=torch.float64), None)], 2, tmp_path) == {"a": [[0, 0]]}


def test_shortfall_and_images_without_picks(tmp_path: Path) -> None:
    nothing = torch.full((2, 2), -INF)
    with GlobalSelector(5, scratch=tmp_path / "made" / "here", seed=0) as selector:
        selector.add("a", torch.ones(1, 3), torch.tensor([[True, False, False]]))
        selector.add("b", nothing)
        selector.add_points("c", torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0), (4, 4))
        chosen = {key: yx.tolist() for key, yx in selector.finish()}
    assert chosen == {"a": [[0, 1], [0, 2]]}
    assert selector.shortfall == 3


def test_scratch_is_freed_when_abandoned(tmp_path: Path) -> None:
    with GlobalSelector(2, scratch=tmp_path, seed=0) as selector:
        for key in "ab":
            selector.add(key, torch.rand(4, 4) + 1)
        next(selector.finish())
    assert list(tmp_path.iterdir()) == []
    GlobalSelector(2, scratch=tmp_path, seed=0).add("a", torch.ones(2, 2))  # forgotten: no ResourceWarning either
    assert list(tmp_path.iterdir()) == []


def test_global_selector_refuses(tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match="count"):
        GlobalSelector(-1, scratch=tmp_path, seed=0)
    (tmp_path / "file").touch()
    with pytest.raises(AdaptSegError, match="scratch"):
        GlobalSelector(1, scratch=tmp_path / "file", seed=0)
    selector = GlobalSelector(1, scratch=tmp_path, seed=0)
    selector.add("a", torch.ones(2, 2))
    with pytest.raises(AdaptSegError, match="'a' is added twice"):
        selector.add("a", torch.ones(2, 2))
    with pytest.raises(AdaptSegError, match=r"'b'.*NaN"):
        selector.add("b", torch.tensor([[math.nan]]))
    with pytest.raises(AdaptSegError, match="'b'"):
        selector.add("b", torch.ones(2))
    points = torch.tensor([[0, 0], [1, 1]])
    with pytest.raises(AdaptSegError, match="outside"):
        selector.add_points("b", points, torch.ones(2), (1, 2))
    with pytest.raises(AdaptSegError, match="twice"):
        selector.add_points("b", points[[0, 0]], torch.ones(2), (2, 2))
    with pytest.raises(AdaptSegError, match=r"\(n, 2\)"):
        selector.add_points("b", points, torch.ones(3), (2, 2))
    with pytest.raises(AdaptSegError, match=r"'b'.*NaN"):
        selector.add_points("b", points, torch.tensor([1, math.nan]), (2, 2))
    assert [key for key, _ in selector.finish()] == ["a"]  # what was refused left no trace
    with pytest.raises(AdaptSegError, match="finish"):
        selector.finish()
    with pytest.raises(AdaptSegError, match="finish"):
        selector.add("c", torch.ones(2, 2))


POOLS = {  # name: (count, which of two processes adds map i)
    "ties at zero": (6000, lambda i: i % 2),
    "ties above": (999, lambda i: 1 - i % 2),
    "empty shard": (6000, lambda i: 0),
    "shortfall": (50_000, lambda i: i // 3),
    "none": (0, lambda i: i % 2),
}


def fill(selector: GlobalSelector, mine: Callable[[int], bool]) -> None:
    for i in filter(mine, range(5)):
        generator = torch.Generator().manual_seed(i)
        score = (2 * torch.randn(40, 50, generator=generator).clamp_min(0)).round() / 7  # half the pixels are 0
        selector.add(str(i), score, torch.rand(40, 50, generator=generator) < 0.1)


def choose_shards(folder: Path, rank: int | None) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, (count, rank_of) in POOLS.items():
        with GlobalSelector(count, scratch=folder, seed=3) as selector:
            fill(selector, lambda i, rank_of=rank_of: rank is None or rank_of(i) == rank)
            results[name] = {key: yx.tolist() for key, yx in selector.finish()}
            results[name]["shortfall"] = selector.shortfall
    return results


def work(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = choose_shards(folder / "scratch", rank)
    with GlobalSelector(7, scratch=folder / "scratch", seed=3) as selector:
        fill(selector, lambda i: i == 4)
        with pytest.raises(AdaptSegError, match="'4', were added by two processes"):
            selector.finish()
    with (
        GlobalSelector(rank, scratch=folder / "scratch", seed=3) as selector,
        pytest.raises(AdaptSegError, match="disagree"),
    ):
        selector.finish()
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(results))


@pytest.mark.slow
def test_two_processes_choose_the_pixels_of_one(tmp_path: Path) -> None:
    workers = [multiprocessing.get_context("spawn").Process(target=work, args=(tmp_path, rank)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    alone = choose_shards(tmp_path / "scratch", None)
    try:
        for worker in workers:
            worker.join(timeout=120)
            assert worker.exitcode == 0
    finally:
        for worker in workers:
            worker.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name, expected in alone.items():
        assert first[name].pop("shortfall") == second[name].pop("shortfall") == expected.pop("shortfall")
        assert not first[name].keys() & second[name].keys()
        assert {**first[name], **second[name]} == expected
    assert sum(map(len, alone["ties at zero"].values())) == 6000
    assert list((tmp_path / "scratch").iterdir()) == []
