"""`adaptseg ...` as a process of its own without its start-up time: a server imports torch once, commands are forks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from tiny import tiny_flags

RECIPE = Path(__file__).parents[1] / "configs" / "cbda_20pct.yaml"

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["adaptseg.lightning_cli", "matplotlib.backends.backend_agg", "matplotlib.figure"])


class Outcome(NamedTuple):
    """How a command ended: exit code (minus the signal that killed it), what it printed."""

    code: int
    out: str
    err: str


def fit_flags(*extra: str) -> list[str]:
    """A CBDA run of 8 steps in 4 ticks; rounds after steps 2 and 4; every loss is logged."""
    return [
        "fit", "--config", str(RECIPE), *tiny_flags(steps=8), "--data.tick", "2",
        "--active.schedule", "[0.25, 0.5]", "--trainer.log_every_n_steps", "1", *extra,
    ]  # fmt: skip


def adaptseg(
    *arguments: str,
    folder: Path,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Outcome:
    """Run one command in `folder`.

    Args:
        arguments: as on the command line.
        folder: the working directory.
        before: a top-level function of a test module, called in the new process before the command.
        environment: variables to set there.
        timeout: seconds after which the command counts as hung and is killed.
    """
    return finish(start(*arguments, folder=folder, before=before, environment=environment), folder, timeout)


def start(
    *arguments: str,
    folder: Path,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """As `adaptseg`, without waiting for the end."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the server inherits it; equal sums need equal numbers of threads
    folder.mkdir(parents=True, exist_ok=True)
    process = _SERVER.Process(target=_command, args=(arguments, str(folder), before, dict(environment or {})))
    process.start()
    return process


def finish(process: ForkServerProcess, folder: Path, timeout: float = 120) -> Outcome:
    """Wait for a started command."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"still running after {timeout} s: {(folder / 'stdout').read_text()[-2000:]}")
    return Outcome(process.exitcode, (folder / "stdout").read_text(), (folder / "stderr").read_text())


def wait_for(condition: Callable[[], bool], process: ForkServerProcess, timeout: float = 60) -> None:
    """Poll until the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.exitcode is None, "the command ended before the condition held"
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.01)


def die() -> None:
    """What a power cut is to a process: no handler runs, nothing is flushed."""
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def _command(
    arguments: tuple[str, ...], folder: str, before: Callable[[], None] | None, environment: dict[str, str]
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
    sys.argv = ["adaptseg", *arguments]

    import torch

    from adaptseg import cli

    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # a killed process loses no page, a power cut would
    if before is not None:
        before()
    sys.exit(cli.main(arguments))
