"""Runs in Weights & Biases, offline: their ids, what they carry, and that an interrupted run goes on as one."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import adaptseg, fit_flags
from test_preemption import inside_a_tick
from test_resume import RUN, without_pictures
from wandb.proto import wandb_internal_pb2 as proto

from adaptseg import wandb_run
from adaptseg.callbacks.preemption import REQUEUE_CODE
from adaptseg.errors import AdaptSegError
from adaptseg.options import own_options

CONFIG: dict[str, Any] = {
    "model": {"class_path": "adaptseg.methods.SelfTraining"},
    "active": {"class_path": "adaptseg.active.CBDA"},
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


# ---- ids, tags, places


def test_an_id_belongs_to_a_run_directory(tmp_path: Path) -> None:
    folder = tmp_path / "cbda+camvid" / "seed0"
    first = wandb_run.run_id(folder)
    assert first.startswith("cbda-camvid-seed0-")
    assert wandb_run.run_id(folder) == first
    folder.rename(folder.with_name("seed0.aside"))  # --fresh
    assert wandb_run.run_id(folder) != first


def test_the_agent_of_a_sweep_chooses_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert wandb_run.run_id(tmp_path) == "abc"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert wandb_run.run_id(tmp_path) == "abc"  # resumed by hand


def test_ids_fit_into_the_limits_of_the_service(tmp_path: Path) -> None:
    folder = tmp_path / ("very long/".rstrip("/") * 12) / "na:me#1"
    identity = wandb_run.run_id(folder)
    assert len(f"{identity}-labels") <= 128
    assert not set(identity) & set("/\\#?%: ")


def test_tags_name_recipes_method_and_acquisition() -> None:
    folder = Path("runs/mic+da+mic") / "seed0"
    assert wandb_run.tags(folder, CONFIG) == ["mic", "da", "SelfTraining", "CBDA"]
    assert wandb_run.tags(folder, {**CONFIG, "active": None}) == ["mic", "da", "SelfTraining"]


def test_project_and_entity_by_flag_or_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(**given: str | None) -> tuple[Any, Any]:
        places = {"project": None, "entity": None, **given}
        logger = wandb_run.wandb_logger(tmp_path / "r" / "s", CONFIG, is_rank_zero=True, **places)
        return logger._wandb_init["project"], logger._wandb_init["entity"]

    assert settings() == ("adaptseg", None)
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert settings() == ("ours", "team")
    assert settings(project="mine", entity="me") == ("mine", "me")


def test_other_processes_leave_nothing(tmp_path: Path) -> None:
    wandb_run.wandb_logger(tmp_path / "r" / "s", CONFIG, project=None, entity=None, is_rank_zero=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--wandb_project", "--wandb_entity"])
def test_a_place_without_the_logger_is_refused(flag: str) -> None:
    with pytest.raises(AdaptSegError, match=f"{flag} is about a run that is logged .*; add --wandb"):
        own_options("fit", [flag, "x"])


# ---- what an offline run holds


def records(path: Path) -> Iterator[proto.Record]:
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # a header never crosses the end of a block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield proto.Record.FromString(parts)
            parts = b""


def offline_runs(run: Path) -> list[list[proto.Record]]:
    folders = sorted((run / "wandb").glob("offline-run-*"))
    return [[*records(next(folder.glob("*.wandb")))] for folder in folders]


def of_kind(run: list[proto.Record], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in run if record.WhichOneof("record_type") == kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[proto.Record]]]:
    """A run that is preempted in its third tick, after both rounds, and resumed: (run directory, its two starts)."""
    folder = tmp_path_factory.mktemp("wandb")
    home = folder / "home"
    environment = {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(home), "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_CONFIG_DIR": str(home / "config"), "WANDB_DATA_DIR": str(home / "data"),
    }  # fmt: skip
    home.mkdir()
    flags = fit_flags("--wandb", "--wandb_project", "ours", "--trainer.log_every_n_steps", "1")
    stopped = adaptseg(*flags, folder=folder, before=inside_a_tick, environment=environment)
    assert stopped.code == REQUEUE_CODE, stopped.err
    done = adaptseg(*flags, folder=folder, before=without_pictures, environment=environment)
    assert done.code == 0, done.err
    return folder / RUN, offline_runs(folder / RUN)


@pytest.mark.slow
def test_both_starts_are_one_run(runs: tuple[Path, list[list[proto.Record]]]) -> None:
    folder, starts = runs
    identity = (folder / "wandb_id.txt").read_text().strip()
    assert len(starts) == 2
    for start in starts:
        (run,) = {record.run_id: record for record in of_kind(start, "run")}.values()
        assert (run.run_id, run.project, run.run_group) == (identity, "ours", "cbda_20pct")
        assert list(run.tags) == ["cbda_20pct", "Supervised", "CBDA"]
        config = {entry.key: json.loads(entry.value_json) for entry in run.config.update}
        assert config["active"]["init_args"]["budget"] == 0.2
        assert config["trainer"]["max_steps"] == 8
    first, second = starts
    assert of_kind(first, "preempting")
    assert not of_kind(second, "preempting")
    assert [record.exit_code for start in starts for record in of_kind(start, "exit")] == [REQUEUE_CODE, 0]


@pytest.mark.slow
def test_no_step_is_logged_twice_or_left_out(runs: tuple[Path, list[list[proto.Record]]]) -> None:
    steps = []
    for start in runs[1]:
        for row in of_kind(start, "history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
            if "train/loss" in items:
                steps.append(items["trainer/global_step"])
    assert steps == list(range(8))


@pytest.mark.slow
def test_labels_become_artefacts_round_by_round(runs: tuple[Path, list[list[proto.Record]]]) -> None:
    folder, (first, second) = runs
    identity = (folder / "wandb_id.txt").read_text().strip()
    versions = [*of_kind(first, "artifact"), *of_kind(second, "artifact")]
    versions = [version for version in versions if version.type == "labels"]
    names = [{*version.aliases} - {"latest"} for version in versions]
    assert names == [{"round_001"}, {"round_002"}, {"round_002", "final"}]
    assert {version.name for version in versions} == {f"{identity}-labels"}
    for version, rounds in zip(versions, (1, 2, 2), strict=True):
        labels = folder / "labels"
        wanted = {"registry.json", *(f"round_{number:03d}.json" for number in range(1, rounds + 1))}
        for number in range(1, rounds + 1):
            wanted |= {str(path.relative_to(labels)) for path in (labels / f"round_{number:03d}").rglob("*.png")}
        assert {entry.path for entry in version.manifest.contents} == wanted
        assert json.loads(version.metadata)["round"] == rounds
