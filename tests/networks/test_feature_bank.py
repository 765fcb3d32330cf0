from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_features import ConvFeatures
from small_pool import Pool
from torch import Tensor
from torch.nn import functional

from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.networks import feature_bank
from adaptseg.networks.feature_bank import FeatureBank, Size, fixed_sample
from adaptseg.networks.feature_maps import FeatureMaps


def bank(folder: Path | None, features: FeatureMaps | None = None, **changed: Any) -> FeatureBank:
    network = features or ConvFeatures()
    scenes = changed.pop("scenes", None) or Pool()
    given = {"size": None, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, **changed}
    return FeatureBank(lambda: network, scenes, folder=folder, **given)


def points(key: str, size: Size, count: int = 30, stream: str = "test") -> Tensor:
    return fixed_sample(0, stream, key, size, count)


def dense(key: str, size: Size | None, draw: int) -> Tensor:
    """(D, H, W) unit features of a whole scene by plain up-sampling, from the image's bytes on."""
    image = torch.from_numpy(Pool().image(key)).permute(2, 0, 1)[None].float() / 255
    assert size is None, "native sizes only: resizing rounds to bytes"
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    maps = ConvFeatures().maps((image - mean) / std, draw=draw)
    full = [functional.interpolate(m, image.shape[-2:], mode="bilinear") for m in maps]
    return functional.normalize(torch.cat(full, 1)[0], dim=0)


@pytest.mark.parametrize("draw", [0, 2])
@pytest.mark.parametrize("key", Pool().keys)
def test_features_are_those_of_the_dense_map(tmp_path: Path, key: str, draw: int):
    kept = bank(tmp_path)
    yx = points(key, kept.size(key))
    expected = dense(key, None, draw)[:, yx[:, 0], yx[:, 1]].T
    torch.testing.assert_close(kept.at(key, yx, draw=draw), expected, rtol=2e-3, atol=2e-3)  # float16
    torch.testing.assert_close(kept.at(key, yx, draw=draw).norm(dim=1), torch.ones(30), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("size", [None, (12, 20)])
def test_cached_equals_computed_bit_by_bit(tmp_path: Path, size: Size | None):
    plain, kept = bank(None, size=size), bank(tmp_path, size=size)
    again = bank(tmp_path, size=size)
    for key in ("city/a", "tall"):
        yx = points(key, plain.size(key))
        assert plain.size(key) == (size or Pool().size(key))
        for draw in (0, 1):
            first = plain.at(key, yx, draw=draw)
            kept.at(key, yx[::3], draw=draw)  # a part first, so that both kinds meet in one answer
            assert torch.equal(kept.at(key, yx, draw=draw), first)
            assert torch.equal(again.at(key, yx.flip(0), draw=draw), first.flip(0))
            twice = torch.cat([yx[:4], yx[:4]])
            assert torch.equal(again.at(key, twice, draw=draw), first[[0, 1, 2, 3] * 2])
    assert again.at("tall", yx[:0]).shape == (0, 7)


def test_what_another_run_kept_meanwhile_is_found(tmp_path: Path):
    """Though the file as it was before is still mapped."""
    network = ConvFeatures()
    mine, others = bank(tmp_path, network), bank(tmp_path)
    yx = points("tall", mine.size("tall"))
    mine.at("tall", yx[:10])
    mine.at("tall", yx[:10])  # mapped now
    expected = others.at("tall", yx)
    assert torch.equal(mine.at("tall", yx), expected)
    assert torch.equal(mine.at("tall", yx[:10]), expected[:10])
    assert network.forwards == 1


def test_few_files_are_mapped_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feature_bank, "_OPENED", 2)
    network = ConvFeatures()
    kept, keys = bank(tmp_path, network), Pool().keys
    assert len(keys) > 2
    first = [kept.at(key, points(key, kept.size(key))) for key in keys]
    for _ in range(2):
        for key, expected in zip(keys, first, strict=True):
            assert torch.equal(kept.at(key, points(key, kept.size(key))), expected)
            assert len(kept._opened) <= 2
    assert network.forwards == len(keys)


def test_what_is_kept_is_not_computed_again(tmp_path: Path):
    network = ConvFeatures()
    kept = bank(tmp_path, network)
    yx = points("tall", kept.size("tall"))
    kept.at("tall", yx)
    kept.at("tall", yx[3:9])
    assert network.forwards == 1
    kept.at("tall", yx, draw=1)
    assert network.forwards == 2
    kept.at("tall", yx)
    assert network.forwards == 2
    kept.at("tall", points("tall", kept.size("tall"), stream="other"), keep=False)
    assert network.forwards == 3
    kept.forget_maps()
    kept.at("tall", points("tall", kept.size("tall"), stream="other"))
    assert network.forwards == 4


def test_standing_points_are_kept_whenever_maps_are_at_hand(tmp_path: Path):
    network = ConvFeatures()

    def standing(key: str, size: Size) -> Tensor:
        return points(key, size, 9, "standing")

    kept = bank(tmp_path, network, standing=standing)
    size = kept.size("rural")
    kept.at("rural", points("rural", size), keep=False)
    kept.forget_maps()
    kept.at("rural", standing("rural", size))
    assert network.forwards == 1
    (file,) = (p for p in tmp_path.rglob("*.npy"))
    assert np.load(file)["at"].tolist() == (standing("rural", size) @ torch.tensor([size[1], 1])).tolist()


def test_another_origin_gets_another_folder(tmp_path: Path):
    class Brighter(Pool):
        def image(self, key: str) -> NDArray[np.uint8]:
            return super().image(key) // 2

    banks = [
        bank(tmp_path),
        bank(tmp_path, ConvFeatures(seed=1)),
        bank(tmp_path, size=(12, 20)),
        bank(tmp_path, mean=(0.5, 0.5, 0.5)),
        bank(tmp_path, std=(0.5, 0.5, 0.5)),
        bank(tmp_path, scenes=Brighter()),
        bank(tmp_path, scenes=Pool({"tall": (35, 13), "rural": (16, 40)})),
    ]
    assert len({b.identity for b in banks}) == len(banks)
    assert bank(tmp_path / "elsewhere").identity == banks[0].identity
    yx = points("tall", (12, 13))
    for b in banks:
        b.at("tall", yx)
    assert len(list((tmp_path / "features").iterdir())) == len(banks)


def test_partly_written_entries_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept, yx = bank(tmp_path), points("tall", (35, 13))
    first = kept.at("tall", yx[:5])

    def fail(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            kept.at("tall", yx)
    (file,) = (p for p in tmp_path.rglob("*.npy"))
    assert len(np.load(file)) == 5
    assert torch.equal(bank(tmp_path).at("tall", yx)[:5], first)


@pytest.mark.parametrize("harm", ["truncated", "empty", "text", "foreign", "channels"])
def test_damaged_or_foreign_files_are_never_used(tmp_path: Path, harm: str):
    kept, yx = bank(tmp_path), points("tall", (35, 13))
    kept.at("tall", yx)
    kept.remembered("tall", {"a": 1}, lambda: np.arange(50))
    for file in list(tmp_path.rglob("*.npy")):
        data = file.read_bytes()
        if harm == "foreign":
            np.save(file, np.zeros((3, 2), np.float32))
        elif harm == "channels":
            np.save(file, np.zeros(3, np.dtype([("at", np.int64), ("features", np.float16, (5,))])))
        else:
            file.write_bytes({"truncated": data[:-30], "empty": b"", "text": b"what is this"}[harm])
    for ask in (lambda: kept.at("tall", yx), lambda: kept.remembered("tall", {"a": 1}, lambda: np.arange(3))):
        with pytest.raises(AdaptSegError, match=r"cache file .*tall.*npy .*delete it"):
            ask()


def test_choices_are_remembered_under_their_settings(tmp_path: Path):
    calls = []

    def compute() -> NDArray[np.int64]:
        calls.append(1)
        return np.array([3, 5], np.int64)

    kept = bank(tmp_path)
    for _ in range(2):
        assert kept.remembered("city/a", {"n": 1}, compute).tolist() == [3, 5]
    assert bank(tmp_path).remembered("city/a", {"n": 1}, compute).tolist() == [3, 5]
    assert len(calls) == 1
    kept.remembered("city/a", {"n": 2}, compute)
    kept.remembered("city/b", {"n": 1}, compute)
    bank(tmp_path, ConvFeatures(seed=1)).remembered("city/a", {"n": 1}, compute)
    assert len(calls) == 4
    for _ in range(2):
        bank(None).remembered("city/a", {"n": 1}, compute)
    assert len(calls) == 6


def test_fixed_samples():
    size = (11, 7)
    yx = fixed_sample(0, "a", "key", size, 20)
    flat = yx[:, 0] * 7 + yx[:, 1]
    assert (flat.diff() > 0).all()
    assert torch.equal(fixed_sample.__wrapped__(0, "a", "key", size, 20), yx)
    for other in ((1, "a", "key"), (0, "b", "key"), (0, "a", "yek")):
        assert not torch.equal(fixed_sample(*other, size, 20), yx)
    everything = fixed_sample(0, "a", "key", size, 100)
    assert (everything @ torch.tensor([7, 1])).tolist() == list(range(77))
    assert fixed_sample(0, "a", "key", size, 0).shape == (0, 2)
