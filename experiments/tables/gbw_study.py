"""Gradient-based class weights (GBW) on Streets: what the regulariser does, whom it helps, and against what.

    python experiments/tables/gbw_study.py --seeds 0 1 2

A study of settings, so everything is judged on val splits, never on test. One fixed state, a short training on the
source alone, of each seed:

* gbw_weights: the weights that two variants of GBW and three frequency weightings give to fixed source batches of the
  state, over regulariser and batch size (gbw_measures.py);
* gbw_loss_decrease: whether a class's gradient at the state tells by how much its loss falls when training goes on
  without weights;
* gbw_training: the state trained on under each weighting, the same batches in all rows.

About seven minutes of one core a seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gbw_measures as measures
import gbw_tables as tables
import torch
from common import REPOSITORY, RESULTS, Row, adaptseg, load, markdown, parser, result_path, run_folder, without_folder
from common import write_table as write
from departures import rounded
from gbw_picture import draw
from pairs import RARE_STREETS as RARE
from torch import Tensor

from adaptseg import networks
from adaptseg.data import Streets
from adaptseg.data.statistics import ClassStatistics, class_statistics
from adaptseg.losses import gbw
from adaptseg.methods.class_weights import ConstantWeights, EffectiveNumber, InverseFrequency, MedianFrequency
from adaptseg.run_directory import environment

TABLE = "gbw_study"
SCENES, STATE_STEPS, STEPS = 96, 400, 300
"""Fixed source scenes; steps to the fixed state, and on from it."""
REGULARIZATIONS = (0.001, 0.01, 0.1, 1.0, 10.0)
TRAINED_WITH = (0.01, 1.0)


@dataclass(frozen=True)
class Variant:
    """GBW as an overlay of configs/class_weights sets it."""

    name: str
    overlay: str
    gradient: gbw.Gradient
    relative: bool

    def called(self, regularization: float) -> str:
        return f"GBW ({self.name} {regularization:g})"


VARIANTS = (
    Variant("channel,", "gbw", "channel", False),
    Variant("mean residual, relative", "gbw_size_free", "mean_residual", True),
)
FREQUENCY: dict[str, Callable[[], ConstantWeights]] = {
    "inverse frequency": InverseFrequency,
    "median frequency": MedianFrequency,
    "effective number": lambda: EffectiveNumber(beta=0.99999),
}
"""As the overlays of these names set them."""


# ---- trainings

SHARED = ("--data.target=null", "--trainer.check_val_every_n_epoch=20")
"""No row looks at the target before it is judged."""
STATE = Row(
    "the fixed state", ("--config", "configs/source_only.yaml", *SHARED, f"--trainer.max_steps={STATE_STEPS}")
)  # fmt: skip


def rows(state: str) -> list[Row]:
    """The state trained on; `state` is its run directory."""

    def row(name: str, overlay: str | None = None, *flags: str) -> Row:
        files = ["source_only", *([f"class_weights/{overlay}"] if overlay else [])]
        configs = (word for file in files for word in ("--config", f"configs/{file}.yaml"))
        start = f"--model.init_from={state}"
        return Row(name, (*configs, *SHARED, f"--trainer.max_steps={STEPS}", start, *flags))

    return [
        row("no weights"),
        *(
            row(variant.called(value), variant.overlay, f"--model.class_weights.regularization={value:g}")
            for variant in VARIANTS
            for value in TRAINED_WITH
        ),
        *(row(name, name.replace(" ", "_")) for name in FREQUENCY),
    ]


def run_directory(row: Row, seed: int, runs: Path) -> Path:
    return run_folder(runs, row, result_path(TABLE, row, seed).stem).resolve()


def fitted(row: Row, seed: int, runs: Path) -> Path:
    """The row's run directory, made or resumed unless it is finished."""
    folder = run_directory(row, seed, runs)
    if not (folder / "result.json").exists():
        print(f"{row.name}, seed {seed}", flush=True)
        adaptseg("fit", *row.flags, f"--runs={runs}", f"--name={folder.name}", f"--seed_everything={seed}")
    return folder


def train(row: Row, seed: int, runs: Path) -> None:
    """Fit a row, and judge it on val of both looks."""
    folder = fitted(row, seed, runs)
    fit, stamp = (json.loads((folder / file).read_text()) for file in ("result.json", "environment.json"))
    keep(
        result_path(TABLE, row, seed),
        {
            "table": TABLE, "row": row.name, "seed": seed, "flags": [without_folder(flag) for flag in row.flags],
            "steps": fit["steps"], "seconds": fit["seconds"], "val": fit["val"],
            "source_val": measures.judged(networks.load(folder), Streets("game", "val")),
        },
        stamp,
    )  # fmt: skip


def keep(path: Path, result: dict[str, Any], stamp: Mapping[str, Any]) -> None:
    result = rounded(result) | {"commit": stamp["git"]["commit"], "packages": stamp["packages"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


# ---- the fixed state


def group_path(group: str, seed: int) -> Path:
    return RESULTS / TABLE / f"{group}_seed{seed}.json"


def groups(group: str) -> list[dict[str, Any]]:
    """What was measured for each seed."""
    return [json.loads(path.read_text()) for path in sorted((RESULTS / TABLE).glob(f"{group}_seed*.json"))]


def measure(seed: int, runs: Path) -> None:
    """Weights and classes at the fixed state of a seed, where either is missing."""
    if all(group_path(group, seed).exists() for group in ("weights", "classes")):
        return
    source = Streets("game", "train")
    counted, keys = class_statistics(source, REPOSITORY / "cache"), source.keys[:SCENES]
    plain = rows(str(run_directory(STATE, seed, runs)))[0]
    before, after = (
        list(measures.said(networks.load(fitted(row, seed, runs)), source, keys)) for row in (STATE, plain)
    )
    every = {
        (gradient, batch): measures.batch_statistics(before, gradient, batch)
        for gradient in measures.GRADIENTS
        for batch in measures.BATCHES
    }
    stamp = environment()
    names = source.class_table.names
    spreads = spreads_of(every, counted, [names.index(name) for name in RARE])
    keep(group_path("weights", seed), {"table": TABLE, "seed": seed, "scenes": SCENES, "spread": spreads}, stamp)
    (losses, pixels), (later, _) = measures.class_losses(before), measures.class_losses(after)
    gradients = {g: measures.mean_gradients(every[g, 4], g).tolist() for g in measures.GRADIENTS}
    classes = {"names": list(names), "pixels": pixels.tolist(), "gradients": gradients}
    classes |= {"frequency": counted.frequencies.tolist(), "before": losses.tolist(), "after": later.tolist()}
    keep(group_path("classes", seed), {"table": TABLE, "seed": seed, **classes}, stamp)


def spreads_of(
    every: Mapping[tuple[gbw.Gradient, int], list[gbw.Statistics]], counted: ClassStatistics, rare: list[int]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Weighting -> scenes in a batch -> how unequal its weights are."""
    inverse = 1 / torch.from_numpy(counted.totals).double()
    found: dict[str, dict[str, dict[str, float | None]]] = {}

    def add(name: str, weights_of: Callable[[list[gbw.Statistics]], Tensor], gradient: gbw.Gradient) -> None:
        found[name] = {}
        for batch in measures.BATCHES:
            some = [gbw.Statistics(*(value.double() for value in one)) for one in every[gradient, batch]]
            pixels = torch.stack([one.pixels for one in some])
            found[name][str(batch)] = measures.spread(weights_of(some), pixels, rare, inverse)

    for variant in VARIANTS:
        for value in REGULARIZATIONS:
            add(variant.called(value), lambda some, v=variant, x=value: gbw_weights(some, v, x), variant.gradient)
    for name, make in FREQUENCY.items():
        weighting = make()
        weighting.prepare(Streets("game", "train").class_table, (), lambda: counted)
        constant = weighting.weights
        add(name, lambda some, w=constant: w.expand(len(some), -1), "channel")
    return found


def gbw_weights(every: list[gbw.Statistics], variant: Variant, regularization: float) -> Tensor:
    """(B, C) of so many batches."""
    return torch.stack(
        [
            gbw.weights_from(
                one, gradient=variant.gradient, regularization=regularization, relative=variant.relative
            )
            for one in every
        ]
    )  # fmt: skip


# ---- all of it


def write_tables() -> None:
    weights, classes = groups("weights"), groups("classes")
    names = {v.name: [v.called(value) for value in REGULARIZATIONS] for v in VARIANTS}
    weightings = [name for some in names.values() for name in some] + list(FREQUENCY)
    write("gbw_weights", tables.weights_table(weights, weightings))
    write("gbw_loss_decrease", tables.decrease_table(classes))
    write("gbw_training", markdown([STATE, *rows("STATE")], tables.COLUMNS, lambda row: load(TABLE, row)))
    if weights and classes:
        draw(weights, names, REGULARIZATIONS, classes[0], tables.decreases(classes[0])["nats"], RARE)


def main() -> None:
    given = parser(__doc__).parse_args()
    runs = given.runs / TABLE
    for seed in [] if given.print else given.seeds:
        every = [STATE, *rows(str(run_directory(STATE, seed, runs)))]
        chosen = [row for row in every if not given.rows or any(part in row.name for part in given.rows)]
        missing = [row for row in chosen if not result_path(TABLE, row, seed).exists()]
        if missing:
            fitted(STATE, seed, runs)  # the others start from it
        for row in missing:
            train(row, seed, runs)
        measure(seed, runs)
    write_tables()


if __name__ == "__main__":
    main()
