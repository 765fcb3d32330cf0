"""ClassMix against a loop with Python sets: half of the classes rounded up, void included, image by image."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from adaptseg.augment.classmix import choose_half, class_mask, classes_present, paste

NUM_CLASSES = 5


def random_labels(seed: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Four images that lack some classes; void in some of them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES, (4, 6, 7), generator=generator)
    labels[0] = labels[0].clamp(max=1)
    labels[2] = labels[2].clamp(min=3)
    labels[(torch.rand(labels.shape, generator=generator) < 0.2) & (torch.arange(4) > 1)[:, None, None]] = 255
    return labels.to(dtype)


def priorities(seed: int, batch: int = 4) -> Tensor:
    return torch.rand(batch, NUM_CLASSES + 1, generator=torch.Generator().manual_seed(seed))


def naive_choice(classes: set[int], priority: list[float]) -> set[int]:
    ranked = sorted(classes, key=lambda c: -priority[NUM_CLASSES if c == 255 else c])
    return set(ranked[: math.ceil(len(ranked) / 2)])


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize("batch_wide", [False, True])
def test_against_a_loop_with_sets(dtype: torch.dtype, batch_wide: bool) -> None:
    for seed in range(20):
        labels, priority = random_labels(seed, dtype), priorities(seed)
        present = classes_present(labels, NUM_CLASSES)
        chosen = choose_half(present.any(0, keepdim=True) if batch_wide else present, priority)
        mask = class_mask(labels, chosen)
        for b in range(4):
            classes = set((labels if batch_wide else labels[b]).flatten().tolist())
            expected = naive_choice(classes, priority[b].tolist())
            assert {255 if c == NUM_CLASSES else c for c in chosen[b].nonzero().flatten().tolist()} == expected
            assert [[label in expected for label in row] for row in labels[b].tolist()] == mask[b].tolist()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_presence_has_a_column_for_void(dtype: torch.dtype) -> None:
    labels = torch.tensor([[[0, 4, 4]], [[255, 255, 255]], [[255, 2, 0]]], dtype=dtype)
    expected = [[1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 1]]
    present = classes_present(labels, NUM_CLASSES)
    assert present.dtype == torch.bool
    assert present.int().tolist() == expected


@pytest.mark.parametrize("count", range(NUM_CLASSES + 2))
def test_half_is_rounded_up(count: int) -> None:
    present = (torch.arange(NUM_CLASSES + 1) < count).flip(0).expand(4, -1)  # void first
    chosen = choose_half(present, priorities(count))
    assert chosen.sum(1).tolist() == [math.ceil(count / 2)] * 4
    assert not (chosen & ~present).any()


def test_one_class_and_all_void_images_are_pasted_whole() -> None:
    labels = torch.stack([torch.full((3, 3), 2), torch.full((3, 3), 255)])
    chosen = choose_half(classes_present(labels, NUM_CLASSES), priorities(0, 2))
    assert class_mask(labels, chosen).all()


def test_equal_priorities_choose_no_more_than_half() -> None:
    chosen = choose_half(torch.ones(1, NUM_CLASSES + 1, dtype=torch.bool), torch.zeros(2, NUM_CLASSES + 1))
    assert chosen.int().tolist() == [[1, 1, 1, 0, 0, 0]] * 2


def test_every_half_is_equally_likely() -> None:
    present = torch.tensor([[1, 0, 1, 1, 0, 1]], dtype=torch.bool)
    chosen = choose_half(present, priorities(1, 6000))
    halves, counts = chosen.int().unique(dim=0, return_counts=True)
    assert len(halves) == 6
    assert (counts - 1000).abs().max() < 120  # standard deviation 29


def test_an_image_does_not_depend_on_its_companions() -> None:
    labels, priority = random_labels(3), priorities(3)
    together = choose_half(classes_present(labels, NUM_CLASSES), priority)
    for b in range(4):
        alone = choose_half(classes_present(labels[b : b + 1], NUM_CLASSES), priority[b : b + 1])
        assert torch.equal(alone[0], together[b])


def test_batch_wide_choice_may_miss_an_image() -> None:
    labels = torch.stack([torch.full((2, 2), 0), torch.full((2, 2), 1)])
    present = classes_present(labels, NUM_CLASSES).any(0, keepdim=True)
    priority = torch.tensor([[0.1, 0.9, 0, 0, 0, 0], [0.1, 0.9, 0, 0, 0, 0]])
    mask = class_mask(labels, choose_half(present, priority))
    assert not mask[0].any()
    assert mask[1].all()


def test_image_labels_and_weights_are_mixed_with_one_mask() -> None:
    labels = random_labels(5)
    mask = class_mask(labels, choose_half(classes_present(labels, NUM_CLASSES), priorities(5)))
    assert mask.any()
    assert not mask.all()
    source, target = torch.rand(4, 3, 6, 7), torch.rand(4, 3, 6, 7)
    mixed = paste(mask, source, target)
    pseudo = torch.full_like(labels, 1)
    mixed_labels, weights = paste(mask, labels, pseudo), paste(mask, torch.ones(4, 6, 7), torch.full((4, 6, 7), 0.25))
    for b, y, x in product(range(4), range(6), range(7)):
        inside = bool(mask[b, y, x])
        assert torch.equal(mixed[b, :, y, x], (source if inside else target)[b, :, y, x])
        assert mixed_labels[b, y, x] == (labels[b, y, x] if inside else 1)
        assert weights[b, y, x] == (1.0 if inside else 0.25)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_unknown_labels_are_an_error(dtype: torch.dtype) -> None:
    labels = torch.full((1, 2, 2), NUM_CLASSES + 1, dtype=dtype)
    with pytest.raises((IndexError, RuntimeError)):
        classes_present(labels, NUM_CLASSES)
