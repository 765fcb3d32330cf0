"""A run that is signalled saves its state, stops, is requeued, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Outcome, adaptseg, finish, fit_flags, start
from test_resume import RUN, assert_same_run, rows, without_pictures

from adaptseg.callbacks import preemption
from adaptseg.callbacks.preemption import REQUEUE_CODE, job_id, parse_signal
from adaptseg.errors import AdaptSegError

SLOW = pytest.mark.slow
STOPPED = "; the same command resumes"


# ---- what is read from flags and variables


@pytest.mark.parametrize("text", ["USR2", "usr2", "SIGUSR2", str(int(signal.SIGUSR2))])
def test_signals_are_spelled_as_slurm_spells_them(text: str) -> None:
    assert parse_signal(text) is signal.SIGUSR2


@pytest.mark.parametrize("text", ["", "USR", "KILL", "SIGSTOP", "TERM", "INT", "9", "0", "999", "-1", "USR1@180"])
def test_what_announces_nothing_is_refused(text: str) -> None:
    with pytest.raises(AdaptSegError, match=r"--preempt_signal is .*USR1 or USR2"):
        parse_signal(text)


def test_jobs_are_named_as_scontrol_names_them() -> None:
    assert job_id({}) is None
    assert job_id({"SLURM_JOB_ID": "12"}) == "12"
    array = {"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert job_id(array) == "12_3"


# ---- where runs are signalled; each function runs in the new process before the command


def _signal_in(owner: Any, name: str, when: Callable[..., bool], number: int = signal.SIGUSR1) -> None:
    """Signal the process itself at the start of `owner.name` each time `when(*arguments)` holds."""
    original = getattr(owner, name)

    def signalled(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    setattr(owner, name, signalled)
    without_pictures()


def _in_step(step: int, number: int = signal.SIGUSR1) -> None:
    from adaptseg.methods import Supervised

    _signal_in(Supervised, "training_step", lambda method, *_: method.global_step == step, number)


def before_the_first_step() -> None:
    _in_step(0)


def inside_a_tick() -> None:
    _in_step(4)


def terminated_inside_a_tick() -> None:
    _in_step(4, signal.SIGTERM)


def by_another_signal() -> None:
    _in_step(4, signal.SIGUSR2)


def in_the_last_step_of_a_tick() -> None:
    _in_step(3)


def in_the_last_step_of_all() -> None:
    _in_step(7)


def before_training() -> None:
    from adaptseg.data import DomainPair

    _signal_in(DomainPair, "setup", lambda *_: True)


def while_validating() -> None:
    from adaptseg.methods import Supervised

    _signal_in(Supervised, "validation_step", lambda method, *_: method.global_step == 4)


def while_scoring() -> None:
    from adaptseg.active import CBDA

    _signal_in(CBDA, "_score", lambda self, *_: self.round == 1)


def in_a_round_that_takes_too_long() -> None:
    """Nothing but the end of the process ends the second round."""
    from adaptseg.active import CBDA

    original = CBDA._score

    def endless(self: Any, *arguments: Any) -> Any:
        if self.round == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(100)
        return original(self, *arguments)

    CBDA._score = endless  # type: ignore[method-assign]
    preemption.TIME_TO_SAVE = 0.5
    without_pictures()


# ---- a cluster


def cluster(folder: Path, *, answer: str = "exit 0", **variables: str) -> dict[str, str]:
    """Variables of a SLURM job whose `scontrol` notes what it is asked for in `<folder>/asked`."""
    place = folder / "bin"
    place.mkdir(parents=True, exist_ok=True)
    stub = place / "scontrol"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{answer}\n')
    stub.chmod(0o755)
    return {"PATH": f"{place}:{os.environ['PATH']}", "SLURM_JOB_ID": "4321", **variables}


def asked(folder: Path) -> list[str]:
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


def saved_step(run: Path) -> int:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["global_step"]


def resumes(folder: Path, whole: Path, *flags: str, environment: dict[str, str] | None = None) -> Outcome:
    again = adaptseg(*fit_flags(*flags), folder=folder, before=without_pictures, environment=environment)
    assert (again.code, again.err) == (0, "")
    assert_same_run(folder / RUN, whole)
    return again


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    done = adaptseg(*fit_flags(), folder=folder, before=without_pictures)
    assert done.code == 0, done.err
    return folder / RUN


@pytest.mark.parametrize(
    ("point", "step"),
    [
        (inside_a_tick, 5),
        pytest.param(before_the_first_step, 1, marks=SLOW),
        pytest.param(before_training, 1, marks=SLOW),
        pytest.param(in_the_last_step_of_a_tick, 4, marks=SLOW),
        pytest.param(while_validating, 4, marks=SLOW),
        (while_scoring, 4),
    ],
)
def test_saves_stops_is_requeued_and_goes_on(whole: Path, tmp_path: Path, point: Callable[[], None], step: int) -> None:
    environment = cluster(tmp_path)
    stopped = adaptseg(*fit_flags(), folder=tmp_path, before=point, environment=environment)
    assert (stopped.code, stopped.err) == (REQUEUE_CODE, "")
    assert f"stopped at step {step}{STOPPED}" in stopped.out
    assert "SLURM: job 4321 is requeued" in stopped.out
    assert asked(tmp_path) == ["requeue 4321"]
    assert saved_step(tmp_path / RUN) == step
    assert not (tmp_path / RUN / "result.json").exists()
    again = resumes(tmp_path, whole, environment={**environment, "SLURM_RESTART_COUNT": "1"})
    assert "resuming runs/cbda_20pct/seed0 from" in again.out
    assert asked(tmp_path) == ["requeue 4321"]


def test_a_run_signalled_at_its_end_is_finished(whole: Path, tmp_path: Path) -> None:
    done = adaptseg(*fit_flags(), folder=tmp_path, before=in_the_last_step_of_all, environment=cluster(tmp_path))
    assert (done.code, done.err) == (0, "")
    assert asked(tmp_path) == []
    assert_same_run(tmp_path / RUN, whole)


@SLOW
def test_a_round_that_takes_too_long_is_abandoned(whole: Path, tmp_path: Path) -> None:
    flags = fit_flags()
    stopped = adaptseg(
        *flags, folder=tmp_path, before=in_a_round_that_takes_too_long, environment=cluster(tmp_path), timeout=60
    )
    assert stopped.code == REQUEUE_CODE
    assert "it resumes from its last checkpoint" in stopped.out
    assert asked(tmp_path) == ["requeue 4321"]
    assert saved_step(tmp_path / RUN) == 2
    resumes(tmp_path, whole)


@SLOW
def test_signalled_again_and_again(whole: Path, tmp_path: Path) -> None:
    """Every start makes one step at least, also when it is signalled before."""
    environment = cluster(tmp_path)
    for _ in range(8):
        stopped = adaptseg(*fit_flags(), folder=tmp_path, before=before_training, environment=environment)
        if stopped.code == 0:
            break
        assert (stopped.code, stopped.err) == (REQUEUE_CODE, "")
    assert_same_run(tmp_path / RUN, whole)


@SLOW
def test_accumulated_gradients(tmp_path: Path) -> None:
    flags = fit_flags("--trainer.accumulate_grad_batches", "2")
    assert adaptseg(*flags, folder=tmp_path / "whole", before=without_pictures).code == 0
    stopped = adaptseg(*flags, folder=tmp_path / "cut", before=inside_a_tick)
    assert stopped.code == REQUEUE_CODE
    assert saved_step(tmp_path / "cut" / RUN) == 5
    assert adaptseg(*flags, folder=tmp_path / "cut", before=without_pictures).code == 0
    assert_same_run(tmp_path / "cut" / RUN, tmp_path / "whole" / RUN)


# ---- what may be missing


def test_outside_slurm_nothing_is_requeued(tmp_path: Path) -> None:
    flags = fit_flags("--preempt_signal", "USR2")
    stopped = adaptseg(*flags, folder=tmp_path, before=by_another_signal)
    assert (stopped.code, stopped.err) == (REQUEUE_CODE, "")
    assert "SLURM" not in stopped.out
    assert saved_step(tmp_path / RUN) == 5


@SLOW
def test_sigterm_saves_the_step_and_asks_for_no_requeue(whole: Path, tmp_path: Path) -> None:
    stopped = adaptseg(*fit_flags(), folder=tmp_path, before=terminated_inside_a_tick, environment=cluster(tmp_path))
    assert (stopped.code, stopped.err) == (128 + signal.SIGTERM, "")
    assert asked(tmp_path) == []
    assert saved_step(tmp_path / RUN) == 5
    resumes(tmp_path, whole)


def test_without_scontrol_the_state_is_saved_all_the_same(tmp_path: Path) -> None:
    environment = {"SLURM_JOB_ID": "4321", "PATH": str(tmp_path)}
    stopped = adaptseg(*fit_flags(), folder=tmp_path, before=inside_a_tick, environment=environment)
    assert (stopped.code, stopped.err) == (REQUEUE_CODE, "")
    assert stopped.out.count("scontrol is not on PATH") == 1
    assert "scontrol requeue 4321" in stopped.out
    assert saved_step(tmp_path / RUN) == 5


@SLOW
def test_a_refused_requeue_is_told(tmp_path: Path) -> None:
    environment = cluster(tmp_path, answer="echo 'Requested operation is presently disabled' >&2; exit 1")
    stopped = adaptseg(*fit_flags(), folder=tmp_path, before=inside_a_tick, environment=environment)
    assert (stopped.code, stopped.err) == (REQUEUE_CODE, "")
    assert "scontrol requeue 4321 failed (Requested operation is presently disabled); submit" in stopped.out


@SLOW
def test_the_end_of_the_job_needs_no_signal(whole: Path, tmp_path: Path) -> None:
    """A time limit without `--signal`: SLURM says when the job ends."""
    environment = cluster(tmp_path, SLURM_JOB_END_TIME=str(int(time.time() + 100)))
    stopped = adaptseg(*fit_flags(), folder=tmp_path, before=without_pictures, environment=environment)
    assert (stopped.code, stopped.err) == (REQUEUE_CODE, "")
    assert asked(tmp_path) == ["requeue 4321"]
    assert saved_step(tmp_path / RUN) == 1
    later = {**environment, "SLURM_JOB_END_TIME": str(int(time.time() + 9999))}
    resumes(tmp_path, whole, environment=later)


@SLOW
def test_fresh_in_a_requeued_job_goes_on(whole: Path, tmp_path: Path) -> None:
    """The batch script holds the same command each time."""
    environment = cluster(tmp_path)
    adaptseg(*fit_flags("--fresh"), folder=tmp_path, before=inside_a_tick, environment=environment)
    again = resumes(tmp_path, whole, "--fresh", environment={**environment, "SLURM_RESTART_COUNT": "1"})
    assert "--fresh: SLURM has requeued this job" in again.out
    assert len(list((tmp_path / RUN).parent.iterdir())) == 1


# ---- two processes, started as srun starts them


def _as_srun_does() -> None:
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only.rank = int(os.environ["SLURM_PROCID"])  # read on import, which the server did
    preemption.AGREE_EVERY = 3
    without_pictures()


def one_signalled() -> None:
    """The signal reaches rank 1 alone, in the third step; the tick ends after the fourth."""
    _as_srun_does()
    if os.environ["SLURM_PROCID"] == "1":
        _in_step(2)


def one_terminated() -> None:
    _as_srun_does()
    if os.environ["SLURM_PROCID"] == "1":
        _in_step(2, signal.SIGTERM)


def srun(folder: Path, before: Callable[[], None], *extra: str) -> list[Outcome]:
    """Two tasks of a job on one node, joined by gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = cluster(
        folder, SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="2", SLURM_NNODES="1", SLURM_NODEID="0",
        SLURM_JOB_NAME="fit", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCH_DISTRIBUTED_DEBUG="OFF",
    )  # fmt: skip
    flags = fit_flags("--trainer.devices", "2", "--runs", str(folder / "runs"), *extra)
    ranks = [folder / "rank0", folder / "rank1"]
    tasks = [
        start(*flags, folder=place, before=before, environment={**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank, place in zip("01", ranks, strict=True)
    ]
    return [finish(task, place) for task, place in zip(tasks, ranks, strict=True)]


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    assert [(done.code, done.err) for done in srun(folder, _as_srun_does)] == [(0, ""), (0, "")]
    return folder / RUN


@SLOW
@pytest.mark.parametrize(
    ("point", "code", "calls"),
    [(one_signalled, REQUEUE_CODE, ["requeue 4321"]), (one_terminated, 128 + signal.SIGTERM, [])],
)
def test_one_of_two_processes_is_signalled(
    whole_of_two: Path, tmp_path: Path, point: Callable[[], None], code: int, calls: list[str]
) -> None:
    stopped = srun(tmp_path, point)
    assert [(done.code, done.err) for done in stopped] == [(code, ""), (0, "")]
    assert asked(tmp_path) == calls
    assert saved_step(tmp_path / RUN) == 3
    assert rows(tmp_path / RUN / "metrics.csv")[-1][0] == "2"  # the third step is in the log
    assert f"stopped at step 3{STOPPED}" in stopped[0].out
    assert stopped[1].out == ""
    assert [(done.code, done.err) for done in srun(tmp_path, _as_srun_does)] == [(0, ""), (0, "")]
    assert_same_run(tmp_path / RUN, whole_of_two)


@SLOW
def test_contradictory_variables_are_told_in_one_line(tmp_path: Path) -> None:
    environment = cluster(tmp_path, SLURM_NTASKS="2", SLURM_JOB_NAME="fit")  # no --ntasks-per-node
    refused = adaptseg(*fit_flags(), folder=tmp_path, environment=environment)
    assert refused.code == 2
    assert refused.err.startswith("adaptseg: error: SLURM: ")
    assert "--ntasks-per-node" in refused.err
    assert refused.err.count("\n") == 1
