"""The rank of a pixel: what score maps may hold, the order of float32 in integers, and the hashed order of ties."""
# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from adaptseg.errors import AdaptSegError

UInt32 = npt.NDArray[np.uint32]

NOT_A_CANDIDATE = 0
"""Score key of pixels that may not be bought; no score has it: only a NaN would, and NaN is refused."""

_HASHED_AT_ONCE = 1 << 14  # 64-bit temporaries as long as a map would be paged in anew each time


def checked_map(
    score: torch.Tensor, forbidden: torch.Tensor | None, name: str
) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
    """Validate a score map and say which of its values may be chosen.

    Args:
        score: floating tensor of any shape and device. 16-bit types are widened to float32, float64 stays.
        forbidden: bool tensor of the same shape, True = not choosable.
        name: what to call the map in messages.

    Returns:
        The scores on the CPU, and a bool array of the same shape that is False where forbidden or minus infinity.

    Raises:
        AdaptSegError: wrong dtype or shape, or a NaN anywhere.
    """
    if not score.is_floating_point():
        raise AdaptSegError(f"{name}: scores are {score.dtype}; give a floating tensor")
    values = score.detach().cpu()
    if values.dtype != torch.float64:
        values = values.float()
    array = cast(npt.NDArray[np.floating[Any]], values.numpy())
    if np.isnan(array).any():
        raise AdaptSegError(
            f"{name}: {int(np.isnan(array).sum())} of {array.size} scores are NaN; every score must be a number"
        )
    choosable = cast(npt.NDArray[np.bool_], array != -np.inf)
    if forbidden is not None:
        if forbidden.dtype != torch.bool or forbidden.shape != score.shape:
            raise AdaptSegError(
                f"{name}: forbidden is {forbidden.dtype} {tuple(forbidden.shape)}; give torch.bool {tuple(score.shape)}"
            )
        choosable &= ~forbidden.detach().cpu().numpy()
    return values, choosable


def score_keys(values: torch.Tensor, choosable: npt.NDArray[np.bool_]) -> UInt32:
    """uint32 with the order of float32 (both zeros alike), 0 where not choosable."""
    # Adding 0.0 turns -0.0 into 0.0. Negative floats order backwards by their bits, so all bits flip; else the sign.
    bits = (values.float() + 0.0).numpy().view(np.int32)
    keys = bits.view(np.uint32) ^ ((bits >> 31).view(np.uint32) | np.uint32(0x80000000))
    keys[~choosable] = NOT_A_CANDIDATE
    return keys


def salt_of(seed: int, key: str) -> int:
    """64 bits that start the tie hash of one image."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest(), "little")


def tie_rank(salt: int, indices: UInt32) -> UInt32:
    """Pseudo-random uint32 of (salt, flat index), larger = bought first.

    The high half of the index-th output of SplitMix64 started at `salt` (Steele, Lea, Flood 2014), whose last xor-shift
    is left out: it hardly touches that half.
    """
    rank = np.empty(len(indices), np.uint32)
    for start in range(0, len(indices), _HASHED_AT_ONCE):
        block = slice(start, start + _HASHED_AT_ONCE)
        z = indices[block].astype(np.uint64)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(salt)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        rank[block] = z >> np.uint64(32)
    return rank
