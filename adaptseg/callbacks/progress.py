"""One bar for the whole run, smaller ones for validation and scoring; plain lines where nobody watches a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


class RunProgress(ProgressBar):
    """Progress of a run in optimiser steps. Prints through one rich console, so that lines appear above the bar.

    Stateless: a resumed run starts its bar at the restored step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(soft_wrap=True)
        self._enabled = True
        self._progress: Progress | None = None
        self._steps: TaskID | None = None
        self._evaluation: TaskID | None = None

    # ---- Lightning's switches: ranks other than zero are disabled

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            self.console.print(*args, **kwargs)

    # ---- bars

    def _open(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                expand=True,
                disable=not (self._enabled and self.console.is_terminal),
            )
            self._progress.start()
        return self._progress

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._steps = self._evaluation = None

    def track(self, items: Iterable[Item], description: str) -> Iterator[Item]:
        """Iterate `items` under a bar of their own."""
        progress = self._open()
        total = len(items) if isinstance(items, Sized) else None
        task = progress.add_task(description, total=total, note="")
        for item in items:
            yield item
            progress.advance(task)
        progress.remove_task(task)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self._first = time.monotonic(), trainer.global_step
        progress = self._open()
        self._steps = progress.add_task("training", total=trainer.max_steps, completed=trainer.global_step, note="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._progress is None or self._steps is None:
            return
        self._progress.update(self._steps, completed=trainer.global_step)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
            self._progress.update(self._steps, note=f"loss {loss:.3f}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.console.is_terminal or not self._enabled:
            return
        rate = (trainer.global_step - self._first) / max(time.monotonic() - self._began, 1e-9)
        left = (trainer.max_steps - trainer.global_step) / max(rate, 1e-9)
        loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
        line = f"step {trainer.global_step}/{trainer.max_steps}  loss {loss:.3f}  {rate:.1f} steps/s"
        self.console.print(f"{line}  about {left / 60:.1f} min left", highlight=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _start_evaluation(self, total: int | float, description: str) -> None:
        self._evaluation = self._open().add_task(description, total=total, note="")

    def _advance_evaluation(self) -> None:
        if self._progress is not None and self._evaluation is not None:
            self._progress.advance(self._evaluation)

    def _end_evaluation(self, *, alone: bool) -> None:
        if self._progress is not None and self._evaluation is not None:
            self._progress.remove_task(self._evaluation)
        self._evaluation = None
        if alone:
            self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(sum(trainer.num_val_batches), "validating")

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance_evaluation()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation(alone=self._steps is None)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(sum(trainer.num_test_batches), "testing")

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance_evaluation()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation(alone=True)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(sum(trainer.num_predict_batches), "predicting")

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance_evaluation()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation(alone=True)
