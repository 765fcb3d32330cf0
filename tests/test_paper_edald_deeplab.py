"""The two DeepLabV3 rows of two-stage eDALD's main table: its data and budget, PixelPick's training, Didari's score."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest
import yaml
from test_configs import CONFIGS
from test_paper_edald import FOLDER as EDALD
from test_paper_edald import SETS
from test_paper_recipes import OnMeta, parsed, quiet

from adaptseg.active import CBDA
from adaptseg.active.balancing import round_budget
from adaptseg.methods import Supervised
from adaptseg.methods.optimization import Optimization
from adaptseg.networks import SmpSegmenter, dropout_layers
from adaptseg.recipes import load_recipe, merge_recipes

__all__ = ["quiet"]  # a fixture that every test uses

FOLDER = EDALD / "deeplab"
DIDARI = FOLDER / "rows" / "didari.yaml"
PIXELPICK = CONFIGS / "paper" / "pixelpick"


def given(name: str) -> dict[str, Any]:
    return load_recipe(FOLDER / f"{name}.yaml")


def test_there_is_a_recipe_for_every_set() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(SETS)
    assert [path.stem for path in (FOLDER / "rows").glob("*.yaml")] == ["didari"]


@pytest.mark.parametrize("name", SETS)
def test_data_are_those_of_the_table_and_training_is_pixelpicks(name: str) -> None:
    recipe, data = given(name), load_recipe(EDALD / f"{name}.yaml")["data"]["init_args"]
    assert recipe["data"]["init_args"] == {**data, "batch_size": 4, "scale": [0.5, 2.0], "flip": True}
    pixelpick = load_recipe(PIXELPICK / ("camvid.yaml" if name == "camvid" else "cityscapes.yaml"))
    assert {"scale": [0.5, 2.0], "flip": True, "batch_size": 4}.items() <= pixelpick["data"]["init_args"].items()
    network = {"decoder": "DeepLabV3", "encoder": "resnet50", "weights": True, "output_stride": 8}
    expected = {**pixelpick["model"]["init_args"], "network": {"class_path": "SmpSegmenter", "init_args": network}}
    assert recipe["model"] == {"class_path": "Supervised", "init_args": expected}
    steps, images = recipe["trainer"]["max_steps"], SETS[name].images or 1000
    assert steps == 10 * 50 * math.ceil(images / 4)
    assert Optimization(**expected["optimization"]).factor(steps // 10, steps) == 1  # anew in each round


@pytest.mark.parametrize("name", SETS)
def test_a_tenth_of_the_budget_over_the_whole_pool_in_each_round(name: str) -> None:
    recipe, per_round = given(name), SETS[name].per_round
    active, steps = CBDA(**recipe["active"]["init_args"]), recipe["trainer"]["max_steps"]
    assert (active.score, active.first_round, active.unit, active.selection) == ("margin", "random", "pixel", "pool")
    assert (active.random_within, active.balance, active.forbid_void, active.suppress_radius) == (0.05, False, True, 0)
    assert active.round_steps(steps, math.ceil(steps / 20)) == [steps // 10 * number for number in range(10)]
    images = SETS[name].images or 1000
    total = active.total_budget(images * 256**2, images)
    assert total == (10 * per_round if per_round else images)
    spent = 0
    for number in range(1, 11):
        bought = round_budget(total, number, active.shares, spent)
        assert bought == (per_round or images // 10)
        spent += bought
    active.check_budget({str(number): (256, 256) for number in range(images)})


def test_didari_draws_by_the_last_layer() -> None:
    merged = merge_recipes([(path.name, load_recipe(path)) for path in (FOLDER / "camvid.yaml", DIDARI)])
    plain = given("camvid")
    active = CBDA(**merged["active"]["init_args"])
    assert (active.score, active.draws, active.random_within, active.selection) == (
        "balanced_entropy",
        20,
        None,
        "pool",
    )
    changed = {"score": "balanced_entropy", "draws": 20, "random_within": None}
    assert merged["active"]["init_args"] == {**plain["active"]["init_args"], **changed}
    plain["model"]["init_args"]["network"]["init_args"] |= {"dropout": 0.0, "last_dropout": 0.2}
    assert (merged["model"], merged["data"], merged["trainer"]) == (plain["model"], plain["data"], plain["trainer"])


def test_a_row_through_the_parser_and_its_network() -> None:
    """With Streets for the data, which need no files, and without the hub's weights."""
    config = parsed(FOLDER / "cityscapes.yaml", DIDARI)
    assert tuple(config.data.init_args.scale) == (0.5, 2.0)
    assert config.model.init_args.target_colors.jitter.grey == 0.2
    paths = (FOLDER / "camvid.yaml", DIDARI)
    merged = merge_recipes([(path.name, load_recipe(path)) for path in paths])
    merged["data"] = load_recipe(CONFIGS / "dacs.yaml")["data"]
    merged["model"]["init_args"]["network"]["init_args"]["weights"] = False
    cli = OnMeta(argparse.Namespace(), paths, ["fit", "--config", yaml.safe_dump(merged)])
    method: Any = cli.made["fit"]["model"]
    assert isinstance(method, Supervised)
    assert isinstance(method.student, SmpSegmenter)
    assert dropout_layers(method.student) == [method.student.last_dropout]
