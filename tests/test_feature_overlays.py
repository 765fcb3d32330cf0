"""Overlays of `configs/features/` over a recipe of frozen features, and a whole run on a file of guided-diffusion."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from test_configs import CONFIGS, ParseOnly, parse

from adaptseg import networks
from adaptseg.cli import main
from adaptseg.known_warnings import silence
from adaptseg.networks import AdmFlags
from adaptseg.networks.adm import AdmUNet
from adaptseg.recipes import load_recipe

OVERLAYS = sorted((CONFIGS / "features").glob("*.yaml"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    silence("fit")
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    monkeypatch.setattr(ParseOnly, "folder", Path("nowhere"), raising=False)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_they_change_the_features_alone(overlay: Path) -> None:
    assert set(load_recipe(overlay)) == {"model"}
    recipe = CONFIGS / "edald.yaml"
    alone, laid = parse(recipe), parse(recipe, overlay)
    features = laid.model.init_args.network.init_args.features.init_args
    assert (features.adm.num_channels, features.adm.attention_resolutions) == (256, (32, 16, 8))
    laid.model.init_args.network.init_args.features = alone.model.init_args.network.init_args.features
    assert laid.model == alone.model


@pytest.mark.slow
def test_a_run_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Single flags can be changed from the command line, and the checkpoint finds its features again."""
    flags = AdmFlags(
        image_size=16,
        num_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions=(8,),
        num_head_channels=16,
        resblock_updown=True,
        learn_sigma=True,
        use_fp16=True,
    )
    torch.save(AdmUNet(flags).state_dict(), tmp_path / "small.pt")
    given = ["--config", str(CONFIGS / "edald.yaml"), "--config", str(CONFIGS / "features" / "adm_256.yaml")]
    features = "--model.network.features"
    given += [f"{features}.unet", str(tmp_path / "small.pt"), f"{features}.blocks", "[1, 3]"]
    for name in ("image_size", "num_channels", "num_res_blocks", "num_head_channels"):
        given += [f"{features}.adm.{name}", str(getattr(flags, name))]
    given += [f"{features}.adm.channel_mult", "[1, 2]", f"{features}.adm.attention_resolutions", "[8]"]
    for split in ("target", "val", "test"):
        given += [f"--data.{split}.count", "2", f"--data.{split}.size", "[32, 32]"]
    given += ["--active.budget", "2", "--active.rounds", "2", "--active.candidates", "20", "--active.local_picks", "4"]
    given += ["--trainer.max_steps", "4", "--trainer.accelerator", "cpu", "--data.batch_size", "2"]
    assert main(["fit", *given, "--runs", str(tmp_path)]) == 0, capsys.readouterr().err
    loaded = networks.load(tmp_path / "edald+adm_256" / "seed0")
    assert isinstance(loaded, networks.PixelSegmenter)
    assert isinstance(loaded.features, networks.DiffusionFeatures)
    assert loaded.features.adm == flags
    assert loaded.features.blocks == (1, 3)
