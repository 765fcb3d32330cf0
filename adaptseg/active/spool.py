"""Scratch space for score maps: blocks of uint32 in a temporary file that no folder lists."""
# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptseg.errors import AdaptSegError

UInt32 = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Origin:
    """The image a block of pixels belongs to."""

    key: str
    width: int
    salt: int


@dataclass(frozen=True)
class Block:
    """Where a spool holds the pixels of one image: uint32 score keys, after their flat indices if it is sparse."""

    origin: Origin
    offset: int
    count: int
    sparse: bool


class Spool:
    """Blocks of uint32 in an unlinked temporary file."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: blocks are megabytes, and a full disk must show at the write, not at the close.
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise AdaptSegError(f"scratch folder {folder} cannot be written: {error}") from error
        self._folder = folder
        self._end = 0
        self.blocks: list[Block] = []

    def append(self, origin: Origin, indices: UInt32 | None, keys: UInt32) -> None:
        """Add one image: all its pixels (indices None) or those at `indices`."""
        block = Block(origin, self._end, len(keys), sparse=indices is not None)
        for array in (keys,) if indices is None else (indices, keys):
            self._write(array)
        self.blocks.append(block)

    def _write(self, array: UInt32) -> None:
        raw = np.ascontiguousarray(array).view(np.uint8)
        try:
            self._file.seek(self._end)
            done = 0
            while done < len(raw):
                done += self._file.write(raw[done:].data)
        except OSError as error:
            raise AdaptSegError(f"scratch folder {self._folder}: {self._end:,} bytes spooled, then {error}") from error
        self._end += len(raw)

    def read(self, block: Block) -> tuple[UInt32 | None, UInt32]:
        """(flat indices or None if all pixels are there, score keys)."""
        data = np.empty(block.count * (2 if block.sparse else 1), np.uint32)
        raw = data.view(np.uint8)
        self._file.seek(block.offset)
        done = 0
        while done < len(raw):
            got = self._file.readinto(raw[done:].data)
            if not got:
                raise AdaptSegError(f"scratch folder {self._folder}: the spool file was cut short by someone else")
            done += got
        return (data[: block.count], data[block.count :]) if block.sparse else (None, data)

    def close(self) -> None:
        self._file.close()
