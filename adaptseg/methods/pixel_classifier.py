"""A pixel head trained on bought pixels over frozen features: two-stage eDALD's learner (specification 2.3, 2.4).

It learns from features of single pixels, which a cache keeps, and never looks at training images again. After each
round of labels it starts anew; the heads of earlier rounds stay, so that one pass over an evaluation set judges all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adaptseg.classes import VOID, ClassTable
from adaptseg.console import say
from adaptseg.data.batch import Batch, Labelled
from adaptseg.data.pair import DomainPair, pair_of
from adaptseg.distributed import all_reduce_sum
from adaptseg.errors import AdaptSegError
from adaptseg.losses.pixel import negative_log_likelihood
from adaptseg.losses.reduce import global_mean, mean_over_ranks
from adaptseg.methods.acceleration import Acceleration
from adaptseg.methods.base import Method, StepResult
from adaptseg.methods.class_weights import ClassWeights
from adaptseg.methods.head_training import HeadTraining
from adaptseg.methods.optimization import Optimization
from adaptseg.metrics import SegmentationMetrics
from adaptseg.networks import Inference, PixelSegmenter, Segmenter, resize_logits
from adaptseg.networks.feature_bank import FeatureBank, fixed_sample
from adaptseg.networks.pixel_segmenter import PixelHead
from adaptseg.networks.point_features import norm_map
from adaptseg.tensors import likeliest


class PixelClassifier(Method):
    """L = CE(bought pixels of the batch) + source_weight CE(sampled source pixels), over frozen features.

    A batch without any label changes nothing (released code), and neither does a step once patience has run out.

    State, in the checkpoint: the head, the heads of finished rounds, and the books of the round (its first step, least
    loss, patience). The features are not in it: they are named by content and rebuilt.

    Args:
        network: a PixelSegmenter.
        class_table: filled in from the data.
        training: of the head.
        inference: how scenes are predicted: whole, as their features are read; windows and mirror images are refused.
        init_from: checkpoint or run directory to start the weights of the first round from.
        seed: filled in from `seed_everything`.
        class_weights: of both cross-entropies; null = 1 each.
        acceleration: of the head.
        norm_statistics: whose rows the batch norms count: `transductive` = labelled pixels and `norm_pixels` others of
            each image (the release counts all pixels of an image), `labelled` pixels only, or `frozen` = no statistics.
        norm_pixels: unlabelled pixels per image, the same in every run.
        source_pixels: labelled source pixels per source image to learn from, the same in every run.
        source_weight: of their cross-entropy.
        cache: folder, shared by runs, for point features; null computes them in every step.
    """

    reads_images = False

    def __init__(
        self,
        *,
        network: Callable[[int], nn.Module],
        class_table: ClassTable,
        training: HeadTraining = HeadTraining(),
        inference: Inference = Inference(),
        init_from: str | None = None,
        seed: int = 0,
        class_weights: ClassWeights | None = None,
        acceleration: Acceleration = Acceleration(),
        norm_statistics: Literal["transductive", "labelled", "frozen"] = "transductive",
        norm_pixels: int = 64,
        source_pixels: int = 64,
        source_weight: float = 1.0,
        cache: str | None = "cache",
    ) -> None:
        super().__init__(
            network=network,
            class_table=class_table,
            optimization=Optimization(),  # `configure_optimizers` below has its own
            inference=inference,
            init_from=init_from,
            seed=seed,
            class_weights=class_weights,
            acceleration=acceleration,
        )
        if not isinstance(self.student, PixelSegmenter):
            raise AdaptSegError(
                f"model.network makes a {type(self.student).__name__}; PixelClassifier needs a PixelSegmenter"
            )
        if inference.window is not None or inference.flip:
            raise AdaptSegError(
                "model.inference: a PixelClassifier reads scenes whole, as it does for the features that it learns "
                "from; set window: null and flip: false"
            )
        if norm_pixels < 0 or source_pixels < 0:
            raise AdaptSegError(
                f"model.norm_pixels is {norm_pixels} and source_pixels {source_pixels}; 0 or more are expected"
            )
        self.training_of_head, self.norm_statistics, self.init_from = training, norm_statistics, init_from
        self.norm_pixels, self.source_pixels, self.source_weight = norm_pixels, source_pixels, source_weight
        self.cache = None if cache is None else Path(cache)
        self.finished = nn.ModuleList()
        """Heads of finished rounds, oldest first."""
        self.finished_metrics = nn.ModuleList()
        self._begin_books(0)
        self.banks: dict[str, FeatureBank] = {}

    @property
    def network(self) -> PixelSegmenter:
        assert isinstance(self.student, PixelSegmenter)
        return self.student

    @property
    def weighted_losses(self) -> tuple[str, ...]:
        return ("source", "target")

    @property
    def descends(self) -> bool:
        return False

    # ---- features

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        data = pair_of(self.trainer)
        self._require_whole_scenes(data)
        for domain, scenes, view in (
            ("source", data.source, data.source_view),
            ("target", data.target, data.target_view),
        ):
            if scenes is not None:
                standing = self._norm_points if domain == "target" else None
                bank = FeatureBank(
                    lambda: self.network.features, scenes, view.size, view.mean, view.std, self.cache, standing
                )
                self.network.features.check(bank.size(scenes.keys[0]))
                self.banks[domain] = bank

    def _require_whole_scenes(self, data: DomainPair) -> None:
        view = data.target_view
        given = {"flip": view.flip, "crop": view.crop is not None, "scale": view.scale is not None}
        if data.target is not None:
            given["pool_size"] = any(
                data.pool_grid(key) != (view.size or data.pool.size(key)) for key in data.pool.keys
            )
        for name, wrong in given.items():
            if wrong:
                raise AdaptSegError(
                    f"data.{name}: features are kept for whole scenes as the network sees them; set data.flip: false, "
                    "data.crop: null, data.scale: null and data.pool_size: train"
                )

    @property
    def pool_features(self) -> FeatureBank:
        """Features of the pool's pixels, for the head and for whoever chooses what to buy."""
        return self.banks["target"]

    def source_features(self) -> Tensor:
        """Features (n, D) of the source pixels that the head learns from, of all source images."""
        data = pair_of(self.trainer)
        if data.source is None or not self.source_pixels:
            raise AdaptSegError("source features are asked for, but data.source is null or model.source_pixels is 0")
        bank = self.banks["source"]
        return torch.cat([bank.at(key, self._source_points(key, bank.size(key))) for key in data.source.keys])

    @torch.no_grad()
    def probabilities_at(self, features: Tensor, *, dropout: torch.Generator | None = None) -> Tensor:
        """(n, C) class probabilities of features (n, D) by the head as it is; `dropout` draws one pass with dropout on
        the logits.

        Raises:
            AdaptSegError: dropout is asked for, but `training.dropout` is 0.
        """
        return self._dropped(self.network.head(features), dropout).softmax(1)

    @torch.no_grad()
    def probabilities_everywhere(self, key: str, *, draw: int = 0, dropout: torch.Generator | None = None) -> Tensor:
        """(H * W, C): the same of all pixels of one image of the pool, in reading order, from the maps of a draw, which
        are not rounded as kept features are."""
        maps = [low[None] for low in self.pool_features.maps(key, draw=draw)]
        logits = self.network.head.dense(maps, self.pool_features.size(key))[0].flatten(1).T
        return self._dropped(logits, dropout).softmax(1)

    def _dropped(self, logits: Tensor, dropout: torch.Generator | None) -> Tensor:
        if dropout is None:
            return logits
        share = self.training_of_head.dropout
        if not share:
            raise AdaptSegError("active.score draws by dropout, but model.training.dropout is 0; give 0.2")
        kept = torch.rand(logits.shape, generator=dropout) >= share
        return logits * kept.to(logits) / (1 - share)

    def _norm_points(self, key: str, size: tuple[int, int]) -> Tensor:
        # Of seed 0 in every run, as the candidates of an acquisition: runs share what is computed on them.
        return fixed_sample(0, "norm", key, size, self.norm_pixels)

    def _source_points(self, key: str, size: tuple[int, int]) -> Tensor:
        return fixed_sample(0, "source", key, size, self.source_pixels)

    # ---- training

    def step(self, batch: Batch) -> StepResult:
        if batch.target is None:
            raise AdaptSegError("data.target is null; PixelClassifier learns from bought target pixels")
        has_labels = self._has_labels(batch)
        self.rests = self.stopped or not has_labels
        if self.rests:
            # Every parameter keeps a part in the loss, as DDP wants it; the optimiser is not stepped.
            return StepResult(torch.stack([p.sum() * 0 for p in self.network.head.parameters()]).sum(), {})
        losses = {"target": self._loss("target", *self._target_rows(batch))}
        if batch.source is not None and self.source_pixels:
            losses["source"] = self.source_weight * self._loss("source", *self._source_rows(batch.source))
        loss = torch.stack(list(losses.values())).sum()
        self._watch_patience(loss)
        return StepResult(loss, losses)

    def _has_labels(self, batch: Batch) -> bool:
        """Whether any process has something to learn from; counted on the host."""
        assert batch.target is not None
        from_source = 0 if batch.source is None else self.source_pixels
        return bool(all_reduce_sum(np.array([batch.target.bought_pixels + from_source], np.int64))[0])

    def _target_rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features (n, D) and labels (n,) of the batch: bought pixels, and void ones for the norms' statistics."""
        assert batch.target is not None
        rows, labels = [], []
        for key, bought in zip(batch.target.keys, batch.target.bought, strict=True):
            yx = (bought != VOID).nonzero()
            rows.append(self.pool_features.at(key, yx))
            labels.append(bought[yx[:, 0], yx[:, 1]])
            if self.norm_statistics == "transductive" and self.norm_pixels:
                extra = self._norm_points(key, (bought.shape[0], bought.shape[1]))
                extra = extra[bought[extra[:, 0], extra[:, 1]] == VOID]  # a bought pixel counts once
                rows.append(self.pool_features.at(key, extra))
                labels.append(bought.new_full((len(extra),), VOID))
        return torch.cat(rows), torch.cat(labels)

    def _source_rows(self, source: Labelled) -> tuple[Tensor, Tensor]:
        rows, labels = [], []
        for key, truth in zip(source.keys, source.labels, strict=True):
            yx = self._source_points(key, (truth.shape[0], truth.shape[1]))
            rows.append(self.banks["source"].at(key, yx))
            labels.append(truth[yx[:, 0], yx[:, 1]])
        return torch.cat(rows), torch.cat(labels)

    def _loss(self, name: str, rows: Tensor, labels: Tensor) -> Tensor:
        counted = {
            "transductive": None,
            "labelled": labels != VOID,
            "frozen": torch.zeros_like(labels, dtype=torch.bool),
        }
        logits = self.network.head(rows, counted[self.norm_statistics])
        logits = nn.functional.dropout(logits, self.training_of_head.dropout)
        # As a picture one row high: what class weights and the cross-entropy read.
        log_p, labels = logits.T[None, :, None].contiguous().log_softmax(1), labels[None, None]
        weights = self.weights_of(name, log_p, labels)
        return global_mean(*negative_log_likelihood(log_p, labels, class_weights=weights))

    def _watch_patience(self, loss: Tensor) -> None:
        settings = self.training_of_head
        if settings.patience is None or self._passes() < settings.first_passes:
            return
        value = float(mean_over_ranks(loss.detach()))
        self.waited = 0 if value < self.least_loss else self.waited + 1
        self.least_loss = min(self.least_loss, value)
        self.stopped = self.waited > settings.patience

    def _passes(self) -> int:
        """Whole passes over the pool in this round before this step."""
        data = pair_of(self.trainer)
        return (self.global_step - self.began) // max(1, math.ceil(len(data.pool.keys) / data.batch_size))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.training_of_head
        return torch.optim.Adam(self.network.head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert optimizer_closure is not None
        if self.trainer.accumulate_grad_batches > 1:
            raise AdaptSegError(
                "trainer.accumulate_grad_batches: PixelClassifier takes 1; raise data.batch_size instead"
            )
        loss = optimizer_closure()
        if not self.rests:
            # By hand: one of torch's schedules would look a step ahead, past the end of a round.
            for group in optimizer.param_groups:
                group["lr"] = self.training_of_head.rate(self._passes())
            optimizer.step(lambda: loss)  # without a loss, float16's scaler would take the step for skipped
        optimizer.zero_grad()

    # ---- rounds

    def on_labels_bought(self, round: int) -> None:
        """Start anew on the labels of rounds 1..`round`; the head that learned from those before stays, frozen."""
        if round > 1:
            self.finished.append(copy.deepcopy(self.network.head).requires_grad_(False))
        if round > 1 or self.init_from is None:
            self.network.head.restart(torch.Generator().manual_seed(hash((self.seed, round)) % 2**63))
        self._begin_books(self.global_step)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        optimizer.state.clear()

    def _begin_books(self, step: int) -> None:
        self.began, self.least_loss, self.waited, self.stopped, self.rests = step, math.inf, 0, False, False

    # ---- evaluation: all rounds in one pass

    @property
    def evaluated(self) -> Segmenter:
        return self.network

    def _prepare_metrics(self, split: str) -> None:
        super()._prepare_metrics(split)
        # Earlier rounds on the main tuning set alone: its numbers make the table of rounds.
        judged = self.finished if split == "val" else []
        table = pair_of(self.trainer).scored_table
        self.finished_metrics = nn.ModuleList(SegmentationMetrics(table) for _ in judged).to(self.device)

    def _evaluate(self, batch: Labelled, number: int) -> None:
        height, width = batch.labels.shape[-2:]
        maps = self.network.features.maps(batch.image)
        size = (batch.image.shape[-2], batch.image.shape[-1])
        norms = norm_map(maps, size)
        judged = list(zip(self.finished, self.finished_metrics, strict=False)) if number == 0 else []
        for head, metrics in [*judged, (self.network.head, self._metrics_of(number))]:
            assert isinstance(head, PixelHead)
            assert isinstance(metrics, SegmentationMetrics)
            logits = head.dense(maps, size, norms).float()
            logits = resize_logits(logits, (height, width), self.inference.align_corners)
            metrics.update(likeliest(logits, 1), batch.labels)

    def _log_metrics(self, split: str) -> None:
        super()._log_metrics(split)
        for round, metrics in enumerate(self.finished_metrics, 1):
            assert isinstance(metrics, SegmentationMetrics)
            self._log_scores(f"round_{round:02d}/{split}", metrics.compute())

    def on_fit_end(self) -> None:
        if self.trainer.is_global_zero and self.global_step >= self.trainer.max_steps:
            say(f"images that the feature network has read in this process: {self.network.features.forwards:,}")

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        books = {name: getattr(self, name) for name in ("began", "least_loss", "waited", "stopped")}
        checkpoint["pixel_classifier"] = {"finished": len(self.finished), **books}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        books = dict(checkpoint["pixel_classifier"])
        count = books.pop("finished")
        head = self.network.head
        self.finished = nn.ModuleList(copy.deepcopy(head).requires_grad_(False) for _ in range(count))
        for name, value in books.items():
            setattr(self, name, value)
