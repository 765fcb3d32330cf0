"""What each departure of two-stage eDALD's released code from its formula changes, on CamVid photographs at 128x128.

    python experiments/tables/departures.py --root DRIVING --weights mobilenet_v2.pth --denoiser RUN

DRIVING, RUN and the weights are those of low_budget.py. One fixed state (fixed_state.py) on each kind of features:
MobileNetV2 on all training images, the denoiser on every fifth, as it is slow. Each group of measurements
(departure_choices.py, departure_heads.py) leaves one small JSON in results/departures; only missing ones are run.
Less than an hour on one thread of a busy machine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import departure_choices as choices
import departure_heads as heads
from common import REPOSITORY, RESULTS, write_table
from departure_rows import markdown
from fixed_state import State, make_state

from adaptseg.data import Folder
from adaptseg.networks.feature_maps import DiffusionFeatures, EncoderFeatures
from adaptseg.run_directory import environment

TABLE = "departures"
DENOISER_EVERY = 5


class Bench:
    """The data, both kinds of features and their states, made when first asked for."""

    def __init__(self, root: Path, weights: Path, denoiser: Path) -> None:
        self.root, self.weights, self.denoiser = root, weights, denoiser

    def split(self, name: str) -> Folder:
        return Folder(str(self.root / "camvid"), classes="../classes.json", split=f"splits/{name}.txt")

    @cached_property
    def pool(self) -> Folder:
        return self.split("train")

    @cached_property
    def encoder(self) -> EncoderFeatures:
        return EncoderFeatures("mobilenet_v2", str(self.weights), levels=[1, 2, 3, 4])

    @cached_property
    def diffusion(self) -> DiffusionFeatures:
        return DiffusionFeatures(str(self.denoiser))

    @cached_property
    def encoder_state(self) -> State:
        return make_state(self.encoder, self.pool, self.pool.keys)

    @cached_property
    def diffusion_state(self) -> State:
        return make_state(self.diffusion, self.pool, self.pool.keys[::DENOISER_EVERY])


GROUPS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "scores_encoder": lambda b: choices.score_group(b.encoder_state),
    "scores_denoiser": lambda b: choices.score_group(b.diffusion_state),
    "herding": lambda b: choices.herding_group(b.encoder_state),
    "first_round": lambda b: choices.first_round_group(b.diffusion_state, str(b.denoiser), b.pool),
    "training": lambda b: heads.training_group(b.encoder_state, heads.Judge(b.encoder, b.split("val"))),
    "evaluation": lambda b: heads.evaluation_group(
        b.encoder_state, heads.Judge(b.encoder, b.split("val")), b.split("dusk_test")
    ),
    "denoiser_dropout": lambda b: heads.dropout_group(
        b.diffusion_state, heads.Judge(b.diffusion, b.split("val")), b.diffusion
    ),
}


def result_file(group: str) -> Path:
    return RESULTS / TABLE / f"{group}.json"


def run_missing(bench: Bench, groups: list[str]) -> None:
    for group in groups:
        if result_file(group).exists():
            continue
        began = time.perf_counter()
        found = rounded(GROUPS[group](bench))
        seconds = round(time.perf_counter() - began, 1)
        stamp = environment()
        result = {"table": TABLE, "group": group, "seconds": seconds, "commit": stamp["git"]["commit"]}
        result |= {"packages": stamp["packages"], "measured": found}
        result_file(group).parent.mkdir(parents=True, exist_ok=True)
        result_file(group).write_text(json.dumps(result, indent=1) + "\n")
        print(f"{group}: {seconds} s", flush=True)


def rounded(value: Any) -> Any:
    """Floats to five digits, NaN to None, through lists and dictionaries."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.5g}")
    return value


def load() -> dict[str, Any]:
    """What has been measured so far, by group."""
    files = {group: result_file(group) for group in GROUPS}
    return {group: json.loads(path.read_text())["measured"] for group, path in files.items() if path.exists()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--root", type=Path, default=Path(), help="folder with camvid/ and classes.json")
    arguments.add_argument("--weights", type=Path, default=Path(), help="ImageNet weights of MobileNetV2")
    arguments.add_argument("--denoiser", type=Path, default=Path(), help="run directory of the denoiser")
    arguments.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS), help="measure only these")
    arguments.add_argument("--print", action="store_true", help="measure nothing; only write what is there")
    given = arguments.parse_args()
    if not given.print:
        run_missing(Bench(given.root, given.weights, given.denoiser), given.groups)
    write_table(TABLE, markdown(load()), REPOSITORY / "README.md")


if __name__ == "__main__":
    main()
