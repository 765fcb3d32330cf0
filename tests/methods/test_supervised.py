"""The supervised loss against a naive float64 computation, for every combination of its switches."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from tiny import TinySegmenter, tiny_network
from torch import Tensor, nn

from adaptseg.augment.color import DRAWS, Blur, ColorJitter, Colors, strong_augmentation
from adaptseg.classes import STREETS, VOID
from adaptseg.data import Batch, Labelled, Streets, Target
from adaptseg.data.datasets import PairDataset, View, collate_pair
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.data.sampling import uniform_draws
from adaptseg.errors import AdaptSegError
from adaptseg.methods import Supervised
from adaptseg.networks import Inference

SIZE = (32, 64)
CLASSES = STREETS.num_classes


def confident(num_classes: int) -> TinySegmenter:
    """Logits far enough apart that some probabilities lie below the threshold and some above."""
    network = tiny_network(num_classes)
    with torch.no_grad():
        network.head.weight.mul_(8)
    return network


def method(**settings: Any) -> Supervised:
    return Supervised(**{"network": confident, "class_table": STREETS, **settings})


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two real scenes of each domain, with void in the source and every fifth target pixel bought, by its index."""
    view = View(None, None, False, IMAGENET_MEAN, IMAGENET_STD)
    source, target = (Streets(look, "train", count=3, size=SIZE) for look in ("game", "street"))
    data = PairDataset(source, target, view, view, 0, None)
    made = collate_pair([data[0], data[1]])
    assert made.source is not None
    assert made.target is not None
    generator = torch.Generator().manual_seed(0)
    labels = made.source.labels.clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = VOID
    ids = torch.randint(CLASSES, labels.shape, generator=generator)
    bought = torch.where(torch.rand(labels.shape, generator=generator) < 0.2, ids, VOID)
    return Batch(made.source._replace(labels=labels), with_bought(made.target, bought))


def with_bought(target: Target, bought: Tensor) -> Target:
    return target._replace(bought=bought, bought_pixels=int((bought != VOID).sum()))


def nothing_bought(target: Target) -> Target:
    return with_bought(target, torch.full_like(target.bought, VOID))


def test_bought_targets_are_coloured_by_their_samples_draws_and_only_in_training(batch: Batch) -> None:
    colors = Colors(ColorJitter(probability=1.0, strength=0.4, grey=0.2), Blur(1.0, (0.1, 2.0)))
    model = method(target_colors=colors, seed=4)
    given = batch._replace(source=None, samples=[7, 8])
    assert given.target is not None
    seen: list[Tensor] = []
    model.student.register_forward_hook(lambda module, images, out: seen.append(images[0]))
    loss = model.step(given).loss
    draws = uniform_draws(4, "augment/target", [7, 8], (DRAWS,))
    expected = strong_augmentation(
        given.target.image, draws, jitter=colors.jitter, blur=colors.blur, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    assert torch.equal(seen[0], expected)
    shown = given._replace(target=given.target._replace(image=expected))
    assert torch.equal(loss, method(seed=4).step(shown).loss)  # the labels stay where they are
    model.eval()
    model.predict_probabilities(given.target.image, size=SIZE)
    assert torch.equal(seen[1], given.target.image)


# ---- the naive loss


def naive_loss(network: nn.Module, batch: Batch, settings: dict[str, Any]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    if batch.source is not None:
        logits = naive_logits(network, batch.source.image)
        total = total + settings.get("source_weight", 1.0) * naive_cross_entropy(logits, batch.source.labels, 1)
        if weight := settings.get("consistency_weight", 0.0):
            total = total + weight * naive_consistency(logits.softmax(1), batch.source.labels)
    if batch.target is not None:
        logits = naive_logits(network, batch.target.image)
        least = settings.get("least_bought", 1)
        total = total + settings.get("target_weight", 1.0) * naive_cross_entropy(logits, batch.target.bought, least)
        if weight := settings.get("negative_weight", 0.0):
            p = logits.softmax(1)
            excluded = p[p < settings.get("negative_threshold", 0.05)]
            total = total - weight * torch.log(1 - excluded + 1e-6).sum() / max(len(excluded), 1)
    return total


def naive_logits(network: nn.Module, images: Tensor, *, align_corners: bool = False) -> Tensor:
    """Bilinear by hand: each pixel's centre between the four nearest cells, which are 4 pixels wide, or whose outer
    centres are those of the outer pixels."""
    cells = network(images.double()).logits
    for dim in (2, 3):
        count = cells.shape[dim]
        pixels = torch.arange(4 * count).double()
        centre = ((pixels + 0.5) / 4 - 0.5).clamp(0, count - 1)
        centre = (pixels * (count - 1) / (4 * count - 1)).clamp(0, count - 1) if align_corners else centre
        lower = centre.floor().long()
        share = (centre - lower).reshape([-1 if d == dim else 1 for d in range(4)])
        upper = (lower + 1).clamp(max=count - 1)
        cells = cells.index_select(dim, lower) * (1 - share) + cells.index_select(dim, upper) * share
    return cells


def naive_cross_entropy(logits: Tensor, labels: Tensor, least: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    for train_id in range(CLASSES):
        total = total - log_p[:, train_id][labels == train_id].sum()
    return total / max(int((labels != VOID).sum()), least)


def naive_consistency(p: Tensor, labels: Tensor) -> Tensor:
    batch, height, width = labels.shape
    total, count = torch.zeros((), dtype=torch.float64), 0
    shifts = list(product((-1, 0, 1), repeat=2))
    rows, columns = torch.arange(height), torch.arange(width)
    mean = sum(
        p[:, :, (rows + dy).clamp(0, height - 1)[:, None], (columns + dx).clamp(0, width - 1)] for dy, dx in shifts
    )
    deviation = (p - mean / 9).abs().sum(1)
    for b, y, x in product(range(batch), range(height), range(width)):
        label = int(labels[b, y, x])
        neighbours = [
            int(labels[b, y + dy, x + dx]) if 0 <= y + dy < height and 0 <= x + dx < width else 0 for dy, dx in shifts
        ]
        if label != VOID and sum(neighbours) != 9 * label:
            total, count = total + deviation[b, y, x], count + 1
    return total / max(count, 1)


SWITCHES = [
    dict(zip(("source_weight", "target_weight", "consistency_weight", "negative_weight"), values, strict=True))
    for values in [(1.0, 1.0, 0.1, 1.0), (0.5, 2.0, 0.0, 0.0), (1.0, 0.0, 0.1, 0.0), (1.0, 0.0, 0.0, 0.7)]
] + [
    {},
    {"least_bought": 10**6},
    {"negative_weight": 1.0, "negative_threshold": 0.2, "least_bought": 7},
    {"consistency_weight": 0.3, "source_weight": 0.0},
]


CASES = [
    (settings, domains)
    for settings, domains in product(SWITCHES, ["both", "both, nothing bought", "source", "target"])
    if domains != "target" or settings.get("target_weight", 1.0) or settings.get("negative_weight")
]


@pytest.mark.parametrize(("settings", "domains"), CASES, ids=str)
def test_loss_and_gradient_equal_the_naive_ones(batch: Batch, settings: dict[str, Any], domains: str) -> None:
    source = None if domains == "target" else batch.source
    target = None if domains == "source" else batch.target
    if target is not None and "nothing" in domains:
        target = nothing_bought(target)
    given = Batch(source, target)
    supervised = method(**settings)
    reference = copy.deepcopy(supervised.student).double()
    result = supervised.step(given)
    expected = naive_loss(reference, given, settings)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss.double(), expected, rtol=1e-5, atol=1e-6)
    result.loss.backward()
    expected.backward()
    for computed, naive in zip(supervised.student.parameters(), reference.parameters(), strict=True):
        assert computed.grad is not None
        assert naive.grad is not None
        scale = float(naive.grad.abs().max())
        # Boundary consistency's slope jumps where a probability equals its neighbours' mean: rounding decides there.
        slack = 1e-3 if settings.get("consistency_weight") else 1e-4
        torch.testing.assert_close(computed.grad.double(), naive.grad, rtol=1e-3, atol=slack * scale + 1e-9)


def test_training_has_the_geometry_of_inference(batch: Batch) -> None:
    supervised = method(inference=Inference(align_corners=True))
    assert batch.source is not None
    found = supervised.step(Batch(batch.source, None)).loss.detach()
    reference = copy.deepcopy(supervised.student).double()
    with torch.no_grad():
        aligned, centred = (
            naive_cross_entropy(naive_logits(reference, batch.source.image, align_corners=a), batch.source.labels, 1)
            for a in (True, False)
        )
    torch.testing.assert_close(found.double(), aligned, rtol=1e-5, atol=1e-6)
    assert abs(found - centred) > 1e-3


def test_logs_name_the_unweighted_terms(batch: Batch) -> None:
    settings = {"source_weight": 0.5, "consistency_weight": 0.1, "target_weight": 2.0, "negative_weight": 0.7}
    result = method(**settings).step(batch)
    assert list(result.logs) == ["source", "consistency", "target", "negative"]
    weighted = sum(settings[f"{name}_weight"] * value for name, value in result.logs.items())
    torch.testing.assert_close(result.loss, weighted)
    assert list(method().step(batch).logs) == ["source", "target"]


# ---- nothing bought, least bought


@pytest.mark.parametrize("negative_weight", [0.0, 1.0])
@pytest.mark.parametrize("with_source", [True, False])
def test_no_nan_when_nothing_is_bought(batch: Batch, negative_weight: float, with_source: bool) -> None:
    assert batch.target is not None
    supervised = method(negative_weight=negative_weight)
    result = supervised.step(Batch(batch.source if with_source else None, nothing_bought(batch.target)))
    assert result.logs["target"] == 0
    result.loss.backward()
    for parameter in supervised.student.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_a_lone_pixel_weighs_what_the_floor_says(batch: Batch) -> None:
    assert batch.target is not None
    lone = torch.full_like(batch.target.bought, VOID)
    lone[1, 3, 5] = 7
    given = Batch(batch.source, with_bought(batch.target, lone))
    full = method(least_bought=1).step(given).logs["target"]
    assert full > 0.1
    torch.testing.assert_close(method(least_bought=100).step(given).logs["target"], full / 100)
    many = Batch(batch.source, batch.target)  # more pixels than the floor: it does nothing
    assert batch.target.bought_pixels > 100
    assert torch.equal(method(least_bought=100).step(many).loss, method(least_bought=1).step(many).loss)


# ---- passes


def passes(supervised: Supervised, batch: Batch) -> int:
    seen: list[int] = []
    hook = supervised.student.register_forward_hook(lambda *_: seen.append(1))
    supervised.step(batch)
    hook.remove()
    return len(seen)


def test_passes_are_made_only_where_they_are_needed(batch: Batch) -> None:
    assert batch.target is not None
    bare = Batch(batch.source, nothing_bought(batch.target))
    assert passes(method(), batch) == 2
    assert passes(method(), bare) == 1
    assert passes(method(target_weight=0.0), batch) == 1
    assert passes(method(target_weight=0.0, negative_weight=1.0), bare) == 2
    assert passes(method(), Batch(None, bare.target)) == 1


def test_synchronised_batch_norm_passes_with_all_ranks_or_none(batch: Batch) -> None:
    """Another rank may have bought pixels; its statistics would wait for ours for ever."""

    def synchronised(num_classes: int) -> TinySegmenter:
        network = confident(num_classes)
        network.encoder.append(nn.SyncBatchNorm(network.width))
        return network.eval()

    assert batch.target is not None
    assert passes(method(network=synchronised), Batch(batch.source, nothing_bought(batch.target))) == 2


def test_the_target_is_not_read_where_it_is_not_wanted(batch: Batch) -> None:
    supervised = method(target_weight=0.0)
    with_target, without = supervised.step(batch), supervised.step(batch._replace(target=None))
    assert torch.equal(with_target.loss, without.loss)
    assert list(with_target.logs) == ["source"]


# ---- slices


def test_the_mean_over_equal_slices_is_the_whole_batch(batch: Batch) -> None:
    """Of micro-batches with as many labelled pixels each, as in a run without void; the consistency and negative terms
    divide by counts of their own, and are means of means."""
    assert batch.source is not None
    labels = batch.source.labels.where(batch.source.labels != VOID, 0)
    whole = Labelled(batch.source.keys, batch.source.image, labels)
    slices = [Labelled(whole.keys[i : i + 1], whole.image[i : i + 1], labels[i : i + 1]) for i in (0, 1)]

    def gradients(parts: list[Labelled]) -> list[Tensor]:
        supervised = method()
        for part in parts:
            (supervised.step(Batch(part, None)).loss / len(parts)).backward()
        return [p.grad for p in supervised.student.parameters() if p.grad is not None]

    for a, b in zip(gradients([whole]), gradients(slices), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# ---- what is refused


def test_nothing_to_learn_from_is_refused(batch: Batch) -> None:
    with pytest.raises(AdaptSegError, match=r"nothing to learn from: there is no data\.source"):
        method(target_weight=0.0).step(batch._replace(source=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negative_threshold": 0.0}, r"model\.negative_threshold is 0\.0"),
        ({"negative_threshold": 1.0}, r"model\.negative_threshold is 1\.0"),
        ({"least_bought": 0}, r"model\.least_bought is 0"),
        ({"network": lambda classes: nn.Conv2d(3, classes, 1)}, r"model\.network makes a Conv2d; a Segmenter"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptSegError, match=message):
        method(**settings)
