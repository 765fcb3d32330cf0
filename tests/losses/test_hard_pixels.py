"""The final student's loss and weights against loops in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from adaptseg.errors import AdaptSegError
from adaptseg.losses.hard_pixels import batch_balance, hard_pixel_loss


def drawn(seed: int, void: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax (4, 5, 6, 7) float64, labels with a share of void, weights."""
    g = torch.Generator().manual_seed(seed)
    log_p = torch.randn(4, 5, 6, 7, generator=g, dtype=torch.float64).log_softmax(1)
    labels = torch.randint(5, (4, 6, 7), generator=g)
    labels[torch.rand(4, 6, 7, generator=g) < void] = 255
    return log_p, labels, torch.rand(5, generator=g, dtype=torch.float64) + 0.5


def naive(log_p: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, share: float) -> tuple[float, float, int]:
    losses, ws = np.zeros(labels.shape), np.zeros(labels.shape)
    for b, y, x in np.ndindex(*labels.shape):
        label = int(labels[b, y, x])
        if label != 255:
            ws[b, y, x] = weights[label]
            losses[b, y, x] = -weights[label] * log_p[b, label, y, x]
    hard = (losses >= np.percentile(losses, 100 * (1 - share))) & (ws > 0)
    return losses[hard].sum(), ws[hard].sum(), int(hard.sum())


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("void", [0.0, 0.3, 0.9, 1.0])
def test_hard_pixels_are_those_above_numpys_percentile(share: float, void: float) -> None:
    for seed in range(3):
        log_p, labels, weights = drawn(seed, void)
        total, weight, number = hard_pixel_loss(log_p, labels, share=share, class_weights=weights)
        expected = naive(log_p, labels, weights, share)
        assert (total.item(), weight.item(), number.item()) == pytest.approx(expected, rel=1e-12)


def test_mining_switches_itself_off_where_most_is_unlabelled() -> None:
    log_p, labels, _ = drawn(0, 0.95)
    assert hard_pixel_loss(log_p, labels, share=0.2)[2] == (labels != 255).sum()


def test_gradient_is_that_of_the_chosen_pixels() -> None:
    log_p, labels, weights = drawn(1)
    log_p.requires_grad_()
    hard_pixel_loss(log_p, labels, share=0.3, class_weights=weights)[0].backward()
    assert log_p.grad is not None
    touched = (log_p.grad != 0).sum()
    assert touched == naive(log_p.detach(), labels, weights, 0.3)[2]
    assert torch.equal(log_p.grad.unique(), torch.cat([-weights, torch.zeros(1)]).unique())


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_wrong_share(share: float) -> None:
    with pytest.raises(AdaptSegError, match=r"a share in \(0, 1\]"):
        hard_pixel_loss(*drawn(0)[:2], share=share)


def test_batch_balance_is_the_published_rule() -> None:
    """Three batches of two 4x4 images; fewer than 3 pixels an image make a class rare."""
    often = np.ones(4)
    running = torch.ones(4)
    g = torch.Generator().manual_seed(0)
    for batch in range(3):
        labels = torch.randint(3, (2, 4, 4), generator=g)
        labels[labels == batch % 3] = 255
        labels[0, 0, :2] = batch % 3
        weights, running = batch_balance(labels, running, few_pixels=3)
        counts = np.array([(labels == c).sum() for c in range(4)])
        often = 0.9 * often + 0.1 * np.where(counts == 0, 7, 1)
        np.testing.assert_allclose(running, often, rtol=1e-6)
        np.testing.assert_allclose(weights, np.where(counts < 6, 7, 1) * often, rtol=1e-6)
        assert weights[batch % 3] >= 7
    for _ in range(200):  # never seen: 7 x 7
        weights, running = batch_balance(torch.zeros(1, 4, 4, dtype=torch.long), running)
    assert weights.max() == pytest.approx(49)


def _rank(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    log_p, labels, weights = drawn(3)
    part = slice(2 * rank, 2 * rank + 2)
    loss = hard_pixel_loss(log_p[part], labels[part], share=0.2, class_weights=weights)
    balance = batch_balance(labels[part], torch.ones(5), few_pixels=14)
    torch.save([*loss, *balance], f"{out}{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_choose_the_pixels_of_one(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2)  # pyright: ignore
    parts = [torch.load(tmp_path / f"out{rank}") for rank in range(2)]
    log_p, labels, weights = drawn(3)
    whole = hard_pixel_loss(log_p, labels, share=0.2, class_weights=weights)
    for one, *two in zip(whole, *(part[:3] for part in parts), strict=True):
        torch.testing.assert_close(sum(two), one)
    for one, *two in zip(batch_balance(labels, torch.ones(5), few_pixels=14), *(p[3:] for p in parts), strict=True):
        assert torch.equal(two[0], one)
        assert torch.equal(two[1], one)
