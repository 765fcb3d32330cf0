"""What the members of an ensemble agree on: a matrix, and pictures of where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from adaptseg import storage
from adaptseg.classes import VOID
from adaptseg.data.label_folder import LabelFolder
from adaptseg.data.pair import DomainPair
from adaptseg.ensemble.policy import read_policy
from adaptseg.ensemble.store import MemberMaps, open_members
from adaptseg.errors import AdaptSegError
from adaptseg.jobs import Job, Workplace


class CompareMembers(Job):
    """`agreement.json`, share of pixels on which two members agree, and `pictures/`: the matrix, and the scenes with
    the most disagreement.

    Args:
        members: folders of `PredictMember`.
        fused: folder of `Fuse`, whose labels are shown too; null = they are not.
        policy: folder of the policy they were fused by, for the title.
        scenes: how many scenes are drawn.
    """

    def __init__(
        self, members: list[str], *, fused: str | None = None, policy: str | None = None, scenes: int = 4
    ) -> None:
        if scenes < 1:
            raise AdaptSegError(f"scenes is {scenes}; 1 or more can be drawn")
        self.members, self.fused, self.policy, self.scenes = members, fused, policy, scenes

    def run(self, place: Workplace) -> None:
        data = place.require_data()
        members = open_members(self.members, data)
        names = [member.name for member in members]
        same, common = np.zeros((2, len(members), len(members)), np.int64)
        quarrel: dict[str, float] = {}
        for key in data.pool.keys:
            labels = np.stack([member.labels(key) for member in members])
            agreeing, both = agreement_counts(labels)
            same, common = same + agreeing, common + both
            quarrel[key] = 1 - float(agreeing.sum()) / max(int(both.sum()), 1)
        with np.errstate(invalid="ignore"):
            matrix = same / common
        storage.atomic_json(
            place.folder / "agreement.json",
            {"members": names, "agreement": [[None if np.isnan(v) else v for v in row] for row in matrix.tolist()]},
        )
        _print(matrix, names)
        worst = sorted(quarrel, key=lambda key: (-quarrel[key], key))[: self.scenes]
        pictures = place.folder / "pictures"
        _save(_matrix_figure(matrix, names), pictures / "agreement.png")
        _save(self._scenes_figure(members, data, worst), pictures / "disagreement.png")

    def _scenes_figure(self, members: list[MemberMaps], data: DomainPair, keys: list[str]) -> Figure:
        fused = None if self.fused is None else _fused_labels(Path(self.fused), data)
        title = "" if self.policy is None else f" ({read_policy(self.policy).title})"
        titles = ["target image", *(m.name for m in members), *([f"fused{title}"] if fused else []), "opinions"]
        figure = Figure(figsize=(2.8 * len(titles), 1.6 * len(keys) + 0.3), dpi=110, layout="constrained")
        axes = figure.subplots(len(keys), len(titles), squeeze=False)
        for row, key in zip(axes, keys, strict=True):
            labels = [member.labels(key) for member in members]
            shown = [*labels, *([fused.labels(key)] if fused else [])]
            pictures = [data.pool.image(key), *(data.class_table.colorize(map_) for map_ in shown)]
            for axis, picture in zip(row, pictures, strict=False):
                axis.imshow(picture, interpolation="nearest")
            row[-1].imshow(opinions(np.stack(labels)), cmap="magma", vmin=1, vmax=len(members), interpolation="nearest")
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, text in zip(axes[0], titles, strict=True):
            axis.set_title(text, fontsize=9)
        return figure


def agreement_counts(labels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pixels on which each two of the members' labels (T, H, W) agree, and on which neither abstains: (T, T) each."""
    given = labels != VOID
    both = np.array([[(a & b).sum() for b in given] for a in given], np.int64)
    same = [[((a == b) & (a != VOID)).sum() for b in labels] for a in labels]
    return np.array(same, np.int64), both


def opinions(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(H, W) number of different labels among the members' (T, H, W), 255 left out."""
    ordered = np.sort(labels, axis=0)
    first = np.concatenate([np.ones((1, *labels.shape[1:]), np.bool_), ordered[1:] != ordered[:-1]])
    return (first & (ordered != VOID)).sum(0)


def _fused_labels(stage: Path, data: DomainPair) -> LabelFolder:
    oracle = stage / "oracle_labels"
    return LabelFolder(oracle if oracle.is_dir() else stage / "labels", data.class_table, data.pool.keys)


def _print(matrix: npt.NDArray[np.float64], names: list[str]) -> None:
    table = Table(title="pixels on which two members agree, %", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for name, row in zip(names, matrix, strict=True):
        table.add_row(name, *("-" if np.isnan(value) else f"{100 * value:.1f}" for value in row))
    Console().print(table)


def _matrix_figure(matrix: npt.NDArray[np.float64], names: list[str]) -> Figure:
    figure = Figure(figsize=(1.1 * len(names) + 2, 1.1 * len(names) + 1), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    for (y, x), value in np.ndenumerate(matrix):
        axis.text(x, y, "-" if np.isnan(value) else f"{100 * value:.0f}", ha="center", va="center", color="white")
    axis.set_title("pixels on which two members agree, %", fontsize=10)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
