"""The view that prepares other readers' scenes, against Pillow's own resizing and the release's crop."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from layouts import picture, save
from PIL import Image

from adaptseg.classes import CITYSCAPES, VOID
from adaptseg.data import CamVid, Cityscapes, DomainPair, Resized, Streets
from adaptseg.data.resize import resize_nearest
from adaptseg.errors import AdaptSegError

RNG = np.random.default_rng(3)


@pytest.fixture
def camvid(tmp_path: Path) -> CamVid:
    """480x360 as published, a twelfth void."""
    save(tmp_path / "train" / "0001TP_006690.png", picture(360, 480))
    save(tmp_path / "trainannot" / "0001TP_006690.png", RNG.integers(0, 12, (360, 480)).astype(np.uint8))
    return CamVid(str(tmp_path), "train")


def test_camvid_is_squeezed_as_by_the_released_script(camvid: CamVid) -> None:
    key = camvid.keys[0]
    scenes = pickle.loads(pickle.dumps(Resized(camvid, (256, 256))))
    with Image.open(camvid._image_path(key)) as image:
        expected = np.asarray(image.resize((256, 256), resample=Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(scenes.image(key), expected)
    with Image.open(camvid._labels / f"{key}.png") as label:
        expected = np.asarray(label.resize((256, 256), resample=Image.Resampling.NEAREST))
    np.testing.assert_array_equal(scenes.labels(key), np.where(expected == 11, VOID, expected))
    assert scenes.size(key) == (256, 256)
    assert (scenes.keys, scenes.class_table, scenes.labelled) == (camvid.keys, camvid.class_table, True)


def cityscapes(root: Path) -> Cityscapes:
    image, key = np.zeros((1024, 2048, 3), np.uint8), "aachen/aachen_000000_000019"
    image[:, 512:1536] = 200  # the centre: columns 128 to 383 of 512
    ids = np.full((1024, 2048), 7, np.uint8)
    ids[:, 512:1536] = np.repeat(np.repeat([[0, 7], [19, 33]], 512, 0), 512, 1)
    for name, values in (("leftImg8bit", image), ("gtFine", ids), ("gtFine", ids.astype(np.uint16) * 1000)):
        kind = {2: "_labelIds" if values.dtype == np.uint8 else "_instanceIds", 3: ""}[values.ndim]
        save(root / name / "val" / f"{key}_{name}{kind}.png", values)
    return Cityscapes(str(root), "val")


def test_cityscapes_keeps_its_centre_and_its_traffic_lights(tmp_path: Path) -> None:
    """The released script takes id 19 of the raw labels, a traffic light, for void, and raw ids for train ids."""
    inner = cityscapes(tmp_path)
    scenes, key = Resized(inner, (256, 512), crop=(256, 256)), "aachen/aachen_000000_000019"
    assert scenes.size(key) == scenes.image(key).shape[:2] == scenes.labels(key).shape == (256, 256)
    assert (scenes.image(key)[:, 2:-2] == 200).all()  # the edge is interpolated
    names = [[None, "road"], ["traffic light", "bicycle"]]
    ids = [[VOID if name is None else CITYSCAPES.names.index(name) for name in row] for row in names]
    np.testing.assert_array_equal(scenes.labels(key), np.repeat(np.repeat(ids, 128, 0), 128, 1))
    instances = resize_nearest(inner.instances(key), (256, 512))[:, 128:384]
    np.testing.assert_array_equal(scenes.instances(key), instances)
    assert scenes.instances(key).max() == 33_000


@pytest.mark.parametrize("native", [(7, 5), (360, 480), (333, 500), (256, 257)])
@pytest.mark.parametrize("size", [(256, 256), (4, 9)])
def test_labels_take_the_pixels_that_pillow_takes(native: tuple[int, int], size: tuple[int, int]) -> None:
    labels = RNG.integers(0, 256, native).astype(np.uint8)
    expected = Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST)
    differing = resize_nearest(labels, size) != np.asarray(expected)
    assert differing.mean() < 0.02  # Pillow computes positions in floating point, which falls aside on exact ties alone


def test_pool_and_evaluation_live_on_the_new_grid(tmp_path: Path) -> None:
    scenes = Resized(Streets(look="street", split="val", count=2, size=(32, 64)), (16, 24), crop=(16, 16))
    data = DomainPair(target=scenes, val=scenes, workers=0)
    assert data.pool_grid(scenes.keys[0]) == (16, 16)
    batch = next(iter(data.loader_of_pool(scenes.keys)))
    assert batch.image.shape == (1, 3, 16, 16)
    assert batch.labels.shape == (1, 16, 16)


def test_identity_names_grid_and_files(camvid: CamVid) -> None:
    identities = [
        Resized(camvid, (256, 256)).identity(),
        Resized(camvid, (256, 512)).identity(),
        Resized(camvid, (256, 512), crop=(256, 256)).identity(),
        camvid.identity(),
    ]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    assert identities[0]["of"] == camvid.identity()


@pytest.mark.parametrize(("size", "crop"), [((0, 4), None), ((8, 8), (9, 8)), ((8, 8), (8, 0))])
def test_impossible_sizes_are_refused(camvid: CamVid, size: tuple[int, int], crop: tuple[int, int] | None) -> None:
    with pytest.raises(AdaptSegError, match=r"Resized: size \[.*and no crop larger than size"):
        Resized(camvid, size, crop=crop)
