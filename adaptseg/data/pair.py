"""The domain pair: every loader of a run, from two data sets and the labels bought so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from adaptseg.classes import ClassTable
from adaptseg.console import say
from adaptseg.data.class_balance import ClassBalancedSampling
from adaptseg.data.datasets import (
    BoughtLabels,
    EvaluationDataset,
    Margins,
    PairDataset,
    View,
    collate_labelled,
    collate_pair,
)
from adaptseg.data.label_folder import LabelFolder
from adaptseg.data.named import Evaluated, named
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.rare_classes import RareClassSampling
from adaptseg.data.sampling import StepSampler
from adaptseg.data.scenes import Scenes
from adaptseg.data.source_drawing import SourceDrawing
from adaptseg.data.statistics import ClassStatistics
from adaptseg.data.transforms import Filter
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
        val: tuning split of the target; validated during the run. Several sets: a list, or a mapping of names; the
            first is the main one, which decides about `best`, the others are logged as `val/<name>/...`.
        test: the split, or splits, that tables report; used by `adaptseg test` only.
        predict: scenes for `adaptseg predict`, labels not needed; default: `test`, else `val`.
        batch_size: source scenes (and as many target scenes) in one micro-batch of all processes together.
        source_size: (H, W) that source scenes are resized to; null = native.
        target_size: (H, W) that target scenes are resized to, in training, scoring and evaluation; null = native.
        pool_size: the pool grid on which scores, labels and budget live: `train` = target_size, `native`, or (H, W).
            Single bought pixels die when labels are resized, so `train` unless a paper says otherwise.
        scale: least and largest factor by which a training scene of either domain is resized before it is cut to `crop`
            (null: to the size it had), by chance and evenly; null = never. What is missing of a smaller one is padded
            at the right (left in mirrored scenes) and below: mean colour, void, untrusted. A single bought pixel may
            vanish where its scene is made smaller, and several stand for it where it is enlarged. PixelPick: [0.5, 2].
        crop: (H, W) of a random crop of both domains in training; null = the whole scene.
        flip: mirror half of the training scenes.
        tick: steps between two looks at the clock (validation, rounds, checkpoints); null = a twentieth of max_steps.
        workers: loader processes; 0 loads in the training process.
        with_instances: also load the source's instance ids.
        rare_class_sampling: draw source scenes by class, rare ones more often, instead of each scene once per pass;
            target scenes are drawn as ever. DAFormer: {} (all defaults).
        class_balanced_sampling: draw source scenes so that all classes are seen equally often; not together with
            `rare_class_sampling`. RIPU: {}.
        image_filter: by which images are resized, with anti-aliasing. RIPU's release: bicubic.
        max_class_share: a source crop is drawn anew, 10 times at most, until no class fills more than this share of its
            non-void pixels; needs `crop`. DAFormer and its kin: 0.75.
        untrusted_margins: top, bottom, left and right of a target scene that give no pseudo-labels, as shares of its
            height and width; cropped and mirrored with the scene. On Cityscapes, to leave out the car's bonnet and
            blurred rims: DAFormer [0.029297, 0.234375, 0, 0], HRDA and MIC [0.029297, 0.234375, 0.014648, 0.014648].
        cache: folder, shared by runs, for what is counted once on a data set.
        statistics: class statistics of the source, a file from another run's `cache`; null = counted on first use.
        target_labels: folder of label maps `<key>.png` of all target scenes (train ids, 255 = none): what networks
            said, trained on as if it had been bought. Not to be had together with an acquisition.
        seed: filled in from `seed_everything`.
    """

    def __init__(
        self,
        *,
        target: Scenes | None,
        source: Scenes | None = None,
        val: Evaluated = None,
        test: Evaluated = None,
        predict: Scenes | None = None,
        batch_size: int = 2,
        source_size: Size | None = None,
        target_size: Size | None = None,
        pool_size: Size | Literal["train", "native"] = "train",
        scale: tuple[float, float] | None = None,
        crop: Size | None = None,
        flip: bool = False,
        tick: int | None = None,
        workers: int = 2,
        with_instances: bool = False,
        rare_class_sampling: RareClassSampling | None = None,
        class_balanced_sampling: ClassBalancedSampling | None = None,
        image_filter: Filter = "bilinear",
        max_class_share: float | None = None,
        untrusted_margins: Margins = (0.0, 0.0, 0.0, 0.0),
        cache: str = "cache",
        statistics: str | None = None,
        target_labels: str | None = None,
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
        if scale is not None and not 0 < scale[0] <= scale[1] < math.inf:
            raise AdaptSegError(f"data.scale is {list(scale)}; two positive factors are expected, smaller first")
        self.source, self.target, self.predict = source, target, predict
        self.val_sets, self.test_sets = named(val, "data.val"), named(test, "data.test")
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.pool_size, self.tick_steps, self.with_instances = pool_size, tick, with_instances
        self.source_view = View(source_size, crop, flip, IMAGENET_MEAN, IMAGENET_STD, image_filter, scale)
        self.target_view = View(target_size, crop, flip, IMAGENET_MEAN, IMAGENET_STD, image_filter, scale)
        self.drawing = SourceDrawing(
            source=source,
            crop=crop,
            rare_class_sampling=rare_class_sampling,
            class_balanced_sampling=class_balanced_sampling,
            max_class_share=max_class_share,
            cache=cache,
            statistics_file=statistics,
            seed=seed,
        )
        self.untrusted_margins, self.target_labels = untrusted_margins, target_labels
        self.bought: BoughtLabels | None = None
        self._check_tables()
        self._check_margins()

    def _check_tables(self) -> None:
        for name, scenes in (("source", self.source), ("predict", self.predict)):
            if scenes is not None:
                self.class_table.require_same(scenes.class_table, f"data.{name}")
        if self.source is not None and not self.source.labelled:
            raise AdaptSegError("data.source has no labels; a source domain must be labelled")
        for split, sets in (("val", self.val_sets), ("test", self.test_sets)):
            for name, scenes in sets.items():
                where = f"data.{split}" if len(sets) == 1 else f"data.{split} ({name})"
                self.class_table.require_same(scenes.class_table, where)
                if not scenes.labelled:
                    raise AdaptSegError(f"{where} has no labels; use data.predict for unlabelled scenes")

    def _check_margins(self) -> None:
        margins = self.untrusted_margins
        sums = margins[0] + margins[1], margins[2] + margins[3]
        if not (all(margin >= 0 for margin in margins) and max(sums) < 1):  # a NaN is neither
            raise AdaptSegError(
                f"data.untrusted_margins is {list(margins)}; [top, bottom, left, right] are shares of 0 or more, of "
                "which top + bottom and left + right are below 1"
            )

    @property
    def class_table(self) -> ClassTable:
        """The table that both domains share."""
        scenes = self.target if self.target is not None else self.source
        assert scenes is not None
        return scenes.class_table

    @property
    def num_classes(self) -> int:
        return self.class_table.num_classes

    @property
    def scored_table(self) -> ClassTable:
        """The table whose subsets of classes are scored: the source's if it declares some, since it is the source that
        does not show the other classes."""
        return (
            self.source.class_table if self.source is not None and self.source.class_table.subsets else self.class_table
        )

    # ---- time

    def tick_length(self, max_steps: int) -> int:
        """Steps in a tick: `tick`, else a twentieth of max_steps so that published fractions fall on ticks."""
        if max_steps < 1:
            raise AdaptSegError(f"trainer.max_steps is {max_steps}; give the number of optimiser steps to train")
        return self.tick_steps or math.ceil(max_steps / 20)

    def source_statistics(self) -> ClassStatistics:
        """Class statistics of the source; see `SourceDrawing.statistics`."""
        return self.drawing.statistics()

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        if self.target_labels is not None:
            self.bought = LabelFolder(self.target_labels, self.class_table, self.pool.keys)
        # Counted, or found wanting, before all else begins.
        for drawn in (self.drawing.rare_classes(), self.drawing.balanced_scenes()):
            if drawn is not None and (self.trainer is None or self.trainer.global_rank == 0):
                for note in drawn.notes(self.class_table):
                    say(note)

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
        samples = first * accumulate * self.batch_size, last * accumulate * self.batch_size
        balanced = self.drawing.balanced_scenes()
        dataset = PairDataset(
            self.source,
            self.target,
            self.source_view,
            self.target_view,
            self.seed,
            self.bought,
            self.with_instances,
            self.drawing.rare_classes(),
            self.drawing.max_class_share,
            self.untrusted_margins,
            with_images=getattr(trainer.lightning_module, "reads_images", True),
            balanced=None if balanced is None else balanced.between(*samples),
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
        return self.loader_of_pool(self.pool.keys[rank::world_size])

    def loader_of_pool(self, keys: Sequence[str]) -> DataLoader:
        """Some scenes of the pool, one at a time, as `Labelled` with void labels."""
        return self._evaluation_loader(self.pool, keys, with_labels=False)

    # ---- evaluation

    @property
    def val(self) -> Scenes | None:
        """The main validation set."""
        return next(iter(self.val_sets.values()), None)

    @property
    def test(self) -> Scenes | None:
        """The main test set."""
        return next(iter(self.test_sets.values()), None)

    def evaluation_sets(self, split: str) -> dict[str, Scenes]:
        """Name -> set of split `val` or `test`, the main one first."""
        return self.test_sets if split == "test" else self.val_sets

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._evaluation_loaders(self.val_sets)

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        if not self.test_sets:
            raise AdaptSegError("data.test is missing: `adaptseg test` needs a labelled test split")
        return self._evaluation_loaders(self.test_sets)

    def _evaluation_loaders(self, sets: dict[str, Scenes]) -> DataLoader | list[DataLoader]:
        loaders = [self._sharded(scenes, with_labels=True) for scenes in sets.values()]
        return loaders[0] if len(loaders) == 1 else loaders

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
