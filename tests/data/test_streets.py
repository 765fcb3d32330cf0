"""Streets is pure, frozen, consistent, long-tailed, and says what is wrong with its arguments."""

from __future__ import annotations

import hashlib
import pickle
import time

import numpy as np
import pytest

from adaptseg.classes import STREETS, VOID
from adaptseg.data.scenes import Scenes
from adaptseg.data.streets import Streets
from adaptseg.data.streetscape import layout, looks, raster
from adaptseg.data.streetscape.canvas import Dice
from adaptseg.errors import AdaptSegError

LOOKS = ("game", "street", "fog", "night")

# sha256 over image, labels and instances. A change re-runs every table made on Streets: do not update it lightly.
FROZEN = {
    ("game", "train", 0): "930405e39e3661b9fa4be38a1dd86546fa5ace89153422782e3e82700c3a0788",
    ("game", "train", 77): "105c3194ddcc0f013636b5c5004dc8bc2ba232afa5faaf8dc3e097e84ae82f9b",
    ("game", "val", 3): "7e491b7f0cf7e71ee8847073e1b90cc9120a7a9b845d0812c814cd3cc355f7af",
    ("street", "train", 0): "92c09b3ac24bb2b53fb48b568dcc80ef9557a38448499759eef57716177130c0",
    ("street", "val", 41): "274d412441e2f513220f6ef2cd06a9ae51e6690fc1e733a7ddad5685b20e51d9",
    ("street", "test", 119): "a8026945680b8f222c10480dd30496ed7a3b468d705bc044874ba74b2ff120ba",
    ("fog", "train", 12): "58e2e6ea226eb6b3eb9d1abbe974934ecf58b223a21bc2158576fd17224d7845",
    ("night", "test", 5): "58cff1dac0372534293b1c10bbf30d91cf3df28f953f65ee5316034d42508f31",
}


def digest(scenes: Scenes, key: str) -> str:
    parts = scenes.image(key), scenes.labels(key), scenes.instances(key)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def small() -> dict[str, Streets]:
    """One train split per layout (fog and night share street's)."""
    return {look: Streets(look, "train", count=150, size=(64, 128)) for look in ("game", "street")}


@pytest.mark.parametrize(("look", "split", "number"), FROZEN)
def test_scenes_are_frozen(look, split, number):
    scenes = Streets(look, split)
    assert digest(scenes, scenes.keys[number]) == FROZEN[look, split, number]


@pytest.mark.parametrize("look", LOOKS)
def test_a_scene_is_pure(look):
    first, again = (Streets(look, "train", count=4, size=(64, 96)) for _ in range(2))
    bits = [digest(first, key) for key in first.keys]
    assert len(set(bits)) == 4
    assert [digest(first, key) for key in first.keys] == bits  # from memory
    assert [digest(again, key) for key in reversed(first.keys)] == bits[::-1]  # order does not matter
    copied = pickle.loads(pickle.dumps(first))
    assert [digest(copied, key) for key in copied.keys] == bits
    uncached = Streets(look, "train", count=9, size=(64, 96), cache=False)
    assert [digest(uncached, key) for key in uncached.keys[:4]] == bits  # nor does the number of scenes


def test_the_caller_cannot_spoil_the_cache():
    scenes = Streets("street", "train", count=1, size=(32, 64))
    key = scenes.keys[0]
    bits = digest(scenes, key)
    for part in (scenes.image(key), scenes.labels(key), scenes.instances(key)):
        part[:] = 7
    assert digest(scenes, key) == bits


def test_a_pickle_carries_no_pictures():
    scenes = Streets("game", "train", count=3, size=(64, 128))
    before = len(pickle.dumps(scenes))
    for key in scenes.keys:
        scenes.image(key)
    assert len(pickle.dumps(scenes)) == before


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("adaptseg.data.streets._CACHE_BYTES", 2 * 4 * 32 * 64)
    scenes = Streets("game", "train", count=4, size=(32, 64))
    bits = [scenes.image(key).tobytes() for key in scenes.keys]
    assert len(scenes._cache) == 2
    assert [scenes.image(key).tobytes() for key in scenes.keys] == bits


def test_splits_seeds_and_domains_differ():
    size = (64, 128)
    whole = {s: Streets("street", s, size=size) for s in ("train", "val", "test")}
    assert [len(s.keys) for s in whole.values()] == [400, 60, 120]
    largest = (("train", 10_000), ("val", 2_000), ("test", 4_000))
    indices = [set(Streets("street", split, count=n)._index.values()) for split, n in largest]
    assert len(set.union(*indices)) == sum(map(len, indices))
    firsts = [digest(s, s.keys[0]) for s in whole.values()]
    other_seed = Streets("street", "train", size=size, seed=1)
    assert len({*firsts, digest(other_seed, other_seed.keys[0])}) == 4
    assert whole["val"].keys[12] == "street_val_00012"
    for scenes in whole.values():
        assert list(scenes.keys) == sorted(set(scenes.keys))


def test_weather_changes_the_picture_and_not_the_street():
    street, fog, night = (Streets(look, "test", count=8) for look in ("street", "fog", "night"))
    contrast, brightness = np.zeros(2), np.zeros(2)
    for s, f, n in zip(street.keys, fog.keys, night.keys, strict=True):
        np.testing.assert_array_equal(street.labels(s), fog.labels(f))
        np.testing.assert_array_equal(street.instances(s), night.instances(n))
        far = [scenes.image(key)[40:60].astype(float) for scenes, key in ((street, s), (fog, f))]
        contrast += [rows.std() / rows.mean() for rows in far]
        brightness += [street.image(s).mean(), night.image(n).mean()]
    assert contrast[1] < 0.7 * contrast[0]
    assert brightness[1] < 0.65 * brightness[0]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size", [(128, 256), (180, 240), (33, 47), (64, 128), (160, 96)])
def test_types_and_sizes(look, size):
    scenes = Streets(look, "val", count=1, size=size)
    key = scenes.keys[0]
    image, labels, instances = scenes.image(key), scenes.labels(key), scenes.instances(key)
    assert scenes.size(key) == size == labels.shape == instances.shape
    assert image.shape == (*size, 3)
    assert (image.dtype, labels.dtype, instances.dtype) == (np.uint8, np.uint8, np.int32)
    assert set(np.unique(labels)) <= {*range(19), VOID}
    assert (labels == STREETS.names.index("road")).mean() > 0.1
    assert image.std() > 8


def test_geometry_scales_with_the_size():
    fine, coarse = (Streets("street", "train", count=5, size=s) for s in ((128, 256), (64, 128)))
    for key in fine.keys:
        assert (fine.labels(key)[::2, ::2] == coarse.labels(key)).mean() > 0.88


@pytest.mark.parametrize("look", ["game", "street"])
def test_instances_agree_with_labels(small, look):
    scenes, things = small[look], np.append(STREETS.things, np.zeros(256 - 19, bool))
    for key in scenes.keys[:40]:
        labels, instances = scenes.labels(key), scenes.instances(key)
        np.testing.assert_array_equal(instances > 0, things[labels])
        for instance in np.unique(instances[instances > 0]):
            assert len(np.unique(labels[instances == instance])) == 1


def test_a_rider_is_another_instance_than_its_two_wheeler(small):
    scenes, seen = small["game"], 0
    rider, wheels = STREETS.names.index("rider"), [STREETS.names.index(n) for n in ("motorcycle", "bicycle")]
    for key in scenes.keys:
        labels, instances = scenes.labels(key), scenes.instances(key)
        seen += bool((labels == rider).any())
        assert not set(instances[labels == rider]) & set(instances[np.isin(labels, wheels)])
    assert seen > 10


@pytest.mark.parametrize("look", ["game", "street"])
def test_the_tail_is_long_and_no_class_is_missing(small, look):
    scenes = small[look]
    counts = np.stack([np.bincount(scenes.labels(key).ravel(), minlength=256) for key in scenes.keys])
    share = dict(zip(STREETS.names, counts.sum(0) / counts.sum(), strict=False))
    present = dict(zip(STREETS.names, (counts > 0).mean(0), strict=False))
    assert min(present.values()) > 0.04
    assert 0.25 < share["road"] < 0.4
    assert share["building"] > 0.15
    assert share["vegetation"] > 0.08
    for rare in ("traffic light", "traffic sign", "rider", "truck", "bus", "train", "motorcycle", "bicycle"):
        assert 0.0005 < share[rare] < 0.01, rare
    void = counts[:, VOID].sum() / counts.sum()
    assert (0 < void < 0.01) if look == "game" else (0.02 < void < 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("look", ["game", "street"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_default_splits_hold_every_class(look, split):
    scenes = Streets(look, split, cache=False)
    present = np.zeros(256, int)
    for key in scenes.keys:
        present[np.unique(scenes.labels(key))] += 1
    assert present[:19].min() >= 0.04 * len(scenes.keys)


@pytest.mark.parametrize("look", LOOKS)
def test_a_scene_is_cheap(look):
    scenes = Streets(look, "train", count=12, cache=False)
    scenes.image(scenes.keys[0])  # the noise fields are made once per process
    start = time.process_time()
    for key in scenes.keys[2:]:
        scenes.image(key)
    assert (time.process_time() - start) / 10 < 0.08  # about 0.01 s on an idle core; slack for a busy machine


def test_image_and_labels_render_once(monkeypatch):
    calls = []
    compose = layout.compose
    monkeypatch.setattr(layout, "compose", lambda *a: calls.append(1) or compose(*a))
    scenes = Streets("game", "train", count=2, size=(32, 64))
    for _ in range(3):
        for key in scenes.keys:
            scenes.image(key), scenes.labels(key)
    scenes.instances(scenes.keys[1])
    assert len(calls) == 2


def test_palettes_name_the_same_parts():
    assert looks.GAME.keys() == looks.STREET.keys()
    assert set(looks.WEATHER) == set(LOOKS)


def naive_fill(height: int, width: int, polygons) -> np.ndarray:
    """Row by row, edge by edge."""
    canvas = np.zeros((height, width), np.int32)
    for value, points in enumerate(polygons, 1):
        for row in range(height):
            y, crossings = row + 0.5, []
            for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
                if min(y0, y1) <= y < max(y0, y1):
                    crossings.append(x0 + (y - y0) * (x1 - x0) / (y1 - y0))
            crossings.sort()
            for left, right in zip(crossings[::2], crossings[1::2], strict=True):
                for column in range(width):
                    if left - 1 <= column <= right:  # half a pixel wider on both sides
                        canvas[row, column] = value
    return canvas


@pytest.mark.parametrize("band", [1, 60, 1 << 18])
def test_polygons_are_filled_like_a_naive_loop(monkeypatch, band):
    monkeypatch.setattr(raster, "_BAND", band)
    rng = np.random.default_rng(5)
    for _ in range(20):
        height, width = rng.integers(1, 30, 2)
        polygons = []
        for _ in range(11):
            centre, spread = rng.uniform(-10, 40, 2), rng.choice([0.3, 4, 25])
            corners = centre + rng.uniform(-spread, spread, (int(rng.integers(3, 8)), 2))
            if rng.random() < 0.3:
                corners = np.round(corners)  # horizontal edges, shared rows, no area
            polygons.append([tuple(c) for c in corners.tolist()])
        painted = raster.fill_polygons(int(height), int(width), polygons)
        np.testing.assert_array_equal(painted, naive_fill(int(height), int(width), polygons))


def test_later_polygons_cover_earlier_ones():
    square = [(0.0, 0.0), (6.0, 0.0), (6.0, 6.0), (0.0, 6.0)]
    assert (raster.fill_polygons(6, 6, [square, square]) == 2).all()
    assert not raster.fill_polygons(6, 6, []).any()
    assert not raster.fill_polygons(6, 6, [[(50.0, 0.0), (60.0, 9.0), (50.0, 9.0)]]).any()
    pole = [(2.4, 0.0), (2.45, 0.0), (2.45, 6.0), (2.4, 6.0)]
    assert (raster.fill_polygons(6, 6, [pole]) > 0).any(1).all()  # thinner than a pixel, still there


def test_dice_stay_in_range():
    dice = Dice(3, 1)
    units = [dice.unit() for _ in range(2000)]
    assert 0 <= min(units) < 0.01 < 0.99 < max(units) < 1
    assert {dice.count(2, 4) for _ in range(200)} == {2, 3, 4}
    assert {dice.choose("abc") for _ in range(200)} == set("abc")


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("rain", "train"), {}, "look is 'rain'; one of game, street, fog, night"),
        (("game", "training"), {}, "split is 'training'; one of train, val, test"),
        (("game", "train"), {"count": 0}, "count is 0; split 'train' has 1 to 10000"),
        (("game", "val"), {"count": 2001}, "count is 2001; split 'val' has 1 to 2000"),
        (("game", "train"), {"count": -1}, "count is -1"),
        (("game", "train"), {"size": (31, 64)}, r"size is \(31, 64\)"),
        (("game", "train"), {"size": (64,)}, "size is"),
        (("game", "train"), {"size": (64, 5000)}, "32 to 4096"),
        (("game", "train"), {"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_explained(arguments, options, words):
    with pytest.raises(AdaptSegError, match=words):
        Streets(*arguments, **options)


@pytest.mark.parametrize("ask", ["image", "labels", "instances", "size"])
def test_unknown_keys_are_explained(ask):
    with pytest.raises(AdaptSegError, match="no scene 'street_val_00000'; keys run from 'game_val_00000'"):
        getattr(Streets("game", "val"), ask)("street_val_00000")
