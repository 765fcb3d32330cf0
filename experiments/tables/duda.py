"""DUDA: what a small network gains from a large one, at equal numbers of its own steps.

    python experiments/tables/duda.py --seeds 0 1 2 [--rows direct "stage 1"]
    python experiments/tables/duda.py --pair pau_to_camvid --root DRIVING --weights FILE --seeds 0 1

Every row trains the small network for equally many steps in all; large networks that a row starts from get as many of
their own, as every teacher does. Judged on the test split of Streets' target look, on CamVid's val split. `--rows` runs
only what those rows need. On photographs the large network is MobileNetV2 from ImageNet, the small one starts from
random weights, and only the rows that the claim is about are run. pairs.py says what all trainings on a pair share.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import REPOSITORY, RESULTS, Column, Row, markdown, parser, run_stages, write_table
from matplotlib.figure import Figure
from pairs import Pair, add_flags, chosen_pair, on_pair
from scipy.stats import spearmanr

from adaptseg import networks
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.transforms import normalized, resized_image
from adaptseg.export import costs
from adaptseg.metrics import SegmentationMetrics
from adaptseg.networks import Inference, predict_probabilities

TABLE = "duda"
PAIRS = ("streets", "pau_to_camvid")
FINAL_SHARE = 0.25
"""Of the steps of the small network in every row: stage 2, where there is one."""
CLAIM = ("direct", "online", "balanced_iou")
"""Rows on photographs: the small network alone, stage 1, and both stages."""
SMALL = {"encoder": "tu-mobilenetv3_small_050", "decoder_channels": 64}
LARGE = {"encoder": "tu-mobilenetv3_large_100", "decoder_channels": 128}


def steps_of(pair: Pair) -> int:
    """Of the small network in every row."""
    return 1200 if pair.name == "streets" else pair.steps


def networks_of(pair: Pair) -> dict[str, dict[str, Any]]:
    """What the recipes call `small` and `large`."""
    knows = "model.network.weights" in pair.settings
    large = {**LARGE, "encoder": "mobilenet_v2", "weights": pair.settings["model.network.weights"]} if knows else LARGE
    return {"small": SMALL, "large": large}


def training(name: str, config: str, steps: int, flags: dict[str, Any] | None = None) -> dict[str, Any]:
    """A stage that trains."""
    return {"name": name, "config": config, "flags": {"trainer.max_steps": steps, **(flags or {})}}


def host(name: str, network: dict[str, Any], steps: int, rate: dict[str, Any]) -> dict[str, Any]:
    """MIC on one network alone."""
    return training(name, "mic.yaml", steps, {**{f"model.network.{key}": v for key, v in network.items()}, **rate})


def second(
    name: str,
    teachers: list[dict[str, str]],
    steps: int,
    weights: dict[str, Any] | None,
    start: str | None,
    lr: float = 1e-3,
) -> dict[str, Any]:
    """A training of the small network by frozen teachers; from `start`, None = from scratch."""
    begin = {"from_scratch": True, "init_from": None} if start is None else {"init_from": start}
    model = {"init_args": {"teachers": teachers, "class_weights": weights, **begin}}
    return {**training(name, "duda/stage2.yaml", steps, {"model.optimization.lr": lr}), "recipe": {"model": model}}


def recipe(pair: Pair) -> dict[str, Any]:
    """All stages; the small network of each is the one of DUDA's recipes."""
    steps, sizes = steps_of(pair), networks_of(pair)
    final = round(FINAL_SHARE * steps)
    large = {f"model.large.{key}": value for key, value in sizes["large"].items()}
    # One rate for both networks of a step: on photographs between what the pre-trained and the random one want.
    rate = {} if sizes["large"] is LARGE else {"model.optimization.lr": 1e-3}
    finished = {"checkpoint": "{stage:large}"}
    first = {"checkpoint": "{stage:first}"}
    measured = {
        "class_path": "MeasureInconsistency",
        "init_args": {"run": "{stage:first}", "divergence": True},
    }
    ramp, continued = [steps // 8, steps // 2], {"model.large_from": "{stage:large}"}
    kinds = {
        f"balanced_{kind}": {
            "class_path": "InconsistencyWeights",
            "init_args": {"measurement": "{stage:measured}/inconsistency.json", "kind": kind},
        }
        for kind in ("iou", "recall", "kl")
    }
    weights = {"plain": None, **kinds, "gbw": {"class_path": "GBW"}}

    def stage1(name: str, length: int, flags: dict[str, Any] | None = None) -> dict[str, Any]:
        return training(name, "duda_stage1.yaml", length, {**large, **rate, **(flags or {})})

    stages = [
        host("direct", sizes["small"], steps, rate),
        host("large", sizes["large"], steps, rate),
        second("afterwards", [finished], steps, None, None, lr=3e-3),
        stage1("online", steps),
        stage1("ramp", steps, {"model.distillation": {"gradual": "ramp", "ramp": ramp}}),
        stage1("chain", steps, {"model.distillation": {"gradual": "chain"}, **continued}),
        stage1("two_teachers", steps, {"model.teachers": [finished]}),
        stage1("first", steps - final),
        {"name": "measured", "config": "duda_stage1.yaml", "recipe": {"job": measured}},
        *(second(name, [first], final, kind, "{stage:first}") for name, kind in weights.items()),
        second("balanced_two_teachers", [first, finished], final, kinds["balanced_iou"], "{stage:first}"),
    ]
    return {"stages": [on_pair(stage, pair, leave_out=("model.network.", "model.optimization.")) for stage in stages]}


ROWS = [
    Row("direct: MIC on the small network", ("direct",)),
    Row("the large network alone (MIC)", ("large",)),
    Row("distilled from the finished large network", ("afterwards",)),
    Row("stage 1, online", ("online",)),
    Row("stage 1, ramp", ("ramp",)),
    Row("stage 1, chain from the finished large network", ("chain",)),
    Row("stage 1, with the finished large network as second teacher", ("two_teachers",)),
    Row("stage 1 + stage 2, no weights", ("plain",)),
    Row("stage 1 + stage 2, balanced by IoU", ("balanced_iou",)),
    Row("stage 1 + stage 2, balanced by recall", ("balanced_recall",)),
    Row("stage 1 + stage 2, balanced by KL", ("balanced_kl",)),
    Row("stage 1 + stage 2, GBW (channel, 1)", ("gbw",)),
    Row("stage 1 + stage 2, balanced by IoU, two teachers", ("balanced_two_teachers",)),
]


def needed(every: list[dict[str, Any]], wanted: list[str]) -> list[dict[str, Any]]:
    """The stages that some stages stand on, themselves included, in order."""
    named = {stage["name"]: stage for stage in every}
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted += re.findall(r"\{stage:(\w+)\}", json.dumps(named[name]))
    return [stage for stage in every if stage["name"] in found]


def run_one(pair: Pair, seed: int, names: list[str], runs: Path) -> None:
    """Run what these rows need and keep one JSON for each."""
    chosen = {"stages": needed(recipe(pair)["stages"], list(names))}
    stages = run_stages(chosen, runs / table_of(pair), seed, names, root=pair.root)
    for name in names:
        test, fit = (json.loads((stages / name / file).read_text()) for file in ("test.json", "result.json"))
        environment = json.loads((stages / name / "environment.json").read_text())
        found: dict[str, Any] = {
            "table": table_of(pair), "row": name, "seed": seed, "seconds": fit["seconds"],
            "commit": environment["git"]["commit"], "val": fit["val"],
            "test": {key: value for key, value in test.items() if key != "checkpoint"},
            "costs": costs(networks.load(stages / name).eval(), pair.size or (128, 256)),
        }  # fmt: skip
        if name == "balanced_iou":
            measured = json.loads((stages / "measured" / "inconsistency.json").read_text())["inconsistency"]
            found["claim"] = {"inconsistency": measured, "gap": true_gap(stages / "first", pair)}
        path(pair, name, seed).parent.mkdir(parents=True, exist_ok=True)
        path(pair, name, seed).write_text(json.dumps(found, indent=1) + "\n")


@torch.no_grad()
def true_gap(run: Path, pair: Pair) -> list[float | None]:
    """How far the small network's IoU lies below the large one's, for each class, on the target training images: what
    inconsistency, which sees no truth, is claimed to tell (the paper's figure 4a). For analysis alone."""
    pool = pair.pool()
    scores = []
    for name in ("teacher", "student"):
        segmenter, metrics = networks.load(run, name).eval(), SegmentationMetrics(pool.class_table)
        for key in pool.keys:
            image = normalized(resized_image(pool.image(key), pair.size), IMAGENET_MEAN, IMAGENET_STD)[None]
            said = predict_probabilities(segmenter, image, size=pool.size(key), inference=Inference())
            metrics.update(said.argmax(1), torch.from_numpy(pool.labels(key))[None])
        scores.append(metrics.compute()["iou"])
    return [None if gap != gap else gap for gap in (scores[0] - scores[1]).tolist()]


def table_of(pair: Pair) -> str:
    """The name of its table and of its folder of results."""
    return TABLE if pair.name == "streets" else f"{TABLE}_{pair.name}"


def path(pair: Pair, name: str, seed: int) -> Path:
    return RESULTS / table_of(pair) / f"{name}_seed{seed}.json"


def results(pair: Pair, row: Row) -> list[dict[str, Any]]:
    return [
        json.loads(file.read_text())
        for file in sorted(path(pair, row.flags[0], 0).parent.glob(f"{row.flags[0]}_seed*.json"))
    ]


def rows(pair: Pair) -> list[Row]:
    return ROWS if pair.name == "streets" else [row for row in ROWS if row.flags[0] in CLAIM]


def columns(pair: Pair) -> list[Column]:
    first, *others = pair.columns
    return [
        first,
        Column("IoU, five rarest", lambda r: 100 * mean(r[pair.split]["iou"][name] for name in pair.rare)),
        *others,
        Column("parameters, M", lambda r: r["costs"]["parameters"] / 1e6, "{:.2f}"),
        Column("multiply-adds, G", lambda r: r["costs"]["multiply_adds"] / 1e9, "{:.2f}"),
        Column("CPU ms per image", lambda r: 1e3 * r["costs"]["seconds"], "{:.0f}"),
        Column("training, s", lambda r: r["seconds"], "{:.0f}"),
    ]


def claims(pair: Pair) -> list[dict[str, Any]]:
    """Results that hold inconsistency and the true gap."""
    return [result for row in rows(pair) for result in results(pair, row) if "claim" in result]


def points(result: dict[str, Any], kind: str) -> tuple[list[float], list[float]]:
    """Inconsistency and gap in points of IoU, for each class that has both."""
    pairs = zip(result["claim"]["inconsistency"][kind], result["claim"]["gap"], strict=True)
    kept = [(x, 100 * y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def says(result: dict[str, Any]) -> str:
    kinds = result["claim"]["inconsistency"]
    ranks = ", ".join(f"{kind} {spearmanr(*points(result, kind))[0]:.2f}" for kind in kinds)
    return f"Seed {result['seed']}: rank correlation over classes of inconsistency and the true gap in IoU: {ranks}."


def draw(pair: Pair, every: list[dict[str, Any]]) -> None:
    """Inconsistency against the true gap, a panel for each kind."""
    kinds = list(every[0]["claim"]["inconsistency"])
    figure = Figure(figsize=(3.6 * len(kinds), 3.4), dpi=110, layout="constrained")
    for axis, kind in zip(figure.subplots(1, len(kinds), sharey=True), kinds, strict=True):
        for result in every:
            axis.scatter(*points(result, kind), s=16, alpha=0.7, label=f"seed {result['seed']}")
        axis.set(xlabel=f"inconsistency ({kind})", ylabel="large minus small, points of IoU")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(REPOSITORY / "experiments" / "tables" / "pictures" / f"{table_of(pair)}_inconsistency.png")


def main() -> None:
    arguments = parser(__doc__)
    add_flags(arguments, *PAIRS)
    given = arguments.parse_args()
    pair = chosen_pair(given)
    chosen = [row for row in rows(pair) if not given.rows or any(part in row.name for part in given.rows)]
    for seed in [] if given.print else given.seeds:
        if missing := [row.flags[0] for row in chosen if not path(pair, row.flags[0], seed).exists()]:
            run_one(pair, seed, missing, given.runs)
    found = claims(pair)
    table = markdown(rows(pair), columns(pair), lambda row: results(pair, row))
    write_table(table_of(pair), "\n\n".join([table, *map(says, found)]))
    if found:
        draw(pair, found)


if __name__ == "__main__":
    main()
