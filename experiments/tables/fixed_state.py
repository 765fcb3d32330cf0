"""One fixed state of low-budget buying on real photographs, and heads trained on it: what departures.py measures on.

CamVid's training images at 128x128, 500 candidates of each, of which local herding keeps 10; five rounds of 37 pixels
bought by herding; of the rest, half kept by global herding as candidates of the sixth round. No head has a say in it,
so it is the same for everything that is measured. Local picks are not renewed where pixels were bought.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adaptseg.active.herding import max_herding
from adaptseg.active.point_stages import length_scale_of
from adaptseg.classes import VOID
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.scenes import Scenes
from adaptseg.data.transforms import resized_map
from adaptseg.methods.head_training import HeadTraining
from adaptseg.metrics import confusion_matrix, iou_from_confusion
from adaptseg.networks.feature_bank import FeatureBank, fixed_sample
from adaptseg.networks.feature_maps import FeatureMaps
from adaptseg.networks.pixel_segmenter import SMALL, PixelHead
from adaptseg.networks.point_features import norm_map
from adaptseg.tensors import likeliest

SIZE = (128, 128)
CANDIDATES, LOCAL, PICKS, ROUNDS, KEEP = 500, 10, 37, 5, 0.5
NORM, GRID, BATCH = 64, 4, 5


def bank_of(features: FeatureMaps, scenes: Scenes) -> FeatureBank:
    """Features as the package reads them, without a cache."""
    return FeatureBank(lambda: features, scenes, SIZE, IMAGENET_MEAN, IMAGENET_STD, None)


def candidates_of(key: str) -> Tensor:
    """(500,) flat positions: those of the package."""
    yx = fixed_sample(0, "candidates", key, SIZE, CANDIDATES)
    return yx[:, 0] * SIZE[1] + yx[:, 1]


def yx(flat: Tensor) -> Tensor:
    return torch.stack([flat // SIZE[1], flat % SIZE[1]], 1)


class Table(NamedTuple):
    """Features a head learns from.

    Attributes:
        points: (N * 500, D) float16, of the candidates; a point is `image * 500 + candidate` everywhere here.
        norm: (N, n, D) float16 of further pixels for the batch norms.
    """

    points: Tensor
    norm: Tensor


@dataclass(frozen=True)
class State:
    """See above.

    Attributes:
        bank: features of any pixel.
        keys: of the N images.
        num_classes: C.
        table: features of candidates and of 64 pixels an image for the batch norms.
        truth: (N * 500,) int64 train ids of the candidates, 255 = void.
        local: (N, 10) points that local herding keeps, in pick order.
        labelled: (185,) points, in pick order.
        kept: candidates of the sixth round, sorted.
    """

    bank: FeatureBank
    keys: list[str]
    num_classes: int
    table: Table
    truth: Tensor
    local: Tensor
    labelled: Tensor
    kept: Tensor

    def features(self, points: Tensor) -> Tensor:
        return self.table.points[points].float()

    @property
    def left(self) -> Tensor:
        """Local picks that are not labelled, sorted."""
        return _without(self.local.flatten(), self.labelled)


def make_state(features: FeatureMaps, scenes: Scenes, keys: Sequence[str]) -> State:
    bank, keys = bank_of(features, scenes), list(keys)
    points, norm, truth = [], [], []
    for key in keys:
        flat = candidates_of(key)
        extra = fixed_sample(0, "norm", key, SIZE, NORM)
        both = bank.at(key, torch.cat([yx(flat), extra])).half()
        points.append(both[: len(flat)])
        norm.append(both[len(flat) :])
        truth.append(resized_map(scenes.labels(key), SIZE).flatten()[flat])
    table = Table(torch.cat(points), torch.stack(norm))
    local = torch.stack([herded_image(table.points, i, key) for i, key in enumerate(keys)])
    first = local.flatten().sort().values
    labelled = first[herded(table.points[first].float(), ROUNDS * PICKS, "global/0")]
    left = _without(first, labelled)
    known = table.points[labelled].float()
    chosen = herded(table.points[left].float(), round(KEEP * len(left)), f"global/{ROUNDS}", known)
    classes = scenes.class_table.num_classes
    return State(bank, keys, classes, table, torch.cat(truth), local, labelled, left[chosen.sort().values])


def herded_image(points: Tensor, image: int, key: str) -> Tensor:
    """(10,) points of one image by local herding, in pick order; `points` as of Table."""
    first = image * CANDIDATES
    features = points[first : first + CANDIDATES].float()
    return first + max_herding(features, LOCAL, length_scale=length_scale_of("median", features, f"local/{key}"))[0]


def herded(features: Tensor, picks: int, name: str, known: Tensor | None = None) -> Tensor:
    """Global herding as in the package: indices in pick order."""
    known = features[:0] if known is None else known
    scale = length_scale_of("median", torch.cat([features, known]), name)
    return max_herding(features, picks, length_scale=scale, conditioned_on=known)[0]


def drawn_features(state: State, points: Tensor, draws: int) -> Tensor:
    """(draws, n, D) float16 of sorted points with fresh noise."""
    every = []
    for image in (points // CANDIDATES).unique().tolist():
        key = state.keys[image]
        flat = candidates_of(key)[points[points // CANDIDATES == image] % CANDIDATES]
        every.append(torch.stack([state.bank.at(key, yx(flat), draw=k).half() for k in range(1, draws + 1)]))
    return torch.cat(every, 1)


def grid_table(state: State) -> Table:
    """For the batch norms every fourth row and column of each image: as good as all pixels of maps of stride 4."""
    sides = [torch.arange(GRID // 2, side, GRID) for side in SIZE]
    grid = torch.cartesian_prod(*sides)
    return Table(state.table.points, torch.stack([state.bank.at(key, grid).half() for key in state.keys]))


def _without(points: Tensor, bought: Tensor) -> Tensor:
    return torch.from_numpy(np.setdiff1d(points.numpy(), bought.numpy()))


# ---- heads


@dataclass(frozen=True)
class Lesson:
    """How a head learns; the defaults are those of the package and, as far as they go, of the release.

    Attributes:
        training: of the head.
        statistics: as of PixelClassifier.
        passes: over the images, at most (released: 50).
    """

    training: HeadTraining = HeadTraining()
    statistics: Literal["transductive", "labelled"] = "transductive"
    passes: int = 50


class Trained(NamedTuple):
    """A head after its lesson, the one of least batch loss on the way, steps, and the confusion of its lesson."""

    last: PixelHead
    best: PixelHead
    steps: int
    confusion: Tensor


def learn(
    state: State, bought: Tensor, seed: int, lesson: Lesson = Lesson(), tables: Sequence[Table] | None = None
) -> Trained:
    """A head trained as PixelClassifier trains it in one round.

    Args:
        state: where the points live.
        bought: points; void ones teach nothing.
        seed: of the first weights, of the order of the images and of dropout.
        lesson: how.
        tables: features, a table for each pass, over and over; None = those of the state.
    """
    tables, settings = tables or [state.table], lesson.training
    random = torch.Generator().manual_seed(seed)
    head = PixelHead(tables[0].points.shape[1], state.num_classes, SMALL)
    head.restart(random)
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    bought = bought[state.truth[bought] != VOID]
    best, least, waited, steps = copy.deepcopy(head), math.inf, 0, 0
    confusion = torch.zeros(state.num_classes, state.num_classes, dtype=torch.int64)
    for number in range(lesson.passes):
        table = tables[number % len(tables)]
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(number)
        for images in torch.randperm(len(state.keys), generator=random).split(BATCH):
            mine = bought[torch.isin(bought // CANDIDATES, images)]
            if not len(mine):
                continue
            rows, labels = table.points[mine].float(), state.truth[mine]
            if lesson.statistics == "transductive":
                rows = torch.cat([rows, table.norm[images].flatten(0, 1).float()])
            clean = head(rows)[: len(labels)]
            kept = torch.rand(clean.shape, generator=random) >= settings.dropout
            logits = clean * kept / (1 - settings.dropout)
            loss = functional.cross_entropy(logits, labels)
            confusion += confusion_matrix(clean.argmax(1), labels, state.num_classes)
            if settings.patience is not None and number >= settings.first_passes:
                value = float(loss.detach())
                waited = 0 if value < least else waited + 1
                if value < least:
                    least, best = value, copy.deepcopy(head)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if settings.patience is not None and waited > settings.patience:
                return Trained(head.eval(), best.eval(), steps, confusion)
    return Trained(head.eval(), best.eval(), steps, confusion)


@torch.no_grad()
def confusions(features: FeatureMaps, scenes: Scenes, keys: Sequence[str], heads: Sequence[PixelHead]) -> list[Tensor]:
    """(C, C) of each head over some images, all of which look at the same maps."""
    bank, classes = bank_of(features, scenes), scenes.class_table.num_classes
    totals = [torch.zeros(classes, classes, dtype=torch.int64) for _ in heads]
    for key in keys:
        maps = [cells[None] for cells in bank.maps(key)]
        norms, truth = norm_map(maps, SIZE), resized_map(scenes.labels(key), SIZE)[None]
        for head, total in zip(heads, totals, strict=True):
            total += confusion_matrix(likeliest(head.dense(maps, SIZE, norms), 1), truth, classes)
    return totals


def miou(confusion: Tensor, *, absent: float = math.nan) -> float:
    """In per cent; a class that the truth lacks counts as `absent`, NaN = left out."""
    return 100 * float(iou_from_confusion(confusion).nan_to_num(absent).nanmean())
