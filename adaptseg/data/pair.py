"""The domain pair: every loader of a run, from two data sets and the labels bought so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from adaptseg.classes import ClassTable
from adaptseg.data.datasets import (
    BoughtLabels,
    EvaluationDataset,
    PairDataset,
    View,
    collate_labelled,
    collate_pair,
)
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.sampling import StepSampler
from adaptseg.data.scenes import Scenes
from adaptseg.errors import AdaptSegError

Size = tuple[int, int]


class DomainPair(LightningDataModule):
    """A labelled source domain, an unlabelled target domain, and the labelled sets that judge the result.

    One loader yields whole `Batch`es, so source and target have equal length by construction. The only state is
    `bought`: the acquisition sets it after each round and after a resume, and `train_dataloader`, called anew every
    tick, reads it.

    Args:
        target: the pool: target training images. Their labels are never read here, only by an oracle. May be None for
            plain supervised training on `source`.
        source: labelled source scenes; None trains on the target alone.
        val: tuning split of the target; validated during the run.
        test: the split that tables report; used by `adaptseg test` only.
        predict: scenes for `adaptseg predict`, labels not needed; default: `test`, else `val`.
        batch_size: source scenes (and as many target scenes) in one micro-batch of all processes together.
        source_size: (H, W) that source scenes are resized to; null = native.
        target_size: (H, W) that target scenes are resized to, in training, scoring and evaluation; null = native.
        pool_size: the pool grid on which scores, labels and budget live: `train` = target_size, `native`, or (H, W).
            Single bought pixels die when labels are resized, so `train` unless a paper says otherwise.
        crop: (H, W) of a random crop of both domains in training; null = the whole scene.
        flip: mirror half of the training scenes.
        tick: steps between two looks at the clock (validation, rounds, checkpoints); null = a twentieth of max_steps.
        workers: loader processes; 0 loads in the training process.
        with_instances: also load the source's instance ids.
        seed: filled in from `seed_everything`.
    """

    def __init__(
        self,
        *,
        target: Scenes | None,
        source: Scenes | None = None,
        val: Scenes | None = None,
        test: Scenes | None = None,
        predict: Scenes | None = None,
        batch_size: int = 2,
        source_size: Size | None = None,
        target_size: Size | None = None,
        pool_size: Size | Literal["train", "native"] = "train",
        crop: Size | None = None,
        flip: bool = False,
        tick: int | None = None,
        workers: int = 2,
        with_instances: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if target is None and source is None:
            raise AdaptSegError("data: neither source nor target is given; give at least one of them")
        for name, number, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("tick", tick, 1)):
            if number is not None and number < least:
                raise AdaptSegError(f"data.{name} is {number}; {least} or more is allowed")
        sizes = {"source_size": source_size, "target_size": target_size, "pool_size": pool_size, "crop": crop}
        for name, size in sizes.items():
            if size is not None and not isinstance(size, str) and min(size) < 1:
                raise AdaptSegError(f"data.{name} is {list(size)}; (height, width) of 1 or more is allowed")
        self.source, self.target, self.val, self.test, self.predict = source, target, val, test, predict
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.pool_size, self.tick_steps, self.with_instances = pool_size, tick, with_instances
        self.source_view = View(source_size, crop, flip, IMAGENET_MEAN, IMAGENET_STD)
        self.target_view = View(target_size, crop, flip, IMAGENET_MEAN, IMAGENET_STD)
        self.bought: BoughtLabels | None = None
        self._check_tables()

    def _check_tables(self) -> None:
        for name in ("source", "val", "test", "predict"):
            scenes: Scenes | None = getattr(self, name)
            if scenes is not None:
                self.class_table.require_same(scenes.class_table, f"data.{name}")
        if self.source is not None and not self.source.labelled:
            raise AdaptSegError("data.source has no labels; a source domain must be labelled")
        for name in ("val", "test"):
            scenes = getattr(self, name)
            if scenes is not None and not scenes.labelled:
                raise AdaptSegError(f"data.{name} has no labels; use data.predict for unlabelled scenes")

    @property
    def class_table(self) -> ClassTable:
        """The table that both domains share."""
        scenes = self.target if self.target is not None else self.source
        assert scenes is not None
        return scenes.class_table

    @property
    def num_classes(self) -> int:
        return self.class_table.num_classes

    # ---- time

    def tick_length(self, max_steps: int) -> int:
        """Steps in a tick: `tick`, else a twentieth of max_steps so that published fractions fall on ticks."""
        if max_steps < 1:
            raise AdaptSegError(f"trainer.max_steps is {max_steps}; give the number of optimiser steps to train")
        return self.tick_steps or math.ceil(max_steps / 20)

    # ---- training

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        if self.batch_size % trainer.world_size:
            raise AdaptSegError(
                f"data.batch_size {self.batch_size} does not divide over {trainer.world_size} processes; it is the "
                f"global batch: give a multiple of {trainer.world_size}"
            )
        accumulate, step = trainer.accumulate_grad_batches, trainer.global_step
        length = self.tick_length(trainer.max_steps)
        first = min(step, trainer.max_steps - 1) // length * length
        last = min(first + length, trainer.max_steps)
        sampler = StepSampler(
            (first * accumulate, last * accumulate),
            start=step * accumulate,
            batch_size=self.batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        dataset = PairDataset(
            self.source,
            self.target,
            self.source_view,
            self.target_view,
            self.seed,
            self.bought,
            self.with_instances,
        )
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate_pair,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,  # workers must see the labels of the latest round
        )

    # ---- the pool

    @property
    def pool(self) -> Scenes:
        """The target training scenes as candidates for labels."""
        if self.target is None:
            raise AdaptSegError("data.target is missing: an acquisition needs a pool of target images")
        return self.target

    def pool_grid(self, key: str) -> Size:
        """(H, W) of the grid on which scores, labels and budget of one pool image live."""
        if not isinstance(self.pool_size, str):
            return self.pool_size
        size = self.target_view.size if self.pool_size == "train" else None
        return size or self.pool.size(key)

    def pool_loader(self, rank: int, world_size: int) -> DataLoader:
        """This rank's strided, unpadded share of the pool, one image at a time, as `Labelled` with void labels."""
        return self._evaluation_loader(self.pool, self.pool.keys[rank::world_size], with_labels=False)

    # ---- evaluation

    def val_dataloader(self) -> DataLoader | list:
        return [] if self.val is None else self._sharded(self.val, with_labels=True)

    def test_dataloader(self) -> DataLoader:
        if self.test is None:
            raise AdaptSegError("data.test is missing: `adaptseg test` needs a labelled test split")
        return self._sharded(self.test, with_labels=True)

    def predict_dataloader(self) -> DataLoader:
        scenes = next((s for s in (self.predict, self.test, self.val) if s is not None), None)
        if scenes is None:
            raise AdaptSegError("data.predict is missing: `adaptseg predict` needs scenes to predict")
        return self._sharded(scenes, with_labels=False)

    def _sharded(self, scenes: Scenes, *, with_labels: bool) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        return self._evaluation_loader(scenes, scenes.keys[trainer.global_rank :: trainer.world_size], with_labels)

    def _evaluation_loader(self, scenes: Scenes, keys: Sequence[str], with_labels: bool) -> DataLoader:
        # One scene a batch: scenes may differ in size, and every rank must compute the same bits for a scene.
        return DataLoader(
            EvaluationDataset(scenes, keys, self.target_view, with_labels),
            batch_size=1,
            num_workers=self.workers,
            collate_fn=collate_labelled,
            pin_memory=torch.cuda.is_available(),
        )


def pair_of(trainer: Trainer) -> DomainPair:
    """The domain pair that a trainer was given; AdaptSegError if it trains on something else."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, DomainPair):
        raise AdaptSegError(f"data: a DomainPair is expected, {type(data).__name__} is given")
    return data
