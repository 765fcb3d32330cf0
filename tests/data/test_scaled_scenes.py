"""Scenes of random scale: all maps move together, what is missing is void, and nobody but the training sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pair import SIZE, Bought, Clock, Coded, Mixed, assert_equal, batches, pair, pixels, run
from test_rare_classes import drawn

from adaptseg.classes import VOID
from adaptseg.data.normalization import IMAGENET_MEAN
from adaptseg.data.rare_classes import RareClassSampling
from adaptseg.data.sampling import generator
from adaptseg.errors import AdaptSegError

SCALED: dict[str, Any] = {"scale": (0.5, 2.0), "flip": True}
CROPPED: dict[str, Any] = {**SCALED, "crop": (9, 11)}
MEAN_BYTES = [round(255 * mean) for mean in IMAGENET_MEAN]


def replayed(domain: str, sample: int, seen: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Scaled size, corner and mirror of a sample, from the generators that decide them."""
    factor = generator(7, f"scale/{domain}", sample).uniform(0.5, 2.0)
    size = int(SIZE[0] * factor), int(SIZE[1] * factor)
    place = generator(7, domain, sample)
    top, left = (int(place.integers(max(side - cut, 0) + 1)) for side, cut in zip(size, seen, strict=True))
    return size, (top, left), bool(place.random() < 0.5)


def origin(
    y: int, x: int, width: int, size: tuple[int, int], corner: tuple[int, int], flip: bool
) -> tuple[float, float] | None:
    """Where the centre of an output pixel lies on the native grid, in pixels; None outside the scene."""
    row, column = y + corner[0], (width - 1 - x if flip else x) + corner[1]
    if row >= size[0] or column >= size[1]:
        return None
    return (row + 0.5) * SIZE[0] / size[0], (column + 0.5) * SIZE[1] / size[1]


@pytest.mark.parametrize("changes", [SCALED, CROPPED, {**SCALED, "crop": (20, 7)}], ids=str)
def test_every_map_against_a_loop_over_its_pixels(changes: dict[str, Any]) -> None:
    margins = (1 / 12, 2 / 12, 3 / 18, 0.0)
    data = pair(with_instances=True, untrusted_margins=margins, **changes)
    data.bought = Bought(SIZE)
    bought, seen = data.bought.labels("t0"), changes.get("crop", SIZE)
    padded = 0
    for batch in batches(data, Clock(max_steps=3)):
        assert batch.source is not None
        assert batch.target is not None
        assert batch.source.instances is not None
        assert batch.source.image.shape == batch.target.image.shape == (4, 3, *seen)
        for n, sample in enumerate(batch.samples):
            labels = Coded("s", 5).labels(batch.source.keys[n])
            for domain, shown in (("source", batch.source), ("target", batch.target)):
                size, corner, flip = replayed(domain, sample, seen)
                colors = pixels(shown.image)[n]
                for y in range(seen[0]):
                    for x in range(seen[1]):
                        where = origin(y, x, seen[1], size, corner, flip)
                        if where is None:
                            padded += 1
                            assert colors[:, y, x].tolist() == MEAN_BYTES
                            expected = (VOID, 0) if domain == "source" else (VOID, False)
                        else:
                            row, column = int(where[0]), int(where[1])
                            # Resizing blurs, but a ramp stays one: half a pixel of the native grid, more at borders.
                            assert abs(colors[1, y, x] - (where[0] - 0.5)) <= 1
                            assert abs(colors[2, y, x] - (where[1] - 0.5)) <= 1
                            label = int(labels[row, column])
                            on_scaled = (y + corner[0], (seen[1] - 1 - x if flip else x) + corner[1])
                            trusted = round(size[0] / 12) <= on_scaled[0] < size[0] - round(size[0] * 2 / 12)
                            trusted &= on_scaled[1] >= round(size[1] * 3 / 18)
                            expected = (
                                (label, 1000 * label) if domain == "source" else (int(bought[row, column]), trusted)
                            )
                        if domain == "source":
                            found = batch.source.labels[n, y, x].item(), batch.source.instances[n, y, x].item()
                        else:
                            found = batch.target.bought[n, y, x].item(), batch.target.trusted[n, y, x].item()
                        assert found == expected
    assert padded > 0


@pytest.mark.parametrize("crop", [None, (8, 11)])
def test_a_factor_of_one_is_no_scale_bit_for_bit(crop: Any) -> None:
    plain = run(pair(crop=crop, flip=True), max_steps=6)
    assert_equal(run(pair(crop=crop, flip=True, scale=(1.0, 1.0)), max_steps=6), plain)


def test_scenes_without_a_crop_keep_their_own_size() -> None:
    (batch, *_) = run(pair(source=None, target=Mixed("t", 3), scale=(0.5, 2.0), batch_size=1), max_steps=3)
    assert batch.target is not None
    assert tuple(batch.target.image.shape[-2:]) == Mixed("t", 3).size(batch.target.keys[0])


def test_scales_depend_on_seed_and_sample_alone() -> None:
    whole = run(pair(**CROPPED), max_steps=6)
    assert_equal(run(pair(**CROPPED), global_step=4, max_steps=6), whole[4:])
    assert_equal(run(pair(**CROPPED, workers=2), max_steps=3), whole[:3])
    ranks = [run(pair(**CROPPED), global_rank=rank, world_size=2, max_steps=6) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        for domain in (0, 1):
            for column in (1, 2):
                assert torch.equal(torch.cat([rank[step][domain][column] for rank in ranks]), batch[domain][column])
    other = run(pair(**CROPPED, seed=8), max_steps=6)
    assert not torch.equal(other[0].target.image, whole[0].target.image)  # type: ignore[union-attr]


def test_enlarging_multiplies_bought_pixels_and_shrinking_loses_some() -> None:
    half = pair(source=None, scale=(0.5, 0.5))
    half.bought = Bought(SIZE)
    (batch, *_) = batches(half, Clock())
    assert batch.target is not None
    assert 0 < batch.target.bought_pixels <= 4 * 6 * 9  # a quarter of each scene is seen, the rest is padding
    assert (batch.target.bought[:, 6:] == VOID).all()
    data = pair(source=None, scale=(2.0, 2.0), crop=(24, 36))
    data.bought = Bought(SIZE)
    (batch, *_) = batches(data, Clock())
    assert batch.target is not None
    np.testing.assert_array_equal(batch.target.bought[0], data.bought.labels("t0").repeat(2, 0).repeat(2, 1))


def test_the_pool_and_evaluation_do_not_see_it() -> None:
    plain, scaled = (pair(val=Coded("v", 2), test=Coded("w", 2), **changes) for changes in ({}, CROPPED))
    for data in (plain, scaled):
        data.trainer = Clock()  # type: ignore[assignment]
    assert_equal(list(scaled.pool_loader(0, 1)), list(plain.pool_loader(0, 1)))
    assert scaled.pool_grid("t0") == SIZE
    for name in ("val_dataloader", "test_dataloader", "predict_dataloader"):
        assert_equal(list(getattr(scaled, name)()), list(getattr(plain, name)()))


def test_crops_of_scaled_scenes_still_show_the_class_they_were_drawn_for(tmp_path: Path) -> None:
    rule = RareClassSampling(min_share=0.0, min_crop_share=0.02, attempts=30)
    data = drawn(tmp_path, rule, **CROPPED)
    rare = data.drawing.rare_classes()
    assert rare is not None
    shares = []
    for batch in run(data, max_steps=6):
        assert batch.source is not None
        for sample, labels in zip(batch.samples, batch.source.labels, strict=True):
            shares.append(float((labels == rare.draw(sample, seed=7)[0]).double().mean()))
    assert np.mean(np.array(shares) > 0.02) > 0.8  # one may vanish where its scene is made smaller


@pytest.mark.parametrize("scale", [(0.0, 1.0), (2.0, 0.5), (0.5, float("inf")), (float("nan"), 1.0)])
def test_impossible_factors_are_refused(scale: Any) -> None:
    with pytest.raises(AdaptSegError, match=r"data\.scale is \[.*two positive factors are expected, smaller first"):
        pair(scale=scale)
