"""The global mean: alone, and shared by two gloo processes with unequal counts."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from adaptseg.losses.reduce import any_over_ranks, at_least_float32, global_mean, mean_over_ranks


def test_alone_it_is_a_plain_mean() -> None:
    total = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    mean = global_mean(total, torch.tensor(4))
    mean.backward()
    assert mean.item() == 1.5
    assert mean.dtype == torch.float64
    assert total.grad is not None
    assert total.grad.item() == 0.25


@pytest.mark.parametrize(
    ("count", "minimum", "expected"), [(0, 1.0, 3.0), (2, 1.0, 1.5), (2, 12.0, 0.25), (2, 0.5, 1.5)]
)
def test_minimum(count: int, minimum: float, expected: float) -> None:
    assert global_mean(torch.tensor(3.0), torch.tensor(count), minimum=minimum).item() == expected


def test_sum_over_nothing_is_zero() -> None:
    total = torch.zeros((), requires_grad=True)
    mean = global_mean(total, torch.tensor(0))
    mean.backward()
    assert mean.item() == 0
    assert total.grad is not None
    assert total.grad.item() == 1


def test_count_is_a_constant_and_is_left_alone() -> None:
    count = torch.tensor(2.0, requires_grad=True)
    global_mean(torch.tensor(3.0, requires_grad=True), count).backward()
    assert count.grad is None
    assert count.item() == 2


def test_at_least_float32() -> None:
    for given, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert at_least_float32(torch.zeros(1, dtype=given)).dtype == expected


def test_alone_shares_and_flags_are_as_given() -> None:
    value, flags = torch.tensor(0.25), torch.tensor([True, False])
    assert mean_over_ranks(value) is value
    assert any_over_ranks(flags) is flags


PIXELS = torch.arange(1.0, 8.0, dtype=torch.float64)  # seven pixels, split 5 : 2 and 7 : 0
SHARES = torch.tensor([0.25, 1.0])
FLAGS = torch.tensor([[[True, False, False, True]], [[False, False, True, True]]])


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = []
    for first in (5, 7):
        weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        mine = PIXELS[:first] if rank == 0 else PIXELS[first:]
        count = torch.tensor(len(mine))
        loss = global_mean((weight**2 * mine).sum(), count)
        loss.backward()
        assert weight.grad is not None
        assert count.item() == len(mine)
        shared = torch.stack([loss.detach(), weight.grad])
        dist.all_reduce(shared)
        results.append(shared / 2)  # what DDP does to gradients
    value, flags = SHARES[rank].clone(), FLAGS[rank].clone()
    results += [mean_over_ranks(value), any_over_ranks(flags)]
    assert torch.equal(value, SHARES[rank])
    assert torch.equal(flags, FLAGS[rank])
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = global_mean((weight**2 * PIXELS).sum(), torch.tensor(len(PIXELS)))
    loss.backward()
    assert weight.grad is not None
    expected = torch.stack([loss.detach(), weight.grad])
    for rank in range(2):
        *means, share, anywhere = torch.load(tmp_path / f"{rank}.pt")
        assert len(means) == 2
        for shared in means:
            torch.testing.assert_close(shared, expected, rtol=1e-15, atol=0)
        assert float(share) == 0.625
        assert anywhere.tolist() == [[True, False, True, True]]
