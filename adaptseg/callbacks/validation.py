"""When a run validates: every N ticks, before every round, and at the end."""

from __future__ import annotations

import sys
from typing import Any

from lightning import Callback, LightningModule, Trainer

from adaptseg.active.rounds import Acquisition
from adaptseg.data.pair import pair_of


class ValidationTimes(Callback):
    """Validates every `trainer.check_val_every_n_epoch` ticks, before every round and after the last step.

    Lightning knows only the first of the three, so its interval is set anew at the start of each tick. Stateless: a
    resume puts Lightning's books in order and decides anew.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.every = trainer.check_val_every_n_epoch or 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _close_finished_tick(trainer)
        self._decide(trainer)  # a resume inside a tick does not start it again

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._decide(trainer)

    def _decide(self, trainer: Trainer) -> None:
        tick = pair_of(trainer).tick_length(trainer.max_steps)
        end = min((trainer.global_step // tick + 1) * tick, trainer.max_steps)
        number = -(-end // tick)
        acquisitions = [c for c in trainer.callbacks if isinstance(c, Acquisition)]  # pyright: ignore
        wanted = (
            number % self.every == 0
            or end == trainer.max_steps
            or any(a.is_due(end) and a.judged_in_rounds for a in acquisitions)
        )
        trainer.check_val_every_n_epoch = 1 if wanted else sys.maxsize


def _close_finished_tick(trainer: Trainer) -> None:
    """After a resume from the end of a tick, begin the next one as an uninterrupted run does.

    A checkpoint written in `on_train_epoch_end` leaves the tick half closed in Lightning's books. Unless that tick was
    validated, Lightning 2.6 then trains one more step in it, ends it a second time, and counts the batches of the
    tick that really began from the middle, so that its validation is lost.
    """
    loop = trainer.fit_loop
    progress: Any = loop.epoch_progress.current
    if progress.started == progress.processed == progress.completed + 1:
        loop.epoch_progress.increment_completed()
        for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
            part.on_iteration_done()  # nothing is left to be restarted
