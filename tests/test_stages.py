"""Staged recipes: how they are read, what runs, what is skipped, what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from test_resume import _die_in, _step, without_pictures
from tiny import tiny_flags

from adaptseg import staged_run, stages
from adaptseg.errors import AdaptSegError
from adaptseg.jobs import Job, Workplace

CONFIGS = Path(__file__).parents[1] / "configs"


class CountBytes(Job):
    """Writes the sizes of the files it is given, and how often it ran."""

    def __init__(self, paths: list[str], note: str = "") -> None:
        self.paths, self.note = paths, note

    def run(self, place: Workplace) -> None:
        sizes = [sum(f.stat().st_size for f in [Path(p), *Path(p).rglob("*")] if f.is_file()) for p in self.paths]
        (place.folder / "sizes.json").write_text(json.dumps([sizes, self.note, len(place.require_data().pool.keys)]))


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "staged.yaml"
    path.write_text(yaml.safe_dump({"stages": list(rows)}, sort_keys=False))
    return path


def row(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "config": str(CONFIGS / "source_only.yaml"), **keys}


def read(path: Path, *flags: str, overlays: Sequence[Path] = (), root: str | None = None) -> list[stages.Stage]:
    return stages.read_stages([path, *overlays], flags, root)


# ---- reading


def test_a_stage_is_its_files_its_own_keys_and_its_flags(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        row("a"),
        row("b", recipe={"trainer": {"max_steps": 7}}, flags={"data.source": None, "model.init_from": "{stage:a}"}),
        {"name": "c", "needs": ["a"], "config": str(CONFIGS / "dacs.yaml"), "recipe": {"job": {"class_path": "X"}}},
    )
    a, b, c = read(path, "--trainer.max_steps=5", "--stages.b.model.seed", "3", "--data.batch_size", "2")
    assert [stage.verb for stage in (a, b, c)] == ["fit", "fit", "job"]
    assert (a.recipe["trainer"]["max_steps"], b.recipe["trainer"]["max_steps"]) == (1200, 7)
    assert b.recipe["trainer"]["check_val_every_n_epoch"] == 4
    assert a.flags == (("trainer.max_steps", "5"), ("data.batch_size", "2"))
    assert b.flags[:2] == (("data.source", "null"), ("model.init_from", "{stage:a}"))
    assert ("model.seed", "3") in b.flags
    assert set(c.recipe) == {"job", "data"}  # the training's recipe lends it the data
    assert c.flags == (("data.batch_size", "2"),)
    assert stages.references(c, ["a", "b"], "") == [stages.Reference("a", None)]
    assert stages.as_tokens(b.flags, Path("run"), ["a"])[:4] == ["--data.source", "null", "--model.init_from", "run/a"]


def test_each_makes_a_stage_of_every_value(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"each": ["x", "y"], **row("train_{each}")},
        {"each": ["x", "y"], **row("use_{each}", flags={"model.init_from": "{stage:train_{each}}"})},
        {"name": "all", "recipe": {"job": {"class_path": "J", "init_args": {"runs": "{stages:use_*}/labels"}}}},
    )
    made = read(path)
    assert [stage.name for stage in made] == ["train_x", "train_y", "use_x", "use_y", "all"]
    assert made[3].flags == (("model.init_from", "{stage:train_y}"),)
    earlier = [stage.name for stage in made[:-1]]
    assert stages.references(made[4], earlier, "") == [stages.Reference(f"use_{n}", "labels") for n in "xy"]
    resolved = stages.resolve(made[4].recipe, Path("r"), earlier)
    assert resolved["job"]["init_args"]["runs"] == ["r/use_x/labels", "r/use_y/labels"]


def test_overlays_lie_over_every_stage(tmp_path: Path) -> None:
    overlay = tmp_path / "data.yaml"
    overlay.write_text(yaml.safe_dump({"data": {"class_path": "DomainPair", "init_args": {"target": "{root}/t"}}}))
    job = {"name": "j", "recipe": {"job": {"class_path": "J"}}}
    made = read(write(tmp_path, row("a"), job), overlays=[overlay], root="/d")
    for stage in made:
        assert stage.recipe["data"]["init_args"] == {"target": "/d/t"}
    assert set(made[1].recipe) == {"job", "data"}


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        ([], [], "a list of stages is expected"),
        ([{"config": "x"}], [], "a mapping with a name"),
        ([row("a"), row("a")], [], "two stages are named 'a'"),
        ([row("a b")], [], "make a name"),
        ([row("a", konfig=1)], [], "unknown keys konfig"),
        ([row("a", needs=["b"]), row("b")], [], "'a' needs 'b', which is not a stage before it"),
        ([row("a", flags={"model.init_from": "{stage:z}"})], [], "needs 'z'"),
        ([row("a", flags={"model.init_from": "{stages:z*}"})], [], r"no earlier stage matches {stages:z\*}"),
        ([{"each": ["x"], **row("a")}], [], "the name holds {each}"),
        ([{"name": "a"}], [], "neither `config:` nor `recipe:`"),
        ([row("a", config="nowhere.yaml")], [], "nowhere.yaml does not exist"),
        ([row("a", needs="b")], [], "`needs:` a list"),
        ([row("a", flags=["x"])], [], "are mappings"),
        ([row("a")], ["--stages.b.trainer.max_steps", "1"], "no stage 'b'; it has a"),
        ([row("a")], ["--active.budget", "0.1"], "--active.budget: no stage of .* reads it"),
        ([row("a")], ["3"], "'3' is not understood"),
    ],
)
def test_wrong_recipes(tmp_path: Path, rows: list[Any], flags: list[str], said: str) -> None:
    path = write(tmp_path, *rows)
    with pytest.raises(AdaptSegError, match=said):
        read(path, *flags)


def test_wrong_overlays(tmp_path: Path) -> None:
    path = write(tmp_path, row("a"))
    with pytest.raises(AdaptSegError, match=r"cbda\.yaml sets active:, which cannot lie over every stage"):
        read(path, overlays=[CONFIGS / "active" / "cbda.yaml"])
    with pytest.raises(AdaptSegError, match="nothing else is expected in the first"):
        read(CONFIGS / "dacs.yaml", overlays=[path])
    with pytest.raises(AdaptSegError, match="is staged itself"):
        read(write(tmp_path / "..", {"name": "b", "config": str(path)}))


# ---- what decides a stage's result


def test_only_what_decides_the_result_is_in_the_key(tmp_path: Path) -> None:
    def key(*flags: str, **keys: Any) -> dict[str, Any]:
        return staged_run.stage_key(read(write(tmp_path, row("a", **keys)), *flags)[0], tmp_path, [])

    assert key("--data.workers", "3", "--trainer.devices", "2", "--data.init_args.cache", "x") == key()
    assert key(recipe={"trainer": {"check_val_every_n_epoch": 9}}) == key()
    assert key("--trainer.max_steps", "5") != key()
    assert key("--seed_everything", "5") != key()
    assert key("--model.network.encoder", "x") != key()
    assert key(recipe={"trainer": {"max_steps": 9}}) != key()


def test_the_content_of_inputs_decides(tmp_path: Path) -> None:
    outside = tmp_path / "given"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "x.txt").write_text("1")
    (outside / ".hidden").write_text("2")
    made = read(write(tmp_path, row("a", flags={"model.init_from": f"{{file:{outside}}}"})))[0]
    first = staged_run.stage_key(made, tmp_path, [])
    assert list(first["inputs"]) == [f"{{file:{outside}}}"]
    (outside / ".hidden").write_text("3")
    os.utime(outside / "deep" / "x.txt", (0, 0))
    assert staged_run.stage_key(made, tmp_path, []) == first
    (outside / "deep" / "x.txt").write_text("2")
    assert staged_run.stage_key(made, tmp_path, []) != first
    with pytest.raises(AdaptSegError, match="nowhere does not exist"):
        staged_run.content_of(tmp_path / "nowhere")


# ---- running: real commands, in processes that a server forks


class Commands:
    """Starts stages in `folder`; counts them; `deadly` runs before the command of one stage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran = folder, []
        self.deadly: dict[str, Callable[[], None]] = {}
        self.errors = ""

    def __call__(self, arguments: Sequence[str], lock: int) -> int:
        name = Path(arguments[arguments.index("--folder") + 1]).name
        self.ran.append(f"{arguments[0]} {name}")
        done = forked.adaptseg(*arguments, folder=self.folder, before=self.deadly.get(name, without_pictures))
        self.errors = done.err
        return done.code if done.code >= 0 else 128 - done.code


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(tmp_path)


def recipe(folder: Path, **changes: Any) -> Path:
    flags = {flag[2:]: value for flag, value in zip(tiny_flags(steps=4)[::2], tiny_flags(steps=4)[1::2], strict=True)}
    flags |= {"trainer.log_every_n_steps": 1, "data.tick": 2}
    job = {"class_path": "test_stages.CountBytes", "init_args": {"paths": ["{stage:first}/checkpoints"]}}
    second = row("second", flags={**flags, "model.init_from": "{stage:first}", **changes.pop("second", {})})
    job["init_args"] |= changes.pop("job", {})
    end = {**row("end", recipe={"job": job}, needs=["second"]), **changes}
    end["flags"] = {"data.target.count": 4}
    return write(folder, row("first", flags=flags), second, end)


def fit(path: Path, commands: Commands, *flags: str) -> tuple[int, list[str]]:
    commands.ran = []
    code = staged_run.run_staged("fit", ["--config", str(path), *flags], commands)
    return code, commands.ran


RUN = Path("runs") / "staged" / "seed0"


@pytest.mark.slow
def test_stages_run_in_order_and_are_skipped_when_done(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(recipe(tmp_path), commands) == (0, ["fit first", "fit second", "job end"]), commands.errors
    said = capsys.readouterr().out
    assert "stage 1/3 first: new" in said
    assert "finished. Everything lies in runs/staged/seed0" in said
    sizes, _, scenes = json.loads((RUN / "end" / "sizes.json").read_text())
    assert (sizes[0] > 0, scenes) == (True, 4)

    assert fit(recipe(tmp_path), commands) == (0, [])
    assert capsys.readouterr().out.count(": done, skipped") == 3

    # What changes the last stage alone, then an earlier one, with what depends on it.
    assert fit(recipe(tmp_path, job={"note": "again"}), commands) == (0, ["job end"])
    assert "recipe.job.init_args.note was None and is now 'again'; what was there is now" in capsys.readouterr().out
    flags = ["--stages.second.model.optimization.lr", "0.01"]
    assert fit(recipe(tmp_path, job={"note": "again"}), commands, *flags) == (0, ["fit second", "job end"])
    assert "flags.model.optimization.lr was None and is now '0.01'" in (said := capsys.readouterr().out)
    assert "stage 3/3 end: input {stage:second} has changed" in said

    # A product that somebody deleted is made again.
    (RUN / "end" / "sizes.json").unlink()
    assert fit(recipe(tmp_path, job={"note": "again"}), commands, *flags) == (0, ["job end"])
    assert "lost a part of what it made" in capsys.readouterr().out

    # Verbs of evaluation are about the last training, or the one that is named.
    evaluation = ["--config", str(recipe(tmp_path))]
    assert staged_run.run_staged("validate", evaluation, commands) == 0, commands.errors
    assert (RUN / "second" / "val.json").is_file()
    assert staged_run.run_staged("validate", [*evaluation, "--stage", "first"], commands) == 0
    with pytest.raises(AdaptSegError, match=r"--stage end: .* trains first, second"):
        staged_run.run_staged("test", [*evaluation, "--stage", "end"], commands)


def in_training() -> None:
    from adaptseg.methods import Supervised

    _die_in(Supervised, "training_step", _step(3))


def at_the_end_of_training() -> None:
    from adaptseg import storage

    without_pictures()
    _die_in(storage, "atomic_json", lambda path, content: path.name == "result.json")


def in_the_job() -> None:
    import test_stages

    _die_in(test_stages.CountBytes, "run", lambda *_: True, after=True)


@pytest.mark.slow
def test_killed_in_any_stage_the_same_command_goes_on(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    for name, deadly in (("first", in_training), ("second", at_the_end_of_training), ("end", in_the_job)):
        commands.deadly = {name: deadly}
        code, ran = fit(path, commands)
        assert (code, ran[-1].split()[1]) == (128 + signal.SIGKILL, name)
        assert not (RUN / name / "done.json").exists()
        assert f"{name}: ended with code 137" in capsys.readouterr().out
    commands.deadly = {}
    assert fit(path, commands) == (0, ["job end"])
    assert "end: was interrupted, goes on" in capsys.readouterr().out

    whole = tmp_path / "whole"
    whole.mkdir()
    commands.folder = whole
    os.chdir(whole)
    assert fit(path, commands)[0] == 0
    for name in ("first", "second"):
        lines = [(folder / RUN / name / "metrics.csv").read_text() for folder in (tmp_path, whole)]
        assert lines[0] == lines[1]


def test_an_interrupted_stage_whose_recipe_changed_starts_over(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.deadly = {"first": in_training}
    assert fit(recipe(tmp_path), commands)[0] == 137
    assert fit(recipe(tmp_path), commands, "--seed_everything", "0")[0] == 137
    assert "flags.seed_everything was None and is now '0'" in capsys.readouterr().out
    assert len(list(RUN.glob("first.*"))) == 1


def test_fresh_sets_the_whole_run_aside(tmp_path: Path, commands: Commands) -> None:
    (RUN / "first").mkdir(parents=True)
    commands.deadly = {"first": in_training}
    fit(recipe(tmp_path), commands, "--fresh")
    assert len(list(RUN.parent.glob("seed0.*"))) == 1
    assert fit(recipe(tmp_path), commands, "--seed_everything=3", "--name", "n", "--runs", "other")[0] == 137
    assert (Path("other") / "staged" / "n" / "first").is_dir()


def test_a_staged_recipe_is_started_once(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AdaptSegError, match="started once, without torchrun"):
        fit(recipe(tmp_path), commands)


def test_the_command_says_what_is_wrong_without_torch(tmp_path: Path) -> None:
    """A real process of the real command; a mistake costs no three seconds."""
    path = write(tmp_path, row("a", needs=["z"]))
    code = (
        "import sys; from adaptseg.cli import main; c = main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(c)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "fit", "--config", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("adaptseg: error: ")
    assert "needs 'z'" in done.stderr


@pytest.mark.slow
def test_processes_as_the_command_line_starts_them(tmp_path: Path) -> None:
    """Through real processes: a stage that outlives its killed parent is waited for."""
    path = recipe(tmp_path)
    command = [sys.executable, "-m", "adaptseg.cli", "fit", "--config", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    with (tmp_path / "first.txt").open("w") as out:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out, env=environment)
        try:
            while not (tmp_path / RUN / "first" / "config.yaml").exists():
                assert process.poll() is None
        finally:
            process.kill()
            process.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "waiting for another process that works in runs/staged/seed0" in done.stdout
    assert "finished. Everything lies in runs/staged/seed0" in done.stdout
