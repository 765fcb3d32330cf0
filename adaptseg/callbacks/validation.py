"""When a run validates: every N ticks, before every round, and at the end."""

from __future__ import annotations

import sys

from lightning import Callback, LightningModule, Trainer

from adaptseg.active.rounds import Acquisition
from adaptseg.data.pair import pair_of


class ValidationTimes(Callback):
    """Validates every `trainer.check_val_every_n_epoch` ticks, before every round and after the last step.

    Lightning knows only the first of the three, so its interval is set anew at the start of each tick. Stateless.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.every = trainer.check_val_every_n_epoch or 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tick = pair_of(trainer).tick_length(trainer.max_steps)
        end = min((trainer.global_step // tick + 1) * tick, trainer.max_steps)
        number = -(-end // tick)
        acquisitions = [c for c in trainer.callbacks if isinstance(c, Acquisition)]  # pyright: ignore
        wanted = number % self.every == 0 or end == trainer.max_steps or any(a.is_due(end) for a in acquisitions)
        trainer.check_val_every_n_epoch = 1 if wanted else sys.maxsize
