"""Paper recipes of PixelPick: the numbers of the specification (section 8.2) and of its released code."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest
import yaml
from test_configs import CONFIGS
from test_paper_recipes import OnMeta, parsed, quiet

from adaptseg.active import CBDA
from adaptseg.augment.color import ColorJitter
from adaptseg.methods import Supervised
from adaptseg.methods.optimization import Optimization
from adaptseg.networks import SmpSegmenter
from adaptseg.recipes import load_recipe

__all__ = ["quiet"]  # a fixture that every test uses

FOLDER = CONFIGS / "paper" / "pixelpick"
IMAGES = {"camvid": 367, "cityscapes": 2975}


def test_there_is_a_recipe_for_both_sets() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(IMAGES)


@pytest.mark.parametrize("name", IMAGES)
def test_training_starts_anew_in_ten_rounds_of_fifty_epochs(name: str) -> None:
    config = parsed(FOLDER / f"{name}.yaml")
    assert config.model.class_path == "adaptseg.methods.Supervised"
    model, steps = config.model.init_args, config.trainer.max_steps
    assert model.fresh_rounds
    assert steps == 10 * 50 * math.ceil(IMAGES[name] / 4)
    rates = Optimization(**vars(model.optimization))
    assert (rates.name, rates.lr * rates.head_lr_factor, rates.lr) == ("adam", 5e-4, 5e-5)
    assert (rates.weight_decay, rates.decay_norm_and_bias, rates.restarts) == (2e-4, True, 10)
    epoch, part = steps // 500, steps // 10
    for number in (0, 7):
        found = [rates.factor(number * part + e * epoch, steps) for e in (0, 19, 20, 39, 40, 49)]
        poly = [(1 - e / 50) ** 0.9 for e in (0, 19, 20, 39, 40, 49)]
        assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01] if name == "camvid" else poly)


@pytest.mark.parametrize("name", IMAGES)
def test_ten_pixels_of_each_image_in_each_round(name: str) -> None:
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    assert recipe["active"]["class_path"] == "CBDA"
    active, steps = CBDA(**recipe["active"]["init_args"]), recipe["trainer"]["max_steps"]
    tick = math.ceil(steps / 20)
    assert active.round_steps(steps, tick) == [steps // 10 * number for number in range(10)]
    assert (active.score, active.first_round, active.unit, active.selection) == ("margin", "random", "pixel", "image")
    assert (active.balance, active.forbid_void, active.suppress_radius, active.rounding) == (False, True, 0, "exact")
    assert active.random_within == 0.05
    assert active.total_budget(10**9, IMAGES[name]) == 100 * IMAGES[name]
    assert active.shares == pytest.approx([0.1] * 10)


@pytest.mark.parametrize("name", IMAGES)
def test_scenes_are_scaled_and_coloured_as_released(name: str) -> None:
    config = parsed(FOLDER / f"{name}.yaml")
    assert (tuple(config.data.init_args.scale), config.data.init_args.crop) == ((0.5, 2.0), None)
    colors = config.model.init_args.target_colors
    jitter = ColorJitter(**vars(colors.jitter))
    assert (jitter.probability, jitter.strengths, jitter.grey) == (0.8, (0.8, 0.8, 0.8, 0.2), 0.2)
    assert (colors.blur.probability, tuple(colors.blur.sigma)) == (0.5, (0.1, 2.0))
    assert config.model.init_args.source_colors is None


def test_data_are_the_published_ones() -> None:
    camvid = parsed(FOLDER / "camvid.yaml").data.init_args
    assert [scenes.init_args.split for scenes in (camvid.target, camvid.val, camvid.test)] == ["train", "val", "test"]
    assert (camvid.batch_size, camvid.target_size, camvid.flip, camvid.source) == (4, None, True, None)
    city = parsed(FOLDER / "cityscapes.yaml").data.init_args
    sizes = [tuple(scenes.init_args.size) for scenes in (city.target, city.val, city.test)]
    assert sizes == [(256, 512), (512, 1024), (512, 1024)]
    inner = [scenes.init_args.scenes.init_args.split for scenes in (city.target, city.val, city.test)]
    assert inner == ["train", "val", "val"]
    assert (city.batch_size, city.target_size, city.flip, city.source) == (4, None, True, None)


def test_method_can_be_made() -> None:
    """With Streets for the data, which need no files, and without the hub's weights."""
    given = load_recipe(FOLDER / "camvid.yaml")
    given["data"] = load_recipe(CONFIGS / "dacs.yaml")["data"]
    given["model"]["init_args"]["network"]["init_args"]["weights"] = False
    cli = OnMeta(argparse.Namespace(), [FOLDER / "camvid.yaml"], ["fit", "--config", yaml.safe_dump(given)])
    method: Any = cli.made["fit"]["model"]
    assert isinstance(method, Supervised)
    assert isinstance(method.student, SmpSegmenter)
    assert method.student.config()["init_args"]["encoder"] == "mobilenet_v2"
    assert {p.device.type for p in method.parameters()} == {"meta"}
