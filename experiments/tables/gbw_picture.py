"""The picture of gbw_study.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
from common import REPOSITORY
from gbw_measures import BATCHES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

SCATTERED = {"channel": "channel (released)", "mean_residual": "mean residual (size-free)"}


def draw(
    weights: Sequence[Mapping[str, Any]],
    spreads: Mapping[str, Sequence[str]],
    regularizations: Sequence[float],
    classes: Mapping[str, Any],
    decrease: Tensor,
    rare: Sequence[str],
) -> None:
    """Spread of the weights over the regulariser, and two scatters of gradient and decrease of the loss.

    Args:
        weights: a result for each seed.
        spreads: variant -> what its weightings are called there, one for each of the regularizations.
        regularizations: in the same order.
        classes: of one seed.
        decrease: (C,) nats a pixel, of that seed.
        rare: names of the classes to be marked.
    """
    figure = Figure(figsize=(14, 5.4), dpi=110, layout="constrained")
    first, *others = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    draw_spread(first, weights, spreads, regularizations)
    for axis, gradient in zip(others, SCATTERED, strict=True):
        draw_scatter(axis, gradient, classes, decrease, rare)
    others[0].set_xscale("log")
    folder = REPOSITORY / "experiments" / "tables" / "pictures"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "gbw_study.png")


def draw_spread(
    axis: Axes,
    weights: Sequence[Mapping[str, Any]],
    spreads: Mapping[str, Sequence[str]],
    regularizations: Sequence[float],
) -> None:
    """Standard deviation of the weights, a colour for each variant and a line for each batch size."""
    for color, (variant, names) in zip(("C0", "C1"), spreads.items(), strict=True):
        for batch, style in zip(BATCHES, ("-", "--", ":"), strict=True):
            values = [mean(one["spread"][name][str(batch)]["deviation"] for one in weights) for name in names]
            label = f"{variant.strip(',')}, {batch} scenes"
            axis.plot(regularizations, values, style, color=color, marker="o", markersize=4, label=label)
    axis.set(xscale="log", yscale="log", xlabel="regulariser", ylabel="standard deviation of present classes' weights")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def draw_scatter(axis: Axes, gradient: str, classes: Mapping[str, Any], decrease: Tensor, rare: Sequence[str]) -> None:
    """A named point for each class."""
    squares = np.array([np.nan if value is None else value for value in classes["gradients"][gradient]])
    marked = np.array([name in rare for name in classes["names"]])
    for chosen, color, label in ((~marked, "C7", "other classes"), (marked, "C3", "the five rarest")):
        axis.scatter(squares[chosen], decrease.numpy()[chosen], s=22, color=color, label=label)
    heights, widest = decrease.numpy(), np.nanmax(squares)
    for c, name in enumerate(classes["names"]):
        # A name goes to the side where the nearest point is not; names are wider than high, so height counts more.
        nearest = np.argsort(4 * abs(heights - heights[c]) / np.ptp(heights) + abs(squares - squares[c]) / widest)[1]
        side, align = (-5, "right") if squares[nearest] > squares[c] else (5, "left")
        place = (squares[c], heights[c])
        axis.annotate(name, place, (side, 0), textcoords="offset points", ha=align, va="center", fontsize=8)
    axis.set(
        xlabel=f"squared gradient, {SCATTERED[gradient]}",
        ylabel=f"fall of the loss, nats a pixel, seed {classes['seed']}",
    )
    axis.margins(x=0.26)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")
