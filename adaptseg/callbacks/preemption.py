"""Preemption: the cluster announces that it takes the machine back; the run saves its state, stops and is requeued."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from adaptseg.console import say
from adaptseg.data.pair import pair_of
from adaptseg.distributed import all_reduce_sum
from adaptseg.errors import AdaptSegError

REQUEUE_CODE = 75
"""Exit code of a run that saved its state and wants to be started again: EX_TEMPFAIL of sysexits.h."""

AGREE_EVERY = 20
"""Steps between two questions whether any process was signalled; as often as the log is written by default."""

TIME_TO_SAVE = 120.0
"""Seconds before the end of the job when the run saves unasked; after the signal of fit.sbatch (180 s) would come."""

LAST_CALL = 60.0
"""Seconds before the end of the job, and after TIME_TO_SAVE, when a round or a validation is abandoned."""

TAKEN = {signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGCONT}
"""Signals that cannot announce a preemption: uncatchable, or spoken for."""


class Preempted(Exception):
    """Ends a fit on every process at the same step. `announced` is False for SIGTERM, which asks for no requeue."""

    def __init__(self, announced: bool) -> None:
        super().__init__("the run was asked to stop")
        self.announced = announced


def parse_signal(text: str) -> signal.Signals:
    """The signal that SLURM's spelling means: USR1, SIGUSR1 or 10.

    Raises:
        AdaptSegError: no such signal, or one that cannot announce a preemption.
    """
    name = text.upper()
    names = signal.Signals.__members__
    found = names.get(name, names.get(f"SIG{name}"))
    if found is None and text.isdecimal() and int(text) in signal.valid_signals():
        found = next((member for member in signal.Signals if member == int(text)), None)
    if found is None or found in TAKEN:
        raise AdaptSegError(f"--preempt_signal is {text}; a signal such as USR1 or USR2 is expected")
    return found


def job_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """The SLURM job as `scontrol` spells it, ARRAY_TASK for a task of an array; None outside SLURM."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment.get("SLURM_JOB_ID")


def is_requeued(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether SLURM has started this job before."""
    return int(environment.get("SLURM_RESTART_COUNT") or 0) > 0


def with_slurm(plugins: list[Any]) -> list[Any]:
    """The trainer's plugins and, under srun, SLURM's environment without Lightning's own requeueing.

    That saves inside the signal handler, at any point of a step, into a file that later starts prefer for ever.

    Raises:
        AdaptSegError: the variables of srun contradict each other.
    """
    if not SLURMEnvironment.detect() or any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        return plugins
    try:
        return [*plugins, SLURMEnvironment(auto_requeue=False)]
    except RuntimeError as error:
        raise AdaptSegError(f"SLURM: {' '.join(str(error).split())}") from error


class Preemption(Callback):
    """Saves `last` at the end of a step, on all processes, when one of them was signalled or the job is about to end.

    The handler only takes a note. Every AGREE_EVERY steps, and at the start of each tick, one all-reduced pair of flags
    tells whether any process has one; a single process looks after every step. Inside a tick the state is saved at
    once and the resume goes on at the next step. At the end of a tick its validation, its round and its checkpoint
    come first. Under SLURM a tick's end that takes too long is abandoned: the job is requeued from the checkpoint
    before, and the label store takes care of a round that was under way. At least one step is made first, so that
    every start gets somewhere.

    SIGTERM is handled alike but asks for no requeue. (Lightning's handler for it talks to the other processes from
    inside the handler, at any point of a step, and leaves the tick unsaved.)

    State: none of its own.

    Args:
        checkpoint: where `last` lies.
        number: the announcing signal.
    """

    def __init__(self, checkpoint: Path, number: signal.Signals = signal.SIGUSR1) -> None:
        self.checkpoint, self.number = checkpoint, number
        self.job, self.job_ends = job_id(), float(os.environ.get("SLURM_JOB_END_TIME") or "inf")
        self._announced_at = float("inf")
        self._terminated = False
        self._stop: Preempted | None = None
        self._over = threading.Event()
        self._requeue_asked = threading.Lock()

    # ---- noticing

    def watch(self) -> None:
        """Take notes from now on: a signal between this and the first step must not kill the process."""
        signal.signal(self.number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self._terminated = True
        else:
            self._announced_at = min(self._announced_at, time.time())

    def _is_announced(self) -> bool:
        now = time.time()
        return self._announced_at <= now or now > self.job_ends - TIME_TO_SAVE

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or self.job is None or not trainer.is_global_zero:
            return
        if shutil.which("scontrol") is None:
            say(
                f"SLURM: scontrol is not on PATH, so a preempted run is saved and ends with code {REQUEUE_CODE}, but "
                f"the job is not requeued; let the batch script do it: scontrol requeue {self.job}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = self._seen = trainer.global_step
        # Lightning registers its handlers just before this and puts back the earlier ones when the fit ends.
        signal.signal(signal.SIGTERM, self._note)
        if self.job is not None and trainer.is_global_zero:
            threading.Thread(target=self._watch_the_clock, name="preemption", daemon=True).start()

    # ---- stopping

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen:
            return  # gradients are still being accumulated
        self._seen = step
        if step % pair_of(trainer).tick_length(trainer.max_steps) == 0 or step == trainer.max_steps:
            return  # a checkpoint between the last step of a tick and its round would lose the round
        if trainer.world_size > 1 and step % AGREE_EVERY:
            return
        if self._agreed():
            trainer.save_checkpoint(self.checkpoint)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stop is not None:  # only now has the last step been logged
            raise self._stop

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._first and self._agreed():
            assert self._stop is not None
            raise self._stop

    def _agreed(self) -> bool:
        """Whether any process was told to stop; the same answer on all of them. Every process must call it."""
        announced, terminated = all_reduce_sum(np.array([self._is_announced(), self._terminated], np.int64))
        if announced or terminated:
            self._stop = Preempted(bool(announced))
        return self._stop is not None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Preempted):  # then the logs must still be uploaded in time
            self._over.set()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._over.set()

    # ---- handing the machine back

    def _watch_the_clock(self) -> None:
        """On rank zero, in a thread of its own, since a round spends minutes in one collective."""
        while not self._over.wait(1.0):
            if time.time() > min(self._announced_at + TIME_TO_SAVE, self.job_ends - LAST_CALL):
                say("SLURM: the job ends before this run could stop by itself; it resumes from its last checkpoint")
                self.requeue()
                sys.stdout.flush()
                os._exit(REQUEUE_CODE)  # the main thread may be inside a collective that no exception can reach

    def requeue(self) -> None:
        """Ask SLURM, once, to start this job again; it ends this one at once. Nothing outside SLURM; rank zero only."""
        if self.job is None or not self._requeue_asked.acquire(blocking=False):
            return
        if shutil.which("scontrol") is None:
            return  # said at setup
        done = subprocess.run(["scontrol", "requeue", self.job], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = " ".join(done.stderr.split())
            say(f"SLURM: scontrol requeue {self.job} failed ({reason}); submit the same job again to resume")
        else:
            say(f"SLURM: job {self.job} is requeued")
