"""Every recipe and every overlay on every recipe parses; every recipe fits, validates, tests, predicts and resumes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_flags

from adaptseg.cli import main
from adaptseg.lightning_cli import AdaptSegCLI
from adaptseg.recipes import fill_root, load_recipe, merge_recipes
from adaptseg.stages import as_tokens, read_stages, resolve

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = [path for path in sorted(CONFIGS.glob("*.yaml")) if "stages" not in load_recipe(path)]
STAGED = [path for path in sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("paper/**/*.yaml")]) if path not in RECIPES]
STAGED = [path for path in STAGED if "stages" in load_recipe(path)]
BLOCKS = {"active": "active", "data": "data", "class_weights": "model"}
"""Folder of overlays -> the only key they set."""
QUICK = [recipe for recipe in RECIPES if recipe.stem in ("source_only", "mic")]
"""Enough for the quick suite."""
OVERLAYS = sorted(path for folder in BLOCKS for path in (CONFIGS / folder).glob("*.yaml"))


class ParseOnly(AdaptSegCLI):
    """Stops once the arguments are parsed: nothing is built, no data set needs to exist."""

    def before_instantiate_classes(self) -> None:
        self.finished = True


def is_segmentation(recipe: Path) -> bool:
    """Whether the recipe's method has classes to weigh, labels to buy and labels to predict."""
    return load_recipe(recipe)["model"]["class_path"] != "Denoising"


def has_denoiser(recipe: Path) -> bool:
    """Whether the recipe reads the features of a denoiser that somebody must have trained."""
    network = load_recipe(recipe)["model"]["init_args"].get("network", {})
    return "unet" in network.get("init_args", {}).get("features", {}).get("init_args", {})


def hides_tokens(recipe: Path) -> bool:
    """Whether the recipe needs a network whose tokens can be hidden."""
    masking = load_recipe(recipe)["model"]["init_args"].get("masking") or {}
    return masking.get("block") == "token"


def parse(*paths: Path) -> Any:
    merged = fill_root(merge_recipes([(path.name, load_recipe(path)) for path in paths]), "/data")
    cli = ParseOnly(argparse.Namespace(), paths, ["fit", "--config", yaml.safe_dump(merged)])
    return cli.config.fit


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    from adaptseg.known_warnings import silence

    silence("fit")
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    monkeypatch.setattr(ParseOnly, "folder", Path("nowhere"), raising=False)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_owns_model_and_data(recipe: Path):
    keys = load_recipe(recipe)
    assert {"model", "data", "trainer"} <= set(keys) <= {"model", "data", "trainer", "active"}
    assert "class_path" in keys["model"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_overlay_sets_its_own_block_only(overlay: Path):
    assert set(load_recipe(overlay)) == {BLOCKS[overlay.parent.name]}


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(r, marks=[] if r in QUICK else pytest.mark.slow) for r in RECIPES],
    ids=lambda path: path.stem,
)
def test_every_overlay_parses_on_every_recipe(recipe: Path):
    alone = parse(recipe)
    assert alone.model.class_path == f"adaptseg.methods.{load_recipe(recipe)['model']['class_path']}"
    blocks = [block for block in BLOCKS if block != "class_weights" or is_segmentation(recipe)]
    by_block = [[path for path in OVERLAYS if path.parent.name == block] for block in blocks]
    # One overlay of each block at once: a third of the time, and what users do. All of them on two recipes, three on
    # each of the others, in turn.
    start = 3 * RECIPES.index(recipe)
    for number in range(max(map(len, by_block))) if recipe in QUICK else range(start, start + 3):
        overlays = [paths[number % len(paths)] for paths in by_block]
        laid = parse(recipe, *overlays)
        for overlay in overlays:
            block = BLOCKS[overlay.parent.name]
            for name, value in load_recipe(overlay)[block]["init_args"].items():
                if not isinstance(value, dict):
                    parsed = getattr(laid[block].init_args, name)
                    parsed = list(parsed) if isinstance(parsed, tuple) else parsed
                    assert parsed == value, f"{overlay.name} on {recipe.name}: {name}"
        if "class_weights" in blocks:
            assert laid.model.init_args.class_weights.class_path.startswith("adaptseg.methods.")
            laid.model.init_args.class_weights = alone.model.init_args.class_weights
        assert laid.model == alone.model  # nothing but the class weights


@pytest.mark.parametrize("recipe", STAGED, ids=lambda path: path.stem)
def test_every_stage_of_a_staged_recipe_parses(recipe: Path, tmp_path: Path):
    parse_stages(recipe, tmp_path)


def parse_stages(recipe: Path, run: Path) -> None:
    """As the command line reads the stages of a run in that folder, up to where it would build something."""
    from adaptseg.job_verb import job_parser

    names: list[str] = []
    for stage in read_stages([recipe], [], "/data"):
        resolved = resolve(stage.recipe, run, names)
        tokens = as_tokens(stage.flags, run, names)
        text = ["--config", yaml.safe_dump(resolved), *tokens]
        if stage.verb == "job":
            assert job_parser().parse_args(text).job is not None
        else:
            assert ParseOnly(argparse.Namespace(), [recipe], ["fit", *text]).config.fit.model is not None
        names.append(stage.name)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_budget_in_the_name_is_the_budget_inside(recipe: Path):
    named = re.search(r"(\d+)pct", recipe.stem)
    active = load_recipe(recipe).get("active")
    if active and active["class_path"] == "TwoStageEDALD":
        return  # counts its budget in pixels an image
    assert (active is None) == (named is None) or recipe.stem.endswith("_active")
    if named and active:
        assert active["init_args"]["budget"] == int(named[1]) / 100


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_fits_and_is_judged(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--config", str(recipe), *_shrunk(recipe), "--runs", str(tmp_path)]
    assert main(["fit", *flags]) == 0, capsys.readouterr().err
    assert "finished" in capsys.readouterr().out
    run = tmp_path / recipe.stem / "seed0"
    for verb in ("validate", "test"):
        assert main([verb, *flags]) == 0, capsys.readouterr().err
    assert (run / "val.json").exists()
    assert (run / "test.json").exists()
    if is_segmentation(recipe):
        assert main(["predict", *flags]) == 0, capsys.readouterr().err
        assert len(list((run / "predictions").glob("*.png"))) == 4
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert main(["fit", *flags]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def _shrunk(recipe: Path) -> list[str]:
    """The flags that shrink a recipe, less those of domains that it does not have."""
    data = load_recipe(recipe)["data"]["init_args"]
    flags = tiny_flags()
    if has_denoiser(recipe):
        flags = ["--model.network.features", "small_features.ConvFeatures", *flags[2:]]
        flags += ["--active.budget", "10", "--active.candidates", "40", "--active.local_picks", "6"]
    if hides_tokens(recipe):
        flags = ["--model.network.encoder", "test_vit", *flags[2:]]
    if not is_segmentation(recipe):
        flags = ["--model.channels", "[8, 8]", "--model.attention", "[]", "--model.head_dim", "8", *flags[2:]]
        flags += ["--data.source_size", "[16, 32]", "--data.target_size", "[16, 32]"]
    absent = [name for name in ("source", "target") if data.get(name) is None]
    pairs = [flags[i : i + 2] for i in range(0, len(flags), 2)]
    return [
        word for pair in pairs if not any(pair[0].startswith(f"--data.{name}.") for name in absent) for word in pair
    ]
