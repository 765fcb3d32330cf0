"""Self-training and the other hosts, with and without gradient-based class weights.

    python experiments/tables/self_training.py --seeds 0 1 2
    python experiments/tables/self_training.py --pair streets_imagenet --weights FILE --seeds 0 1 2
    python experiments/tables/self_training.py --pair pau_to_camvid --root DRIVING --weights FILE --seeds 0 1
    python experiments/tables/self_training.py --pair camvid_day_to_dusk --root DRIVING --weights FILE --seeds 0 1

pairs.py says what all rows on a pair share: the network, the number of student updates, the images. Every GBW row names
its gradient and regulariser: `channel, 1` is the released scaling, `mean residual, relative 1` the size-free one.
"""

from collections.abc import Callable
from statistics import mean
from typing import Any

from common import Column, Row, load, make, parser
from pairs import Pair, add_flags, chosen_pair

PAIRS = ("streets", "streets_imagenet", "pau_to_camvid", "camvid_day_to_dusk")
SELF_TRAINING = {"DACS": "dacs", "DAFormer": "daformer", "MIC": "mic"}
DETAILED = {"HRDA": "hrda", "MIC(HRDA)": "mic_hrda"}
ALIGNING = {"AdaptSegNet": "adaptsegnet", "AdvEnt": "advent", "MinEnt": "minent", "MIC over AdvEnt": "mic_advent"}
RELEASED = {" + GBW (channel, 1)": ("gbw",)}
SIZE_FREE = {" + GBW (mean residual, relative 1)": ("gbw_size_free",)}


def table_of(pair: Pair) -> str:
    """The name of its table and of its folder of results."""
    return "self_training" if pair.name == "streets" else f"self_training_{pair.name}"


def rows(pair: Pair) -> list[Row]:
    """On Streets all hosts; elsewhere those of self-training, which lead there."""
    hosts = {name: (recipe, {**RELEASED, **SIZE_FREE}) for name, recipe in SELF_TRAINING.items()}
    if pair.name == "streets":
        hosts |= {name: (recipe, RELEASED) for name, recipe in {**DETAILED, **ALIGNING}.items()}
    return [
        floor(pair),
        *(
            Row(host + name, pair.row_flags(recipe, *(f"class_weights/{overlay}" for overlay in overlays)))
            for host, (recipe, weights) in hosts.items()
            for name, overlays in {"": (), **weights}.items()
        ),
        ceiling(pair),
    ]


def floor(pair: Pair) -> Row:
    return Row("source only", pair.row_flags("source_only"))


def ceiling(pair: Pair) -> Row:
    return Row("target supervised", pair.row_flags("target_supervised", ceiling=True))


KNOWN = 0.2
"""IoU of the source-only network from which a class counts as one that it knows. Read off the judged split, as the gap
itself is: for analysis alone."""


def gap_closed(
    iou: dict[str, float], floor: dict[str, float], ceiling: dict[str, float], *, known: bool | None = None
) -> float | None:
    """Share in per cent of the gap in mean IoU between floor and ceiling that is closed.

    Args:
        iou, floor, ceiling: of each class.
        known: over the classes alone that the floor knows, or does not know; None = over all.

    Returns:
        None where there is no such class, or no gap.
    """
    names = [name for name in floor if known is None or (floor[name] >= KNOWN) == known]
    if not names:
        return None
    low, high, reached = (mean(scores[name] for name in names) for scores in (floor, ceiling, iou))
    return 100 * (reached - low) / (high - low) if high > low else None


def closed(pair: Pair, *, known: bool | None = None) -> Callable[[dict[str, Any]], float | None]:
    """`gap_closed` by a run, between the floor and the ceiling of its seed."""

    def share(result: dict[str, Any]) -> float | None:
        ends = [
            next((r[pair.split]["iou"] for r in load(table_of(pair), end) if r["seed"] == result["seed"]), None)
            for end in (floor(pair), ceiling(pair))
        ]
        if ends[0] is None or ends[1] is None or result["row"] in (floor(pair).name, ceiling(pair).name):
            return None
        return gap_closed(result[pair.split]["iou"], ends[0], ends[1], known=known)

    return share


def columns(pair: Pair) -> list[Column]:
    first, *others = pair.columns
    return [
        first,
        Column("gap closed", closed(pair), "{:.0f}"),
        Column("over classes the source network knows", closed(pair, known=True), "{:.0f}"),
        Column("over the others", closed(pair, known=False), "{:.0f}"),
        Column("IoU, five rarest", lambda r: 100 * mean(r[pair.split]["iou"][name] for name in pair.rare)),
        Column("recall, five rarest", lambda r: 100 * mean(r[pair.split]["recall"][name] for name in pair.rare)),
        *others,
        Column("seconds", lambda r: r["seconds"], "{:.0f}"),
    ]


def main() -> None:
    arguments = parser(__doc__)
    add_flags(arguments, *PAIRS)
    given = arguments.parse_args()
    pair = chosen_pair(given)
    make(table_of(pair), rows(pair), columns(pair), given)


if __name__ == "__main__":
    main()
