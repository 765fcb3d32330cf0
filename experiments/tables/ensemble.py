"""Ensemble-distillation: members, fusions of them, and students of the fused labels.

    python experiments/tables/ensemble.py --seeds 0 1 2
    python experiments/tables/ensemble.py --pair pau_to_camvid --root DRIVING --weights FILE --seeds 0 1

The stages of configs/ensemble_distillation.yaml, with more of them: fusion by vote and by an oracle policy, fusion with
one member left out and with one or two more source-only members, students of another size and of other fusions. A
killed run goes on, and a finished stage is never made twice. pairs.py says what all trainings on a pair share.

Two judgements. *labels*: what a fusion says about the target training images, against their ground truth, which no
stage but the oracle's reads; a dropped pixel counts as wrong in the first column and not at all in the third.
*network*: mIoU on the test split of Streets' target look, on the val split of CamVid. The oracle rows are analysis:
nobody has such a policy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from common import REPOSITORY, RESULTS, Column, Row, markdown, parser, run_stages, write_table
from matplotlib.figure import Figure
from pairs import Pair, add_flags, chosen_pair, on_pair
from scipy.stats import spearmanr

from adaptseg import networks
from adaptseg.classes import VOID
from adaptseg.data import Scenes
from adaptseg.data.label_folder import LabelFolder
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.transforms import normalized, resized_image
from adaptseg.losses.fusion_baselines import mean_probabilities
from adaptseg.metrics import confusion_matrix, iou_from_confusion
from adaptseg.networks import Inference, predict_probabilities

TABLE = "ensemble"
CONFIGS = REPOSITORY / "configs"
MEMBERS = ["source_only", "dacs", "daformer", "mic"]
WEAK = ["source_only_b", "source_only_c"]
"""Source-only networks of other seeds, to be added."""
SETS = {
    "all": MEMBERS,
    "plus_1": [*MEMBERS, *WEAK[:1]],
    "plus_2": [*MEMBERS, *WEAK],
    **{f"without_{name}": [other for other in MEMBERS if other != name] for name in MEMBERS},
}
PAIRS = ("streets", "pau_to_camvid")


class Student(NamedTuple):
    """A final student: its title in the table, the stage whose labels it learns, what its network has of its own."""

    title: str
    labels: str
    network: dict[str, Any]


def students(pair: Pair) -> dict[str, Student]:
    """Those of the members' size, and one of another that starts from random weights."""
    size, encoder = (
        ("larger", "tu-mobilenetv3_large_100") if pair.name == "streets" else ("smaller", "tu-mobilenetv3_small_100")
    )
    other = {"model.network.encoder": encoder, "model.network.weights": False, "model.init_from": None}
    return {
        "student": Student("student of channel", "channel_all", {}),
        f"student_{'large' if size == 'larger' else 'small'}": Student(
            f"student of channel, {size}, from random weights", "channel_all", other
        ),
        "student_vote": Student("student of vote", "vote_all", {}),
        "student_plus_2": Student("student of channel with two more", "channel_plus_2", {}),
    }


def recipe(pair: Pair) -> dict[str, Any]:
    """The staged recipe: each stage of the published one by its name, and what this table adds."""
    base = {row["name"]: row for row in yaml.safe_load((CONFIGS / "ensemble_distillation.yaml").read_text())["stages"]}
    everyone = [*MEMBERS, *WEAK]
    weak = [{**base["source_only"], "name": name} for name in WEAK]
    stages = [base["source_only"], base["{each}"], *weak]
    stages += [{**base[f"{what}_{{each}}"], "each": everyone} for what in ("predict", "distil", "certainty")]
    for name, members in SETS.items():
        predicted = [f"{{stage:predict_{member}}}" for member in members]
        measured = [f"{{stage:certainty_{member}}}" for member in members]
        stages += [
            job(base["policy"], f"policy_{name}", {"members": predicted, "measured": measured}),
            job(base["fused"], f"channel_{name}", {"members": predicted, "policy": f"{{stage:policy_{name}}}"}),
        ]
        if name != "all":
            continue
        oracle = {"class_path": "OraclePolicy", "init_args": {"members": predicted}}
        stages += [
            {"name": "policy_oracle", "config": "source_only.yaml", "recipe": {"job": oracle}},
            job(base["fused"], "channel_oracle", {"members": predicted, "policy": "{stage:policy_oracle}"}),
        ]
    for name in ("all", "plus_1", "plus_2"):
        vote = {"members": [f"{{stage:predict_{member}}}" for member in SETS[name]], "rule": "vote"}
        voting = {"class_path": "Fuse", "init_args": vote}
        stages.append({"name": f"vote_{name}", "config": "source_only.yaml", "recipe": {"job": voting}})
    for name, student in students(pair).items():
        flags = {**base["student"]["flags"], "data.target_labels": f"{{stage:{student.labels}}}/labels"}
        stages.append({**base["student"], "name": name, "flags": {**flags, **student.network}})
    return {"stages": [on_pair(stage, pair) for stage in stages]}


def job(row: dict[str, Any], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A light job of the published recipe under another name, with other arguments."""
    about = row["recipe"]["job"]
    changed = {**about, "init_args": {**about["init_args"], **arguments}}
    return {**row, "name": name, "recipe": {"job": changed}}


# ---- judging


def run_one(pair: Pair, seed: int, runs: Path) -> dict[str, Any]:
    """All stages of one seed and what they are worth."""
    trained = [*MEMBERS, *WEAK, *students(pair)]
    seeds = {name: 100 * number + seed for number, name in enumerate(WEAK, 1)}
    folder = runs / (TABLE if pair.name == "streets" else f"{TABLE}_{pair.name}")
    stages = run_stages(recipe(pair), folder, seed, trained, seeds=seeds, root=pair.root)
    pool = pair.pool()
    truth = {key: torch.from_numpy(pool.labels(key)) for key in pool.keys}
    found = {name: stages / f"predict_{name}" / "predictions" for name in [*MEMBERS, *WEAK]}
    found |= {name: stages / name / "labels" for name in (f"channel_{s}" for s in SETS)}
    found |= {name: stages / name / "labels" for name in ("vote_all", "vote_plus_1", "vote_plus_2")}
    found["channel_oracle"] = stages / "channel_oracle" / "oracle_labels"
    labels, classes = {}, pool.class_table.num_classes
    for name, place in found.items():
        maps = LabelFolder(place, pool.class_table, pool.keys)
        labels[name] = judged({key: torch.from_numpy(maps.labels(key)) for key in pool.keys}, truth, classes)
    labels["mean_all"] = judged(mean_labels([stages / name for name in MEMBERS], pool, pair.size), truth, classes)
    policies = {name: json.loads((stages / f"policy_{name}" / "policy.json").read_text()) for name in ("all", "oracle")}
    return {
        "table": TABLE,
        "seed": seed,
        "labels": labels,
        "networks": {name: scored(stages / name, pair) for name in trained},
        "policies": {name: {key: policy[key] for key in ("policy", "table")} for name, policy in policies.items()},
        "kept_bytes": bytes_kept(stages, len(pool.keys)),
        "commit": json.loads((stages / "student" / "environment.json").read_text())["git"]["commit"],
    }


def scored(run: Path, pair: Pair) -> float:
    """mIoU of a training on the split that the pair is judged on."""
    if pair.split == "test":
        return json.loads((run / "test.json").read_text())["miou"]
    return json.loads((run / "result.json").read_text())["val"]["miou"]


def judged(labels: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], classes: int) -> dict[str, Any]:
    """IoU of label maps (H, W) uint8 against the truth, once with dropped pixels as errors and once without them."""
    strict = torch.zeros(classes + 1, classes + 1, dtype=torch.int64)
    dropped = known = 0
    for key, said in labels.items():
        true, given = truth[key].long(), said.long().clamp(max=classes)
        counted = torch.where(true == VOID, VOID, true)
        strict += confusion_matrix(given[None], counted[None], classes + 1)
        dropped += int(((given == classes) & (true != VOID)).sum())
        known += int((true != VOID).sum())
    iou = iou_from_confusion(strict)[:classes]
    loose = iou_from_confusion(strict[:classes, :classes])
    return {
        "miou": float(iou.nanmean()),
        "iou": [None if value != value else value for value in iou.tolist()],
        "dropped": dropped / known,
        "miou_kept": float(loose.nanmean()),
    }


@torch.no_grad()
def mean_labels(runs: list[Path], pool: Scenes, size: tuple[int, int] | None) -> dict[str, torch.Tensor]:
    """What the mean of the members' probabilities says: it needs all members at once, which stored labels do not."""
    members = [networks.load(run).eval() for run in runs]
    labels = {}
    for key in pool.keys:
        image = normalized(resized_image(pool.image(key), size), IMAGENET_MEAN, IMAGENET_STD)[None]
        said = [predict_probabilities(m, image, size=pool.size(key), inference=Inference())[0] for m in members]
        labels[key] = mean_probabilities(torch.stack(said)).argmax(0).to(torch.uint8)
    return labels


def bytes_kept(stages: Path, images: int) -> float:
    """Bytes on disk per image and member."""
    sizes = [file.stat().st_size for m in MEMBERS for file in (stages / f"predict_{m}" / "predictions").glob("*.png")]
    return sum(sizes) / len(MEMBERS) / images


# ---- the table


def rows(pair: Pair) -> list[Row]:
    """Rows are parts of the one result that a seed has."""
    titles = {
        **{name: f"member: {name.replace('_', ' ')}" for name in MEMBERS},
        **{name: f"added member: source only, {name[-1]}" for name in WEAK},
        "mean_all": "mean of probabilities",
        "vote_all": "vote",
        "channel_all": "channel, certainty policy",
        "channel_oracle": "channel, oracle policy (analysis)",
        "vote_plus_1": "vote, one source-only more",
        "channel_plus_1": "channel, one source-only more",
        "vote_plus_2": "vote, two source-only more",
        "channel_plus_2": "channel, two source-only more",
        **{f"channel_without_{name}": f"channel, without {name.replace('_', ' ')}" for name in MEMBERS},
        **{name: student.title for name, student in students(pair).items()},
    }
    return [Row(title, (name,)) for name, title in titles.items()]


COLUMNS = [
    Column("labels: mIoU, dropped = wrong", lambda r: part(r, "labels", "miou")),
    Column("dropped, %", lambda r: part(r, "labels", "dropped")),
    Column("mIoU of the kept", lambda r: part(r, "labels", "miou_kept")),
    Column("network: mIoU", lambda r: 100 * r["networks"][r["name"]] if r["name"] in r["networks"] else None),
]


def part(result: dict[str, Any], block: str, name: str) -> float | None:
    row = result[block].get(result["name"])
    return None if row is None else 100 * row[name]


def results(pair: Pair) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((RESULTS / TABLE).glob(f"{pair.name}_seed*.json"))]


def certainty_and_truth(result: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Certainty of a member's student and IoU of the member, for each class and member that have both."""
    pairs = []
    for member in MEMBERS:
        sure, true = (result["policies"][kind]["table"][member] for kind in ("all", "oracle"))
        pairs += [
            (sure[n]["certainty"], true[n]["iou"]) for n in sure if None not in (sure[n]["certainty"], true[n]["iou"])
        ]
    return [100 * c for c, _ in pairs], [100 * t for _, t in pairs]


def says(result: dict[str, Any]) -> str:
    """What one seed says of the certainty policy, in a line."""
    chosen, best = (result["policies"][kind]["policy"] for kind in ("all", "oracle"))
    same = sum(chosen[name] == best[name] for name in chosen)
    cost = 100 * (result["labels"]["channel_oracle"]["miou"] - result["labels"]["channel_all"]["miou"])
    rank = spearmanr(*certainty_and_truth(result))[0]
    return (
        f"Seed {result['seed']}: certainty and oracle choose the same member for {same} of {len(chosen)} classes; the "
        f"others cost {cost:.1f} points of the labels' mIoU. Rank correlation of certainty and IoU over classes and "
        f"members: {rank:.2f}. Kept on disk: {result['kept_bytes'] / 1000:.1f} kB per image and member."
    )


def draw(pair: Pair, every: list[dict[str, Any]]) -> None:
    """Certainty of the distilled students against the true IoU of the members."""
    figure = Figure(figsize=(4.6, 4.4), dpi=110, layout="constrained")
    axis = figure.subplots()
    for result in every:
        axis.scatter(*certainty_and_truth(result), s=14, alpha=0.6, label=f"seed {result['seed']}")
    axis.set(xlabel="certainty of the distilled student, %", ylabel="IoU on target training images, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(REPOSITORY / "experiments" / "tables" / "pictures" / f"ensemble_certainty_{pair.name}.png")


def main() -> None:
    arguments = parser(__doc__)
    add_flags(arguments, *PAIRS)
    given = arguments.parse_args()
    pair = chosen_pair(given)
    for seed in [] if given.print else given.seeds:
        path = RESULTS / TABLE / f"{pair.name}_seed{seed}.json"
        if not path.exists():
            found = run_one(pair, seed, given.runs)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
    every = results(pair)
    table = markdown(rows(pair), COLUMNS, lambda row: [{**result, "name": row.flags[0]} for result in every])
    name = TABLE if pair.name == "streets" else f"{TABLE}_{pair.name}"
    write_table(name, "\n\n".join([table, *(says(result) for result in every)]))
    if every:
        draw(pair, every)


if __name__ == "__main__":
    main()
