"""metrics.csv: the record of a run that needs no service, and that a resume continues instead of erasing."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from adaptseg import storage

HEADER = "step,metric,value\n"


class CsvLogger(Logger):
    """Appends rows `step,metric,value` to <folder>/metrics.csv. (Lightning's own logger deletes the file on a resume.)

    Lightning numbers a row by the last update's index, so `train/` and `val/` rows of step k belong to update k + 1;
    `round/` rows carry the number of updates done. A resume goes back to the step of its checkpoint: `rewind` drops the
    rows that will be written again.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                file.write(HEADER)
            # By name: Lightning lists metrics in the order in which they were first logged, which a resume forgets.
            rows = sorted((name, repr(float(value))) for name, value in metrics.items() if name != "epoch")
            writer.writerows((step, *row) for row in rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml in the run directory holds them."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop what was logged after `step` optimiser steps: the interrupted run was ahead of its checkpoint."""
        if not self.path.exists():
            return
        rows = self.path.read_text().splitlines(keepends=True)[1:]
        storage.atomic_write(self.path, HEADER + "".join(row for row in rows if _is_due(row, step)))


def _is_due(row: str, step: int) -> bool:
    """Whether a row was written within the first `step` updates; False for a last row torn by a kill."""
    if not row.endswith("\n"):
        return False
    number, metric = row.split(",")[:2]
    return int(number) < step or (int(number) == step and metric.startswith("round/"))
