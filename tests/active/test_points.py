from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from adaptseg.active.points import Points, announced, best, merged


def pool(seed: int = 0) -> tuple[Points, np.ndarray]:
    """Points of five images, one of them without any, and scores with ties."""
    rng = np.random.default_rng(seed)
    parts = [(i, rng.choice(90, 12, replace=False)) for i in (0, 1, 3, 4)]
    points = Points.of(parts)
    return points, rng.integers(0, 6, len(points)).astype(np.float32)


def as_pairs(points: Points) -> list[tuple[int, int]]:
    return list(zip(points.image.tolist(), points.flat.tolist(), strict=True))


def test_points_are_sorted_and_found_by_image():
    points, _ = pool()
    assert as_pairs(points) == sorted(as_pairs(points))
    for image in range(6):
        assert points.of_image(image).tolist() == [flat for i, flat in as_pairs(points) if i == image]
    assert len(Points.of([])) == 0
    assert Points.of([(2, np.empty(0, np.int64))]).of_image(2).tolist() == []


@pytest.mark.parametrize("count", [0, 1, 7, 20, 48, 60])
def test_best_by_a_plain_sort(count: int):
    points, score = pool()
    ranked = sorted(zip(as_pairs(points), score.tolist(), strict=True), key=lambda item: (-item[1], item[0]))
    assert as_pairs(best(points, score, count)) == sorted(pair for pair, _ in ranked[:count])


def test_best_does_not_depend_on_the_order_of_the_pool():
    points, score = pool()
    expected = as_pairs(best(points, score, 20))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(points))
        assert sorted(as_pairs(best(points.at(order), score[order], 20))) == expected
    infinite = np.where(score == 5, -np.inf, score).astype(np.float32)
    left = as_pairs(best(points, infinite, int((score < 5).sum())))
    assert left == [pair for pair, value in zip(as_pairs(points), score, strict=True) if value < 5]


def test_one_process_keeps_everything():
    points, score = pool()
    found = merged(points, score)
    assert found is not None
    assert as_pairs(found[0]) == as_pairs(points)
    assert found[1][0].tolist() == score.tolist()
    assert announced(points) is points


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_of_many_processes_come_together(monkeypatch: pytest.MonkeyPatch, world_size: int):
    """The gathering itself is torch's; what is tested is that shards in any order give the one order."""
    points, score = pool()
    features = np.random.default_rng(1).random((len(points), 3)).astype(np.float16)
    shards = []
    for rank in range(world_size):
        mine = points.image % world_size == rank
        shards.append(pickle.dumps((points.at(mine), (score[mine], features[mine]))))

    def gather_object(item: Any, parts: list[Any]) -> None:
        parts[:] = [pickle.loads(shard) for shard in reversed(shards)]

    monkeypatch.setattr("adaptseg.active.points.is_distributed", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world_size)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "gather_object", gather_object)
    found = merged(points, score, features)
    assert found is not None
    assert as_pairs(found[0]) == as_pairs(points)
    assert found[1][0].tolist() == score.tolist()
    assert np.array_equal(found[1][1], features)
