"""The pairs of domains that result tables are made on, and what all rows on one of them share.

`streets` is the embedded pair: synthetic, never to be compared with a paper's numbers; networks start from random
weights. `streets_imagenet` is the same pair for a network whose encoder knows ImageNet. The others are photographs (pau
is rendered) at 180x240, read by an ImageNet MobileNetV2 with FPN in 500 steps of 2 + 2 images. Settings were chosen on
Streets' val split; nothing is tuned on what a table shows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from common import Column

from adaptseg.data import Folder, Scenes, Streets

RARE_STREETS = ("rider", "traffic light", "bicycle", "truck", "motorcycle")
"""The five classes with the fewest pixels in the labels of the target look's test split, of 120 scenes."""
RARE_CAMVID = ("bicyclist", "pedestrian", "pole", "sign", "fence")
"""The five with the fewest pixels in CamVid's training labels; `pau` has no bicyclist."""


@dataclass(frozen=True)
class Pair:
    """Two domains.

    Attributes:
        name: of the table.
        domains: overlays that name the two; none = those of the recipe.
        ceiling: overlays and flags that name the labelled target alone.
        settings: keys and values that all trainings share; without the steps.
        root: what `{root}` stands for in overlays; None = they do not have it.
        steps: of a training.
        split: where rows are judged first: `val` or `test`.
        columns: how they are judged.
        rare: the five rarest classes.
        pool: the target training scenes, made when asked for.
    """

    name: str
    domains: tuple[str, ...]
    ceiling: tuple[tuple[str, ...], dict[str, Any]]
    settings: dict[str, Any]
    root: str | None
    steps: int
    split: Literal["val", "test"]
    columns: list[Column]
    rare: tuple[str, ...]
    pool: Callable[[], Scenes]

    def row_flags(self, *configs: str, ceiling: bool = False) -> tuple[str, ...]:
        """Flags of a row that reads these files of configs/ (the recipe first, without the ending) on this pair."""
        recipe, *others = configs
        overlays, more = self.ceiling if ceiling else (self.domains, {})
        files = (recipe, *overlays, *others)
        words = (word for name in files for word in ("--config", f"configs/{name}.yaml"))
        settings = {**self.settings, **more, "trainer.max_steps": self.steps}
        root = () if self.root is None else (f"--root={self.root}",)
        return (*words, *root, *(f"--{key}={text(value)}" for key, value in settings.items()))

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) that target images are resized to; None = as they are."""
        return self.settings.get("data.target_size")


def text(value: Any) -> str:
    """A value as a flag spells it."""
    return value if isinstance(value, str) else json.dumps(value)


def on_pair(stage: dict[str, Any], pair: Pair, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """A stage of a staged recipe on the domains of a pair, with what all trainings there share below what the stage
    says itself; `leave_out` are beginnings of keys that are not laid."""
    is_job = "job" in stage.get("recipe", {})
    laid = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in pair.settings.items()
        if (key.startswith("data.") or not is_job) and not key.startswith(leave_out)
    }
    files = [stage["config"], *(f"{overlay}.yaml" for overlay in pair.domains)]
    return {**stage, "config": files, "flags": {**laid, **stage.get("flags", {})}}


def columns(split: str) -> list[Column]:
    """mIoU on a split, and its worst class."""
    return [
        Column("mIoU", lambda r: 100 * r[split]["miou"]),
        Column("worst class", lambda r: min(r[split]["iou"], key=r[split]["iou"].get)),
        Column("its IoU", lambda r: 100 * r[split]["worst"]),
    ]


def pairs(root: str, weights: str) -> dict[str, Pair]:
    """All pairs by name; `root` holds pau/, camvid/ and classes.json, `weights` are MobileNetV2's."""
    imagenet = {
        "model.network.encoder": "mobilenet_v2",
        "model.network.weights": weights,
        "model.optimization.lr": 5e-4,
        "data.batch_size": 2,
    }
    photographs = {
        **imagenet,
        "data.source_size": (180, 240),
        "data.target_size": (180, 240),
        "data.workers": 0,
        "trainer.check_val_every_n_epoch": 20,
    }
    test, val = columns("test"), columns("val")
    shared = Column("mIoU, 10 shared", lambda r: 100 * mean(v for k, v in r["val"]["iou"].items() if k != "bicyclist"))
    dusk = Column("mIoU at dusk", lambda r: 100 * r["test"]["miou"])

    def camvid(split: str) -> Scenes:
        return Folder(f"{root}/camvid", classes="../classes.json", split=f"splits/{split}.txt")

    def streets() -> Scenes:
        return Streets("street", "train")

    supervised = ("data/camvid_supervised",)
    at_dusk = (supervised, {"data.source.split": "splits/dusk_train.txt"})
    every = [
        Pair("streets", (), ((), {}), {}, None, 1500, "test", test, RARE_STREETS, streets),
        Pair("streets_imagenet", (), ((), {}), imagenet, None, 1500, "test", test, RARE_STREETS, streets),
        Pair(
            "pau_to_camvid",
            ("data/pau_to_camvid",),
            (supervised, {}),
            photographs,
            root,
            500,
            "val",
            [val[0], shared, *val[1:], dusk],
            RARE_CAMVID,
            lambda: camvid("train"),
        ),
        Pair(
            "camvid_day_to_dusk",
            ("data/camvid_day_to_dusk",),
            at_dusk,
            photographs,
            root,
            500,
            "test",
            test,
            RARE_CAMVID,
            lambda: camvid("dusk_train"),
        ),
    ]
    return {pair.name: pair for pair in every}


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """`--pair`, one of the names given (the first by default), and where its data and weights lie."""
    parser.add_argument("--pair", default=names[0], choices=names)
    parser.add_argument("--root", default="", help="folder with pau/, camvid/ and classes.json")
    parser.add_argument("--weights", default="", help="ImageNet weights of MobileNetV2")


def chosen_pair(given: argparse.Namespace) -> Pair:
    """The pair that the flags of `add_flags` name."""
    return pairs(*(str(Path(path).resolve()) for path in (given.root, given.weights)))[given.pair]
