"""Streets: procedural street scenes with exact labels and instances, so that every recipe runs anywhere, in minutes.

A labelled source ("game": clean palette, flat light) and three targets ("street", "fog", "night") share shapes and
perspective and differ in colours, texture, light, camera and class frequencies. Numbers measured on Streets are about
Streets, synthetic, and comparable with nothing else.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from adaptseg.classes import STREETS
from adaptseg.data.scenes import Scenes
from adaptseg.data.streetscape import layout, looks
from adaptseg.data.streetscape.canvas import OVERSAMPLING, Dice, Palette
from adaptseg.errors import AdaptSegError

Look = Literal["game", "street", "fog", "night"]
Split = Literal["train", "val", "test"]

_SPLITS: dict[str, tuple[range, int]] = {
    # split -> (its scene indices, how many of them by default); ranges are disjoint, so no scene is in two splits
    "train": (range(0, 10_000), 400),
    "val": (range(10_000, 12_000), 60),
    "test": (range(12_000, 16_000), 120),
}
_DOMAINS = (layout.GAME, Palette(looks.GAME)), (layout.TARGET, Palette(looks.STREET))
_SMALLEST, _LARGEST = 32, 4096
_CACHE_BYTES = 256 << 20
"""Rendered images and labels kept per data set: 2,000 scenes of 128 x 256."""


class _Scene(NamedTuple):
    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.int32]


class Streets(Scenes):
    """One look and split of Streets.

    A scene is a pure function of (seed, look, index, size), bit for bit. `street`, `fog` and `night` show the same
    streets in other weather; `game` shows streets of its own.

    Args:
        look: domain of the pictures. "game" is meant as source, the others as targets.
        split: train (up to 10,000 scenes), val (2,000; for tuning) or test (4,000; for tables); never the same scene.
        count: how many scenes; None = 400 train, 60 val, 120 test.
        size: (height, width) in pixels, 32 to 4096 each; the geometry scales with it.
        seed: another seed is another city.
        cache: keep rendered images and labels in memory, up to 256 MB; a copy sent to another process starts empty.

    Raises:
        AdaptSegError: an argument is outside what is allowed.
    """

    def __init__(
        self,
        look: Look,
        split: Split,
        *,
        count: int | None = None,
        size: tuple[int, int] = (128, 256),
        seed: int = 0,
        cache: bool = True,
    ) -> None:
        _require_one_of("look", look, get_args(Look))
        _require_one_of("split", split, get_args(Split))
        indices, default = _SPLITS[split]
        count = default if count is None else count
        if not 1 <= count <= len(indices):
            raise AdaptSegError(f"Streets: count is {count}; split '{split}' has 1 to {len(indices)} scenes")
        if len(size) != 2 or not all(_SMALLEST <= side <= _LARGEST for side in size):
            raise AdaptSegError(
                f"Streets: size is {tuple(size)}; (height, width) of {_SMALLEST} to {_LARGEST} expected"
            )
        if not 0 <= seed < 1 << 32:
            raise AdaptSegError(f"Streets: seed is {seed}; 0 to {(1 << 32) - 1} expected")
        self.look: Look = look
        self.split: Split = split
        self.seed = seed
        self.class_table = STREETS
        self.keys = [f"{look}_{split}_{number:05d}" for number in range(count)]
        self._index = dict(zip(self.keys, indices, strict=False))
        self._size = (int(size[0]), int(size[1]))
        self._capacity = _CACHE_BYTES // (4 * self._size[0] * self._size[1]) if cache else 0
        self._cache: dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = {}
        self._last: tuple[str, _Scene] | None = None

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return self._pixels(key)[0].copy()

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        return self._pixels(key)[1].copy()

    def instances(self, key: str) -> npt.NDArray[np.int32]:
        """Instance ids (H, W) int32: 0 on stuff and void, else one id per object, never shared by two classes."""
        return self._scene(key).instances.copy()

    def size(self, key: str) -> tuple[int, int]:
        self._require_known(key)
        return self._size

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "look": self.look, "seed": self.seed, "size": list(self._size)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_last": None}

    def _pixels(self, key: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Image and labels, from memory where possible."""
        if key not in self._cache:
            image, labels, _ = self._scene(key)
            if len(self._cache) >= self._capacity:
                return image, labels
            self._cache[key] = image, labels
        return self._cache[key]

    def _scene(self, key: str) -> _Scene:
        """The whole scene; the last one stays at hand, so that image, labels and instances render it once."""
        self._require_known(key)
        last = self._last
        if last is None or last[0] != key:
            last = self._last = key, _render(self.look, self._index[key], self._size, self.seed)
        return last[1]

    def _require_known(self, key: str) -> None:
        if key not in self._index:
            raise AdaptSegError(f"Streets: no scene '{key}'; keys run from '{self.keys[0]}' to '{self.keys[-1]}'")


def _render(look: Look, index: int, size: tuple[int, int], seed: int) -> _Scene:
    domain = 0 if look == "game" else 1
    habits, palette = _DOMAINS[domain]
    height, width = size
    drawing = layout.compose(Dice(seed, index, domain), habits, palette, OVERSAMPLING * height, OVERSAMPLING * width)
    sampled = drawing.surfaces[1::OVERSAMPLING, 1::OVERSAMPLING].astype(np.intp)
    # The last entropy word keeps the camera's randomness apart from the scene's.
    image = looks.render(drawing, sampled, look, seed, index, domain, 1 + get_args(Look).index(look))
    return _Scene(image, np.take(drawing.train_ids, sampled), np.take(drawing.instances, sampled))


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise AdaptSegError(f"Streets: {name} is '{value}'; one of {', '.join(allowed)} expected")
