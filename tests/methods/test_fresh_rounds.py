"""A supervised training that starts anew after every round of bought labels (PixelPick), whole and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from test_method_base import quiet
from tiny import tiny_network
from torch import Tensor

from adaptseg import lightning_cli
from adaptseg.active import CBDA
from adaptseg.classes import STREETS
from adaptseg.data import DomainPair, Streets
from adaptseg.errors import AdaptSegError
from adaptseg.methods import Optimization, Supervised

ROUNDS, LENGTH = 3, 4
SETTINGS = Optimization(name="adam", lr=1e-2, power=0.0, milestones=(0.5,), restarts=ROUNDS)


@pytest.fixture(autouse=True)
def _as_on_the_command_line() -> None:
    quiet()


class Watch(Callback):
    """Weights, rates and the optimiser's memory before each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.remembered: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        optimizer = trainer.optimizers[0]
        self.weights.append({name: value.clone() for name, value in pl_module.student.state_dict().items()})
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.remembered.append(len(optimizer.state))


def fit(folder: Path, *, fresh: bool = True, stop: int | None = None, resume: Path | None = None) -> Watch:
    """Three rounds of four steps; `stop`: save after so many steps and leave."""
    scenes, watch = Streets(look="street", split="train", count=4, size=(32, 64)), Watch()
    method = Supervised(network=tiny_network, class_table=STREETS, optimization=SETTINGS, fresh_rounds=fresh)
    active = CBDA(
        budget=30, budget_unit="pixels_per_image", schedule=[0.0, 1 / 3, 2 / 3], score="margin", first_round="random",
        unit="pixel", selection="image", balance=False,
    )  # fmt: skip
    trainer = Trainer(
        **{
            **lightning_cli.TRAINER_DEFAULTS,
            "max_steps": ROUNDS * LENGTH,
            "accelerator": "cpu",
            "logger": False,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "default_root_dir": folder,
            "callbacks": [active, watch, *([Leave(stop)] if stop else [])],
        }
    )
    data = DomainPair(target=scenes, batch_size=2, workers=0, tick=2)
    trainer.fit(method, datamodule=data, ckpt_path=str(resume) if resume else None)
    watch.weights.append({name: value.clone() for name, value in method.student.state_dict().items()})
    return watch


class Leave(Callback):
    """Saves at the end of a tick, once the round of that step is over, and stops."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "left.ckpt")
            trainer.should_stop = True


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_round_begins_with_the_first_weights_rates_and_no_memory(tmp_path: Path) -> None:
    watch = fit(tmp_path)
    starts = [LENGTH * number for number in range(ROUNDS)]
    assert [same(weights, watch.weights[0]) for weights in watch.weights[:-1]] == [
        step in starts for step in range(ROUNDS * LENGTH)
    ]
    assert watch.rates == pytest.approx(ROUNDS * ([1e-2] * 2 + [1e-3] * 2))
    assert [step for step, memory in enumerate(watch.remembered) if not memory] == starts


def test_without_rounds_there_is_nothing_to_start_anew(tmp_path: Path) -> None:
    method = Supervised(network=tiny_network, class_table=STREETS, fresh_rounds=True)
    data = DomainPair(target=Streets(look="street", split="train", count=2, size=(32, 64)), workers=0)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    with pytest.raises(AdaptSegError, match=r"model.fresh_rounds is about rounds of bought labels; give an `active:`"):
        trainer.fit(method, datamodule=data)


def test_otherwise_training_goes_on(tmp_path: Path) -> None:
    watch = fit(tmp_path, fresh=False)
    assert [same(weights, watch.weights[0]) for weights in watch.weights].count(True) == 1


@pytest.mark.parametrize("stop", [2, 4, 6], ids=["before a round", "at a round", "inside a round"])
def test_a_resumed_run_starts_anew_from_the_same_weights(tmp_path: Path, stop: int) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", stop=stop)
    resumed = fit(tmp_path / "parts", resume=tmp_path / "parts" / "left.ckpt")
    assert len(resumed.rates) == ROUNDS * LENGTH - stop
    assert all(same(a, b) for a, b in zip(resumed.weights, whole.weights[stop:], strict=True))
