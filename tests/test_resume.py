"""A run that is killed at any instant and started again ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import RECIPE, Outcome, adaptseg, die, finish, fit_flags, start, wait_for

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

    _die_in(CBDA, "_score", lambda self, key, p: self.round == 1 and key.endswith("2"))


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

    _die_in(report, "_write_rounds", lambda trainer, history: len(history) == 2)


def _checkpoint(step: int) -> Callable[..., bool]:
    return lambda io, checkpoint, path, *_: checkpoint["global_step"] == step and Path(path).name.startswith("last")


def before_last_ckpt() -> None:
    from adaptseg.lightning_cli import _AtomicCheckpointIO

    _die_in(_AtomicCheckpointIO, "save_checkpoint", _checkpoint(4))


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
    from adaptseg.lightning_cli import _AtomicCheckpointIO

    _die_in(_AtomicCheckpointIO, "save_checkpoint", _checkpoint(4), after=True)


def after_best_ckpt() -> None:
    """`best` is then newer than `last`."""
    from adaptseg.lightning_cli import _AtomicCheckpointIO

    def best(io: Any, checkpoint: Any, path: Any, *_: Any) -> bool:
        return checkpoint["global_step"] == 4 and Path(path).name.startswith("best")

    _die_in(_AtomicCheckpointIO, "save_checkpoint", best, after=True)


def before_the_last_checkpoint() -> None:
    from adaptseg.lightning_cli import _AtomicCheckpointIO

    _die_in(_AtomicCheckpointIO, "save_checkpoint", _checkpoint(8))


def after_the_last_checkpoint() -> None:
    from adaptseg.lightning_cli import _AtomicCheckpointIO

    _die_in(_AtomicCheckpointIO, "save_checkpoint", _checkpoint(8), after=True)


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
