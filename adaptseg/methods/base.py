"""What all methods share: a student, one summed loss, logging, evaluation, and promises about randomness and NaN."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from adaptseg import networks
from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch, Labelled
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.pair import pair_of
from adaptseg.errors import AdaptSegError
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.optimization import Optimization
from adaptseg.metrics import SegmentationMetrics
from adaptseg.networks import Inference, Segmenter
from adaptseg.tensors import likeliest


class StepResult(NamedTuple):
    """What a method computes in one step: the loss still to descend and scalars to log (name -> 0-d tensor)."""

    loss: Tensor
    logs: dict[str, Tensor]


def made(network: Callable[[int], nn.Module], class_table: ClassTable, maker: str) -> Segmenter:
    """What a factory makes for these classes; AdaptSegError, naming the key `maker`, unless it is a Segmenter."""
    segmenter = network(class_table.num_classes)
    if not isinstance(segmenter, Segmenter):
        raise AdaptSegError(f"{maker} makes a {type(segmenter).__name__}; a Segmenter is expected")
    return segmenter


def start_from(network: Segmenter, checkpoint: str, class_table: ClassTable, *, keys: tuple[str, str]) -> None:
    """Give `network` the weights of the student of a checkpoint or run directory.

    Args:
        keys: what errors call the factory of the network and the checkpoint.
    """
    weights = networks.load(checkpoint, "student", class_table=class_table).state_dict()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise AdaptSegError(f"{keys[1]} {checkpoint} holds another network than {keys[0]} makes: {reason}") from error


class Method(LightningModule):
    """Base of every method. A subclass writes `step(batch)` and, if it has more networks, `saved_networks`.

    State: the student's weights and the running statistics of class weights, saved by Lightning with the optimiser;
    nothing else. `global_step` counts student updates. Before every step the global random generators are seeded from
    (seed, step, rank), so a resumed run draws what the uninterrupted one would have drawn.

    Args:
        network: factory of the student, called with the number of classes.
        class_table: filled in from the data.
        optimization: optimiser and schedule.
        inference: how whole scenes are predicted in validation, test, prediction and scoring.
        init_from: checkpoint or run directory whose student's weights to start from. Not a resume: steps, optimiser
            and rounds begin at zero.
        seed: filled in from `seed_everything`.
        class_weights: what the classes weigh in every pixel cross-entropy of the method; null = 1 each.
        acceleration: compilation and memory format of the networks.
    """

    first_network: ClassVar = ("model.network", "model.init_from")
    """What errors call the factory of the network that is made here, and the checkpoint it may start from."""

    def __init__(
        self,
        *,
        network: Callable[[int], nn.Module],
        class_table: ClassTable,
        optimization: Optimization,
        inference: Inference,
        init_from: str | None,
        seed: int,
        class_weights: ClassWeights | None,
        acceleration: Acceleration,
    ) -> None:
        super().__init__()
        maker, origin = self.first_network
        self.student = made(network, class_table, maker)
        acceleration.arrange(self.student)
        self.class_table, self.optimization, self.inference = class_table, optimization, inference
        self.class_weights, self.acceleration = class_weights, acceleration
        self.seed = seed
        if init_from is not None:
            start_from(self.student, init_from, class_table, keys=(maker, origin))
        self.metrics = SegmentationMetrics(class_table)
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
    def weighted_losses(self) -> tuple[str, ...]:
        """The cross-entropies that class weights apply to, each with weights of its own."""
        return ("source",)

    def saved_networks(self) -> dict[str, tuple[str, Segmenter]]:
        """Name -> (prefix in the state dict, network) of everything that `networks.load` can rebuild."""
        return {"student": ("student.", self.student)}

    # ---- what `step` may use

    def descend(self, loss: Tensor) -> None:
        """Add the gradient of one of the step's losses now and free its graph, instead of summing losses: the same
        gradient, at the memory of the largest pass. Every trainable parameter must have a part in the step's *last*
        loss: under DDP its backward pass is the one that sends the sum of all gradients.
        """
        self._descended.append(loss.detach())
        # As for the last loss, whose backward pass Lightning makes: autocast would round gradients of float32 parts.
        with torch.autocast(loss.device.type, enabled=False):
            if self._trainer is None:  # a step on its own, in a notebook or a test
                loss.backward()
                return
            trainer = self.trainer  # whose strategy scales the loss where the precision asks for it
            trainer.strategy.backward(loss / trainer.accumulate_grad_batches, None)

    def weights_of(self, loss: str, log_probabilities: Tensor, labels: Tensor) -> Tensor | None:
        """Class weights (C,) for one of `weighted_losses`, from its log-softmax (B, C, H, W) and labels (B, H, W)."""
        return self.class_weights(loss, log_probabilities, labels) if self.class_weights is not None else None

    # ---- training

    def setup(self, stage: str) -> None:
        if self.class_weights is not None and stage == "fit":
            self.class_weights.prepare(
                self.class_table, self.weighted_losses, lambda: pair_of(self.trainer).source_statistics()
            )

    def on_fit_start(self) -> None:
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
        optimizer, schedule = self.optimization.build(self.student, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Lightning 2.6 counts one step too many for loggers after each resume from the end of an epoch.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step
        # One number per (seed, micro-batch, rank); 2**20 ranks are more than anyone has.
        micro_batch = self.global_step * self.trainer.accumulate_grad_batches
        micro_batch += batch_idx % self.trainer.accumulate_grad_batches
        torch.manual_seed(hash((self.seed, micro_batch)) % 2**40 * 2**20 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._descended.clear()
        result = self.step(batch)
        loss = torch.stack([*self._descended, result.loss.detach()]).sum()
        self._watch_finite(loss, batch)
        for name, value in {"loss": loss, **result.logs}.items():
            self.log(f"train/{name}", value.detach(), sync_dist=True)  # a rank's share is no loss; their mean is
        self._log_class_weights()
        return result.loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: Lightning calls this after `step`, which may already have added gradients."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def _log_class_weights(self) -> None:
        """As often as the log is written: C scalars a loss in every step would cost more than the weights."""
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if self.class_weights is None or not every or (self.global_step + 1) % every:
            return
        for loss, weights in self.class_weights.latest.items():
            for name, weight in zip(self.class_table.names, weights, strict=True):
                self.log(f"class_weights/{loss}/{name}", weight, sync_dist=True)

    def _watch_finite(self, loss: Tensor, batch: Batch) -> None:
        """Remember the first non-finite loss on the device; look at it as often as the log is written, and at the end
        of each tick, before anything is bought or saved.
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
        if bad >= 0:
            scenes = sorted({key for step, keys in self.window_keys if step == bad for key in keys})
            raise AdaptSegError(
                f"the loss became non-finite at step {bad} (scenes {', '.join(scenes)}); lower "
                "model.optimization.lr, or look at these scenes"
            )
        self.window_keys.clear()

    # ---- evaluation

    @property
    def evaluated(self) -> Segmenter:
        """The network that is scored, and that scores the pool."""
        return self.student

    @torch.no_grad()
    def predict_probabilities(
        self, images: Tensor, *, size: tuple[int, int], draws: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Class probabilities (draws, B, C, *size) float32 of normalised images (B, 3, H, W).

        Raises:
            AdaptSegError: draws > 1, which needs a source of randomness that this method does not have.
        """
        if draws != 1 or generator is not None:
            raise AdaptSegError(
                f"{type(self).__name__} predicts without randomness; one draw without a generator is possible, "
                f"{draws} {'without a' if generator is None else 'with a'} generator asked for"
            )
        return networks.predict_probabilities(self.evaluated, images, size=size, inference=self.inference)[None]

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Labelled, batch_idx: int) -> None:
        self._evaluate(batch)

    def predict_step(self, batch: Labelled, batch_idx: int) -> Tensor:
        """(B, C, H, W) probabilities at native size."""
        height, width = batch.labels.shape[-2:]
        return self.predict_probabilities(batch.image, size=(height, width))[0]

    def _evaluate(self, batch: Labelled) -> None:
        height, width = batch.labels.shape[-2:]
        probabilities = self.predict_probabilities(batch.image, size=(height, width))[0]
        self.metrics.update(likeliest(probabilities, 1), batch.labels)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, prefix: str) -> None:
        result = self.metrics.compute()
        self.metrics.reset()
        # The metric has synchronised its confusion matrix: every rank logs the same numbers.
        for name in ("miou", "worst", "accuracy"):
            self.log(f"{prefix}/{name}", result[name].to(self.device), rank_zero_only=False)
        for kind in ("iou", "recall"):
            for name, value in zip(self.class_table.names, result[kind], strict=True):
                if not torch.isnan(value):  # a class absent from the ground truth has none; it is left out, not zero
                    self.log(f"{prefix}/{kind}/{name}", value.to(self.device))

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["adaptseg"] = networks.describe(self.saved_networks(), self.class_table, IMAGENET_MEAN, IMAGENET_STD)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out running statistics of class weights that nobody prepared: only training does."""
        own = self.state_dict()
        state = checkpoint["state_dict"]
        foreign = [key for key in state if key.startswith("class_weights.") and key not in own]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if key not in foreign}
