"""Buying labels in another domain: who buys, how much, when, and in what unit, on three pairs of domains.

    python experiments/tables/active.py --pair streets --seeds 0 1 2
    python experiments/tables/active.py --pair pau_to_camvid --root DRIVING --weights FILE --seeds 0 1 2
    python experiments/tables/active.py --pair camvid_day_to_dusk --root DRIVING --weights FILE --seeds 0 1 2

FILE: ImageNet weights of MobileNetV2. DRIVING holds pau/, camvid/ and classes.json. `streets` is the embedded pair:
synthetic, never to be compared with a paper's numbers; judged on the test split of the `street` look. The others are
photographs (pau is rendered) at 180x240, read by an ImageNet MobileNetV2 with FPN in 500 steps of 2 + 2 images.
pau_to_camvid is judged on CamVid's val split (by day, a video that shares its sequence with training frames) and on
dusk; day_to_dusk on dusk. Settings were chosen on Streets' val split; nothing is tuned on what a table shows. Units
are equal across rows: regions of 3x3 (k = 1), pool grid = training size, but for one row that buys pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from common import BUYING, REPOSITORY, Column, Row, load, make, parser
from matplotlib.figure import Figure

from adaptseg.data import Folder, Scenes, Streets
from adaptseg.data.counting import value_counts

STRATEGIES = {"random": "random", "RIPU-RA": "ripu_ra", "DA": "da", "CBDA": "cbda"}
BUDGETS = (2.2, 5, 10, 20)
VARIANTS = {
    "pixels": ("cbda_pixel",),
    "original schedule": ("cbda", "--active.schedule=original"),
    "epsilon 0.001": ("cbda", "--active.epsilon=0.001"),
    "epsilon 0.1": ("cbda", "--active.epsilon=0.1"),
    "cumulative class budget": ("cbda", "--active.class_target=cumulative"),
}
"""CBDA at 5 % with one change: an overlay, and flags over it."""

# RIPU's two extra losses belong to every active row, so that rows differ in what they buy alone.
LOSSES = ("--model.consistency_weight=0.1", "--model.negative_weight=1.0")


@dataclass(frozen=True)
class Pair:
    """Two domains.

    Attributes:
        name: of the table.
        domains: overlays that name the two; none = those of the recipe.
        ceiling: overlays and flags that name the labelled target alone.
        flags: what all rows share.
        columns: of the table.
        pool: the target training scenes, made when asked for.
    """

    name: str
    domains: tuple[str, ...]
    ceiling: tuple[tuple[str, ...], tuple[str, ...]]
    flags: tuple[str, ...]
    columns: list[Column]
    pool: Callable[[], Scenes]

    def rows(self) -> list[Row]:
        overlays, flags = self.ceiling
        return [
            Row("source only", (*configs("source_only", *self.domains), *self.flags)),
            Row("target supervised", (*configs("target_supervised", *overlays), *self.flags, *flags)),
            *(self.buying(f"{name} {share:g}%", share, how) for share in BUDGETS for name, how in STRATEGIES.items()),
            *(self.buying(f"CBDA 5%, {name}", 5, *how) for name, how in VARIANTS.items()),
        ]

    def buying(self, name: str, percent: float, overlay: str, *changes: str) -> Row:
        """One schedule for all, but for the row that changes it (a later flag wins)."""
        given = (*configs("source_only", *self.domains, f"active/{overlay}"), *self.flags, *LOSSES)
        return Row(name, (*given, f"--active.budget={percent / 100:g}", "--active.schedule=spread", *changes))


def configs(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--config", f"configs/{name}.yaml"))


def columns(split: str) -> list[Column]:
    return [
        Column("mIoU", lambda r: 100 * r[split]["miou"]),
        Column("worst class", lambda r: min(r[split]["iou"], key=r[split]["iou"].get)),
        Column("its IoU", lambda r: 100 * r[split]["worst"]),
    ]


def pairs(root: str, weights: str) -> dict[str, Pair]:
    photographs = (
        "--model.network.encoder=mobilenet_v2",
        f"--model.network.weights={weights}",
        "--model.optimization.lr=5e-4",
        "--data.source_size=[180, 240]",
        "--data.target_size=[180, 240]",
        "--data.batch_size=2",
        "--data.workers=0",
        f"--root={root}",
        "--trainer.max_steps=500",
        "--trainer.check_val_every_n_epoch=20",
    )
    test, val = columns("test"), columns("val")
    shared = Column("mIoU, 10 shared", lambda r: 100 * mean(v for k, v in r["val"]["iou"].items() if k != "bicyclist"))
    dusk = Column("mIoU at dusk", lambda r: 100 * r["test"]["miou"])

    def camvid(split: str) -> Scenes:
        return Folder(f"{root}/camvid", classes="../classes.json", split=f"splits/{split}.txt")

    every = [
        Pair(
            "streets",
            (),
            ((), ()),
            ("--trainer.max_steps=1500",),
            [*test, *BUYING],
            lambda: Streets("street", "train"),
        ),
        Pair(
            "pau_to_camvid",
            ("data/pau_to_camvid",),
            (("data/camvid_supervised",), ()),
            photographs,
            [val[0], shared, *val[1:], dusk, *BUYING],
            lambda: camvid("train"),
        ),
        Pair(
            "camvid_day_to_dusk",
            ("data/camvid_day_to_dusk",),
            (("data/camvid_supervised",), ("--data.source.split=splits/dusk_train.txt",)),
            photographs,
            [*test, *BUYING],
            lambda: camvid("dusk_train"),
        ),
    ]
    return {pair.name: pair for pair in every}


# ---- what was bought


def picture_of_balance(pair: Pair, has_data: bool) -> None:
    """Share of each class in what a strategy bought at 5 %, beside its share in the whole pool, logarithmic."""
    bought = {
        name: bought_shares(load(pair.name, row))
        for name in STRATEGIES
        for row in pair.rows()
        if row.name == f"{name} 5%"
    }
    bought = {name: shares for name, shares in bought.items() if shares is not None}
    if not bought or not has_data:
        return
    scenes = pair.pool()
    counts = sum((value_counts(scenes.labels(key)) for key in scenes.keys), np.zeros(256, np.int64))
    known = counts[: scenes.class_table.num_classes]
    every = {"the pool": known / known.sum(), **bought}
    order = np.argsort(-every["the pool"])
    figure = Figure(figsize=(0.55 * len(order) + 3, 4), dpi=110, layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(every)
    for number, (name, shares) in enumerate(every.items()):
        axis.bar(
            np.arange(len(order)) + width * number,
            100 * shares[order],
            width,
            label=name,
            color=None if number else "0.6",
        )
    axis.set_xticks(
        np.arange(len(order)) + 0.4 - width / 2, [scenes.class_table.names[i] for i in order], rotation=60, ha="right"
    )
    axis.set(yscale="log", ylabel="share of labels, %", title=f"{pair.name}: what 5 % of the pixels were spent on")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(REPOSITORY / "experiments" / "tables" / "pictures" / f"{pair.name}_balance.png")


def bought_shares(results: list[dict[str, Any]]) -> np.ndarray | None:
    """(C,) mean share of each class in the labels of some runs; None where none kept them."""
    found = [np.array(list(result["bought"].values()), float) for result in results if result.get("bought")]
    return np.mean([counts / counts.sum() for counts in found], 0) if found else None


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pair", required=True, choices=list(pairs("", "")))
    arguments.add_argument("--root", default="", help="folder with pau/, camvid/ and classes.json")
    arguments.add_argument("--weights", default="", help="ImageNet weights of MobileNetV2")
    given = arguments.parse_args()
    pair = pairs(*(str(Path(path).resolve()) for path in (given.root, given.weights)))[given.pair]
    make(pair.name, pair.rows(), pair.columns, given)
    picture_of_balance(pair, has_data=bool(given.root) or pair.name == "streets")


if __name__ == "__main__":
    main()
