"""The label store: every bought label on disk, in rounds that are committed whole or not at all.

registry.json               image keys, their sizes, the class table; frozen when the store is made
round_001/<key>.png         uint8 train ids, 255 = not bought, or bought and void
round_001/<key>.bought.png  1 bit: which pixels were bought (255 alone cannot tell)
round_001.json              manifest, written last: a round exists when its manifest does
round_002.partial/          a round in the making
set_aside/round_002_1/      what a redone round replaced; nothing is ever deleted
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptseg.active import label_files as files
from adaptseg.active.label_files import Counts, Labels, LabelView, Manifest, Mask, RoundTotals
from adaptseg.classes import VOID, ClassTable
from adaptseg.errors import AdaptSegError
from adaptseg.storage import atomic_json, read_json, sync_folder, synced_write

Answer = tuple[str, Labels, Mask]
"""(key, labels (H, W) uint8, bought (H, W) bool): labels are train ids where bought, 255 elsewhere and for void."""

_FORMAT = 1
_CHECKSUM_MASK = (1 << 63) - 1  # so that ranks can add theirs in int64


def query_checksum(picks: Iterable[tuple[str, npt.NDArray[np.int64]]]) -> int:
    """What a query asks for as one number in 0 .. 2^63 - 1, whatever the order of its images and pixels.

    The checksum of all ranks is the sum of theirs modulo 2^63. Images without picks add nothing.

    Args:
        picks: (key, yx (n, 2) int64) with each key at most once.
    """
    total = 0
    for key, yx in picks:
        rows = np.asarray(yx, "<i8").reshape(-1, 2)
        if len(rows):
            rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
            digest = hashlib.sha256(key.encode() + b"\0" + rows.tobytes()).digest()
            total += int.from_bytes(digest[:8], "little")
    return total & _CHECKSUM_MASK


def format_checksum(checksum: int) -> str:
    """The text that manifests hold: 16 hex digits of the checksum modulo 2^63."""
    return f"{checksum & _CHECKSUM_MASK:016x}"


class LabelStore:
    """Labels bought so far, round by round. Rounds count from 1; `up_to_round` = 0 means before the first.

    Nothing but the registry is kept in memory. Under DDP one process calls `prepare`, `seal` and `set_aside`; between
    the first two, after a barrier, every rank may `stage` the answers of its own images, and seal waits for them all.

    Attributes:
        folder: where the store lies.
        sizes: (H, W) of the pool grid per image key; only these keys may be labelled.
        class_table: meaning of the labels.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, tuple[int, int]], class_table: ClassTable) -> None:
        """Use `create` or `open`."""
        self.folder = folder
        self.sizes = sizes
        self.class_table = class_table

    @classmethod
    def create(cls, folder: str | Path, sizes: Mapping[str, tuple[int, int]], class_table: ClassTable) -> LabelStore:
        """Make a store, or open the one that is there if it is for the same images, sizes and classes.

        Raises:
            AdaptSegError: a key that cannot be a file name, or an existing store for something else.
        """
        folder = Path(folder)
        files.check_keys(sizes)
        if not (folder / files.REGISTRY).exists():
            if stray := sorted(path for _, path in files.round_files(folder)):
                raise AdaptSegError(
                    f"{stray[0]} exists, {files.REGISTRY} beside it does not; restore that or start anew"
                )
            images = {key: [int(height), int(width)] for key, (height, width) in sizes.items()}
            table = {"fingerprint": class_table.fingerprint, **class_table.to_dict()}
            atomic_json(folder / files.REGISTRY, {"format": _FORMAT, "class_table": table, "images": images})
        store = cls.open(folder)
        store.class_table.require_same(class_table, f"label store {folder}")
        for key in sorted({*sizes, *store.sizes}):
            stored, given = store.sizes.get(key, "absent"), tuple(sizes.get(key, ())) or "absent"
            if stored != given:
                raise AdaptSegError(
                    f"label store {folder} is of another pool: size of image '{key}' is {stored} there, {given} "
                    "now; restore the pool and data.pool_size, or start a new run"
                )
        return store

    @classmethod
    def open(cls, folder: str | Path) -> LabelStore:
        """Open an existing store. AdaptSegError names a missing or broken registry."""
        path = Path(folder) / files.REGISTRY
        registry = read_json(path)
        try:
            found = registry["format"]
            sizes = {str(key): (int(height), int(width)) for key, (height, width) in registry["images"].items()}
            table = ClassTable.from_dict(registry["class_table"])
            fingerprint = registry["class_table"]["fingerprint"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AdaptSegError(f"{path} is not the registry of a label store: {error!r}") from error
        if found != _FORMAT:
            raise AdaptSegError(f"{path} has format {found}; this version reads format {_FORMAT}")
        if fingerprint != table.fingerprint:
            raise AdaptSegError(f"{path}: the class table does not match its fingerprint {fingerprint}")
        return cls(Path(folder), sizes, table)

    def commit(
        self,
        round: int,
        answers: Iterable[Answer],
        *,
        query_checksum: str,
        config_hash: str,
        seed: int | None = None,
    ) -> RoundTotals:
        """`prepare`, `stage` and `seal` in one process. This round and later ones, if committed, are set aside."""
        self.prepare(round)
        totals = self.stage(round, answers)
        self.seal(round, totals, query_checksum=query_checksum, config_hash=config_hash, seed=seed)
        return totals

    def prepare(self, round: int) -> None:
        """Set aside whatever there is of this round and later ones, committed or left by a killed run, and make an
        empty `round_NNN.partial/`. AdaptSegError unless every earlier round is committed."""
        committed = self.rounds
        if not 1 <= round <= committed + 1:
            raise AdaptSegError(
                f"label store {self.folder}: round {round} cannot be written when {committed} rounds are "
                f"committed; give 1 to {committed + 1}"
            )
        self.set_aside(round)
        files.partial_folder(self.folder, round).mkdir()
        sync_folder(self.folder)

    def stage(self, round: int, answers: Iterable[Answer]) -> RoundTotals:
        """Write answers into the prepared round; each image once over all ranks. Images with nothing bought leave no
        file and are not counted.

        Raises:
            AdaptSegError: an answer the store cannot hold; names the image and the rule.
        """
        partial = files.partial_folder(self.folder, round)
        if not partial.is_dir():
            raise RuntimeError(f"stage({round}) before prepare({round}): {partial} does not exist")
        before = LabelView(self.folder, round - 1, self.sizes)
        totals = RoundTotals.zero(self.class_table.num_classes)
        for key, labels, bought in answers:
            where = f"answer for image '{key}'"
            self._check_answer(key, labels, bought, where)
            if not bought.any():
                continue
            if (bought & before.bought(key)).any():
                raise AdaptSegError(f"{where}: a pixel bought in an earlier round is bought again")
            label_file, mask_file = files.answer_files(partial, key)
            if label_file.exists():
                raise AdaptSegError(f"{where}: the image is answered twice in round {round}")
            label_file.parent.mkdir(parents=True, exist_ok=True)
            synced_write(label_file, files.encode_png(labels))
            synced_write(mask_file, files.encode_png(bought))
            totals += RoundTotals.of(labels, bought, self.class_table.num_classes)
        return totals

    def seal(
        self, round: int, totals: RoundTotals, *, query_checksum: str, config_hash: str, seed: int | None = None
    ) -> None:
        """Commit the staged round: rename its folder, then write the manifest.

        Args:
            totals: the sum of what `stage` returned on every rank.
            query_checksum: of the whole query, by `format_checksum`.
            config_hash: of the configuration that asked.
            seed: of the run that asked; None when no seeded run did.
        """
        partial = files.partial_folder(self.folder, round)
        for parent, _, _ in os.walk(partial):
            sync_folder(Path(parent))
        partial.replace(self.folder / files.round_name(round))
        sync_folder(self.folder)
        manifest = Manifest(
            round=round,
            config_hash=config_hash,
            query_checksum=query_checksum,
            seed=seed,
            images=totals.images,
            spent=totals.spent,
            void=totals.void,
            class_counts=totals.class_counts.tolist(),
            class_table=self.class_table.fingerprint,
        )
        atomic_json(files.manifest_file(self.folder, round), manifest)

    def set_aside(self, round: int) -> None:
        """Move this round and every later one, committed or not, into `set_aside/`; nothing to move is no error."""
        found: dict[int, list[Path]] = {}
        for number, path in files.round_files(self.folder):
            if number >= round:
                found.setdefault(number, []).append(path)
        for number in sorted(found, reverse=True):  # newest first, so that a kill in between leaves no gap
            target = _unused_folder(self.folder / "set_aside", files.round_name(number))
            # The manifest first: without it the round is uncommitted, and the next `prepare` moves the rest.
            for path in sorted(found[number], key=lambda path: (path.suffix != ".json", path.name)):
                path.replace(target / path.name)
                sync_folder(target)
                sync_folder(self.folder)

    @property
    def rounds(self) -> int:
        """Number of committed rounds. AdaptSegError names a manifest that is missing in between, or broken."""
        return len(self._committed())

    def manifest(self, round: int) -> Manifest:
        """The manifest of a committed round; AdaptSegError if there is none."""
        if round < 1:
            raise AdaptSegError(f"label store {self.folder}: rounds count from 1, {round} given")
        return self._manifests(round)[-1]

    def matches(self, round: int, query_checksum: str) -> bool:
        """Whether this round is committed and answers this query, so that its stored answers can be used again."""
        return 1 <= round <= self.rounds and self.manifest(round)["query_checksum"] == query_checksum

    def view(self, round: int) -> LabelView:
        """The labels of rounds 1..round, for data loaders.

        Raises:
            AdaptSegError: a round is not committed, or its folder does not hold as many files as its manifest says.
        """
        for number, manifest in enumerate(self._manifests(round), 1):
            folder = self.folder / files.round_name(number)
            if files.count_files(folder) != (manifest["images"],) * 2:
                raise AdaptSegError(
                    f"{folder} does not match {folder.name}.json: a label file and a bought-mask of each of "
                    f"{manifest['images']} images are expected; restore the folder"
                )
        return LabelView(self.folder, round, self.sizes)

    def labels(self, key: str, up_to_round: int) -> Labels:
        """(H, W) uint8 train ids of rounds 1..up_to_round; 255 where nothing was bought, or void."""
        self._manifests(up_to_round)
        return LabelView(self.folder, up_to_round, self.sizes).labels(key)

    def bought(self, key: str, up_to_round: int) -> Mask:
        """(H, W) bool: bought in rounds 1..up_to_round, void included."""
        self._manifests(up_to_round)
        return LabelView(self.folder, up_to_round, self.sizes).bought(key)

    def spent_on(self, key: str, up_to_round: int) -> int:
        """Pixels bought in one image, void included."""
        return int(self.bought(key, up_to_round).sum())

    def spent(self, up_to_round: int) -> int:
        """Pixels bought in the whole pool, void included."""
        return sum(manifest["spent"] for manifest in self._manifests(up_to_round))

    def void(self, up_to_round: int) -> int:
        """Pixels bought that turned out void."""
        return sum(manifest["void"] for manifest in self._manifests(up_to_round))

    def class_counts(self, up_to_round: int) -> Counts:
        """(C,) int64 bought pixels per class, void excluded."""
        counts = np.zeros(self.class_table.num_classes, np.int64)
        for manifest in self._manifests(up_to_round):
            counts += np.array(manifest["class_counts"], np.int64)
        return counts

    def verify(self) -> None:
        """Read every stored answer and compare it with the rules and the manifests; AdaptSegError names the file.

        Decodes all files: seconds for a small pool, minutes for thousands of large images.
        """
        manifests = self._committed()
        self.view(len(manifests))
        totals = [RoundTotals.zero(self.class_table.num_classes) for _ in manifests]
        for key, size in self.sizes.items():
            seen = np.zeros(size, np.bool_)
            for index in range(len(manifests)):
                label_file, mask_file = files.answer_files(self.folder / files.round_name(index + 1), key)
                if not label_file.exists():
                    continue
                labels, bought = files.read_labels(label_file, size), files.read_mask(mask_file, size)
                self._check_answer(key, labels, bought, str(label_file))
                if (seen & bought).any():
                    raise AdaptSegError(f"{mask_file}: a pixel of an earlier round is bought again; restore the file")
                seen |= bought
                totals[index] += RoundTotals.of(labels, bought, self.class_table.num_classes)
        for total, manifest in zip(totals, manifests, strict=True):
            found = (total.spent, total.void, total.images, total.class_counts.tolist())
            written = (manifest["spent"], manifest["void"], manifest["images"], manifest["class_counts"])
            if found != written:
                raise AdaptSegError(
                    f"{files.manifest_file(self.folder, manifest['round'])} does not match the files of its round: "
                    f"spent, void, images, class counts are {written} there and {found} in the files; restore the round"
                )

    def _committed(self) -> list[Manifest]:
        numbers = sorted(number for number, path in files.round_files(self.folder) if path.suffix == ".json")
        for expected, number in enumerate(numbers, 1):
            if number != expected:
                missing = files.manifest_file(self.folder, expected)
                raise AdaptSegError(f"{missing} is missing, but round {number} is committed; restore the file")
        return [files.read_manifest(self.folder, number, self.class_table) for number in numbers]

    def _manifests(self, up_to_round: int) -> list[Manifest]:
        committed = self._committed()
        if not 0 <= up_to_round <= len(committed):
            raise AdaptSegError(
                f"label store {self.folder}: round {up_to_round} asked for, {len(committed)} rounds are committed"
            )
        return committed[:up_to_round]

    def _check_answer(self, key: str, labels: Labels, bought: Mask, where: str) -> None:
        if key not in self.sizes:
            raise AdaptSegError(f"{where}: the image is not in the pool of label store {self.folder}")
        for name, array, dtype in (("labels", labels, np.uint8), ("bought", bought, np.bool_)):
            if array.shape != self.sizes[key] or array.dtype != dtype:
                raise AdaptSegError(
                    f"{where}: {name} is {array.shape} {array.dtype}; {self.sizes[key]} {np.dtype(dtype)} is expected"
                )
        if (labels[~bought] != VOID).any():
            raise AdaptSegError(f"{where}: labels must be {VOID} where nothing is bought")
        if ((labels != VOID) & (labels >= self.class_table.num_classes)).any():
            raise AdaptSegError(f"{where}: labels must be below {self.class_table.num_classes}, or {VOID} for void")


def _unused_folder(parent: Path, name: str) -> Path:
    number = 1
    while (target := parent / f"{name}_{number}").exists():
        number += 1
    target.mkdir(parents=True)
    sync_folder(parent)
    return target
