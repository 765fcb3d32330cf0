"""Features of single pixels, each computed once and kept on disk: a frozen network says the same in every round."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptseg import storage
from adaptseg.data.scenes import Scenes
from adaptseg.data.transforms import normalized, resized_image
from adaptseg.errors import AdaptSegError
from adaptseg.networks.feature_maps import FeatureMaps
from adaptseg.networks.point_features import gather

Size = tuple[int, int]

_PROBED = 4
"""Images whose pixels are hashed to tell one data set from another."""

_OPENED = 1 << 14
"""Files mapped at a time; Linux gives a process 65,530 maps in all."""


class FeatureBank:
    """Point features of whole scenes, without the maps they come from.

    Features are kept as float16 and given out as such, from the disk or not, so a run with a cache and one without do
    the same. An entry is one file per (scene, draw) in `<folder>/features/<hash>/`, of everything that decides its
    content; it is memory-mapped when read, and written whole or not at all. Runs may share the folder, also at once:
    then a point may be computed twice.

    Args:
        features: the frozen network; a function, since it moves with the method.
        scenes: what keys name.
        size: (H, W) that scenes are resized to; None = native.
        mean, std: normalisation of the images.
        folder: the cache; None = compute each time.
        standing: key and (H, W) -> positions (n, 2) whose features will be asked for in any case; they are kept
            whenever the maps of draw 0 are at hand.
    """

    def __init__(
        self,
        features: Callable[[], FeatureMaps],
        scenes: Scenes,
        size: Size | None,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        folder: Path | None,
        standing: Callable[[str, Size], Tensor] | None = None,
    ) -> None:
        self._features, self._scenes, self._size = features, scenes, size
        self._mean, self._std, self._standing = mean, std, standing
        decides = {"features": features().identity(), "size": size, "mean": mean, "std": std}
        self.identity = storage.content_hash({**decides, "scenes": scenes.identity(), "images": _probes(scenes)})
        self._folder = folder and folder / "features" / self.identity
        self._maps: tuple[str, int, list[Tensor]] | None = None
        self._opened: dict[tuple[str, int], tuple[NDArray[np.int64], NDArray[np.float16]]] = {}
        """Positions and mapped features of entries that were read: opening a file takes longer than a step's few rows
        of it. They hold addresses, no memory and no open file."""

    @property
    def channels(self) -> int:
        """D."""
        return self._features().channels

    @property
    def device(self) -> torch.device:
        """Where features come out."""
        return self._features().device

    def size(self, key: str) -> Size:
        """(H, W) on which positions live."""
        return self._size or self._scenes.size(key)

    def at(self, key: str, yx: Tensor, *, draw: int = 0, keep: bool = True) -> Tensor:
        """(n, D) float32 unit features of the pixels yx (n, 2) int64 of one scene, on the network's device.

        Args:
            draw: 0 = the fixed noise; 1, 2, ... = the fresh ones.
            keep: whether features that had to be computed go into the cache.
        """
        wanted = self._flat(key, yx)
        known, values = self._opened.get((key, draw)) or self._read(key, draw)
        rows, all_known = _rows_of(wanted, known)
        if not all_known:
            known, values = self._completed(key, draw, wanted, keep)
            rows, _ = _rows_of(wanted, known)
        features = torch.from_numpy(np.ascontiguousarray(values[rows]))
        return features.to(self.device).float()

    def _completed(
        self, key: str, draw: int, wanted: NDArray[np.int64], keep: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """What is known of a scene once the features of these pixels are; only what nobody has kept is computed."""
        known, values = self._read(key, draw)  # another run may have written since
        missing = np.setdiff1d(wanted, known)
        if not len(missing):
            return known, values
        standing = self._standing_points(key, draw)
        missing = np.union1d(missing, np.setdiff1d(standing, known))
        computed = self._compute(key, missing, draw)
        if self._folder is not None:
            kept = np.ones(len(missing), bool) if keep else np.isin(missing, standing)
            self._write(key, draw, known, values, missing[kept], computed[kept])
        return _merged(known, values, missing, computed)

    def maps(self, key: str, *, draw: int = 0) -> list[Tensor]:
        """The maps (C_i, h_i, w_i) of one scene themselves, on the network's device, neither rounded nor kept on disk:
        they stay at hand until another scene or draw is looked at."""
        if self._maps is None or self._maps[:2] != (key, draw):
            self._maps = None  # freed before the next ones are made
            self._maps = key, draw, self._maps_of(key, draw)
        return self._maps[2]

    def remembered(
        self, key: str, settings: dict[str, Any], compute: Callable[[], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """What `compute` says about the features of one scene, kept beside them under the hash of `settings`, which
        must hold everything else that decides it."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{key}.{storage.content_hash(settings)}.npy"
        if not path.is_file():
            _save(path, compute())
        return _load(path, np.dtype(np.int64))

    def forget_maps(self) -> None:
        """Free the maps of the scene that was looked at last."""
        self._maps = None

    def _standing_points(self, key: str, draw: int) -> NDArray[np.int64]:
        if self._standing is None or self._folder is None or draw != 0:
            return np.empty(0, np.int64)
        return self._flat(key, self._standing(key, self.size(key)))

    def _flat(self, key: str, yx: Tensor) -> NDArray[np.int64]:
        width = self.size(key)[1]
        return (yx[:, 0] * width + yx[:, 1]).cpu().numpy()

    def _compute(self, key: str, flat: NDArray[np.int64], draw: int) -> NDArray[np.float16]:
        maps, size = self.maps(key, draw=draw), self.size(key)
        yx = torch.from_numpy(np.stack(np.divmod(flat, size[1]), 1)).to(maps[0].device)
        return gather(maps, yx, size).half().cpu().numpy()

    def _maps_of(self, key: str, draw: int) -> list[Tensor]:
        network = self._features()
        image = resized_image(self._scenes.image(key), self._size)
        image = normalized(image, self._mean, self._std)[None].to(network.device)
        with torch.no_grad(), torch.autocast(network.device.type, enabled=False):
            return [m[0] for m in network.maps(image, draw=draw)]

    # ---- the cache

    @property
    def _entry(self) -> np.dtype[np.void]:
        return np.dtype([("at", np.int64), ("features", np.float16, (self.channels,))])

    def _file(self, key: str, draw: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.draw{draw}.npy"

    def _read(self, key: str, draw: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Sorted flat positions and their features; empty where nothing is kept."""
        if self._folder is None or not (path := self._file(key, draw)).is_file():
            return np.empty(0, np.int64), np.empty((0, self.channels), np.float16)
        entry = np.asarray(_load(path, self._entry))
        while len(self._opened) >= _OPENED:
            self._opened.pop(next(iter(self._opened)))
        self._opened[key, draw] = np.array(entry["at"]), entry["features"]
        return self._opened[key, draw]

    def _write(
        self,
        key: str,
        draw: int,
        known: NDArray[np.int64],
        values: NDArray[np.float16],
        new: NDArray[np.int64],
        computed: NDArray[np.float16],
    ) -> None:
        if not len(new):
            return
        at, features = _merged(known, values, new, computed)
        entry = np.empty(len(at), self._entry)
        entry["at"], entry["features"] = at, features
        _save(self._file(key, draw), entry)
        self._opened.pop((key, draw), None)


def _save(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    storage.atomic_write(path, buffer.getvalue())


def _load(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A memory map of a file that `_save` wrote; whatever else lies there is never used."""
    try:
        found = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise AdaptSegError(f"cache file {path} is truncated or broken ({error}); delete it") from error
    if found.dtype != dtype or found.ndim != 1:
        raise AdaptSegError(f"cache file {path} holds {found.dtype} {found.shape}, not {dtype} (n,); delete it")
    return found


def _rows_of(wanted: NDArray[np.int64], known: NDArray[np.int64]) -> tuple[NDArray[np.intp], bool]:
    """Where the wanted positions stand among the known, sorted ones, and whether all do."""
    rows = np.searchsorted(known, wanted)
    if len(wanted) and (not len(known) or rows.max() == len(known)):
        return rows, False
    return rows, bool((known[rows] == wanted).all())


def _merged(
    known: NDArray[np.int64], values: NDArray[np.float16], new: NDArray[np.int64], computed: NDArray[np.float16]
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Both sets of positions with their features, sorted by position."""
    at = np.concatenate([known, new])
    order = np.argsort(at)
    return at[order], np.concatenate([values, computed])[order]


def _probes(scenes: Scenes) -> list[str]:
    """Hashes of a few images: the files of another folder may have the same names."""
    keys = scenes.keys[:: max(1, len(scenes.keys) // _PROBED)][:_PROBED]
    return [hashlib.sha256(np.ascontiguousarray(scenes.image(key)).tobytes()).hexdigest()[:16] for key in keys]


@lru_cache(maxsize=1 << 12)  # the same few pixels are asked for in every pass over the pool
def fixed_sample(seed: int, stream: str, key: str, size: Size, count: int) -> Tensor:
    """(n, 2) int64 positions of `count` different pixels of one scene, all if it has fewer; a pure function of its
    arguments, in reading order.
    """
    pixels = size[0] * size[1]
    digest = hashlib.blake2b(f"{seed}/{stream}/{key}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    flat = np.sort(rng.choice(pixels, min(count, pixels), replace=False))
    return torch.from_numpy(np.stack(np.divmod(flat, size[1]), 1))
