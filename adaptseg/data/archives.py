"""The root of a data set on disk: a folder, or the published zip archives whose members together form the layout.

Images lie in zips as well as in folders: nothing has to be unpacked, and tens of thousands of files stay a handful.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from adaptseg.data.files import file_stamps, find_files, keyed
from adaptseg.errors import AdaptSegError

_HEADER = 1 << 16
"""Bytes of a member that are read to learn an image's size; PNG and JPEG state it within the first few hundred."""


class _Member(NamedTuple):
    """Where a file of the layout is: number of its archive, its name there, checksum of its content."""

    archive: int
    name: str
    checksum: int


class _Stream(io.BytesIO):
    """Content of a member that says in messages where it came from, as a path does."""

    def __init__(self, content: bytes, address: str) -> None:
        super().__init__(content)
        self._address = address

    def __str__(self) -> str:
        return self._address

    def __repr__(self) -> str:
        return repr(self._address)


class Root:
    """Files of a data set by their name in its layout ("gtFine/train/aachen/..."), wherever they lie.

    In an archive the layout may begin at any depth ("RAND_CITYSCAPES/RGB/0000000.png"), and what belongs to none of
    `folders` is left out. An archive that is named like one of them and in which no layout begins holds the files of
    that folder (CamVid's LabeledApproved_full.zip). Archives are listed once, here, and opened when first read from in
    a process: a reader can be pickled, and a forked worker never shares the position in a file with its parent.

    Args:
        root: a folder, a .zip file, or several .zip files.
        folders: the folders, or single files, of the layout that will be read, relative to its root.

    Raises:
        AdaptSegError: an archive is missing or broken, two archives hold the same file, or folders and archives are
            mixed. A folder is not looked at yet.
    """

    def __init__(self, root: str | list[str], folders: Sequence[str]) -> None:
        given = [root] if isinstance(root, str) else list(root)
        paths = [Path(item).expanduser() for item in given]
        self._folder: Path | None = None
        self._archives: list[tuple[str, tuple[int, int]]] = []
        self._members: dict[str, _Member] = {}
        if isinstance(root, str) and not _is_archive(paths[0]):
            self._folder = paths[0]
            return
        if not paths or not all(_is_archive(path) for path in paths):
            raise AdaptSegError(f"root is {given}; one folder, one .zip file or a list of .zip files is expected")
        for path, stamp in zip(paths, file_stamps(paths), strict=True):
            self._archives.append((str(path), stamp))
            self._add_members(folders)

    def _add_members(self, folders: Sequence[str]) -> None:
        number = len(self._archives) - 1
        path, stamp = self._archives[number]
        tops = {PurePosixPath(folder).parts[0] for folder in folders}
        # What macOS adds to archives looks like the layout, one folder deeper.
        infos = [info for info in _opened(path, stamp, os.getpid()).infolist() if "__MACOSX/" not in info.filename]
        bare = Path(path).stem if Path(path).stem in folders else None
        if any(tops & set(PurePosixPath(info.filename).parts) for info in infos):
            bare = None
        for info in infos:
            parts = PurePosixPath(info.filename).parts
            if bare is not None:
                parts = (bare, *parts)
            start = next((i for i, part in enumerate(parts) if part in tops), None)
            if info.is_dir() or start is None:
                continue
            name = "/".join(parts[start:])
            if not any(name == folder or name.startswith(f"{folder}/") for folder in folders):
                continue
            if name in self._members:
                other = self._archives[self._members[name].archive][0]
                raise AdaptSegError(f"archives {other} and {path} both hold {name}; give one")
            self._members[name] = _Member(number, info.filename, info.CRC)

    def holds(self, name: str) -> bool:
        """Whether there is such a folder or file of the layout."""
        if self._folder:
            return (self._folder / name).exists()
        return any(member == name or member.startswith(f"{name}/") for member in self._members)

    def __str__(self) -> str:
        return str(self._folder or ", ".join(path for path, _ in self._archives))

    def place(self, folder: str) -> str:
        """How messages call a folder of the layout."""
        return str(self._folder / folder) if self._folder else f"{folder} in {self}"

    def where(self, folder: str) -> str:
        """The same for an identity: absolute, links resolved."""
        if self._folder:
            return str((self._folder / folder).resolve())
        return f"{folder} in {', '.join(str(Path(path).resolve()) for path, _ in self._archives)}"

    def find(self, folder: str, endings: Sequence[str], *, layout: str) -> dict[str, str]:
        """Files below a folder of the layout by ending, as `files.find_files` has them.

        Raises:
            AdaptSegError: there is no such folder, or two files would be the same scene; quotes the `layout` expected.
        """
        if self._folder:
            return find_files(self._folder / folder, endings, layout=f"{self}/{layout}")
        below = f"{folder}/"
        names = [name[len(below) :] for name in self._members if name.startswith(below)]
        if not names:
            raise AdaptSegError(f"no file below {folder} in {self}; expected layout: {layout}")
        return keyed(names, endings, where=self.place(folder))

    def file(self, name: str) -> Path:
        """What `scenes.read_image` and its kin decode: a path, or the content of a member as a stream.

        (Pillow opens both alike, and both print as the place of the file, which is all that these functions ask for.)

        Raises:
            AdaptSegError: a member is missing or broken. A missing path is left to who opens it.
        """
        return self._readable(name, None)

    def header(self, name: str) -> Path:
        """The same for `scenes.read_size`, without unpacking the whole member."""
        return self._readable(name, _HEADER)

    def content(self, name: str) -> bytes:
        """All bytes of a file that is no image.

        Raises:
            AdaptSegError: names the file that is missing or cannot be read.
        """
        file: Any = self.file(name)
        try:
            return file.read_bytes() if isinstance(file, Path) else file.read()
        except OSError as error:
            raise AdaptSegError(f"file {file} cannot be read: {error.strerror}") from error

    def _readable(self, name: str, limit: int | None) -> Path:
        if self._folder:
            return self._folder / name
        member = self._members.get(name)
        if member is None:
            raise AdaptSegError(f"file {name} does not exist in {self}")
        path, stamp = self._archives[member.archive]
        try:
            with _opened(path, stamp, os.getpid()).open(member.name) as stream:
                content = stream.read() if limit is None else stream.read(limit)
        # Encrypted members raise RuntimeError, unknown compressions NotImplementedError, which is one.
        except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise AdaptSegError(f"archive {path}: member {member.name} is broken: {error}") from error
        return cast(Path, _Stream(content, f"{path}/{member.name}"))

    def stamps(self, names: Iterable[str]) -> list[tuple[int, int]]:
        """A cheap sign of each file that it was rewritten: see `files.file_stamps`; of members, a 0 and the checksum.

        Raises:
            AdaptSegError: names a file that is missing.
        """
        if self._folder:
            folder = self._folder
            return file_stamps(folder / name for name in names)
        return [(0, self._members[name].checksum) for name in names]


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and not path.is_dir()


@cache
def _opened(path: str, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    """The archive for reading by this process; another stamp or process opens it anew. Threads may share it."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise AdaptSegError(f"archive {path} is no readable zip file: {error}") from error
