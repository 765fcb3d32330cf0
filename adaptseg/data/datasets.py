"""Map-style datasets behind the loaders of a domain pair; workers copy them, so they hold no open files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from adaptseg.classes import VOID
from adaptseg.data import transforms
from adaptseg.data.batch import Batch, Labelled, Target
from adaptseg.data.sampling import generator, scene_index
from adaptseg.data.scenes import Scenes
from adaptseg.errors import AdaptSegError


class BoughtLabels(Protocol):
    """The bought labels of the pool as of one round: (H, W) uint8 on the pool grid, 255 = not bought or void."""

    def labels(self, key: str) -> NDArray[np.uint8]: ...


class LabelledItem(NamedTuple):
    key: str
    image: Tensor
    labels: Tensor
    instances: Tensor | None


class TargetItem(NamedTuple):
    key: str
    image: Tensor
    trusted: Tensor
    bought: Tensor


@dataclass(frozen=True)
class View:
    """How a domain's scenes are cut and normalised for training: sizes are (H, W), None = native."""

    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    flip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass
class PairDataset(Dataset):
    """Sample number -> one source scene and one target scene (either may be absent from the pair).

    Both are pure functions of (seed, sample number) and, for the target, of the labels bought so far.
    """

    source: Scenes | None
    target: Scenes | None
    source_view: View
    target_view: View
    seed: int
    bought: BoughtLabels | None
    with_instances: bool = False

    def __getitem__(self, sample: int) -> tuple[LabelledItem | None, TargetItem | None]:
        return self._source_item(sample), self._target_item(sample)

    def _source_item(self, sample: int) -> LabelledItem | None:
        if self.source is None:
            return None
        scenes, view = self.source, self.source_view
        key = scenes.keys[scene_index(sample, len(scenes.keys), seed=self.seed, stream="source")]
        image = transforms.resized_image(scenes.image(key), view.size)
        size = (image.shape[-2], image.shape[-1])
        geometry = transforms.draw_geometry(size, view.crop, view.flip, generator(self.seed, "source", sample))
        maps = [scenes.labels(key)] + ([scenes.instances(key)] if self.with_instances else [])
        labels, *instances = (transforms.cut(transforms.resized_map(values, size), geometry) for values in maps)
        image = transforms.normalized(transforms.cut(image, geometry), view.mean, view.std)
        return LabelledItem(key, image, labels, instances[0] if instances else None)

    def _target_item(self, sample: int) -> TargetItem | None:
        if self.target is None:
            return None
        scenes, view = self.target, self.target_view
        key = scenes.keys[scene_index(sample, len(scenes.keys), seed=self.seed, stream="target")]
        image = transforms.resized_image(scenes.image(key), view.size)
        size = (image.shape[-2], image.shape[-1])
        geometry = transforms.draw_geometry(size, view.crop, view.flip, generator(self.seed, "target", sample))
        if self.bought is None:
            bought = torch.full((geometry.height, geometry.width), VOID, dtype=torch.int64)
        else:
            bought = transforms.cut(transforms.resized_map(self.bought.labels(key), size), geometry)
        image = transforms.normalized(transforms.cut(image, geometry), view.mean, view.std)
        return TargetItem(key, image, torch.ones_like(bought, dtype=torch.bool), bought)


@dataclass
class EvaluationDataset(Dataset):
    """Whole scenes at the network's size with labels at native size; void labels where a data set has none."""

    scenes: Scenes
    keys: Sequence[str]
    view: View
    with_labels: bool

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> LabelledItem:
        key = self.keys[index]
        image = transforms.resized_image(self.scenes.image(key), self.view.size)
        image = transforms.normalized(image, self.view.mean, self.view.std)
        labels = self.scenes.labels(key) if self.with_labels else np.full(self.scenes.size(key), VOID, np.uint8)
        return LabelledItem(key, image, torch.from_numpy(labels.astype(np.int64)), None)


def collate_pair(items: list[tuple[LabelledItem | None, TargetItem | None]]) -> Batch:
    """Stack the items of one micro-batch."""
    sources, targets = zip(*items, strict=True)
    target = None if targets[0] is None else collate_target(list(targets))
    return Batch(collate_labelled(list(sources)) if sources[0] is not None else None, target)


def collate_target(items: list[TargetItem]) -> Target:
    """Stack target items."""
    keys, image, trusted, bought = _stack(items, "data.target_size or data.crop")
    return Target(keys, image, trusted, bought, int((bought != VOID).sum()))


def collate_labelled(items: list[LabelledItem]) -> Labelled:
    """Stack labelled items."""
    return Labelled(*_stack(items, "data.source_size or data.crop"))


def _stack(items: Sequence[tuple], where: str) -> list:
    sizes = {tuple(item[1].shape[-2:]) for item in items}  # (key, image, ...)
    if len(sizes) > 1:
        listed = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
        raise AdaptSegError(f"scenes of different sizes in one batch ({listed}): set {where} so that they agree")
    keys, *columns = zip(*items, strict=True)
    return [list(keys), *(None if column[0] is None else torch.stack(column) for column in columns)]
