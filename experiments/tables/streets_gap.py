"""How far apart Streets' domains are: the same network trained on the source alone and on the labelled target.

    python experiments/tables/streets_gap.py --seeds 0 1 2

Judged on the test split of the target look. Streets is synthetic: never compare these numbers with a paper's.
"""

from common import BUYING, Column, Row, make, parser

TABLE = "streets_gap"
STEPS = "--trainer.max_steps=1500"
ROWS = [
    Row("source only", ("--config", "configs/source_only.yaml", STEPS)),
    Row("target supervised", ("--config", "configs/target_supervised.yaml", STEPS)),
    Row("CBDA 5%", ("--config", "configs/cbda_5pct.yaml", STEPS)),
    Row("CBDA 20%", ("--config", "configs/cbda_20pct.yaml", STEPS)),
    Row("RIPU 5%", ("--config", "configs/ripu_5pct.yaml", STEPS)),
    Row("RIPU 20%", ("--config", "configs/ripu_20pct.yaml", STEPS)),
]
COLUMNS = [
    Column("mIoU", lambda r: 100 * r["test"]["miou"]),
    Column("worst class", lambda r: min(r["test"]["iou"], key=r["test"]["iou"].get)),
    Column("its IoU", lambda r: 100 * r["test"]["worst"]),
    *BUYING,
]


if __name__ == "__main__":
    make(TABLE, ROWS, COLUMNS, parser(__doc__).parse_args())
