"""A run that is killed at any instant and started again ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import RECIPE, adaptseg, die, finish, fit_flags, start, wait_for

from adaptseg.callbacks.checkpoints import MovableCheckpoint

RUN = Path("runs") / RECIPE.stem / "seed0"
SLOW = pytest.mark.slow


# ---- where runs are killed; each function runs in the new process before the command


def without_pictures() -> None:
    """Half of a tiny run's time."""
    from adaptseg.callbacks import panels

    panels._save = lambda trainer, figure, name: None
    panels._grid = lambda titles, rows: None
    panels._curve = lambda history, final: None


def _die_in(owner: Any, name: str, when: Callable[..., bool], *, after: bool = False) -> None:
    """Kill the process in `owner.name` the first time `when(*arguments)` holds, before or after its work."""
    original = getattr(owner, name)

    def deadly(*arguments: Any, **options: Any) -> Any:
        doomed = when(*arguments)
        if doomed and not after:
            die()
        result = original(*arguments, **options)
        if doomed:
            die()
        return result

    setattr(owner, name, deadly)
    without_pictures()


def _step(wanted: int) -> Callable[..., bool]:
    return lambda method, *_: method.global_step == wanted


def at_the_first_step() -> None:
    from adaptseg.methods import Supervised

    _die_in(Supervised, "training_step", _step(0))


def in_the_first_tick() -> None:
    from adaptseg.methods import Supervised

    _die_in(Supervised, "training_step", _step(1), after=True)


def inside_a_tick() -> None:
    from adaptseg.methods import Supervised

    _die_in(Supervised, "training_step", _step(5), after=True)


def at_the_start_of_a_tick() -> None:
    from adaptseg.methods import Supervised

    _die_in(Supervised, "training_step", _step(4), after=True)


def while_validating() -> None:
    from adaptseg.methods import Supervised

    _die_in(Supervised, "validation_step", lambda method, batch, index: method.global_step == 4 and index == 2)


def while_scoring() -> None:
    from adaptseg.active import CBDA

    _die_in(CBDA, "_score", lambda self, method, key, *_: self.round == 1 and key.endswith("2"))


def before_the_first_answer() -> None:
    from adaptseg.active.labels import LabelStore

    _die_in(LabelStore, "stage", lambda store, round, answers: round == 2)


def while_staging_answers() -> None:
    from adaptseg.active import GroundTruth

    def is_third(oracle: Any, key: str, bought: Any) -> bool:
        return key.endswith("2") and (RUN / "labels" / "round_002.partial").is_dir()

    _die_in(GroundTruth, "answer", is_third)


def after_staging_answers() -> None:
    from adaptseg.active.labels import LabelStore

    _die_in(LabelStore, "seal", lambda store, round, totals: round == 2)


def between_rename_and_manifest() -> None:
    from adaptseg.active import labels

    _die_in(labels, "atomic_json", lambda path, content: path.name == "round_002.json")


def while_writing_the_manifest() -> None:
    _die_in(os, "replace", lambda *paths: False)  # pathlib renames on its own
    _die_in(Path, "replace", lambda path, target: Path(target).name == "round_002.json")


def after_the_manifest() -> None:
    from adaptseg.active.labels import LabelStore

    _die_in(LabelStore, "seal", lambda store, round, totals: round == 2, after=True)


def after_the_first_manifest() -> None:
    from adaptseg.active.labels import LabelStore

    _die_in(LabelStore, "seal", lambda store, round, totals: round == 1, after=True)


def before_rounds_csv() -> None:
    from adaptseg.callbacks import report

    _die_in(report, "_write_rounds", lambda trainer, acquisition: len(acquisition.history) == 2)


def _checkpoint(step: int) -> Callable[..., bool]:
    return lambda io, checkpoint, path, *_: checkpoint["global_step"] == step and Path(path).name.startswith("last")


def before_last_ckpt() -> None:
    from adaptseg.callbacks.checkpoints import AtomicCheckpointIO

    _die_in(AtomicCheckpointIO, "save_checkpoint", _checkpoint(4))


def while_writing_last_ckpt() -> None:
    """The file is there, half of it."""
    from lightning.pytorch.plugins import TorchCheckpointIO

    original = TorchCheckpointIO.save_checkpoint

    def torn(io: Any, checkpoint: Any, path: Any, *rest: Any) -> None:
        original(io, checkpoint, path, *rest)
        if _checkpoint(4)(io, checkpoint, path):
            data = Path(path).read_bytes()
            Path(path).write_bytes(data[: len(data) // 2])
            die()

    TorchCheckpointIO.save_checkpoint = torn  # type: ignore[method-assign]
    without_pictures()


def after_last_ckpt() -> None:
    from adaptseg.callbacks.checkpoints import AtomicCheckpointIO

    _die_in(AtomicCheckpointIO, "save_checkpoint", _checkpoint(4), after=True)


def after_best_ckpt() -> None:
    """`best` is then newer than `last`."""
    from adaptseg.callbacks.checkpoints import AtomicCheckpointIO

    def best(io: Any, checkpoint: Any, path: Any, *_: Any) -> bool:
        return checkpoint["global_step"] == 4 and Path(path).name.startswith("best")

    _die_in(AtomicCheckpointIO, "save_checkpoint", best, after=True)


def before_the_last_checkpoint() -> None:
    from adaptseg.callbacks.checkpoints import AtomicCheckpointIO

    _die_in(AtomicCheckpointIO, "save_checkpoint", _checkpoint(8))


def after_the_last_checkpoint() -> None:
    from adaptseg.callbacks.checkpoints import AtomicCheckpointIO

    _die_in(AtomicCheckpointIO, "save_checkpoint", _checkpoint(8), after=True)


def before_result_json() -> None:
    from adaptseg import storage

    _die_in(storage, "atomic_json", lambda path, content: path.name == "result.json")


def while_a_row_is_logged() -> None:
    """A torn last line in metrics.csv."""
    from adaptseg.loggers import CsvLogger

    def torn(logger: Any, metrics: Any, step: int | None = None) -> None:
        original(logger, metrics, step)
        if step == 5:
            data = logger.path.read_bytes()
            logger.path.write_bytes(data[:-9])
            die()

    original = CsvLogger.log_metrics
    CsvLogger.log_metrics = torn  # type: ignore[method-assign]
    without_pictures()


def while_metrics_csv_is_made() -> None:
    """The file exists, its header does not."""
    from adaptseg.loggers import CsvLogger

    def torn(logger: Any, metrics: Any, step: int | None = None) -> None:
        logger.path.touch()
        die()

    CsvLogger.log_metrics = torn  # type: ignore[method-assign]


POINTS = [
    pytest.param(at_the_first_step, marks=SLOW),
    pytest.param(in_the_first_tick, marks=SLOW),
    pytest.param(inside_a_tick),
    pytest.param(at_the_start_of_a_tick, marks=SLOW),
    pytest.param(while_validating, marks=SLOW),
    pytest.param(while_scoring, marks=SLOW),
    pytest.param(before_the_first_answer, marks=SLOW),
    pytest.param(while_staging_answers, marks=SLOW),
    pytest.param(after_staging_answers, marks=SLOW),
    pytest.param(between_rename_and_manifest),
    pytest.param(while_writing_the_manifest, marks=SLOW),
    pytest.param(after_the_manifest),
    pytest.param(after_the_first_manifest, marks=SLOW),
    pytest.param(before_rounds_csv, marks=SLOW),
    pytest.param(before_last_ckpt, marks=SLOW),
    pytest.param(while_writing_last_ckpt, marks=SLOW),
    pytest.param(after_last_ckpt, marks=SLOW),
    pytest.param(after_best_ckpt, marks=SLOW),
    pytest.param(before_the_last_checkpoint, marks=SLOW),
    pytest.param(after_the_last_checkpoint),
    pytest.param(before_result_json, marks=SLOW),
    pytest.param(while_a_row_is_logged, marks=SLOW),
    pytest.param(while_metrics_csv_is_made, marks=SLOW),
]


# ---- the comparison


def files_of_store(run: Path) -> dict[str, bytes]:
    labels = run / "labels"
    paths = [path for path in labels.rglob("*") if path.is_file() and "set_aside" not in path.parts]
    paths = [path for path in paths if not path.name.endswith(".tmp")]  # of a file whose rename the kill prevented
    return {str(path.relative_to(labels)): path.read_bytes() for path in paths}


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def plain_result(run: Path) -> dict[str, Any]:
    result = json.loads((run / "result.json").read_text())
    result.pop("seconds")
    return result


def equal(one: Any, other: Any) -> bool:
    """Bit equality of nested checkpoints."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def assert_same_run(resumed: Path, whole: Path) -> None:
    """Labels, losses, scores, rounds, weights and optimiser, bit by bit."""
    assert files_of_store(resumed) == files_of_store(whole)
    assert rows(resumed / "metrics.csv") == rows(whole / "metrics.csv")
    assert rows(resumed / "rounds.csv") == rows(whole / "rounds.csv")
    assert plain_result(resumed) == plain_result(whole)
    for name in ("last", "best"):
        one, other = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=False) for run in (resumed, whole))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "adaptseg"):
            assert equal(one[part], other[part]), (name, part)
    assert not list(resumed.glob(".scratch*")), "scratch space of the killed process remains"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    done = adaptseg(*fit_flags(), folder=folder, before=without_pictures)
    assert done.code == 0, done.err
    return folder / RUN


# ---- the tests


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_started_again(whole: Path, tmp_path: Path, point: Callable[[], None]):
    killed = adaptseg(*fit_flags(), folder=tmp_path, before=point)
    assert killed.code == -signal.SIGKILL, killed.out + killed.err
    again = adaptseg(*fit_flags(), folder=tmp_path, before=without_pictures)
    assert again.code == 0, again.err
    assert again.err == ""
    assert_same_run(tmp_path / RUN, whole)


def ask_nobody() -> None:
    """Any question to the oracle fails."""
    from adaptseg.active import GroundTruth

    def refuse(oracle: Any, key: str, bought: Any) -> Any:
        raise AssertionError("answers that were bought are asked for again")

    GroundTruth.answer = refuse  # type: ignore[method-assign]
    without_pictures()


def test_answers_that_were_bought_before_a_kill_are_not_bought_again(whole: Path, tmp_path: Path):
    adaptseg(*fit_flags(), folder=tmp_path, before=after_the_manifest)
    assert adaptseg(*fit_flags(), folder=tmp_path, before=ask_nobody).code == 0
    assert_same_run(tmp_path / RUN, whole)
    assert not (tmp_path / RUN / "labels" / "set_aside").exists()


@SLOW
def test_many_kills_of_one_run(whole: Path, tmp_path: Path):
    points = (while_metrics_csv_is_made, while_scoring, while_staging_answers, after_the_manifest, inside_a_tick)
    for point in (*points, before_the_last_checkpoint, before_result_json):
        assert adaptseg(*fit_flags(), folder=tmp_path, before=point).code == -signal.SIGKILL
    assert adaptseg(*fit_flags(), folder=tmp_path, before=without_pictures).code == 0
    assert_same_run(tmp_path / RUN, whole)


def test_pictures_and_result_are_made_up_for(tmp_path: Path):
    """Killed after the last checkpoint: nothing is left to train, the report is."""
    killed = adaptseg(*fit_flags(), folder=tmp_path, before=after_the_last_checkpoint_with_pictures)
    assert killed.code == -signal.SIGKILL
    pictures = tmp_path / RUN / "pictures"
    assert not (pictures / "final.png").exists()
    again = adaptseg(*fit_flags(), folder=tmp_path)
    assert (again.code, again.err) == (0, "")
    assert "finished. Everything lies in" in again.out
    assert {path.name for path in pictures.iterdir()} == {"round_01.png", "round_02.png", "final.png", "curve.png"}
    assert adaptseg(*fit_flags(), folder=tmp_path).out.strip().endswith("--name NAME starts another")


def after_the_last_checkpoint_with_pictures() -> None:
    from adaptseg.callbacks import panels

    saved = panels._save, panels._grid, panels._curve
    after_the_last_checkpoint()
    panels._save, panels._grid, panels._curve = saved


def slowly() -> None:
    """Steps slow enough to be interrupted."""
    import time

    from adaptseg.methods import Supervised

    original = Supervised.training_step

    def slow(method: Any, batch: Any, index: int) -> Any:
        (RUN / f"step{method.global_step}").touch()
        time.sleep(0.3)
        return original(method, batch, index)

    Supervised.training_step = slow  # type: ignore[method-assign]
    without_pictures()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=SLOW)])
def test_interrupted_by_a_signal(whole: Path, tmp_path: Path, number: int):
    process = start(*fit_flags(), folder=tmp_path, before=slowly)
    wait_for((tmp_path / RUN / "step5").exists, process)
    assert process.pid is not None
    os.kill(process.pid, number)
    stopped = finish(process, tmp_path)
    assert stopped.code == 128 + number
    assert "; the same command resumes" in stopped.out
    assert "Traceback" not in stopped.err
    again = adaptseg(*fit_flags(), folder=tmp_path, before=without_pictures)
    assert again.code == 0
    assert "resuming runs/cbda_20pct/seed0 from" in again.out
    assert_same_run(tmp_path / RUN, whole)


# ---- checkpoints from inside a tick


def _save_and_die(step: int) -> None:
    from adaptseg.callbacks.validation import ValidationTimes

    def save(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step == step:
            trainer.save_checkpoint("inside.ckpt")
            ValidationTimes.on_train_batch_start = lambda *_: die()  # type: ignore[method-assign]
            ValidationTimes.on_validation_start = lambda *_: die()  # type: ignore[method-assign]

    ValidationTimes.on_train_batch_end = save  # type: ignore[method-assign]
    without_pictures()


def save_after_step_1() -> None:
    _save_and_die(1)


def save_after_step_3() -> None:
    _save_and_die(3)


def save_after_step_4() -> None:
    _save_and_die(4)


def save_after_step_5() -> None:
    _save_and_die(5)


def save_after_step_7() -> None:
    _save_and_die(7)


@pytest.mark.parametrize(
    "point",
    [
        save_after_step_3,
        *(pytest.param(p, marks=SLOW) for p in (save_after_step_1, save_after_step_5, save_after_step_7)),
    ],
)
def test_checkpoints_from_inside_a_tick(whole: Path, tmp_path: Path, point: Callable[[], None]):
    assert adaptseg(*fit_flags(), folder=tmp_path, before=point).code == -signal.SIGKILL
    again = adaptseg(*fit_flags("--ckpt_path", "inside.ckpt"), folder=tmp_path, before=without_pictures)
    assert (again.code, again.err) == (0, "")
    assert_same_run(tmp_path / RUN, whole)


@SLOW
def test_a_checkpoint_between_a_step_and_its_round_is_refused(tmp_path: Path):
    """Lightning does not come back to the end of that tick: the round would be late."""
    adaptseg(*fit_flags(), folder=tmp_path, before=save_after_step_4)
    refused = adaptseg(*fit_flags("--ckpt_path", "inside.ckpt"), folder=tmp_path)
    assert refused.code == 2
    assert "--ckpt_path: this checkpoint was saved after step 4 and before the round of that step" in refused.err
    assert refused.err.count("\n") == 1


@SLOW
@pytest.mark.parametrize("point", [inside_a_tick, while_staging_answers, save_after_step_3])
def test_accumulated_gradients(tmp_path: Path, point: Callable[[], None]):
    flags = fit_flags("--trainer.accumulate_grad_batches", "2")
    assert adaptseg(*flags, folder=tmp_path / "whole", before=without_pictures).code == 0
    folder = tmp_path / "killed"
    assert adaptseg(*flags, folder=folder, before=point).code == -signal.SIGKILL
    if point is save_after_step_3:
        flags += ["--ckpt_path", "inside.ckpt"]
    assert adaptseg(*flags, folder=folder, before=without_pictures).code == 0
    assert_same_run(folder / RUN, tmp_path / "whole" / RUN)


# ---- what the command says about earlier runs


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A working directory that holds a finished run."""
    shutil.copytree(whole, tmp_path / RUN)
    return tmp_path


def test_a_finished_run_says_so_and_touches_nothing(finished: Path):
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in (finished / RUN).rglob("*")}

    before = times()
    again = adaptseg(*fit_flags(), folder=finished)
    assert (again.code, again.err) == (0, "")
    assert again.out == (f"{RUN} is finished: nothing to do. --fresh starts over, --name NAME starts another\n")
    assert times() == before


def test_fresh_renames_and_starts_over(finished: Path, whole: Path):
    (finished / RUN / "mine.txt").write_text("keep me")
    again = adaptseg(*fit_flags("--fresh"), folder=finished, before=without_pictures)
    assert (again.code, again.err) == (0, "")
    (aside,) = (finished / RUN).parent.glob("seed0.*")
    assert (aside / "mine.txt").read_text() == "keep me"
    assert (aside / "result.json").is_file()
    assert f"--fresh: the earlier run is now {aside.relative_to(finished)}" in again.out
    assert_same_run(finished / RUN, whole)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--active.budget", "0.1"], "active.init_args.budget was 0.2 and is now 0.1"),
        pytest.param(["--data.batch_size", "4"], "data.init_args.batch_size was 2 and is now 4", marks=SLOW),
        pytest.param(
            ["--data.target.count", "5"], "data.init_args.target.init_args.count was 4 and is now 5", marks=SLOW
        ),
        pytest.param(
            ["--model.negative_weight", "0.5"],
            "model.init_args.negative_weight was 1.0 and is now 0.5",
            marks=SLOW,
        ),
        (["--trainer.max_steps", "12"], "trainer.max_steps was 8 and is now 12"),
        (["--name", "seed0", "--seed_everything", "3"], "seed_everything was 0 and is now 3"),
    ],
)
def test_another_config_is_refused(finished: Path, flags: list[str], said: str):
    before = files_of_store(finished / RUN)
    refused = adaptseg(*fit_flags(*flags), folder=finished)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert refused.err.startswith(f"adaptseg: error: {RUN} was written by another config: ")
    assert said in refused.err
    assert refused.err.endswith("Give this run another --name, or start over with --fresh\n")
    assert files_of_store(finished / RUN) == before


@SLOW
def test_what_does_not_decide_the_result_may_change(whole: Path, tmp_path: Path):
    adaptseg(*fit_flags(), folder=tmp_path, before=inside_a_tick)
    flags = fit_flags("--data.workers", "1", "--active.scratch", "elsewhere", "--trainer.enable_progress_bar", "false")
    again = adaptseg(*flags, folder=tmp_path, before=without_pictures)
    assert (again.code, again.err) == (0, "")
    assert_same_run(tmp_path / RUN, whole)


def test_a_run_that_was_moved_resumes(whole: Path, tmp_path: Path):
    adaptseg(*fit_flags(), folder=tmp_path / "here", before=inside_a_tick)
    (tmp_path / "here").rename(tmp_path / "there")
    again = adaptseg(*fit_flags(), folder=tmp_path / "there", before=without_pictures)
    assert (again.code, again.err) == (0, "")
    assert_same_run(tmp_path / "there" / RUN, whole)


def test_the_best_score_survives_a_move():
    """The next, worse validation must not overwrite best.ckpt."""
    here, there = Path("/here/checkpoints"), Path("/there/checkpoints")
    old, new = (
        MovableCheckpoint(folder, "best", monitor="val/miou", mode="max", enable_version_counter=False)
        for folder in (here, there)
    )
    score = torch.tensor(0.5)
    old.best_k_models, old.kth_value = {str(here / "best.ckpt"): score}, score
    old.best_model_path = old.kth_best_model_path = str(here / "best.ckpt")
    new.load_state_dict(old.state_dict())
    assert new.best_k_models == {str(there / "best.ckpt"): score}
    assert new.best_model_path == new.kth_best_model_path == str(there / "best.ckpt")
    assert new.kth_value == score
    assert not new.check_monitor_top_k(
        SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool)), score / 2
    )


def test_two_identical_runs_are_identical(whole: Path, tmp_path: Path):
    again = adaptseg(*fit_flags("--name", "other", "--runs", "elsewhere"), folder=tmp_path, before=without_pictures)
    assert again.code == 0
    assert_same_run(tmp_path / "elsewhere" / RECIPE.stem / "other", whole)
