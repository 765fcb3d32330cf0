"""The tables of gbw_study.py, from its measurements alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from common import Column, Row, markdown
from gbw_measures import BATCHES, GRADIENTS, spearman
from pairs import RARE_STREETS as RARE
from torch import Tensor

SPREAD = {
    "smallest": "{:.2f}", "largest": "{:.2f}", "deviation": "{:.2g}", "zero": "{:.0f}", "rare": "{:.2f}",
    "pixel_mean": "{:.2f}", "on_absent": "{:.0f}", "between": "{:.2g}", "rank": "{:.2f}",
}  # fmt: skip
TITLES = {
    "deviation": "standard deviation", "zero": "at 0, %", "rare": "five rarest", "pixel_mean": "mean over pixels",
    "on_absent": "held by absent classes, %", "between": "one class between batches", "rank": "rank, inverse frequency",
}  # fmt: skip


def weights_table(every: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A row for each weighting; cells hold batches of 2 / 4 / 8, each the mean over seeds.

    Args:
        every: a result for each seed.
        names: of the weightings.
    """
    titles = [TITLES.get(name, name) for name in SPREAD]
    lines = ["| " + " | ".join(["weights", *titles]) + " |", "|---" * (len(titles) + 1) + "|"]
    for row in names:
        cells = [spread_cell([result["spread"].get(row) for result in every], name) for name in SPREAD]
        lines.append("| " + " | ".join([row, *cells]) + " |")
    return "\n".join(lines)


def spread_cell(every: Sequence[Mapping[str, Any] | None], name: str) -> str:
    by_batch = []
    for batch in BATCHES:
        values = [one[str(batch)][name] for one in every if one is not None]
        values = [value for value in values if value is not None]
        by_batch.append(SPREAD[name].format(mean(values)) if values else "")
    return " / ".join(by_batch) if any(by_batch) else ""


def decreases(classes: Mapping[str, Any]) -> dict[str, Tensor]:
    """(C,) by how much the loss of a pixel of each class falls: in nats, as a share of it, and times its pixels."""
    before, after, pixels = (numbers(classes[name]) for name in ("before", "after", "pixels"))
    return {"nats": before - after, "share": 1 - after / before, "sum": pixels * (before - after)}


def predictors(classes: Mapping[str, Any]) -> dict[str, Tensor]:
    """(C,) what may tell by how much a class's loss falls."""
    found = {f"gradient, {name.replace('_', ' ')}": numbers(values) for name, values in classes["gradients"].items()}
    return found | {
        "the loss itself": numbers(classes["before"]),
        "inverse frequency": 1 / numbers(classes["frequency"]),
    }


def numbers(values: Sequence[float | None]) -> Tensor:
    """(C,) float64; None is NaN."""
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)


PREDICTORS = [
    Row(name, ())
    for name in (
        *(f"gradient, {g.replace('_', ' ')}" for g in GRADIENTS),
        "the loss itself",
        "inverse frequency",
    )
]
DECREASES = [
    Column(title, lambda pair, kind=kind: spearman(pair["by"], pair["of"][kind]), "{:.2f}")
    for kind, title in (
        ("nats", "fall in nats a pixel"),
        ("share", "fall as a share of the loss"),
        ("sum", "fall of the sum over pixels"),
    )
]


def decrease_table(every: Sequence[Mapping[str, Any]]) -> str:
    """Rank correlations over classes of what may tell and what came, from a result for each seed."""
    pairs = [{"by": predictors(one), "of": decreases(one)} for one in every]
    return markdown(
        PREDICTORS, DECREASES, lambda row: [{"by": pair["by"][row.name], "of": pair["of"]} for pair in pairs]
    )


COLUMNS = [
    Column("mIoU", lambda r: 100 * r["val"]["miou"]),
    Column("IoU, five rarest", lambda r: 100 * mean(r["val"]["iou"][name] for name in RARE)),
    Column("recall, five rarest", lambda r: 100 * mean(r["val"]["recall"][name] for name in RARE)),
    Column("accuracy", lambda r: 100 * r["val"]["accuracy"]),
    Column("source: mIoU", lambda r: 100 * r["source_val"]["miou"]),
    Column("source: IoU, five rarest", lambda r: 100 * mean(r["source_val"]["iou"][name] for name in RARE)),
    Column("source: recall, five rarest", lambda r: 100 * mean(r["source_val"]["recall"][name] for name in RARE)),
    Column("source: their loss, nats", lambda r: mean(r["source_val"]["loss"][name] for name in RARE), "{:.2f}"),
]
