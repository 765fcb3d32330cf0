"""What a run tells a person: a table row after each round, IoU per class at the end, and the files behind both."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.table import Table

from adaptseg import storage
from adaptseg.active.rounds import Acquisition, final_scores
from adaptseg.callbacks.progress import RunProgress
from adaptseg.data.pair import pair_of
from adaptseg.loggers import CsvLogger

COLUMNS = ("round", "step", "bought px", "of pool", "void px", "balance", "mIoU", "worst class", "IoU")
WIDTHS = (5, 7, 12, 8, 10, 7, 6, 14, 6)


class Report(Callback):
    """Prints tables, writes `rounds.csv` after each round and `result.json` at the end of a fit.

    State: seconds spent in fit so far, and the result once the last step is done. `result.json` appears only after the
    checkpoint of the last step, so that it marks a finished run; a kill between the two is mended by the next `fit`.
    """

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self.result: dict[str, Any] | None = None
        self._rounds_told = 0
        self._has_header = False

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds(), "result": self.result}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before, self.result = state_dict["seconds"], state_dict["result"]

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._began

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CsvLogger):
                logger.rewind(trainer.global_step)
        rows = acquisition.history if (acquisition := _acquisition(trainer)) else []
        self._rounds_told = len(rows)
        self._print_rows(trainer, rows)  # those of the interrupted run

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        acquisition = _acquisition(trainer)
        if trainer.global_step >= trainer.max_steps:
            self.result = {
                "steps": trainer.global_step,
                "seconds": round(self._seconds(), 1),
                "rounds": list(acquisition.history) if acquisition else [],
                "val": _scores(trainer, "val") or None,
            }
        if acquisition is None or len(acquisition.history) == self._rounds_told:
            return
        row = acquisition.history[-1]
        self._rounds_told = len(acquisition.history)
        self._print_rows(trainer, [row])
        numbers = {f"round/{name}": float(row[name]) for name in ("spent", "void", "balance")}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        _write_rounds(trainer, acquisition.history)

    def _print_rows(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        bar = trainer.progress_bar_callback
        if not isinstance(bar, RunProgress):
            return
        for row in rows:
            if not self._has_header:
                bar.print(_line(COLUMNS), style="bold", highlight=False)
                self._has_header = True
            bar.print(_line(_cells(row)), highlight=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.result is None:
            return  # stopped before the last step
        acquisition = _acquisition(trainer)
        if acquisition and acquisition.history:
            if not acquisition.judged_in_rounds:  # all at once, now
                self._print_rows(trainer, acquisition.history)
                _write_rounds(trainer, acquisition.history)
            last = acquisition.history[-1]
            end = {**last, **final_scores(trainer), "round": "end", "step": trainer.global_step}
            self._print_rows(trainer, [end])
        _print_scores(trainer, "val")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Comes also when a resume finds no step left to train, unlike `on_train_end`.
        if self.result is not None and trainer.is_global_zero:
            storage.atomic_json(Path(trainer.default_root_dir) / "result.json", self.result)


def _acquisition(trainer: Trainer) -> Acquisition | None:
    return next((c for c in trainer.callbacks if isinstance(c, Acquisition)), None)  # pyright: ignore


def _class_scores(trainer: Trainer, prefix: str, kind: str) -> dict[str, float]:
    start = f"{prefix}/{kind}/"
    return {
        name.removeprefix(start): float(v) for name, v in trainer.callback_metrics.items() if name.startswith(start)
    }


def _scores(trainer: Trainer, prefix: str) -> dict[str, Any]:
    """What the method logged as plain numbers; empty without that split.

    Of segmentation: mIoU, worst IoU, accuracy, and IoU and recall per present class, in [0, 1].
    """
    kinds = {kind: _class_scores(trainer, prefix, kind) for kind in ("iou", "recall")}
    return {**_means(trainer, prefix), **{kind: scores for kind, scores in kinds.items() if scores}}


def _means(trainer: Trainer, prefix: str) -> dict[str, float]:
    """The metrics of a split that are not about one class."""
    logged = trainer.callback_metrics.items()
    names = {name.removeprefix(f"{prefix}/"): float(value) for name, value in logged if name.startswith(f"{prefix}/")}
    return {name: value for name, value in names.items() if "/" not in name}


def _print_scores(trainer: Trainer, prefix: str) -> None:
    """A table of IoU per class; of a method without classes a line per metric."""
    scores = _class_scores(trainer, prefix, "iou")
    bar = trainer.progress_bar_callback
    if not isinstance(bar, RunProgress):
        return
    if not scores:
        for name, value in _means(trainer, prefix).items():
            bar.print(f"{prefix}/{name} {value:.4f}", highlight=False)
        return
    table = Table(title=f"IoU per class, {prefix}", title_justify="left")
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name in pair_of(trainer).class_table.names:
        table.add_row(name, f"{100 * scores[name]:.1f}" if name in scores else "absent")
    table.add_section()
    table.add_row("mean", f"{100 * float(trainer.callback_metrics[f'{prefix}/miou']):.1f}", style="bold")
    bar.print(table)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    has_scores = "miou" in row
    return (
        str(row["round"]),
        str(row["step"]),
        f"{row['spent']:,}",
        f"{100 * row['spent'] / row['pool_pixels']:.2f}%",
        f"{row['void']:,}",
        f"{row['balance']:.3f}",
        f"{100 * row['miou']:.1f}" if has_scores else "",
        row["worst_class"] if has_scores else "",
        f"{100 * row['worst_iou']:.1f}" if has_scores else "",
    )


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))


def _write_rounds(trainer: Trainer, history: list[dict[str, Any]]) -> None:
    if trainer.is_global_zero:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        storage.atomic_write(Path(trainer.default_root_dir) / "rounds.csv", text.getvalue())


def write_scores(trainer: Trainer, prefix: str) -> None:
    """After `validate` or `test`: print the scores and write `<prefix>.json` into the run directory."""
    _print_scores(trainer, prefix)
    if trainer.is_global_zero:
        scores = {"checkpoint": str(trainer.ckpt_path), **_scores(trainer, prefix)}
        storage.atomic_json(Path(trainer.default_root_dir) / f"{prefix}.json", scores)
