"""Self-training hosts with and without gradient-based class weights, on Streets.

    python experiments/tables/self_training.py --seeds 0 1 2

Judged on the test split of the target look; settings were chosen on its val split. All rows train the same network
for the same number of student updates. Streets is synthetic: never compare these numbers with a paper's. Every GBW row
names its gradient and regulariser: `channel, 1` is the released scaling, `mean residual, relative 1` the size-free one.
"""

from statistics import mean
from typing import Any

from common import Column, Row, load, make, parser

TABLE = "self_training"
RARE = ("rider", "traffic light", "bicycle", "truck", "motorcycle")
"""The five classes with the fewest pixels in the labels of the target look's test split, of 120 scenes."""
HOSTS = {"DACS": "dacs", "DAFormer": "daformer", "MIC": "mic"}
OTHERS = {
    "HRDA": "hrda",
    "MIC(HRDA)": "mic_hrda",
    "AdaptSegNet": "adaptsegnet",
    "AdvEnt": "advent",
    "MinEnt": "minent",
    "MIC over AdvEnt": "mic_advent",
}
RELEASED = {" + GBW (channel, 1)": ("gbw",)}
WEIGHTS = {"": (), **RELEASED, " + GBW (mean residual, relative 1)": ("gbw_size_free",)}


def row(name: str, recipe: str, *overlays: str) -> Row:
    files = [f"configs/{recipe}.yaml", *(f"configs/class_weights/{overlay}.yaml" for overlay in overlays)]
    return Row(name, (*(word for file in files for word in ("--config", file)), "--trainer.max_steps=1500"))


FLOOR, CEILING = row("source only", "source_only"), row("target supervised", "target_supervised")
ROWS = [
    FLOOR,
    *(row(host + name, recipe, *overlays) for host, recipe in HOSTS.items() for name, overlays in WEIGHTS.items()),
    *(
        row(host + name, recipe, *overlays)
        for host, recipe in OTHERS.items()
        for name, overlays in {"": (), **RELEASED}.items()
    ),
    CEILING,
]


def closed(result: dict[str, Any]) -> float | None:
    """Share of the gap between floor and ceiling that a run of the same seed closes, per cent."""
    ends = [
        next((r["test"]["miou"] for r in load(TABLE, end) if r["seed"] == result["seed"]), None)
        for end in (FLOOR, CEILING)
    ]
    if None in ends or result["row"] in (FLOOR.name, CEILING.name):
        return None
    return 100 * (result["test"]["miou"] - ends[0]) / (ends[1] - ends[0])


COLUMNS = [
    Column("mIoU", lambda r: 100 * r["test"]["miou"]),
    Column("gap closed", closed, "{:.0f}"),
    Column("IoU, five rarest", lambda r: 100 * mean(r["test"]["iou"][name] for name in RARE)),
    Column("recall, five rarest", lambda r: 100 * mean(r["test"]["recall"][name] for name in RARE)),
    Column("worst class", lambda r: min(r["test"]["iou"], key=r["test"]["iou"].get)),
    Column("its IoU", lambda r: 100 * r["test"]["worst"]),
    Column("seconds", lambda r: r["seconds"], "{:.0f}"),
]


if __name__ == "__main__":
    make(TABLE, ROWS, COLUMNS, parser(__doc__).parse_args())
