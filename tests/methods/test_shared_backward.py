"""One backward pass for a whole step trains as one after each of its passes, in every method that has several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from test_adversarial import MASKING, SMALL, made
from test_denoising import denoising
from test_duda import method as duda
from test_fine_tuning import stage1, tuning
from test_method_base import method as supervised
from test_method_base import pair, quiet, trainer
from test_self_training import method as self_training
from torch import Tensor

from adaptseg.data import DomainPair
from adaptseg.errors import AdaptSegError
from adaptseg.methods import Acceleration, Masking, Optimization
from adaptseg.methods.training import Training
from adaptseg.networks import SmpSegmenter

__all__ = ["stage1"]  # a fixture that two modules share
SHARED = Acceleration(shared_backward=True)


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


class Steps(Callback):
    """The gradients of each step before they are used, its logged loss, and the backward passes it made."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.losses: list[float] = []
        self.passes = 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.passes += 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        self.gradients.append(torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None]))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def trained(folder: Path, model: Training, data: DomainPair, **settings: Any) -> Steps:
    watch = Steps()
    trainer(folder, watch, **{"steps": 2, **settings}).fit(model, data)
    return watch


def batch_normed(classes: int) -> SmpSegmenter:
    """A network whose running statistics move in each pass of a step."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return SmpSegmenter(
            classes, decoder="FPN", encoder="tu-mobilenetv3_small_050", decoder_channels=64, dropout=0.2
        )


MAKERS: dict[str, Callable[[str, Acceleration], Training]] = {
    "MIC": lambda run, how: self_training(
        masking=Masking(block=8), acceleration=how, optimization=Optimization(lr=0.01)
    ),
    "MIC, batch norm": lambda run, how: self_training(
        network=batch_normed, masking=Masking(block=8), acceleration=how, optimization=Optimization(lr=0.001)
    ),
    "DUDA": lambda run, how: duda(masking=Masking(block=8), acceleration=how),
    "fine-tuning": lambda run, how: tuning(run, acceleration=how),
    "AdvEnt with MIC": lambda run, how: made(
        sees="self_information", discriminator=SMALL, masking=MASKING, acceleration=how
    ),
    "denoising": lambda run, how: denoising(
        acceleration=how, optimization=Optimization(name="adam", lr=1e-3, head_lr_factor=1.0)
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_trains_as_with_a_backward_pass_after_each(tmp_path: Path, stage1: str, name: str) -> None:
    """In two micro-batches a step. Discriminators and frozen teachers compute in float32 alone, and so do losses."""
    precision = "32-true" if name in ("AdvEnt with MIC", "fine-tuning", "denoising") else "64-true"
    separate, shared = (
        trained(tmp_path, MAKERS[name](stage1, how), pair(), accumulate_grad_batches=2, precision=precision)
        for how in (Acceleration(), SHARED)
    )
    assert separate.passes > shared.passes == 4
    assert len(separate.gradients) == len(shared.gradients) == 2
    for one, other in zip(separate.gradients, shared.gradients, strict=True):
        assert (one - other).norm() < 1e-4 * one.norm()
    assert (separate.gradients[0] - shared.gradients[0]).norm() < 1e-6 * separate.gradients[0].norm()
    assert shared.losses == pytest.approx(separate.losses, rel=1e-5)


def test_refused_where_a_step_has_one_backward_pass(tmp_path: Path, stage1: str) -> None:
    with pytest.raises(AdaptSegError, match=r"shared_backward changes nothing here: a step of this Supervised has one"):
        trained(tmp_path, supervised(acceleration=SHARED), pair())
    with pytest.raises(AdaptSegError, match="this FineTuning"):
        trained(tmp_path, tuning(stage1, acceleration=SHARED, source_weight=0.0), pair())
    with pytest.raises(AdaptSegError, match="this Denoising"):
        trained(tmp_path, denoising(acceleration=SHARED), pair(source=None))


def test_a_step_on_its_own_descends_at_once() -> None:
    """Without a trainer nobody adds the losses up."""
    found = []
    for how in (Acceleration(), SHARED):
        model = denoising(acceleration=how)
        data = pair()
        data.trainer = Trainer(max_steps=4, logger=False, enable_checkpointing=False, accelerator="cpu")
        data.tick_steps = 4
        model.step(next(iter(data.train_dataloader()))).loss.backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    torch.testing.assert_close(*found)
