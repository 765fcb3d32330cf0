"""The best pixels of a whole pool, exactly, while memory holds one map: CBDA's dynamic acquisition without the stack.

Every pixel has a 64-bit *rank*: the order-preserving image of its float32 score (high half) and the complement of a
hash of (seed, key, flat index) (low half; equal scores are thus bought in hashed order). The `count` largest ranks are
found by radix selection, 16 bits a level, over histograms that all processes sum. Integer sums commute and a rank
depends on nothing but the pixel, so neither the order of `add` calls nor the sharding can change the result.
"""
# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adaptseg.active.ranks import NOT_A_CANDIDATE, UInt32, checked_map, salt_of, score_keys, tie_rank
from adaptseg.active.spool import Origin, Spool
from adaptseg.distributed import all_reduce_sum, gather
from adaptseg.errors import AdaptSegError

Int64 = npt.NDArray[np.int64]

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS
_LEVELS = 4  # 2 digits of score, 2 of hash


class GlobalSelector:
    """Choose exactly the `count` best pixels over all maps that all processes add.

    Use it as a context manager, or exhaust the iterator of `finish`; either frees the scratch space. That space is one
    unlinked temporary file under `scratch` (4 bytes a pixel, 8 a point), so even a killed process leaves nothing.

    Scores are compared as float32. Ties are broken by a hash of (seed, key, flat index): never by file order, which
    would favour the first city of the alphabet. Under torch.distributed each process adds its shard of the pool and
    *all* call `finish`, with an empty shard too; any sharding gives the same pixels, bit for bit.

    Source: CBDA's global acquisition (paper: stack all score matrices, take the highest); the tie rule is inferred.

    Attributes:
        count: pixels to choose.
        shortfall: after `finish`, how many of `count` could not be filled because candidates ran out.
    """

    def __init__(self, count: int, *, scratch: Path, seed: int) -> None:
        if count < 0:
            raise AdaptSegError(f"count is {count}; give the number of pixels to choose, 0 or more")
        self.count = count
        self.shortfall = 0
        self._seed = seed
        self._maps = Spool(Path(scratch))
        self._decisive = Spool(Path(scratch))  # the pixels whose score shares its first digit with the threshold
        self._keys: set[str] = set()
        self._histogram = np.zeros(_DIGITS, np.int64)
        self._finished = False

    def add(self, key: str, score: torch.Tensor, forbidden: torch.Tensor | None = None) -> None:
        """Offer every pixel of one map.

        Args:
            key: name of the image, unique over all processes.
            score: (H, W) floating, higher = buy; minus infinity = not choosable.
            forbidden: (H, W) bool, True = not choosable.

        Raises:
            AdaptSegError: NaN, a key given twice, wrong shapes, a full disk, or a call after `finish`.
        """
        if score.ndim != 2:
            raise AdaptSegError(f"score map '{key}' has shape {tuple(score.shape)}; give (H, W)")
        values, choosable = checked_map(score, forbidden, f"score map '{key}'")
        height, width = score.shape
        self._append(key, (height, width), None, score_keys(values, choosable).reshape(-1))

    def add_points(self, key: str, yx: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]) -> None:
        """Offer some pixels of one map; the same as `add` of a map that is minus infinity everywhere else.

        Args:
            key: name of the image, unique over all processes.
            yx: (n, 2) int64 distinct pixel positions, in any order.
            scores: (n,) floating, higher = buy; minus infinity = not choosable.
            size: (H, W) of the image.

        Raises:
            AdaptSegError: as `add`, and for points outside the image or given twice.
        """
        name = f"points of '{key}'"
        if yx.ndim != 2 or yx.shape[1] != 2 or yx.is_floating_point() or scores.shape != yx.shape[:1]:
            raise AdaptSegError(
                f"{name}: yx is {yx.dtype} {tuple(yx.shape)} and scores {tuple(scores.shape)}; "
                "give integer (n, 2) and floating (n,)"
            )
        values, choosable = checked_map(scores, None, name)
        y, x = yx.detach().cpu().numpy().astype(np.int64).T
        if ((y < 0) | (y >= size[0]) | (x < 0) | (x >= size[1])).any():
            raise AdaptSegError(f"{name}: a position lies outside the image of size {size}")
        flat = y * size[1] + x
        order = np.argsort(flat)
        if (np.diff(flat[order]) == 0).any():
            raise AdaptSegError(f"{name}: a position is given twice")
        self._append(key, size, flat[order].astype(np.uint32), score_keys(values, choosable)[order])

    def _append(self, key: str, size: tuple[int, int], indices: UInt32 | None, keys: UInt32) -> None:
        if self._finished:
            raise AdaptSegError(f"'{key}' is added after finish; add every map first")
        if key in self._keys:
            raise AdaptSegError(f"'{key}' is added twice; every image is a candidate once")
        if size[0] * size[1] > 1 << 32:
            raise AdaptSegError(f"'{key}' has size {size}; at most 2^32 pixels can be told apart")
        self._maps.append(Origin(key, size[1], salt_of(self._seed, key)), indices, keys)
        self._keys.add(key)
        self._histogram += _histogram(keys >> _DIGIT_BITS)

    def finish(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Settle the threshold with all processes, then iterate over this process's images.

        Returns:
            Iterator of (key, (n, 2) int64 positions (y, x) in row-major order), in the order of the `add` calls; images
            without a chosen pixel are left out. The collectives are over when this returns.

        Raises:
            AdaptSegError: called twice, or processes disagree on count or seed, or share a key.
        """
        if self._finished:
            raise AdaptSegError("finish is called twice; it may be called once per selector")
        self._finished = True
        self._require_agreement()
        self._histogram[NOT_A_CANDIDATE >> _DIGIT_BITS] = 0
        self._histogram = all_reduce_sum(self._histogram)
        self.shortfall = max(0, self.count - int(self._histogram.sum()))
        if self.count == 0:
            self.close()
            return iter(())
        if self.shortfall:
            return self._selected(_Cut(rank=1 << 32))
        return self._selected(self._cut())

    def close(self) -> None:
        """Free the scratch space. Harmless when repeated."""
        self._maps.close()
        self._decisive.close()

    def __enter__(self) -> GlobalSelector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_decisive"):  # absent when the constructor refused its arguments
            self.close()

    def _require_agreement(self) -> None:
        shards = gather((self.count, self._seed, sorted(self._keys)))
        settings = {(count, seed) for count, seed, _ in shards}
        if len(settings) > 1:
            raise AdaptSegError(f"processes disagree on (count, seed): {sorted(settings)}; give all the same")
        times = Counter(key for _, _, keys in shards for key in keys)
        if repeated := sorted(key for key, n in times.items() if n > 1):
            raise AdaptSegError(
                f"{len(repeated)} images, such as '{repeated[0]}', were added by two processes; "
                "split the pool without padding"
            )

    def _cut(self) -> _Cut:
        """Radix selection of the `count`-th largest rank; stops at the first digit that need not be split."""
        wanted, prefix, histogram = self.count, 0, self._histogram
        for level in range(_LEVELS):
            if level:
                histogram = all_reduce_sum(self._next_histogram(level, prefix))
            at_or_above = np.cumsum(histogram[::-1])[::-1]
            digit = int(np.flatnonzero(at_or_above >= wanted)[-1])
            population = int(histogram[digit])
            wanted -= int(at_or_above[digit]) - population
            prefix = prefix << _DIGIT_BITS | digit
            if population == wanted:
                return _Cut(rank=prefix << _DIGIT_BITS * (_LEVELS - 1 - level))
        return _Cut(rank=prefix, admitted=self._settle_identical_ranks(prefix, wanted))

    def _next_histogram(self, level: int, prefix: int) -> Int64:
        """Histogram of digit `level` over this process's pixels whose leading digits are `prefix`."""
        histogram = np.zeros(_DIGITS, np.int64)
        if level == 1:
            for block in self._maps.blocks:
                indices, keys = self._maps.read(block)
                matching = np.flatnonzero(keys >> _DIGIT_BITS == prefix)
                if len(matching):
                    keys = keys[matching]
                    histogram += _histogram(keys & (_DIGITS - 1))
                    # Kept aside so that the levels to come need not read whole maps again.
                    self._decisive.append(block.origin, _take(indices, matching), keys)
            return histogram
        for origin, indices in self._with_score_key(prefix >> _DIGIT_BITS * (level - 2)):
            tie = tie_rank(origin.salt, indices)
            if level == 3:
                tie = tie[tie >> _DIGIT_BITS == prefix & (_DIGITS - 1)]
            histogram += _histogram(tie >> _DIGIT_BITS if level == 2 else tie & (_DIGITS - 1))
        return histogram

    def _with_score_key(self, score_key: int) -> Iterator[tuple[Origin, UInt32]]:
        """Flat indices of the pixels at the threshold score."""
        for block in self._decisive.blocks:
            indices, keys = self._decisive.read(block)
            yield block.origin, _take(indices, np.flatnonzero(keys == score_key))

    def _settle_identical_ranks(self, rank: int, wanted: int) -> set[tuple[str, int]]:
        """Pixels equal in score and in all 32 bits of the hash: a handful at most, decided by (key, flat index)."""
        identical = [
            (origin.key, int(index))
            for origin, indices in self._with_score_key(rank >> 32)
            for index in indices[tie_rank(origin.salt, indices) == rank & 0xFFFFFFFF]
        ]
        return set(sorted(pixel for shard in gather(identical) for pixel in shard)[:wanted])

    def _selected(self, cut: _Cut) -> Iterator[tuple[str, torch.Tensor]]:
        score_key = cut.rank >> 32
        splits_ties = cut.rank & 0xFFFFFFFF or cut.admitted is not None
        try:
            for block in self._maps.blocks:
                indices, keys = self._maps.read(block)
                positions = np.flatnonzero(keys >= score_key)
                flat = _take(indices, positions)
                if splits_ties and len(flat):
                    flat = self._without_late_ties(block.origin, flat, keys[positions] == score_key, cut)
                if len(flat):
                    yx = np.stack(np.divmod(flat.astype(np.int64), block.origin.width), axis=1)
                    yield block.origin.key, torch.from_numpy(yx)
        finally:
            self.close()

    @staticmethod
    def _without_late_ties(origin: Origin, flat: UInt32, tied: npt.NDArray[np.bool_], cut: _Cut) -> UInt32:
        where = np.flatnonzero(tied)
        rank, limit = tie_rank(origin.salt, flat[where]), cut.rank & 0xFFFFFFFF
        keep = rank >= limit
        if cut.admitted is not None:
            for i in np.flatnonzero(rank == limit):
                keep[i] = (origin.key, int(flat[where[i]])) in cut.admitted
        return np.delete(flat, where[~keep])


@dataclass(frozen=True)
class _Cut:
    """The smallest rank to buy; `admitted` lists the pixels of exactly that rank when only some of them fit."""

    rank: int
    admitted: set[tuple[str, int]] | None = None


def _histogram(digits: npt.NDArray[np.integer[Any]]) -> Int64:
    return np.bincount(digits, minlength=_DIGITS)


def _take(indices: UInt32 | None, positions: npt.NDArray[np.intp]) -> UInt32:
    return positions.astype(np.uint32) if indices is None else indices[positions]
