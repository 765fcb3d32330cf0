"""The domain pair: batches are a function of (seed, step, position), labels lie where they belong, truth is unread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptseg.classes import STREETS, VOID, ClassTable, SemanticClass
from adaptseg.data import Batch, DomainPair, Scenes, Target
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.resize import resize_nearest
from adaptseg.errors import AdaptSegError

SIZE = (12, 18)


class Coded(Scenes):
    """Scenes whose red channel is ten times the label and whose green and blue channels are row and column."""

    def __init__(self, name: str, count: int, size: tuple[int, int] = SIZE, table: ClassTable = STREETS) -> None:
        self.keys = [f"{name}{number}" for number in range(count)]
        self.class_table = table
        self.native = size

    def labels(self, key: str) -> NDArray[np.uint8]:
        return np.random.default_rng(self.keys.index(key)).integers(0, 19, self.native, np.uint8)

    def image(self, key: str) -> NDArray[np.uint8]:
        rows, columns = np.indices(self.native)
        return np.stack([self._codes(key), rows, columns], -1).astype(np.uint8)

    def _codes(self, key: str) -> NDArray[np.uint8]:
        return 10 * Coded.labels(self, key)

    def instances(self, key: str) -> NDArray[np.int32]:
        return Coded.labels(self, key).astype(np.int32) * 1000

    def size(self, key: str) -> tuple[int, int]:
        return self.native


class Secret(Coded):
    """Scenes whose ground truth nobody may see."""

    def labels(self, key: str) -> NDArray[np.uint8]:
        raise AssertionError(f"the ground truth of {key} was read")

    def instances(self, key: str) -> NDArray[np.int32]:
        raise AssertionError(f"the instances of {key} were read")


class Mixed(Coded):
    """Every scene has a size of its own."""

    def image(self, key: str) -> NDArray[np.uint8]:
        return np.zeros((*self.size(key), 3), np.uint8)

    def labels(self, key: str) -> NDArray[np.uint8]:
        return np.zeros(self.size(key), np.uint8)

    def size(self, key: str) -> tuple[int, int]:
        return self.native[0] + self.keys.index(key), self.native[1]


class Unlabelled(Coded):
    labelled = False


@dataclass
class Clock:
    """What a domain pair asks of its trainer."""

    global_step: int = 0
    max_steps: int = 12
    accumulate_grad_batches: int = 1
    global_rank: int = 0
    world_size: int = 1
    lightning_module: object = None


@dataclass
class Bought:
    """Bought labels that encode where they lie on a grid of `size`; every third pixel is not bought."""

    size: tuple[int, int]

    def labels(self, key: str) -> NDArray[np.uint8]:
        rows, columns = np.indices(self.size)
        return np.where((rows + columns) % 3, (rows * 5 + columns) % 19, VOID).astype(np.uint8)


def pair(**changes: Any) -> DomainPair:
    defaults: dict[str, Any] = {
        "source": Coded("s", 5),
        "target": Secret("t", 3),
        "batch_size": 4,
        "workers": 0,
        "tick": 3,
        "seed": 7,
    }
    return DomainPair(**{**defaults, **changes})


def batches(data: DomainPair, clock: Clock) -> list[Batch]:
    """All batches from the clock's step to the end of its tick, as Lightning asks for them."""
    data.trainer = clock  # type: ignore[assignment]
    return list(data.train_dataloader())


def run(data: DomainPair, **clock: Any) -> list[Batch]:
    """All batches of a run from step `global_step` on."""
    time = Clock(**clock)
    served: list[Batch] = []
    while time.global_step < time.max_steps:
        new = batches(data, time)
        served += new
        assert len(new) % time.accumulate_grad_batches == 0
        time.global_step += len(new) // time.accumulate_grad_batches
    return served


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, (tuple, list)) else []


def assert_equal(left: Any, right: Any) -> None:
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, (tuple, list)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_equal(a, b)
    else:
        assert left == right


def pixels(image: Tensor) -> Tensor:
    """(B, 3, H, W) int64: the bytes behind a normalised image."""
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return ((image * std + mean) * 255).round().long()


AUGMENTED: dict[str, Any] = {"crop": (8, 11), "flip": True}


# ---- the order


def test_batches_depend_on_seed_step_and_position_alone() -> None:
    whole = run(pair(**AUGMENTED))
    assert len(whole) == 12
    assert_equal(run(pair(**AUGMENTED)), whole)
    for cut in range(1, 12):  # a restart anywhere, with a new data module
        assert_equal(run(pair(**AUGMENTED), global_step=cut), whole[cut:])
    for tick in (1, 5, 12, 100):
        assert_equal(run(pair(**AUGMENTED, tick=tick)), whole)
    other = run(pair(**AUGMENTED, seed=8))
    assert [batch.source.keys for batch in other if batch.source] != [b.source.keys for b in whole if b.source]


@pytest.mark.parametrize("world_size", [2, 4])
def test_slices_of_ranks_are_the_global_batch(world_size: int) -> None:
    whole = run(pair(**AUGMENTED))
    ranks = [run(pair(**AUGMENTED), global_rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert batch.samples == [sample for rank in ranks for sample in rank[step].samples]
        for domain, expected in enumerate(batch[:2]):
            parts = [rank[step][domain] for rank in ranks]
            assert [key for part in parts for key in part.keys] == expected.keys
            for column in (1, 2):
                assert torch.equal(torch.cat([part[column] for part in parts]), expected[column])


def test_accumulated_micro_batches_are_the_large_batch() -> None:
    whole = run(pair(**AUGMENTED))
    small = run(pair(**AUGMENTED, batch_size=2), accumulate_grad_batches=2)
    assert len(small) == 2 * len(whole)
    for step, batch in enumerate(whole):
        halves = small[2 * step : 2 * step + 2]
        assert batch.source is not None
        assert torch.equal(torch.cat([half.source.image for half in halves if half.source]), batch.source.image)
    again = run(pair(**AUGMENTED, batch_size=2), accumulate_grad_batches=2, global_step=5)
    assert_equal(again, small[10:])


def test_every_scene_appears_once_per_pass() -> None:
    served = run(pair(), max_steps=15)
    for domain, count in ((0, 5), (1, 3)):
        keys = [key for batch in served for key in batch[domain].keys]
        for first in range(0, len(keys), count):
            assert len(set(keys[first : first + count])) == count
    assert len({tuple(key[1:] for key in batch[0].keys) for batch in served}) > 5


def test_source_and_target_are_drawn_apart() -> None:
    served = run(pair(target=Secret("t", 5), **AUGMENTED))
    assert any(
        [k[1:] for k in b.source.keys] != [k[1:] for k in b.target.keys] for b in served if b.source and b.target
    )
    source, target = (torch.cat([pixels(batch[domain].image)[:, 1:, 0, 0] for batch in served]) for domain in (0, 1))
    assert (source != target).any(1).float().mean() > 0.8  # corners of the crops


def test_workers_change_no_bit() -> None:
    assert_equal(run(pair(**AUGMENTED, workers=2), max_steps=3), run(pair(**AUGMENTED), max_steps=3))


def test_the_length_is_the_whole_tick_inside_it() -> None:
    for step, length in ((0, 5), (3, 5), (5, 5), (10, 2), (11, 2), (12, 2)):
        data = pair(tick=5)
        data.trainer = Clock(global_step=step)  # type: ignore[assignment]
        assert len(data.train_dataloader()) == length
    data.trainer = Clock(global_step=4, accumulate_grad_batches=3)  # type: ignore[assignment]
    assert len(data.train_dataloader()) == 15


def test_ticks_are_a_twentieth_rounded_up() -> None:
    assert [pair(tick=None).tick_length(steps) for steps in (1, 20, 21, 1200, 40_000)] == [1, 1, 2, 60, 2000]
    assert pair(tick=7).tick_length(40_000) == 7


# ---- geometry and labels


@pytest.mark.parametrize("changes", [{}, AUGMENTED, {"crop": (12, 1)}, {"flip": True}], ids=str)
def test_image_labels_and_instances_are_cut_alike(changes: dict[str, Any]) -> None:
    mirrored = set()
    for batch in run(pair(with_instances=True, **changes)):
        source = batch.source
        assert source is not None
        assert source.instances is not None
        assert source.labels.dtype == source.instances.dtype == torch.int64
        assert source.image.dtype == torch.float32
        assert source.image.shape[-2:] == source.labels.shape[-2:] == changes.get("crop", SIZE)
        codes = pixels(source.image)
        assert torch.equal(codes[:, 0], source.labels * 10)
        assert torch.equal(source.instances, source.labels * 1000)
        for rows, columns in codes[:, 1:]:
            steps = columns[0].diff().unique().tolist()
            mirrored.add(steps == [-1])
            assert steps in ([], [1], [-1])
            assert rows[:, 0].diff().unique().tolist() == [1]
    if "crop" not in changes or changes["crop"][1] > 1:
        assert mirrored == {False, bool(changes.get("flip"))}


@pytest.mark.parametrize("changes", [{}, AUGMENTED], ids=str)
def test_bought_labels_reach_the_batch_where_they_were_bought(changes: dict[str, Any]) -> None:
    data = pair(**changes)
    for batch in batches(data, Clock()):
        assert batch.target is not None
        assert (batch.target.bought == VOID).all()
        assert batch.target.bought_pixels == 0
        assert batch.target.trusted.all()
    data.bought = Bought(SIZE)
    for batch in batches(data, Clock(global_step=3)):
        target = batch.target
        assert target is not None
        _, rows, columns = pixels(target.image).unbind(1)
        expected = torch.where((rows + columns) % 3 > 0, (rows * 5 + columns) % 19, VOID)
        assert target.bought.dtype == torch.int64
        assert torch.equal(target.bought, expected)
        assert target.bought_pixels == int((expected != VOID).sum())
        assert target.trusted.shape == expected.shape
        assert target.trusted.dtype == torch.bool


def test_buying_changes_nothing_else() -> None:
    data = pair(**AUGMENTED)
    before = batches(data, Clock())
    data.bought = Bought(SIZE)
    for old, new in zip(before, batches(data, Clock()), strict=True):
        assert_equal(new.source, old.source)
        assert isinstance(old.target, Target)
        assert isinstance(new.target, Target)
        assert torch.equal(new.target.image, old.target.image)


@pytest.mark.parametrize(
    ("pool_size", "target_size", "grid"),
    [
        ("train", None, SIZE),
        ("train", (6, 9), (6, 9)),
        ("native", None, SIZE),
        ("native", (6, 9), SIZE),
        ((24, 7), (6, 9), (24, 7)),
        ((24, 7), None, (24, 7)),
    ],
)
def test_the_pool_grid_and_its_way_into_the_batch(
    pool_size: Any, target_size: tuple[int, int] | None, grid: tuple[int, int]
) -> None:
    data = pair(pool_size=pool_size, target_size=target_size)
    assert data.pool_grid("t0") == grid
    data.bought = Bought(grid)
    for batch in batches(data, Clock()):
        assert batch.target is not None
        size = target_size or SIZE
        assert batch.target.image.shape[-2:] == batch.target.bought.shape[-2:] == size
        for bought in batch.target.bought:
            np.testing.assert_array_equal(bought, resize_nearest(data.bought.labels("t0"), size))


def test_source_is_resized_with_its_labels() -> None:
    for batch in run(pair(source_size=(6, 9), with_instances=True)):
        assert batch.source is not None
        for key, labels in zip(batch.source.keys, batch.source.labels, strict=True):
            np.testing.assert_array_equal(labels, resize_nearest(Coded("s", 5).labels(key), (6, 9)))
        assert batch.target is not None
        assert batch.target.image.shape[-2:] == SIZE


# ---- one domain alone


def test_target_alone_and_source_alone() -> None:
    for batch in run(pair(source=None)):
        assert batch.source is None
        assert batch.target is not None
    for batch in run(pair(target=None)):
        assert batch.target is None
        assert batch.source is not None
    assert pair(target=None).num_classes == pair(source=None).num_classes == 19


def test_the_target_alone_sees_what_it_would_see_beside_a_source() -> None:
    both, alone = run(pair(**AUGMENTED)), run(pair(**AUGMENTED, source=None))
    assert_equal([batch.target for batch in alone], [batch.target for batch in both])


# ---- the pool and evaluation


def test_the_pool_is_shared_out_without_its_labels() -> None:
    data = pair(target=Secret("t", 7), target_size=(6, 9))
    seen = []
    for rank in range(3):
        for batch in data.pool_loader(rank, 3):
            assert batch.image.shape == (1, 3, 6, 9)
            assert batch.labels.shape == (1, *SIZE)
            assert (batch.labels == VOID).all()
            seen += batch.keys
    assert sorted(seen) == list(data.pool.keys)


def test_the_pool_is_shown_whole_and_unaugmented() -> None:
    (first, *_) = pair(**AUGMENTED).pool_loader(0, 1)
    np.testing.assert_array_equal(pixels(first.image)[0].permute(1, 2, 0), Coded("t", 3).image("t0"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_keeps_labels_at_native_size(split: str) -> None:
    data = pair(**{split: Mixed("v", 5)}, target_size=(6, 9))
    seen = []
    for rank in range(2):
        data.trainer = Clock(global_rank=rank, world_size=2)  # type: ignore[assignment]
        for batch in getattr(data, f"{split}_dataloader")():
            assert batch.image.shape == (1, 3, 6, 9)
            assert batch.labels.shape[1:] == Mixed("v", 5).size(batch.keys[0])
            seen += batch.keys
    assert sorted(seen) == [f"v{number}" for number in range(5)]


def test_prediction_needs_no_labels_and_falls_back_to_test_then_val() -> None:
    sets = {"predict": Secret("p", 1), "test": Secret("q", 1), "val": Secret("v", 1)}
    for first in ("p", "q", "v"):
        data = pair(**sets)
        data.trainer = Clock()  # type: ignore[assignment]
        (batch,) = data.predict_dataloader()
        assert batch.keys == [f"{first}0"]
        assert (batch.labels == VOID).all()
        del sets[next(iter(sets))]


def test_no_val_is_no_loader() -> None:
    assert pair().val_dataloader() == []


# ---- what is refused


def test_scenes_of_different_sizes_in_a_batch_are_refused() -> None:
    with pytest.raises(AdaptSegError, match=r"different sizes in one batch \(12x18, 13x18.*set data\.source_size or"):
        run(pair(source=Mixed("s", 3)))
    with pytest.raises(AdaptSegError, match=r"set data\.target_size or data\.crop"):
        run(pair(target=Mixed("t", 3)))
    run(pair(source=Mixed("s", 3), crop=(12, 18)))


def test_a_crop_larger_than_the_scene_is_refused() -> None:
    with pytest.raises(AdaptSegError, match=r"data\.crop \[12, 19\] is larger than the scene of 12x18"):
        run(pair(crop=(12, 19)))


@pytest.mark.parametrize("name", ["source", "val", "test", "predict"])
def test_another_class_table_is_refused(name: str) -> None:
    two = ClassTable("two", (SemanticClass("a", (0, 0, 0)), SemanticClass("b", (0, 0, 0))))
    with pytest.raises(AdaptSegError, match=rf"data\.{name}: class table 'two' \(a, b\) differs from 'streets'"):
        pair(**{name: Coded("x", 1, table=two)})


@pytest.mark.parametrize("name", ["source", "val", "test"])
def test_unlabelled_scenes_are_refused_where_labels_are_needed(name: str) -> None:
    with pytest.raises(AdaptSegError, match=rf"data\.{name} has no labels"):
        pair(**{name: Unlabelled("x", 1)})
    pair(target=Unlabelled("x", 1), predict=Unlabelled("x", 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None, "target": None}, "neither source nor target"),
        ({"batch_size": 0}, r"data\.batch_size is 0; 1 or more"),
        ({"workers": -1}, r"data\.workers is -1; 0 or more"),
        ({"tick": 0}, r"data\.tick is 0; 1 or more"),
        ({"tick": -5}, r"data\.tick is -5; 1 or more"),
        ({"crop": (0, 64)}, r"data\.crop is \[0, 64\]"),
        ({"target_size": (64, -1)}, r"data\.target_size is \[64, -1\]"),
        ({"pool_size": (0, 0)}, r"data\.pool_size is \[0, 0\]"),
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptSegError, match=message):
        pair(**changes)


def test_what_is_missing_is_named() -> None:
    data = pair()
    data.trainer = Clock()  # type: ignore[assignment]
    with pytest.raises(AdaptSegError, match=r"data\.test is missing"):
        data.test_dataloader()
    with pytest.raises(AdaptSegError, match=r"data\.predict is missing"):
        data.predict_dataloader()
    with pytest.raises(AdaptSegError, match=r"data\.target is missing: an acquisition needs a pool"):
        _ = pair(target=None).pool
    with pytest.raises(AdaptSegError, match=r"trainer\.max_steps is -1"):
        data.tick_length(-1)
    data.trainer = Clock(world_size=3)  # type: ignore[assignment]
    with pytest.raises(AdaptSegError, match="batch_size 4 does not divide over 3 processes"):
        data.train_dataloader()
