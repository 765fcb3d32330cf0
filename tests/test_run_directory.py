"""Run directories: where they lie, what a resume must agree with, what is written, that nothing is deleted."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adaptseg import run_directory
from adaptseg.errors import AdaptSegError

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_steps": 1200, "accelerator": "cpu", "devices": 1},
    "model": {"class_path": "Supervised", "init_args": {"lr": 0.1, "network": {"init_args": {"decoder": "FPN"}}}},
    "data": {"class_path": "DomainPair", "init_args": {"batch_size": 4, "workers": 0, "crop": [64, 128]}},
    "active": {"class_path": "CBDA", "init_args": {"budget": 0.2, "scratch": None, "seed": 0}},
}
ABSENT = object()


@pytest.fixture(autouse=True)
def _no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def changed(dotted: str, value: Any) -> dict[str, Any]:
    """CONFIG with one key set, or removed if the value is ABSENT."""
    config = copy.deepcopy(CONFIG)
    *parents, last = dotted.split(".")
    block = config
    for name in parents:
        block = block[name]
    block[last] = value
    if value is ABSENT:
        del block[last]
    return config


# ---- names


def test_a_directory_is_named_after_its_recipes_and_seed() -> None:
    configs = [Path("configs/cbda_20pct.yaml"), Path("configs/data/camvid.yaml")]
    assert run_directory.run_directory(Path("runs"), configs, None, 3) == Path("runs/cbda_20pct+camvid/seed3")
    assert run_directory.run_directory(Path("runs"), configs[:1], "mine", 3) == Path("runs/cbda_20pct/mine")
    assert run_directory.run_directory(Path("elsewhere"), [], None, 0) == Path("elsewhere/flags/seed0")


def test_runs_of_a_sweep_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert run_directory.run_directory(Path("runs"), [], None, 0).name == "seed0"  # an id alone is no sweep
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert run_directory.run_directory(Path("runs"), [], None, 0).name == "seed0-abc"
    assert run_directory.run_directory(Path("runs"), [], "mine", 0).name == "mine-abc"


# ---- what a resume must agree with


def test_the_same_config_passes(tmp_path: Path) -> None:
    run_directory.write_stamp(tmp_path, CONFIG)
    run_directory.require_same_config(tmp_path, copy.deepcopy(CONFIG))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.init_args.workers", 8),
        ("active.init_args.scratch", "/tmp"),
        ("trainer.accelerator", "gpu"),
        ("trainer.devices", 2),
        ("trainer.log_every_n_steps", 5),
        ("data.init_args.added", None),  # a new version's key at its default null
    ],
)
def test_what_may_change_passes(tmp_path: Path, key: str, value: Any) -> None:
    run_directory.write_stamp(tmp_path, CONFIG)
    run_directory.require_same_config(tmp_path, changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed_everything", 1),
        ("trainer.max_steps", 1201),
        ("model.class_path", "Other"),
        ("model.init_args.lr", 0.2),
        ("model.init_args.network.init_args.decoder", "PAN"),
        ("model.init_args.network", None),
        ("data.init_args.batch_size", 8),
        ("data.init_args.crop", [64, 127]),
        ("data.init_args.batch_size", ABSENT),
        ("data.init_args.added", 1),
        ("active.init_args.budget", 0.1),
        ("active", None),
        ("active", ABSENT),
    ],
)
def test_what_decides_the_result_is_named(tmp_path: Path, key: str, value: Any) -> None:
    run_directory.write_stamp(tmp_path, CONFIG)
    with pytest.raises(AdaptSegError) as error:
        run_directory.require_same_config(tmp_path, changed(key, value))
    message = str(error.value)
    assert f"was written by another config: {key} was " in message
    assert f"is now {None if value is ABSENT else value!r}." in message
    assert "--fresh" in message


def test_the_first_of_several_differences_is_named(tmp_path: Path) -> None:
    run_directory.write_stamp(tmp_path, CONFIG)
    config = changed("model.init_args.lr", 0.2)
    config["data"]["init_args"]["workers"] = 9
    config["data"]["init_args"]["batch_size"] = 8
    config["seed_everything"] = 1
    with pytest.raises(AdaptSegError, match=r"model\.init_args\.lr was 0\.1 and is now 0\.2"):
        run_directory.require_same_config(tmp_path, config)


def test_a_checkpoint_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"no config\.yaml; choose another --name, or start with --fresh"):
        run_directory.require_same_config(tmp_path, CONFIG)


# ---- setting aside


def test_setting_aside_renames_and_deletes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    places = []
    for content in ("first", "second", "third"):  # within a second
        (folder / "labels").mkdir(parents=True)
        (folder / "labels" / "a.png").write_text(content)
        place = run_directory.set_aside(folder)
        assert place is not None
        assert place.parent == tmp_path
        assert place.name.startswith("seed0.")
        places.append(place)
        assert not folder.exists()
    assert [(place / "labels" / "a.png").read_text() for place in places] == ["first", "second", "third"]
    assert run_directory.set_aside(folder) is None


# ---- the stamp and the end


def test_the_stamp_says_how_to_run_it_again(tmp_path: Path) -> None:
    run_directory.write_stamp(tmp_path / "new", CONFIG)
    assert yaml.safe_load((tmp_path / "new" / "config.yaml").read_text()) == CONFIG
    environment = json.loads((tmp_path / "new" / "environment.json").read_text())
    assert environment["packages"].keys() >= {"adaptseg", "torch", "lightning"}
    assert environment["git"].keys() == {"commit", "dirty"}
    assert environment["command"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["config.yaml", "environment.json"]


def test_git_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_directory.environment()["git"] == {"commit": None, "dirty": False}


def test_finished_is_a_result_and_a_checkpoint(tmp_path: Path) -> None:
    assert not run_directory.is_finished(tmp_path)
    (tmp_path / "result.json").touch()
    assert not run_directory.is_finished(tmp_path)
    last = run_directory.last_checkpoint(tmp_path)
    assert last == tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    assert run_directory.is_finished(tmp_path)
    (tmp_path / "result.json").unlink()
    assert not run_directory.is_finished(tmp_path)
