"""What every training shares: one summed loss, logging, and promises about randomness and NaN."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from adaptseg import networks
from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.distributed import gather
from adaptseg.errors import AdaptSegError
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.optimization import Optimization
from adaptseg.networks.groups import ParameterParts
from adaptseg.networks.load import ENTRY, Describable
from adaptseg.tensors import seed_device


class StepResult(NamedTuple):
    """What a method computes in one step: the loss still to descend and scalars to log (name -> 0-d tensor)."""

    loss: Tensor
    logs: dict[str, Tensor]


class Monitor(NamedTuple):
    """The metric by which a run's best checkpoint is chosen, and which way is better."""

    metric: str
    mode: Literal["min", "max"]


class SavedNetwork(Describable, Protocol):
    """A module that can be compiled, and made anew from its description."""

    def compile(self) -> None: ...


class Training(LightningModule):
    """Base of everything that `adaptseg fit` trains; `Method` is the one of segmentation.

    A subclass writes `step(batch)`, `trained`, `saved_networks` and, where a step has one backward pass, `descends`.
    `global_step` counts updates of `trained`. Before every step the global random generators are seeded from (seed,
    step, rank), so a resumed run draws what the uninterrupted one would have drawn. Nothing is saved beyond what
    Lightning saves.

    Args:
        optimization: optimiser and schedule.
        seed: filled in from `seed_everything`.
        acceleration: how the networks are executed.
    """

    monitor: ClassVar[Monitor]
    """What `best.ckpt` is best in."""

    def __init__(self, *, optimization: Optimization, seed: int, acceleration: Acceleration) -> None:
        super().__init__()
        self.optimization, self.seed, self.acceleration = optimization, seed, acceleration
        self.register_buffer("first_bad_step", torch.tensor(-1), persistent=False)
        self.window_keys: list[tuple[int, list[str]]] = []
        self._descended: list[Tensor] = []

    # ---- to be written by a method

    @abstractmethod
    def step(self, batch: Batch) -> StepResult:
        """The loss of one micro-batch. Pure of logging and of `self.trainer`.

        A step of several passes hands each loss but the last to `descend`, so that one graph lives at a time.
        """

    @property
    @abstractmethod
    def trained(self) -> ParameterParts:
        """The network that the optimiser updates."""

    @property
    def companions(self) -> Iterable[nn.Parameter]:
        """Parameters beside those of `trained` that learn at its head's rate."""
        return ()

    @abstractmethod
    def saved_networks(self) -> Mapping[str, tuple[str, SavedNetwork]]:
        """Name -> (prefix in the state dict, network) of everything that a checkpoint lets us rebuild."""

    @property
    def logit_classes(self) -> ClassTable | None:
        """The classes of the networks' logits; None where no network has logits."""
        return None

    @property
    def descends(self) -> bool:
        """Whether steps hand losses to `descend`."""
        return True

    # ---- what `step` may use

    def descend(self, loss: Tensor) -> None:
        """Add the gradient of one of the step's losses now and free its graph, instead of summing losses: the same
        gradient, at the memory of the largest pass. Every trainable parameter must have a part in the step's *last*
        loss: under DDP its backward pass is the one that sends the sum of all gradients.

        With `acceleration.shared_backward` the loss waits for the last one's backward pass, where a trainer makes it.
        """
        if self._shares_backward:
            self._descended.append(loss)
            return
        self._descended.append(loss.detach())
        # As for the last loss, whose backward pass Lightning makes: autocast would round gradients of float32 parts.
        with torch.autocast(loss.device.type, enabled=False):
            if self._trainer is None:  # a step on its own, in a notebook or a test
                loss.backward()
                return
            trainer = self.trainer  # whose strategy scales the loss where the precision asks for it
            trainer.strategy.backward(loss / trainer.accumulate_grad_batches, None)

    @property
    def _shares_backward(self) -> bool:
        return self.acceleration.shared_backward and self._trainer is not None

    # ---- training

    def on_fit_start(self) -> None:
        if self.acceleration.shared_backward and not self.descends:
            raise AdaptSegError(
                f"model.acceleration.shared_backward changes nothing here: a step of this {type(self).__name__} has "
                "one backward pass; set it to false"
            )
        if self.acceleration.compile:
            for _, network in self.saved_networks().values():
                network.compile()  # in place: the names of the weights stay
        if self.trainer.world_size > 1:  # not in `setup`, after which trainer.sync_batchnorm converts the modules
            self._refuse_local_batch_norm()

    def _refuse_local_batch_norm(self) -> None:
        local = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if any(isinstance(module, local) and module.training for module in self.modules()):
            raise AdaptSegError(
                "batch norm statistics would differ between processes: set trainer.sync_batchnorm: true (GPU), or "
                "model.network.init_args.norm: frozen or group"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedule = self.optimization.build(self.trained, self.trainer.max_steps, companions=self.companions)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Lightning 2.6 counts one step too many for loggers after each resume from the end of an epoch.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step
        # One number per (seed, micro-batch, rank); 2**20 ranks are more than anyone has.
        micro_batch = self.global_step * self.trainer.accumulate_grad_batches
        micro_batch += batch_idx % self.trainer.accumulate_grad_batches
        seed_device(hash((self.seed, micro_batch)) % 2**40 * 2**20 + self.global_rank, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._descended.clear()
        result = self.step(batch)
        total = torch.stack([*self._descended, result.loss]).sum()
        loss = total.detach()
        self._watch_finite(loss, batch)
        # Only what somebody reads: the file, and the line at the end of a tick. Each costs a collective.
        if self._log_is_written or self.trainer.is_last_batch:
            for name, value in {"loss": loss, **result.logs}.items():
                self.log(f"train/{name}", value.detach(), sync_dist=True)  # a rank's share is no loss; their mean is
        return total if self._shares_backward else result.loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: Lightning calls this after `step`, which may already have added gradients."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    @property
    def _log_is_written(self) -> bool:
        """Whether Lightning writes what this step logs."""
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        return bool(every) and (self.global_step + 1) % every == 0

    def _watch_finite(self, loss: Tensor, batch: Batch) -> None:
        """Remember the first non-finite loss on the device; look at it, in all processes at once, as often as the log
        is written, and at the end of each tick, before anything is bought or saved.
        """
        first = self.first_bad_step
        assert isinstance(first, Tensor)
        is_first = ~torch.isfinite(loss) & (first < 0)
        self.first_bad_step = torch.where(is_first, torch.full_like(first, self.global_step), first)
        keys = [key for domain in (batch.source, batch.target) if domain is not None for key in domain.keys]
        self.window_keys.append((self.global_step, keys))
        # 0 = no log; then as often as Lightning logs by default.
        every = self.trainer.log_every_n_steps or 50  # pyright: ignore[reportAttributeAccessIssue]
        if (self.global_step + 1) % every and not self.trainer.is_last_batch:
            return
        bad = int(self.first_bad_step)
        scenes = [key for step, keys in self.window_keys if step == bad for key in keys]
        found = [(step, said) for step, said in gather((bad, scenes)) if step >= 0]
        if found:
            bad = min(step for step, _ in found)
            named = sorted({key for step, said in found if step == bad for key in said})
            raise AdaptSegError(
                f"the loss became non-finite at step {bad} (scenes {', '.join(named)}); lower "
                "model.optimization.lr, or look at these scenes"
            )
        self.window_keys.clear()

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[ENTRY] = networks.describe(self.saved_networks(), self.logit_classes, IMAGENET_MEAN, IMAGENET_STD)
