"""Map-style datasets behind the loaders of a domain pair; workers copy them, so they hold no open files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from adaptseg.classes import VOID
from adaptseg.data import transforms
from adaptseg.data.batch import Batch, Labelled, Target
from adaptseg.data.class_balance import DrawnScenes
from adaptseg.data.rare_classes import RareClasses
from adaptseg.data.sampling import generator, scene_index
from adaptseg.data.scenes import Scenes
from adaptseg.data.transforms import Geometry
from adaptseg.errors import AdaptSegError

Margins = tuple[float, float, float, float]
"""Top, bottom, left, right, as shares of a scene's height or width."""

_REDRAWS = 10
"""How often a crop that one class dominates is drawn anew at most: mmsegmentation's `RandomCrop`, DAFormer's too."""

_NO_INSTANCE = 0


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


class PairItem(NamedTuple):
    source: LabelledItem | None
    target: TargetItem | None
    sample: int


@dataclass(frozen=True)
class View:
    """How a domain's scenes are cut and normalised for training: sizes are (H, W), None = native.

    `scale` is the least and largest factor by which training scenes are resized before the crop; None = never.
    """

    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    flip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    filter: transforms.Filter = "bilinear"
    scale: tuple[float, float] | None = None

    @property
    def padding(self) -> Tensor:
        """(3, 1, 1) uint8: the mean colour, which surrounds an image that was made smaller than its crop."""
        return (255 * torch.tensor(self.mean)).round().to(torch.uint8).view(3, 1, 1)


@dataclass
class PairDataset(Dataset):
    """Sample number -> one source scene and one target scene (either may be absent from the pair).

    Both are pure functions of (seed, sample number) and, for the target, of the labels bought so far.

    With `balanced` the source scene of every sample is already drawn.
    With `rare_classes` source scenes are drawn for a class, and a crop is drawn anew until it shows that class. With
    `max_class_share` it is drawn anew, 10 times at most, until no class dominates it. With both, as in DAFormer's
    release, each draw of the first rule is the outcome of the second: the class that is looked for goes first.

    Without `with_images` no picture is decoded: images are (3, 0, 0), for methods that read cached features.
    """

    source: Scenes | None
    target: Scenes | None
    source_view: View
    target_view: View
    seed: int
    bought: BoughtLabels | None
    with_instances: bool = False
    rare_classes: RareClasses | None = None
    max_class_share: float | None = None
    untrusted_margins: Margins = (0, 0, 0, 0)
    with_images: bool = True
    balanced: DrawnScenes | None = None

    def __getitem__(self, sample: int) -> PairItem:
        return PairItem(self._source_item(sample), self._target_item(sample), sample)

    def _source_item(self, sample: int) -> LabelledItem | None:
        if self.source is None:
            return None
        scenes, view = self.source, self.source_view
        if self.balanced is not None:
            wanted, index = None, self.balanced.scene(sample)
        elif self.rare_classes is None:
            wanted, index = None, scene_index(sample, len(scenes.keys), seed=self.seed, stream="source")
        else:
            wanted, index = self.rare_classes.draw(sample, seed=self.seed)
        key = scenes.keys[index]
        whole = view.size or scenes.size(key)
        size = self._drawn_size(view, whole, "source", sample)
        labels = transforms.resized_map(scenes.labels(key), size)
        geometry = self._source_geometry(labels, view.crop or whole, wanted, generator(self.seed, "source", sample))
        instances = None
        if self.with_instances:
            instances = transforms.cut(transforms.resized_map(scenes.instances(key), size), geometry, _NO_INSTANCE)
        image = self._image(scenes, key, view, size, geometry)
        return LabelledItem(key, image, transforms.cut(labels, geometry, VOID), instances)

    def _drawn_size(self, view: View, whole: tuple[int, int], domain: str, sample: int) -> tuple[int, int]:
        if view.scale is None:
            return whole
        return transforms.drawn_size(whole, view.scale, generator(self.seed, f"scale/{domain}", sample))

    def _image(self, scenes: Scenes, key: str, view: View, size: tuple[int, int], geometry: Geometry) -> Tensor:
        if not self.with_images:
            return torch.empty(3, 0, 0)
        image = transforms.resized_image(scenes.image(key), size, view.filter)
        return transforms.normalized(transforms.cut(image, geometry, view.padding), view.mean, view.std)

    def _source_geometry(
        self, labels: Tensor, seen: tuple[int, int], wanted: int | None, rng: np.random.Generator
    ) -> Geometry:
        """Where to cut (H, W) `seen` from a scene with these labels, drawn for the class `wanted`, if any."""
        view, rare, max_share = self.source_view, self.rare_classes, self.max_class_share
        size = (labels.shape[0], labels.shape[1])
        draw = partial(transforms.draw_geometry, size, seen, view.flip, rng, pads=view.scale is not None)
        if view.crop is None and view.scale is None:
            return draw()  # every draw would show the same

        def is_varied(geometry: Geometry) -> bool:
            return max_share is None or transforms.is_varied(transforms.cut(labels, geometry, VOID), max_share)

        def shows_wanted(geometry: Geometry) -> bool:
            if rare is None or wanted is None:
                return True
            return transforms.class_share(transforms.cut(labels, geometry, VOID), wanted) > rare.rule.min_crop_share

        varied = partial(transforms.redrawn, draw, is_varied, _REDRAWS)
        return transforms.redrawn(varied, shows_wanted, rare.rule.attempts if rare else 0)

    def _target_item(self, sample: int) -> TargetItem | None:
        if self.target is None:
            return None
        scenes, view = self.target, self.target_view
        key = scenes.keys[scene_index(sample, len(scenes.keys), seed=self.seed, stream="target")]
        whole = view.size or scenes.size(key)
        size, rng = self._drawn_size(view, whole, "target", sample), generator(self.seed, "target", sample)
        geometry = transforms.draw_geometry(size, view.crop or whole, view.flip, rng, pads=view.scale is not None)
        if self.bought is None:
            bought = torch.full((geometry.height, geometry.width), VOID, dtype=torch.int64)
        else:  # once, from the grid on which they were bought: a pixel lives or dies by one rounding
            bought = transforms.cut(transforms.resized_map(self.bought.labels(key), size), geometry, VOID)
        # Padding gives no pseudo-labels.
        trusted = transforms.cut(transforms.trusted_map(size, self.untrusted_margins), geometry, False)
        return TargetItem(key, self._image(scenes, key, view, size, geometry), trusted, bought)


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
        image = transforms.resized_image(self.scenes.image(key), self.view.size, self.view.filter)
        image = transforms.normalized(image, self.view.mean, self.view.std)
        labels = self.scenes.labels(key) if self.with_labels else np.full(self.scenes.size(key), VOID, np.uint8)
        return LabelledItem(key, image, torch.from_numpy(labels.astype(np.int64)), None)


def collate_pair(items: list[PairItem]) -> Batch:
    """Stack the items of one micro-batch."""
    sources, targets, samples = zip(*items, strict=True)
    source = None if sources[0] is None else collate_labelled(list(sources))
    return Batch(source, None if targets[0] is None else collate_target(list(targets)), list(samples))


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
