"""The global order of scenes: a pure function of (seed, sample number), whatever the ranks, ticks and restarts."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from adaptseg.data.sampling import StepSampler, generator, scene_index, uniform_draws


@pytest.mark.parametrize("length", [1, 2, 7, 10])
def test_every_scene_appears_once_per_pass(length: int) -> None:
    order = [scene_index(sample, length, seed=3, stream="target") for sample in range(5 * length)]
    for first in range(0, len(order), length):
        assert sorted(order[first : first + length]) == list(range(length))


def test_passes_seeds_and_streams_are_shuffled_differently() -> None:
    def passes(seed: int, stream: str, epoch: int) -> list[int]:
        return [scene_index(50 * epoch + offset, 50, seed=seed, stream=stream) for offset in range(50)]

    orders = [
        passes(*arguments) for arguments in ((0, "source", 0), (0, "source", 1), (0, "target", 0), (1, "source", 0))
    ]
    for number, order in enumerate(orders):
        assert order != list(range(50))
        for other in orders[number + 1 :]:
            agreeing = sum(a == b for a, b in zip(order, other, strict=True))
            assert agreeing < 8  # one in expectation


def test_the_order_does_not_depend_on_what_was_asked_before() -> None:
    forwards = [scene_index(sample, 6, seed=9, stream="source") for sample in range(100)]
    backwards = [scene_index(sample, 6, seed=9, stream="source") for sample in reversed(range(100))]
    assert forwards == backwards[::-1]


def test_first_places_are_uniform() -> None:
    counts = Counter(scene_index(0, 5, seed=seed, stream="source") for seed in range(500))
    assert min(counts[index] for index in range(5)) > 70  # 100 expected, standard deviation 9


def test_generators_differ_in_every_argument_and_repeat() -> None:
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 2**33), (2**31, "a", 0)]
    draws = [tuple(generator(*key).integers(2**62, size=2)) for key in keys]  # type: ignore[arg-type]
    assert len(set(draws)) == len(draws)
    assert draws == [tuple(generator(*key).integers(2**62, size=2)) for key in keys]  # type: ignore[arg-type]


def test_the_stream_of_random_numbers_is_frozen() -> None:
    """A resumed run of an earlier version must see the order it began with."""
    assert [scene_index(sample, 8, seed=0, stream="source") for sample in range(8)] == [5, 1, 6, 3, 4, 7, 2, 0]
    assert generator(0, "source", 0).integers(1000, size=3).tolist() == [323, 300, 340]


# ---- the sampler


def served(
    tick: tuple[int, int], *, start: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    return list(StepSampler(tick, start=start, batch_size=batch_size, rank=rank, world_size=world_size))


def test_one_process_counts_samples() -> None:
    assert served((2, 4), start=2, batch_size=3) == [[6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_slices_of_ranks_in_order_are_the_global_batch(world_size: int) -> None:
    whole = served((5, 9), start=5, batch_size=6)
    slices = [served((5, 9), start=5, batch_size=6, rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [list(chain(*parts)) for parts in zip(*slices, strict=True)]
    assert joined == whole


@pytest.mark.parametrize("start", range(4, 9))
def test_a_restart_inside_a_tick_serves_the_rest_and_tells_the_whole_length(start: int) -> None:
    sampler = StepSampler((4, 8), start=start, batch_size=2, rank=0, world_size=1)
    assert len(sampler) == 4  # Lightning adds the batches already seen to those served
    whole = served((4, 8), start=4, batch_size=2)
    assert list(sampler) == whole[start - 4 :]
    assert list(sampler) == whole[start - 4 :]  # iterating twice changes nothing


def test_samples_of_a_pass_are_plain_numbers() -> None:
    assert all(type(index) is int for batch in served((0, 3), start=0, batch_size=2) for index in batch)
    assert isinstance(scene_index(np.int64(3), 4, seed=0, stream="a"), int)  # type: ignore[arg-type]


# ---- draws of a step


def test_draws_of_a_sample_depend_on_its_number_alone() -> None:
    together = uniform_draws(3, "jitter", [8, 9, 10, 11], (2, 5))
    assert together.shape == (4, 2, 5)
    assert together.dtype == torch.float32
    for row, sample in enumerate([8, 9, 10, 11]):
        assert torch.equal(uniform_draws(3, "jitter", [sample], (2, 5))[0], together[row])
    assert torch.equal(uniform_draws(3, "jitter", [11, 8], (2, 5)), together[[3, 0]])


def test_draws_differ_in_seed_stream_and_sample() -> None:
    draws = [uniform_draws(*key, (4,)) for key in ((0, "a", [0]), (1, "a", [0]), (0, "b", [0]), (0, "a", [1]))]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 4


def test_draws_are_uniform_in_the_half_open_unit_interval() -> None:
    draws = uniform_draws(0, "mask", range(50), (200,))
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, bins=10, min=0, max=1)
    assert (counts - 1000).abs().max() < 150  # standard deviation 30


def test_draws_of_no_sample_and_of_a_single_number() -> None:
    assert uniform_draws(0, "a", [], (3,)).shape == (0, 3)
    assert uniform_draws(0, "a", [4, 5], ()).shape == (2,)


def test_the_stream_of_draws_is_frozen() -> None:
    """A resumed run of an earlier version must see the augmentation it began with."""
    expected = [[0.5505694, 0.0189676], [0.9972292, 0.768833]]
    torch.testing.assert_close(uniform_draws(0, "jitter", [0, 2**33], (2,)), torch.tensor(expected), rtol=0, atol=1e-6)
