"""Pictures of a data set: a contact sheet of scenes under their labels, and how frequent the classes are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from adaptseg.classes import VOID
from adaptseg.data.check import SplitReport
from adaptseg.data.resize import resize_nearest
from adaptseg.data.scenes import Scenes
from adaptseg.errors import AdaptSegError

_COLUMNS = 4
_CELL = 4.4
"""Inches of a scene's width."""
_WIDTH = 480
"""Pixels of a scene's width on the sheet."""


def choose_scenes(splits: Mapping[str, Scenes], count: int) -> list[tuple[str, str]]:
    """(split, key) of `count` scenes, shared out evenly over the splits and spread evenly inside each.

    Raises:
        AdaptSegError: fewer than 1 scene is asked for.
    """
    if count < 1:
        raise AdaptSegError(f"-n is {count}; 1 or more scenes are expected")
    chosen: list[tuple[str, str]] = []
    for number, (name, scenes) in enumerate(splits.items()):
        share = min(count // len(splits) + (number < count % len(splits)), len(scenes.keys))
        chosen += [(name, scenes.keys[index * len(scenes.keys) // share]) for index in range(share)]
    return chosen


def contact_sheet(splits: Mapping[str, Scenes], count: int) -> Figure:
    """Scenes with their labels over them, half transparent, void left clear; split and key above each.

    Raises:
        AdaptSegError: a scene cannot be read.
    """
    chosen = choose_scenes(splits, count)
    rows = -(-len(chosen) // _COLUMNS)
    tallest = max(height / width for height, width in (splits[name].size(key) for name, key in chosen))
    figure = Figure(figsize=(_CELL * _COLUMNS, (_CELL * tallest + 0.3) * rows + 1.0), dpi=110, layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    shown: dict[str, tuple[int, int, int]] = {}
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, key) in zip(axes, chosen, strict=False):
        scenes = splits[name]
        picture, labels = overlaid(scenes, key)
        axis.imshow(picture)
        axis.set_title(f"{name}: {key}" + ("" if scenes.labelled else " (no labels)"), fontsize=8)
        present = [scenes.class_table.classes[i] for i in np.unique(labels) if i != VOID]
        shown |= {c.name: c.color for c in present}
    if shown:
        patches = [Patch(color="#{:02x}{:02x}{:02x}".format(*color), label=name) for name, color in shown.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 10), fontsize=9)
    return figure


def overlaid(scenes: Scenes, key: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A scene (h, w, 3) uint8 under its labels, at the sheet's size, and those labels (h, w); all void if it has
    none."""
    image = Image.fromarray(scenes.image(key))
    height, width = max(1, round(image.height * _WIDTH / image.width)), _WIDTH
    picture = np.asarray(image.resize((width, height), Image.Resampling.BOX if image.width > width else None))
    if not scenes.labelled:
        return picture, np.full((height, width), VOID, np.uint8)
    labels = resize_nearest(scenes.labels(key), (height, width))
    blended = (picture.astype(np.uint16) + scenes.class_table.colorize(labels)) // 2
    return np.where((labels != VOID)[..., None], blended, picture).astype(np.uint8), labels


def frequency_bars(names: Sequence[str], reports: Mapping[str, SplitReport]) -> Figure:
    """Share of each class in the labelled pixels, one bar a split, on a logarithmic axis: rare classes matter."""
    figure = Figure(figsize=(9, 0.34 * len(names) + 1.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    thickness = 0.8 / max(len(reports), 1)
    places = np.arange(len(names))
    for number, (name, report) in enumerate(reports.items()):
        shares = 100 * report.frequencies
        axis.barh(places + (number + 0.5) * thickness - 0.4, shares, thickness, label=name)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    if any(report.frequencies.any() for report in reports.values()):
        axis.set_xscale("log")
        axis.legend(fontsize=9)
    axis.set_xlabel("share of labelled pixels, %")
    axis.grid(axis="x", alpha=0.3)
    return figure
