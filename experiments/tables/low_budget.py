"""Almost no labels: a pixel per image in ten rounds, on frozen features.

    python experiments/tables/low_budget.py --root DRIVING --weights FILE --denoiser RUN --seeds 0 1 2
    python experiments/tables/low_budget.py --pool streets --weights FILE --denoiser RUN --seeds 0 1 2

FILE: ImageNet weights of MobileNetV2. DRIVING holds camvid/ and classes.json. RUN is a denoiser trained on the pool's
images, without labels:

    adaptseg fit --config configs/denoising.yaml --config configs/data/camvid_128.yaml --root DRIVING \\
        --trainer.max_steps 1500 --data.batch_size 4 --model.channels "[16, 32, 64, 96]" --data.val null
    adaptseg fit --config configs/denoising.yaml --data.val null    # for Streets

CamVid (photographs at 128x128, 37 pixels a round) is judged on its val split, by day, a video that shares its sequence
with training frames, and at dusk; Streets (synthetic, 64x128, 40 pixels a round) on the target look's val and test
splits. Nothing is tuned on either. Seeds change the head's weights, the order of images and random choices; features
and candidates are shared by all runs. The candidates are 500 random pixels of each image, of which local herding keeps
10 (published: 10,000 and 50), in the single-stage rows too.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import REPOSITORY, RESULTS, Column, Row, load, make, parser, result_path, run_folder, write_table
from matplotlib.figure import Figure
from scipy.ndimage import maximum_filter, minimum_filter

from adaptseg.active.labels import LabelStore
from adaptseg.classes import VOID, ClassTable
from adaptseg.data import Folder, Scenes, Streets
from adaptseg.data.transforms import resized_image, resized_map

STRATEGIES = {
    "random": "point_random",
    "entropy": "point_entropy",
    "margin": "point_margin",
    "eDALD": "point_edald",
    "herding": "herding",
    "herding + random": "herding_random",
    "herding + entropy": "herding_entropy",
    "herding + margin": "herding_margin",
    "herding + eBALD": "herding_ebald",
    "herding + eDALD": "edald",
}
FEATURES = ("MobileNetV2", "denoiser")


@dataclass(frozen=True)
class Pool:
    """Where the pixels are bought.

    Attributes:
        table: name of its table, its folder of results and its pictures.
        flags: that name it.
        round_steps: from one round to the next: five passes over the images in batches of 5, half of the rate's swing.
        size: (H, W) of the images.
        tested: title of the column of the test split.
        scenes: its images, made when asked for.
    """

    table: str
    flags: tuple[str, ...]
    round_steps: int
    size: tuple[int, int]
    tested: str
    scenes: Callable[[], Scenes]


def pools(root: str) -> dict[str, Pool]:
    def camvid() -> Scenes:
        return Folder(f"{root}/camvid", classes="../classes.json", split="splits/train.txt")

    photographs = ("--config", "configs/data/camvid_128.yaml", f"--root={root}")
    rendered = ("--data.target_size=[64, 128]",)
    return {
        "camvid": Pool("low_budget", photographs, 370, (128, 128), "mIoU at dusk", camvid),
        "streets": Pool(
            "low_budget_streets", rendered, 400, (64, 128), "mIoU on test", lambda: Streets("street", "train")
        ),
    }


def rows(pool: Pool, weights: str, denoiser: str) -> list[Row]:
    features = {
        "MobileNetV2": (
            "--model.network.features=EncoderFeatures",
            "--model.network.features.encoder=mobilenet_v2",
            f"--model.network.features.weights={weights}",
            "--model.network.features.levels=[1, 2, 3, 4]",
        ),
        "denoiser": (f"--model.network.features.unet={denoiser}",),
    }
    return [
        Row(
            f"{name}, {strategy}",
            (
                "--config",
                "configs/edald.yaml",
                *pool.flags,
                "--config",
                f"configs/active/{overlay}.yaml",
                *features[name],
                "--active.candidates=500",
                "--active.local_picks=10",
                "--model.norm_pixels=32",
                # Dropout belongs to the score that draws by it.
                *(("--model.training.dropout=0.2",) if overlay == "herding_ebald" else ()),
                f"--trainer.max_steps={10 * pool.round_steps}",
                f"--data.tick={pool.round_steps}",
            ),
        )
        for name in FEATURES
        for strategy, overlay in STRATEGIES.items()
    ]


def _area(result: dict[str, Any]) -> float:
    """Mean mIoU over the ten rounds: the whole curve in one number."""
    curve = _curve(result)
    return sum(curve) / len(curve)


def _curve(result: dict[str, Any]) -> list[float]:
    """mIoU in per cent after each round."""
    return [100 * row["miou"] for row in result["rounds"][1:]] + [100 * result["val"]["miou"]]


def columns(pool: Pool) -> list[Column]:
    return [
        Column("mIoU after 3 rounds", lambda r: _curve(r)[2]),
        Column("mIoU after 10", lambda r: 100 * r["val"]["miou"]),
        Column("mean over rounds", _area),
        Column(pool.tested, lambda r: 100 * r["test"]["miou"]),
        Column("label balance", lambda r: r["rounds"][-1]["balance"], "{:.3f}"),
        Column("pixels", lambda r: r["rounds"][-1]["spent"], "{:.0f}"),
        Column("void, % of them", lambda r: 100 * r["rounds"][-1]["void"] / r["rounds"][-1]["spent"]),
        Column("seconds", lambda r: r["seconds"], "{:.0f}"),
    ]


# ---- what the papers claim

CLAIMS = {
    "herding before entropy": ("herding + entropy", "entropy"),
    "herding before margin": ("herding + margin", "margin"),
    "herding before eDALD": ("herding + eDALD", "eDALD"),
    "herding + eDALD in place of margin": ("herding + eDALD", "margin"),
    "herding + eDALD in place of herding + margin": ("herding + eDALD", "herding + margin"),
    "margin in place of random": ("margin", "random"),
    "herding in place of random": ("herding", "random"),
}
"""Name -> (strategy, what it is held against)."""


def differences(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(after ten rounds, mean over rounds) of mIoU in points, ours less theirs, for each seed that both have."""
    theirs = {result["seed"]: result for result in others}
    pairs = [(result, theirs[result["seed"]]) for result in ours if result["seed"] in theirs]
    return [(_curve(a)[-1] - _curve(b)[-1], _area(a) - _area(b)) for a, b in pairs]


def claims(pool: Pool, every: list[Row]) -> str:
    """A table of differences, mean ± standard deviation over seeds."""
    found = {row.name: load(pool.table, row) for row in every}
    lines = ["| mIoU, points | after ten rounds | mean over rounds | seeds |", "|---|---|---|---|"]
    for features in FEATURES:
        for name, (ours, others) in CLAIMS.items():
            points = differences(found[f"{features}, {ours}"], found[f"{features}, {others}"])
            if points:
                cells = [_spread([point[i] for point in points]) for i in (0, 1)]
                lines.append(f"| {features}: {name} | {' | '.join(cells)} | {len(points)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):+.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def draw_curves(pool: Pool, every: list[Row]) -> None:
    """Learning curves of all rows with results, a panel for each kind of features; in brackets the
    number of seeds."""
    shown = [name for name in FEATURES if any(load(pool.table, row) for row in every if row.name.startswith(name))]
    if not shown:
        return
    figure = Figure(figsize=(5.5 * len(shown), 5.2), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, shown, strict=True):
        axis.set(title=f"features: {name}", xlabel="labelled pixels", ylabel="mIoU on val, %")
        axis.grid(alpha=0.3)
        for row in every:
            results = load(pool.table, row)
            if not row.name.startswith(name) or not results:
                continue
            curves = [_curve(result) for result in results]
            mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
            herded = "herding" in row.name
            style = {"linestyle": "-" if herded else "--", "marker": "o", "markersize": 3}
            name_of_row = f"{row.name.partition(', ')[2]} ({len(results)})"
            axis.plot([r["spent"] for r in results[0]["rounds"]], mean, label=name_of_row, **style)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=3, fontsize=8)
    folder = REPOSITORY / "experiments" / "tables" / "pictures"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{pool.table}.png")


# ---- where the pixels lie


def keep_places(pool: Pool, row: Row, runs: Path) -> None:
    """From a run of seed 0 that is at hand: (y, x, class, whether within 2 pixels of a class border) of each pixel that
    it bought, in one small JSON. The border is the truth's: for analysis alone."""
    result = result_path(pool.table, row, 0)
    path = places_path(pool, row)
    folder = run_folder(runs / pool.table, row, result.stem) / "labels"
    if path.exists() or not result.exists() or not folder.exists():
        return
    store, scenes = LabelStore.open(folder), pool.scenes()
    view, places = store.view(store.rounds), []
    for key in scenes.keys:
        bought = np.argwhere(view.bought(key))
        if len(bought):
            border = near_border(resized_map(scenes.labels(key), pool.size).numpy())
            labels = view.labels(key)
            places += [[int(y), int(x), int(labels[y, x]), int(border[y, x])] for y, x in bought]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"row": row.name, "seed": 0, "places": places}) + "\n")


def places_path(pool: Pool, row: Row) -> Path:
    return RESULTS / f"{pool.table}_places" / result_path(pool.table, row, 0).name


def near_border(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: another class within 2 pixels; void is no class."""
    shown = labels.astype(np.int32)
    lowest = minimum_filter(np.where(labels == VOID, 256, shown), 5)
    return maximum_filter(np.where(labels == VOID, -1, shown), 5) > lowest


def draw_places(pool: Pool, every: list[Row]) -> None:
    """All pixels that each strategy bought with seed 0, by class, over the mean training image."""
    found = [json.loads(p.read_text()) for row in every if (p := places_path(pool, row)).exists()]
    if not found:
        return
    scenes = pool.scenes()
    mean = np.mean([resized_image(scenes.image(key), pool.size).numpy() for key in scenes.keys[::8]], 0)
    columns = 5
    lines = -(-len(found) // columns)
    height = 2.7 * pool.size[0] / pool.size[1] + 0.8  # of a picture and its title
    figure = Figure(figsize=(2.7 * columns, height * lines), dpi=110, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, one in zip(axes.flat, found, strict=False):
        y, x, label, border = np.array(one["places"]).T
        axis.imshow(0.5 + mean.transpose(1, 2, 0) / 510)
        axis.scatter(x, y, s=9, c=colours(scenes.class_table, label), edgecolors="black", linewidths=0.3)
        features, _, strategy = one["row"].partition(", ")
        axis.set_title(f"{features}\n{strategy}\n{100 * border.mean():.0f} % near a border", fontsize=9)
    figure.savefig(REPOSITORY / "experiments" / "tables" / "pictures" / f"{pool.table}_places.png")


def colours(table: ClassTable, labels: np.ndarray) -> np.ndarray:
    """(n, 3) in 0..1; void black."""
    return table.colorize(labels.astype(np.uint8)[None])[0] / 255


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pool", default="camvid", choices=list(pools("")))
    arguments.add_argument("--root", default="", help="folder with camvid/ and classes.json")
    arguments.add_argument("--weights", default="", help="ImageNet weights of MobileNetV2")
    arguments.add_argument("--denoiser", default="", help="run directory of the denoiser")
    given = arguments.parse_args()
    root, weights, denoiser = (str(Path(path).resolve()) for path in (given.root, given.weights, given.denoiser))
    pool = pools(root)[given.pool]
    every = rows(pool, weights, denoiser)
    make(pool.table, every, columns(pool), given)
    write_table(f"{pool.table}_claims", claims(pool, every))
    draw_curves(pool, every)
    if given.root or given.pool == "streets":
        for row in every:
            keep_places(pool, row, given.runs)
        draw_places(pool, every)


if __name__ == "__main__":
    main()
