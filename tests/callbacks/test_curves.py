"""The curves of class weights hold what metrics.csv says, and nothing else of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb

from adaptseg.callbacks.curves import class_weight_curves
from adaptseg.classes import ClassTable, SemanticClass

TABLE = ClassTable(
    "three", tuple(SemanticClass(n, (60 * i, 200, 9)) for i, n in enumerate(("sky", "tram/bus", "post")))
)


def metrics(folder: Path, *rows: tuple[int, str, float]) -> Path:
    path = folder / "metrics.csv"
    path.write_text("step,metric,value\n" + "".join(f"{step},{name},{value}\n" for step, name, value in rows))
    return path


def test_one_panel_a_loss_and_one_line_a_class(tmp_path: Path) -> None:
    path = metrics(
        tmp_path,
        (0, "train/loss", 3.0),
        (1, "class_weights/source/sky", 0.5),
        (1, "class_weights/source/tram/bus", 1.5),  # a class may have a slash in its name
        (1, "class_weights/mixed/sky", 2.0),
        (3, "val/miou", 0.1),
        (3, "class_weights/source/sky", 0.25),
        (3, "class_weights/source/tram/bus", 1.75),
        (3, "class_weights/mixed/sky", 1.0),
    )
    figure = class_weight_curves(path, TABLE)
    assert figure is not None
    source, mixed = figure.axes
    assert (source.get_title(), mixed.get_title()) == ("class weights, source", "class weights, mixed")
    drawn = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in source.lines}
    assert drawn == {"sky": [[1, 0.5], [3, 0.25]], "tram/bus": [[1, 1.5], [3, 1.75]]}
    assert [np.asarray(line.get_xydata()).tolist() for line in mixed.lines] == [[[1, 2.0], [3, 1.0]]]
    for line, color in zip(source.lines, TABLE.colors, strict=False):
        np.testing.assert_allclose(to_rgb(line.get_color()), color / 255)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "tram/bus"]
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_no_weights_no_figure(tmp_path: Path) -> None:
    assert class_weight_curves(tmp_path / "none.csv", TABLE) is None
    assert class_weight_curves(metrics(tmp_path), TABLE) is None
    assert class_weight_curves(metrics(tmp_path, (0, "train/loss", 1.0)), TABLE) is None
