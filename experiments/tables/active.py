"""Buying labels in another domain: who buys, how much, when, and in what unit, on three pairs of domains.

    python experiments/tables/active.py --pair streets --seeds 0 1 2
    python experiments/tables/active.py --pair pau_to_camvid --root DRIVING --weights FILE --seeds 0 1 2
    python experiments/tables/active.py --pair camvid_day_to_dusk --root DRIVING --weights FILE --seeds 0 1 2

FILE: ImageNet weights of MobileNetV2. DRIVING holds pau/, camvid/ and classes.json; pairs.py says what all rows on a
pair share. `streets` is judged on the test split of the `street` look, pau_to_camvid on CamVid's val split (by day, a
video that shares its sequence with training frames) and on dusk, day_to_dusk on dusk. Units are equal across rows:
regions of 3x3 (k = 1), pool grid = training size, but for one row that buys pixels.
"""

from typing import Any

import numpy as np
from common import BUYING, REPOSITORY, Row, load, make, parser
from matplotlib.figure import Figure
from pairs import Pair, add_flags, chosen_pair

from adaptseg.data.counting import value_counts

PAIRS = ("streets", "pau_to_camvid", "camvid_day_to_dusk")
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


def rows(pair: Pair) -> list[Row]:
    return [
        Row("source only", pair.row_flags("source_only")),
        Row("target supervised", pair.row_flags("target_supervised", ceiling=True)),
        *(buying(pair, f"{name} {share:g}%", share, how) for share in BUDGETS for name, how in STRATEGIES.items()),
        *(buying(pair, f"CBDA 5%, {name}", 5, *how) for name, how in VARIANTS.items()),
    ]


def buying(pair: Pair, name: str, percent: float, overlay: str, *changes: str) -> Row:
    """One schedule for all, but for the row that changes it (a later flag wins)."""
    given = (*pair.row_flags("source_only", f"active/{overlay}"), *LOSSES)
    return Row(name, (*given, f"--active.budget={percent / 100:g}", "--active.schedule=spread", *changes))


# ---- what was bought


def picture_of_balance(pair: Pair, has_data: bool) -> None:
    """Share of each class in what a strategy bought at 5 %, beside its share in the whole pool, logarithmic."""
    bought = {
        name: bought_shares(load(pair.name, row))
        for name in STRATEGIES
        for row in rows(pair)
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
    add_flags(arguments, *PAIRS)
    given = arguments.parse_args()
    pair = chosen_pair(given)
    make(pair.name, rows(pair), [*pair.columns, *BUYING], given)
    picture_of_balance(pair, has_data=bool(given.root) or pair.name == "streets")


if __name__ == "__main__":
    main()
