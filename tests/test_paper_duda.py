"""Paper recipes of DUDA: the host's settings to the letter, a network more; students of every kind lie over them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_configs import CONFIGS, ParseOnly, parse

from adaptseg import networks
from adaptseg.known_warnings import silence
from adaptseg.recipes import load_recipe

FOLDER = CONFIGS / "paper" / "duda"
PAIRS = ("gta5_to_cityscapes", "synthia_to_cityscapes", "cityscapes_to_acdc", "cityscapes_to_dark_zurich")
HOSTS = ("daformer", "mic_daformer")
STUDENTS = sorted((CONFIGS / "duda" / "students").glob("*.yaml"))
B0 = {"class_path": "DAFormer", "init_args": {"encoder": "mit_b0", "weights": True}}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    silence("fit")
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    monkeypatch.setattr(ParseOnly, "folder", Path("nowhere"), raising=False)


def test_every_host_has_every_pair() -> None:
    expected = sorted(f"{host}_{pair}" for host in HOSTS for pair in PAIRS)
    for folder in (FOLDER, FOLDER / "stage1"):
        assert sorted(path.stem for path in folder.glob("*.yaml")) == expected
    assert sorted(path.stem for path in (FOLDER / "stage2").glob("*.yaml")) == sorted(PAIRS)
    students = [path.stem for path in STUDENTS]
    assert students == ["mit_b0", "mit_b1", "mit_b2", "resnet101", "resnet18", "resnet50"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("pair", PAIRS)
def test_stage_1_is_the_host_with_a_small_student(host: str, pair: str) -> None:
    recipe = load_recipe(FOLDER / "stage1" / f"{host}_{pair}.yaml")
    expected = copy.deepcopy(load_recipe(CONFIGS / "paper" / f"{host}_{pair}.yaml"))
    arguments: dict[str, Any] = expected["model"]["init_args"]
    expected["model"]["class_path"] = "DUDA"
    arguments["large"], arguments["network"] = arguments["network"], B0
    assert arguments["large"]["init_args"]["encoder"] == "mit_b5"
    assert recipe == expected


@pytest.mark.parametrize("pair", PAIRS)
def test_stage_2_shows_the_student_what_the_host_shows(pair: str) -> None:
    recipe, host = (
        load_recipe(FOLDER / "stage2" / f"{pair}.yaml"),
        load_recipe(CONFIGS / "paper" / f"daformer_{pair}.yaml"),
    )
    own, hosts = recipe["model"]["init_args"], host["model"]["init_args"]
    assert recipe["model"]["class_path"] == "FineTuning"
    assert (own["network"], recipe["data"], recipe["trainer"]) == (B0, host["data"], host["trainer"])
    for name in ("optimization", "confidence_threshold", "confidence_scope", "mix_scope", "jitter", "blur"):
        assert own[name] == hosts[name]
    # SYNTHIA lacks three classes, which must not take part in the normalisation.
    assert own["class_weights"]["init_args"].get("known_only", False) == pair.startswith("synthia")


def test_stages_and_overlays_parse() -> None:
    for stage in (FOLDER / "stage1" / "mic_daformer_gta5_to_cityscapes.yaml", FOLDER / "stage2" / f"{PAIRS[1]}.yaml"):
        laid = parse(stage, CONFIGS / "duda" / "students" / "resnet18.yaml").model.init_args
        assert laid.network.class_path == "adaptseg.networks.DeepLabV2"
        assert laid.network.init_args.encoder == "resnet18"
    assert parse(CONFIGS / "duda" / "stage2.yaml").model.class_path == "adaptseg.methods.FineTuning"


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: path.stem)
def test_small_networks_can_be_made(path: Path) -> None:
    config = copy.deepcopy(load_recipe(path)["model"]["init_args"]["network"])
    config["class_path"] = f"adaptseg.networks.{config['class_path']}"
    config["init_args"] |= {"num_classes": 19, "weights": False}
    with torch.device("meta"):
        made = networks.build(config)
    assert isinstance(made, networks.Segmenter)
    assert made.num_classes == 19
