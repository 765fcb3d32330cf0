"""The main job on real photographs: a rendered street circuit to CamVid, ImageNet MobileNetV2, 180x240.

    python experiments/tables/pau_to_camvid.py --root DRIVING --weights mobilenet_v2.pth --seeds 0 1

DRIVING holds pau/, camvid/ and classes.json. Units are equal across rows: regions of 3x3 (k = 1), pool grid = training
size, and one row that buys pixels. Settings were chosen on Streets, not here. Judged on CamVid's val split (by
day, a video that shares its sequence with training frames) and on its dusk test split; nothing is tuned on either.
"""

from pathlib import Path
from statistics import mean

from common import BUYING, Column, Row, make, parser

TABLE = "pau_to_camvid"
SHARED = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian")
"""The classes that the source has too: all but bicyclist."""

ACTIVE = {"random": "random", "RIPU-RA": "ripu_ra", "DA": "da", "CBDA": "cbda"}


def rows(root: str, weights: str) -> list[Row]:
    network = (
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
    source = ("--config", "configs/source_only.yaml", "--config", "configs/data/pau_to_camvid.yaml")
    supervised = ("--config", "configs/target_supervised.yaml", "--config", "configs/data/camvid_supervised.yaml")
    # RIPU's two extra losses belong to every active row, so that rows differ in what they buy alone.
    losses = ("--model.consistency_weight=0.1", "--model.negative_weight=1.0")
    # One schedule for all, for the same reason.
    active = [
        Row(
            f"{name} {budget}%",
            (
                *source,
                "--config",
                f"configs/active/{overlay}.yaml",
                *network,
                *losses,
                f"--active.budget={budget / 100}",
                "--active.schedule=spread",
            ),
        )
        for budget in (5, 20)
        for name, overlay in ACTIVE.items()
    ]
    pixel = Row(
        "CBDA 5%, pixels",
        (*source, "--config", "configs/active/cbda_pixel.yaml", *network, *losses, "--active.budget=0.05"),
    )
    ends = [Row("source only", (*source, *network)), Row("target supervised", (*supervised, *network))]
    return [*ends, *active[:4], pixel, *active[4:]]


COLUMNS = [
    Column("mIoU, 11 classes", lambda r: 100 * r["val"]["miou"]),
    Column("mIoU, 10 shared", lambda r: 100 * mean(r["val"]["iou"][name] for name in SHARED)),
    Column("worst class", lambda r: min(r["val"]["iou"], key=r["val"]["iou"].get)),
    Column("its IoU", lambda r: 100 * r["val"]["worst"]),
    Column("mIoU at dusk", lambda r: 100 * r["test"]["miou"]),
    *BUYING,
]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", default="", help="folder with pau/, camvid/ and classes.json")
    arguments.add_argument("--weights", default="", help="ImageNet weights of MobileNetV2")
    given = arguments.parse_args()
    root, weights = (str(Path(path).resolve()) for path in (given.root, given.weights))
    make(TABLE, rows(root, weights), COLUMNS, given)


if __name__ == "__main__":
    main()
