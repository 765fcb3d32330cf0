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
from adaptseg.active.advice import Gain, advice
from adaptseg.active.rounds import Acquisition, final_scores
from adaptseg.active.spending import SPENDING, spending
from adaptseg.active.stopping import stopped_note
from adaptseg.callbacks.progress import RunProgress
from adaptseg.data.pair import pair_of
from adaptseg.loggers import CsvLogger

COLUMNS = ("round", "step", "bought px", "of pool", "void px", "hours", "balance", "mIoU", "worst class", "IoU")
WIDTHS = (5, 7, 12, 8, 10, 7, 7, 6, 14, 6)


class Report(Callback):
    """Prints tables, writes `rounds.csv` and `spending.json` after each round and `result.json` at the end of a fit.

    After each round, and at the end, a line of advice says what further labels are expected to bring; where rounds are
    judged at the end alone, it comes then.

    State: seconds spent in fit so far, and the result once the last step is done. `result.json` appears only after the
    checkpoint of the last step, so that it marks a finished run; a kill between the two is mended by the next `fit`.
    """

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self.result: dict[str, Any] | None = None
        self._rounds_told = 0
        self._stop_told = False
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
        if acquisition is not None:
            self._print_stop(trainer, acquisition)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        acquisition = _acquisition(trainer)
        if acquisition is not None:
            if len(acquisition.history) > self._rounds_told:
                self._tell_round(trainer, acquisition)
            self._print_stop(trainer, acquisition)
        if trainer.global_step >= trainer.max_steps:
            self.result = self._result(trainer, acquisition)

    def _tell_round(self, trainer: Trainer, acquisition: Acquisition) -> None:
        row = acquisition.history[-1]
        self._rounds_told = len(acquisition.history)
        self._print_rows(trainer, [row])
        numbers = {f"round/{n}": float(row[n]) for n in ("spent", "void", "hours", "balance", "agreement") if n in row}
        if "agreement" in row:
            self._print(trainer, f"predictions on the pool agree with the round before by kappa {row['agreement']:.4f}")
        if acquisition.judged_in_rounds and "miou" in row:
            line, gain = advice(acquisition.history)
            self._print(trainer, line)
            numbers |= _gain_numbers(gain)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        _write_rounds(trainer, acquisition)

    def _result(self, trainer: Trainer, acquisition: Acquisition | None) -> dict[str, Any]:
        """What `result.json` will hold. The last advice is logged here, since a checkpoint follows."""
        scores = _split_scores(trainer, "val") or None
        result = {
            "steps": trainer.global_step,
            "seconds": round(self._seconds(), 1),
            "rounds": list(acquisition.history) if acquisition else [],
            "val": scores,
        }
        if acquisition is None:
            return result
        if acquisition.stopped is not None:
            result["stopped"] = acquisition.stopped
        if acquisition.history and scores:
            line, gain = advice(acquisition.history, scores["miou"])
            result["advice"] = line
            if gain is not None:
                for logger in trainer.loggers:
                    logger.log_metrics(_gain_numbers(gain), step=trainer.global_step)
        return result

    def _print(self, trainer: Trainer, line: str) -> None:
        if isinstance(bar := trainer.progress_bar_callback, RunProgress):
            bar.print(line, highlight=False)

    def _print_stop(self, trainer: Trainer, acquisition: Acquisition) -> None:
        if acquisition.stopped is not None and not self._stop_told:
            self._stop_told = True
            self._print(trainer, stopped_note(acquisition.stopped))

    def _print_rows(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        bar = trainer.progress_bar_callback
        if not isinstance(bar, RunProgress):
            return
        for row in rows:
            means = _further_means(row)
            if not self._has_header:
                bar.print(_line((*COLUMNS, *means)), style="bold", highlight=False)
                self._has_header = True
            bar.print(_line((*_cells(row), *(f"{100 * row[name]:.1f}" for name in means))), highlight=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.result is None:
            return  # stopped before the last step
        acquisition = _acquisition(trainer)
        if acquisition and acquisition.history:
            if not acquisition.judged_in_rounds:  # all at once, now
                self._print_rows(trainer, acquisition.history)
            last = acquisition.history[-1]
            end = {**last, **final_scores(trainer), "round": "end", "step": trainer.global_step}
            self._print_rows(trainer, [end])
            if "advice" in self.result:
                self._print(trainer, self.result["advice"])
        _print_scores(trainer, "val")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Comes also when a resume finds no step left to train, unlike `on_train_end`.
        if self.result is None:
            return
        if (acquisition := _acquisition(trainer)) is not None:
            _write_rounds(trainer, acquisition)  # complete only now if all rounds are judged at the end
        if trainer.is_global_zero:
            storage.atomic_json(Path(trainer.default_root_dir) / "result.json", self.result)


def _acquisition(trainer: Trainer) -> Acquisition | None:
    return next((c for c in trainer.callbacks if isinstance(c, Acquisition)), None)  # pyright: ignore


def _gain_numbers(gain: Gain | None) -> dict[str, float]:
    """Expected gain of mIoU and the ends of its interval, as they are logged."""
    return {} if gain is None else {"round/gain": gain.gain, "round/gain_low": gain.low, "round/gain_high": gain.high}


def _class_scores(trainer: Trainer, prefix: str, kind: str) -> dict[str, float]:
    start = f"{prefix}/{kind}/"
    return {
        name.removeprefix(start): float(v) for name, v in trainer.callback_metrics.items() if name.startswith(start)
    }


def _scores(trainer: Trainer, prefix: str) -> dict[str, Any]:
    """What the method logged as plain numbers; empty without that split.

    Of segmentation: the means over classes, worst IoU, accuracy, and IoU and recall per present class, in [0, 1].
    """
    kinds = {kind: _class_scores(trainer, prefix, kind) for kind in ("iou", "recall")}
    return {**_means(trainer, prefix), **{kind: scores for kind, scores in kinds.items() if scores}}


def _means(trainer: Trainer, prefix: str) -> dict[str, float]:
    """The metrics of a split that are not about one class."""
    logged = trainer.callback_metrics.items()
    names = {name.removeprefix(f"{prefix}/"): float(value) for name, value in logged if name.startswith(f"{prefix}/")}
    return {name: value for name, value in names.items() if "/" not in name}


def _split_scores(trainer: Trainer, split: str) -> dict[str, Any]:
    """Scores of the main set of `val` or `test`, and under `sets` those of the others by name, if there are any."""
    others = list(pair_of(trainer).evaluation_sets(split))[1:]
    sets = {name: _scores(trainer, f"{split}/{name}") for name in others}
    return {**_scores(trainer, split), **({"sets": sets} if sets else {})}


def _print_scores(trainer: Trainer, split: str) -> None:
    """A row per class and per mean, a column per set of the split; of a method without classes a line per metric."""
    bar = trainer.progress_bar_callback
    if not isinstance(bar, RunProgress):
        return
    data = pair_of(trainer)
    if not _class_scores(trainer, split, "iou"):
        for name, value in _means(trainer, split).items():
            bar.print(f"{split}/{name} {value:.4f}", highlight=False)
        return
    main, *others = data.evaluation_sets(split)
    columns = [_scores(trainer, prefix) for prefix in (split, *(f"{split}/{name}" for name in others))]
    table = Table(title=f"IoU per class, {split}", title_justify="left")
    table.add_column("class")
    for name in (main, *others) if others else ("IoU",):
        table.add_column(name, justify="right")
    for name in data.class_table.names:
        cells = [f"{100 * scores['iou'][name]:.1f}" if name in scores["iou"] else "absent" for scores in columns]
        table.add_row(name, *cells)
    table.add_section()
    means = {"mean": "miou", **{f"mean of {name}": f"miou_{name}" for name in data.scored_table.subsets}}
    for title, name in means.items():
        table.add_row(title, *(f"{100 * scores[name]:.1f}" for scores in columns), style="bold")
    bar.print(table)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    has_scores = "miou" in row
    return (
        str(row["round"]),
        str(row["step"]),
        f"{row['spent']:,}",
        f"{100 * row['spent'] / row['pool_pixels']:.2f}%",
        f"{row['void']:,}",
        f"{row['hours']:,.2f}",
        f"{row['balance']:.3f}",
        f"{100 * row['miou']:.1f}" if has_scores else "",
        row["worst_class"] if has_scores else "",
        f"{100 * row['worst_iou']:.1f}" if has_scores else "",
    )


def _further_means(row: dict[str, Any]) -> list[str]:
    """Means of a row beside the main mIoU: over subsets of the classes, of further sets."""
    return [name for name in row if name.rpartition("/")[2].startswith("miou") and name != "miou"]


def _line(cells: tuple[str, ...]) -> str:
    """Cells under their columns; those of further means, the last ones, have no fixed width."""
    widths = (*WIDTHS, *(14 for _ in cells[len(WIDTHS) :]))
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _write_rounds(trainer: Trainer, acquisition: Acquisition) -> None:
    history = acquisition.history
    if trainer.is_global_zero:
        text = io.StringIO()
        fields = dict.fromkeys(name for row in history for name in row)  # the first round has no network to judge
        writer = csv.DictWriter(text, fieldnames=list(fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        storage.atomic_write(Path(trainer.default_root_dir) / "rounds.csv", text.getvalue())
        strategy = {"class": type(acquisition).__name__, **acquisition.settings()}
        storage.atomic_json(
            Path(trainer.default_root_dir) / SPENDING, spending(history, cost=acquisition.cost, strategy=strategy)
        )


def write_scores(trainer: Trainer, split: str) -> None:
    """After `validate` or `test`: print the scores and write `<split>.json` into the run directory."""
    _print_scores(trainer, split)
    if trainer.is_global_zero:
        scores = {"checkpoint": str(trainer.ckpt_path), **_split_scores(trainer, split)}
        storage.atomic_json(Path(trainer.default_root_dir) / f"{split}.json", scores)
