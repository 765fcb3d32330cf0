"""Paper recipes of two-stage eDALD: the specification's numbers, and every row of its two tables by overlays."""

from __future__ import annotations

import argparse
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from layouts import picture, save
from test_configs import CONFIGS, parse
from test_paper_recipes import OnMeta, quiet

from adaptseg.active import TwoStageEDALD
from adaptseg.methods import PixelClassifier
from adaptseg.methods.head_training import HeadTraining
from adaptseg.recipes import load_recipe, merge_recipes

__all__ = ["quiet"]  # a fixture that every test uses

FOLDER = CONFIGS / "paper" / "edald"


class Set(NamedTuple):
    """A row of the specification's table of data sets (section 3)."""

    reader: str
    classes: int
    images: int | None
    per_round: int | None
    scored: str
    unet: str
    size: tuple[int, int] | None = (256, 256)
    crop: tuple[int, int] | None = None


SETS = {
    "camvid": Set("CamVid", 11, 367, 37, "test", "256x256_diffusion_uncond.pt"),
    "cityscapes": Set("Cityscapes", 19, 2975, 298, "val", "256x256_diffusion_uncond.pt", (256, 512), (256, 256)),
    "pascal_context": Set("PascalContext", 33, 4998, 500, "val", "256x256_diffusion_uncond.pt"),
    "ade_bedroom": Set("ADEBedroom", 30, None, None, "test", "lsun_bedroom.pt", None),
}
MAIN = {
    "random": ["random"],
    "entropy": ["single_stage", "entropy"],
    "margin": ["single_stage", "margin"],
    "balanced_entropy_dropout": ["single_stage", "balanced_entropy"],
    "edald": ["single_stage"],
}
"""Score -> overlays, of the main table's rows on diffusion features but the recipe itself."""
HERDING = ("entropy", "margin", "bald", "dald", "power_bald", "power_dald", "ebald", "edald")
BY_DROPOUT = ("bald", "power_bald", "ebald", "balanced_entropy")


@cache
def parsed(name: str) -> Any:
    return parse(FOLDER / f"{name}.yaml")


def acquisition(*names: str) -> TwoStageEDALD:
    """Of CamVid's recipe and overlays, without the parser: all are plain values."""
    paths = [FOLDER / "camvid.yaml", *(FOLDER / "rows" / f"{name}.yaml" for name in names)]
    merged = merge_recipes([(path.name, load_recipe(path)) for path in paths])
    assert merged["active"]["class_path"] == "TwoStageEDALD"
    dropout = merged["model"]["init_args"]["training"].get("dropout", 0.0)
    assert dropout == (0.2 if set(names) & set(BY_DROPOUT) else 0.0)
    return TwoStageEDALD(**merged["active"]["init_args"])


def test_there_is_a_recipe_for_every_set() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(SETS)


@pytest.mark.parametrize("name", SETS)
def test_features_and_head_are_the_published_ones(name: str) -> None:
    config, given = parsed(name), SETS[name]
    assert config.model.class_path == "adaptseg.methods.PixelClassifier"
    features = config.model.init_args.network.init_args.features.init_args
    assert features.unet == f"models/{given.unet}"
    assert (list(features.timesteps), list(features.blocks)) == ([50, 150, 250], [5, 8, 12, 17])
    overlay = "adm_lsun_bedroom" if name == "ade_bedroom" else "adm_256"
    laid = load_recipe(CONFIGS / "features" / f"{overlay}.yaml")["model"]["init_args"]["network"]["init_args"]
    recipe = load_recipe(FOLDER / f"{name}.yaml")["model"]["init_args"]["network"]["init_args"]
    assert recipe["features"] == laid["features"]
    training = HeadTraining(**vars(config.model.init_args.training))
    assert (training.lr, training.least_lr, training.half_period) == (1e-3, 1e-6, 5)
    assert (training.weight_decay, training.patience, training.first_passes) == (1e-5, 50, 4)
    assert training.dropout == 0
    assert config.model.init_args.norm_statistics == "transductive"
    assert config.model.init_args.network.init_args.hidden is None  # by the number of classes


@pytest.mark.parametrize("name", SETS)
def test_data_are_the_published_ones(name: str) -> None:
    data, given = parsed(name).data.init_args, SETS[name]
    assert (data.batch_size, data.crop, data.flip, data.target_size, data.source) == (5, None, False, None, None)
    for split, scenes in (("train", data.target), (given.scored, data.test)):
        if given.size is not None:
            assert scenes.class_path == "adaptseg.data.Resized"
            crop = scenes.init_args.crop and tuple(scenes.init_args.crop)
            assert (tuple(scenes.init_args.size), crop) == (given.size, given.crop)
            scenes = scenes.init_args.scenes
        assert scenes.class_path == f"adaptseg.data.{given.reader}"
        assert scenes.init_args.split == split
    overlay = load_recipe(CONFIGS / "data" / f"{name}_256.yaml")
    assert load_recipe(FOLDER / f"{name}.yaml")["data"] == overlay["data"]


@pytest.mark.parametrize("name", SETS)
def test_budget_and_rounds_are_the_published_ones(name: str) -> None:
    recipe, given = load_recipe(FOLDER / f"{name}.yaml"), SETS[name]
    active = TwoStageEDALD(**recipe["active"]["init_args"])
    assert active.stages == ["local", "global", "score"]
    assert (active.candidates, active.local_picks, active.keep, active.draws) == (10_000, 50, 0.5, 5)
    assert (active.score, active.length_scale, active.first_round) == ("edald", "median", "herding")
    steps = recipe["trainer"]["max_steps"]
    starts = active.round_steps(steps, math.ceil(steps / 20))
    assert (len(starts), starts[0]) == (10, 0)
    if given.images is not None:
        sizes = {str(number): (256, 256) for number in range(given.images)}
        assert active.per_round(sizes) == given.per_round
        active.check_budget(sizes)
        assert steps == 10 * 50 * math.ceil(given.images / 5)


@pytest.mark.parametrize("score", MAIN)
def test_main_table(score: str) -> None:
    active = acquisition(*MAIN[score])
    assert (active.score, active.stages, active.all_pixels) == (score, ["score"], True)
    assert active.first_round == ("random" if score == "random" else "herding")
    assert (active.rounds, active.draws) == (10, 5)


@pytest.mark.parametrize("score", HERDING)
def test_herding_table(score: str) -> None:
    own = [] if score == "edald" else [score]
    behind, alone = acquisition(*own), acquisition("single_stage", *own)
    assert behind.score == alone.score == score
    assert (behind.stages, alone.stages) == (["local", "global", "score"], ["score"])
    assert (behind.all_pixels, alone.all_pixels) == (False, True)


def test_rows_beyond_the_tables_and_a_row_through_the_parser() -> None:
    names = {"chance", "least_confidence", *(name for row in MAIN.values() for name in row), *HERDING} - {"edald"}
    assert {path.stem for path in (FOLDER / "rows").glob("*.yaml")} == names
    assert acquisition("chance").score == "random"
    assert acquisition("single_stage", "least_confidence").score == "least_confidence"
    laid = parse(FOLDER / "camvid.yaml", FOLDER / "rows" / "single_stage.yaml", FOLDER / "rows" / "ebald.yaml")
    assert (laid.active.init_args.score, list(laid.active.init_args.stages)) == ("ebald", ["score"])
    assert laid.active.init_args.local_picks == 50
    assert (laid.model.init_args.training.dropout, laid.model.init_args.training.patience) == (0.2, 50)


@pytest.mark.parametrize(("classes", "hidden"), [(11, [128, 32]), (30, [256, 128])])
def test_method_can_be_made(classes: int, hidden: list[int], tmp_path: Path) -> None:
    """With small features, which need no file, and one's own classes for the data."""
    rows = [{"name": f"c{i}", "color": [i, 0, 0]} for i in range(classes)]
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump({"classes": rows}))
    save(tmp_path / "images" / "a.png", picture())
    save(tmp_path / "labels" / "a.png", picture()[..., 0] % classes)
    given = load_recipe(FOLDER / "camvid.yaml")
    given["model"]["init_args"]["network"]["init_args"]["features"] = {"class_path": "small_features.ConvFeatures"}
    scenes = {"class_path": "Folder", "init_args": {"root": str(tmp_path), "classes": "classes.yaml"}}
    wrapped = {"class_path": "Resized", "init_args": {"scenes": scenes, "size": [256, 256]}}
    given["data"]["init_args"] |= {"target": wrapped, "val": wrapped, "test": wrapped}
    cli = OnMeta(argparse.Namespace(), [FOLDER / "camvid.yaml"], ["fit", "--config", yaml.safe_dump(given)])
    method: Any = cli.made["fit"]["model"]
    assert isinstance(method, PixelClassifier)
    assert method.network.hidden == hidden
    assert method.network.num_classes == classes
    assert isinstance(cli.made["fit"]["active"], TwoStageEDALD)
    assert cli.made["fit"]["data"].target.size("a") == (256, 256)
