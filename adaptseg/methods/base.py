"""What all methods of segmentation share: a student, class weights, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adaptseg import networks
from adaptseg.classes import ClassTable
from adaptseg.data.batch import Batch, Labelled
from adaptseg.data.pair import pair_of
from adaptseg.data.sampling import uniform_draws
from adaptseg.errors import AdaptSegError
from adaptseg.losses import gbw
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.optimization import Optimization
from adaptseg.methods.training import Monitor, Training
from adaptseg.methods.training import StepResult as StepResult
from adaptseg.methods.training_pass import TrainingPass, training_pass
from adaptseg.metrics import SegmentationMetrics
from adaptseg.networks import Inference, Segmenter
from adaptseg.tensors import likeliest


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


class Method(Training):
    """Base of every method of segmentation; what it does in training is in `Training`. A subclass writes `step(batch)`
    and, if it has more networks, `saved_networks`.

    State: the student's weights and the running statistics of class weights, saved by Lightning with the optimiser;
    nothing else. `global_step` counts student updates.

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

    monitor = Monitor("val/miou", "max")
    reads_images: ClassVar[bool] = True
    """Whether training batches need pictures; without, nothing is decoded and images come as (B, 3, 0, 0)."""

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
        super().__init__(optimization=optimization, seed=seed, acceleration=acceleration)
        maker, origin = self.first_network
        self.student = made(network, class_table, maker)
        acceleration.arrange(self.student)
        self.class_table, self.inference, self.class_weights = class_table, inference, class_weights
        if init_from is not None:
            start_from(self.student, init_from, class_table, keys=(maker, origin))
        self.metrics = nn.ModuleList()  # one for each set that is evaluated

    # ---- to be written by a method

    @property
    def trained(self) -> Segmenter:
        return self.student

    @property
    def logit_classes(self) -> ClassTable:
        return self.class_table

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        """The pixel losses that class weights apply to, each with weights of its own."""
        return ("source",)

    def saved_networks(self) -> dict[str, tuple[str, Segmenter]]:
        return {"student": ("student.", self.student)}

    # ---- what `step` may use

    def said(
        self,
        name: str,
        images: Tensor,
        samples: Sequence[int],
        *,
        by: Segmenter | None = None,
        token_mask: Tensor | None = None,
    ) -> TrainingPass:
        """What the student, or the network `by`, says of normalised images (B, 3, H, W) in the pass of that name, some
        tokens (B, h, w) hidden. Where it looks closely, if it does, belongs to the sample numbers.
        """
        draw = partial(uniform_draws, self.seed, f"crop/{name}", samples)
        return training_pass(
            by or self.student, images, draw, token_mask=token_mask, align_corners=self.inference.align_corners
        )

    def weights_of(
        self, loss: str, log_probabilities: Tensor, labels: Tensor, *, objective: gbw.Objective = "cross_entropy"
    ) -> Tensor | None:
        """Class weights (C,) for one of `weighted_losses`, from its log-softmax (B, C, H, W) and labels (B, H, W)."""
        if self.class_weights is None:
            return None
        return self.class_weights(loss, log_probabilities, labels, objective=objective)

    # ---- training

    def setup(self, stage: str) -> None:
        if self.class_weights is not None and stage == "fit":
            self.class_weights.prepare(
                self.class_table, self.weighted_losses, lambda: pair_of(self.trainer).source_statistics()
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self._log_class_weights()
        return loss

    def _log_class_weights(self) -> None:
        """As often as the log is written: C scalars a loss in every step would cost more than the weights."""
        if self.class_weights is None or not self._log_is_written:
            return
        for loss, weights in self.class_weights.latest.items():
            for name, weight in zip(self.class_table.names, weights, strict=True):
                self.log(f"class_weights/{loss}/{name}", weight, sync_dist=True)

    def on_labels_bought(self, round: int) -> None:
        """Called once the labels of round `round` (from 1) are bought, before the next step sees them. By default a
        method goes on with what it has learned."""

    # ---- evaluation

    @property
    def evaluated(self) -> Segmenter:
        """The network that is scored, and that scores the pool."""
        return self.student

    @torch.no_grad()
    def predict_probabilities(
        self,
        images: Tensor,
        *,
        size: tuple[int, int],
        draws: int = 1,
        generator: torch.Generator | None = None,
        inference: Inference | None = None,
    ) -> Tensor:
        """Class probabilities (draws, B, C, *size) float32 of normalised images (B, 3, H, W).

        Args:
            draws: passes; more than one needs a generator.
            generator: on the CPU. With it every pass draws dropout anew, a mirrored or windowed reading included;
                without, the pass is that of the evaluation.
            inference: how the network reads them; None: as in `model.inference`.

        Raises:
            AdaptSegError: draws without a generator, or by a network without dropout.
        """

        def read() -> Tensor:
            return networks.predict_probabilities(self.evaluated, images, size=size, inference=given)

        given = inference or self.inference
        if generator is not None:
            with networks.dropping(self.evaluated, generator):
                return torch.stack([read() for _ in range(draws)])
        if draws != 1:
            raise AdaptSegError(
                f"{type(self).__name__} predicts without randomness; one draw without a generator is possible, "
                f"{draws} without a generator asked for"
            )
        return read()[None]

    def on_validation_epoch_start(self) -> None:
        self._prepare_metrics("val")

    def on_test_epoch_start(self) -> None:
        self._prepare_metrics("test")

    def _prepare_metrics(self, split: str) -> None:
        data = pair_of(self.trainer)
        sets = data.evaluation_sets(split)
        self.metrics = nn.ModuleList(SegmentationMetrics(data.scored_table) for _ in sets).to(self.device)

    def validation_step(self, batch: Labelled, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def test_step(self, batch: Labelled, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def predict_step(self, batch: Labelled, batch_idx: int) -> Tensor:
        """(B, C, H, W) probabilities at native size."""
        height, width = batch.labels.shape[-2:]
        return self.predict_probabilities(batch.image, size=(height, width))[0]

    def _evaluate(self, batch: Labelled, number: int) -> None:
        """Score one scene of the set of this number."""
        height, width = batch.labels.shape[-2:]
        probabilities = self.predict_probabilities(batch.image, size=(height, width))[0]
        self._metrics_of(number).update(likeliest(probabilities, 1), batch.labels)

    def _metrics_of(self, number: int) -> SegmentationMetrics:
        metrics = self.metrics[number]
        assert isinstance(metrics, SegmentationMetrics)
        return metrics

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        """The main set's numbers as `<split>/...`, those of the others as `<split>/<name>/...`."""
        for number, name in enumerate(pair_of(self.trainer).evaluation_sets(split)):
            self._log_scores(f"{split}/{name}" if number else split, self._metrics_of(number).compute())

    def _log_scores(self, prefix: str, result: dict[str, Tensor]) -> None:
        # The metric has synchronised its confusion matrix: every rank logs the same numbers.
        for name in (*(name for name in result if name.startswith("miou")), "worst", "accuracy"):
            self.log(f"{prefix}/{name}", result[name].to(self.device), rank_zero_only=False)
        for kind in ("iou", "recall"):
            for name, value in zip(self.class_table.names, result[kind], strict=True):
                if not torch.isnan(value):  # a class absent from the ground truth has none; it is left out, not zero
                    self.log(f"{prefix}/{kind}/{name}", value.to(self.device))

    # ---- checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out running statistics of class weights that nobody prepared: only training does."""
        own = self.state_dict()
        state = checkpoint["state_dict"]
        foreign = [key for key in state if key.startswith("class_weights.") and key not in own]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if key not in foreign}
