"""Curves over training that a table of numbers hides: what each class weighed."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adaptseg.classes import ClassTable

PREFIX = "class_weights/"


def class_weight_curves(metrics: Path, class_table: ClassTable) -> Figure | None:
    """Weight of each class over steps, one panel a loss, read from a run's metrics.csv; None if none was logged.

    Drawn from the file rather than from memory, so that a resumed run shows its whole past.
    """
    logged = _logged(metrics)
    if not logged:
        return None
    colors = class_table.colors / 255.0
    figure = Figure(figsize=(4.6 * len(logged) + 1.6, 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(logged), squeeze=False, sharey=True)[0]
    for panel, (loss, classes) in zip(panels, logged.items(), strict=True):
        for train_id, name in enumerate(class_table.names):
            if name in classes:
                steps, weights = np.array(classes[name]).T
                panel.plot(steps, weights, color=colors[train_id], linewidth=1.4, label=name)
        panel.set_title(f"class weights, {loss}", fontsize=11)
        panel.set_xlabel("step")
        panel.set_facecolor("0.93")  # several classes are drawn in near-white
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("weight")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=8)
    return figure


def _logged(metrics: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """loss -> class -> (step, weight) in the order of the file."""
    result: dict[str, dict[str, list[tuple[float, float]]]] = {}
    if not metrics.is_file():
        return result
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"].startswith(PREFIX):
                loss, name = row["metric"].removeprefix(PREFIX).split("/", 1)
                point = (float(row["step"]), float(row["value"]))
                result.setdefault(loss, {}).setdefault(name, []).append(point)
    return result
