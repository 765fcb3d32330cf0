"""The only writer besides loggers and checkpoints: files that appear whole or never, scratch that cleans itself."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from adaptseg.errors import AdaptSegError

_SCRATCH = ".scratch-"
_LOCK = "lock"


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a file (text as UTF-8) so that a kill or power cut at any instant leaves the old content or the new.

    Missing parent folders are made. The data reaches the disk before the name does: temporary file in the same
    folder, fsync, rename, fsync of the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        synced_write(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def synced_write(path: Path, data: bytes | str) -> None:
    """Write a file that must not exist yet and wait until it is on disk. Not atomic: for files in a folder that
    becomes visible by a rename of the folder."""
    with path.open("xb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder (files made, renamed, removed) are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_json(path: str | Path, obj: Any) -> None:
    """Write plain Python types as JSON, by `atomic_write`."""
    atomic_write(path, json.dumps(obj, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        AdaptSegError: names the file when it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise AdaptSegError(f"file {path} does not exist") from None
    except OSError as error:
        raise AdaptSegError(f"file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # JSON that does not parse, or bytes that are not text
        raise AdaptSegError(f"file {path} is truncated or broken: {error}") from error


def content_hash(obj: Any) -> str:
    """16 hex digits that name the content of plain Python types: SHA-256 of canonical JSON.

    The order of dictionary keys does not matter; tuples equal lists; 1 and 1.0 differ.
    """
    canonical = json.dumps(obj, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@contextmanager
def scratch(parent: str | Path, needed_bytes: int, what: str) -> Generator[Path, None, None]:
    """A temporary folder under `parent` (made if missing) that is removed at the end, also after an exception.

    A killed run cannot clean up after itself, so the next one on the same host and parent does: a folder is stale
    when nobody holds the lock on its lock file, and the kernel drops that lock with the process.

    Args:
        parent: folder on the disk to use.
        needed_bytes: what will be written; processes that write at the same time must ask for the sum.
        what: who needs it, for the message ("the scores of 2,975 images").

    Raises:
        AdaptSegError: less than `needed_bytes` are free.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(parent)
    free = shutil.disk_usage(parent).free
    if needed_bytes > free:
        raise AdaptSegError(
            f"{what}: {_readable(needed_bytes)} of scratch needed in {parent}, {_readable(free)} free; "
            "make room there or point --active.scratch to a folder on a larger disk"
        )
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        # What cannot be removed now (a memory map still open on a network disk) is stale for the next run; an error
        # raised here would only hide the one that brought us here.
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _readable(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _host_prefix() -> str:
    # Locks are not seen across machines on every shared file system, so only the same host may call a folder stale.
    return f"{_SCRATCH}{socket.gethostname()}-"


def _locked_folder(parent: Path) -> tuple[Path, BinaryIO]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_host_prefix(), dir=parent))
        # Another process may take the new folder for a stale one before it is locked; then start again.
        if (lock := _try_lock(folder)) is not None:
            return folder, lock


def _try_lock(folder: Path) -> BinaryIO | None:
    """The open, locked lock file of a scratch folder, or None when somebody else holds or has removed it."""
    path = folder / _LOCK
    try:
        file = path.open("ab")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        file.close()
        raise AdaptSegError(
            f"scratch folder {folder.parent}: this file system has no file locks ({error.strerror}); "
            "point --active.scratch to a folder on a local disk"
        ) from error
    file.close()
    return None


def _remove_stale(parent: Path) -> None:
    for folder in sorted(parent.glob(f"{_host_prefix()}*")):
        if (lock := _try_lock(folder)) is not None:
            with lock:
                shutil.rmtree(folder, ignore_errors=True)
