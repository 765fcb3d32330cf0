"""Mapillary Vistas (Neuhold et al., ICCV 2017) in Cityscapes' 19 classes: releases v1.2 (66 classes), v2.0 (124)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import CITYSCAPES, VOID, ClassTable
from adaptseg.data.archives import Root
from adaptseg.data.files import check_same_size, choose, count_train_ids, read_train_ids, require_labels
from adaptseg.data.mapillary_classes import CLASSES
from adaptseg.data.scenes import Scenes, read_ids, read_image, read_size
from adaptseg.errors import AdaptSegError

Version = Literal["v1.2", "v2.0"]

_COUNTS: dict[Version, int] = {"v1.2": 66, "v2.0": 124}
_FOLDERS = {"train": "training", "val": "validation", "test": "testing"}


class Mapillary(Scenes):
    """Scenes such as `0035fkbjWljhaftpVM37-g` of many sizes, up to 22 megapixels.

    Files, with <folder> = training, validation or testing: `<folder>/images/<key>.jpg`,
    `<folder>/<version>/labels/<key>.png`, `<folder>/<version>/instances/<key>.png` and `config_<version>.json`, which
    says what the ids mean. The release of v1.2 alone has `<folder>/labels`, `<folder>/instances` and `config.json`.

    Which of Cityscapes' classes a class belongs to is decided by its name in the config: `mapillary_classes.CLASSES`.

    Args:
        root: the folder that holds `training` and `validation`, or the published archive.
        split: `train` (18,000 scenes), `val` (2,000) or `test` (5,000, annotation is secret: `labelled` is False).
        version: which of the two annotations.
        count: use only so many scenes, spread evenly; None = all.

    Raises:
        AdaptSegError: the layout is another, the split is empty, scenes lack their label, or the config is missing,
            broken, of the other release, or names an unknown class.
    """

    def __init__(
        self,
        root: str | list[str],
        split: Literal["train", "val", "test"],
        *,
        version: Version = "v1.2",
        count: int | None = None,
    ) -> None:
        self.labelled = split != "test"
        self._version: Version = version
        folder = _FOLDERS[split]
        self._images = f"{folder}/images"
        configs = [f"config_{version}.json", *(["config.json"] if version == "v1.2" else [])]
        self._root = Root(root, [folder, *configs])
        alone = version == "v1.2" and not self._root.holds(f"{folder}/{version}")
        base = folder if alone else f"{folder}/{version}"
        self._labels, self._instances = f"{base}/labels", f"{base}/instances"
        config = next((name for name in configs if self._root.holds(name)), configs[0])
        # Nothing in the test split is labelled, so its table needs no ids.
        self.class_table = self._read_table(config) if self.labelled else CITYSCAPES
        layout = f"{self._images}/<scene>.jpg and {self._labels}/<scene>.png"
        found = list(self._root.find(self._images, [".jpg"], layout=layout))
        source = f"Mapillary Vistas split '{split}' in {self._root.place(self._images)}"
        self.keys = choose(found, count, source=source, layout=layout)
        if self.labelled:
            labels = self._root.find(self._labels, [".png"], layout=layout)
            require_labels(self.keys, labels, folder=self._root.place(self._labels), ending=".png")

    def _read_table(self, config: str) -> ClassTable:
        place = self._root.place(config)
        if not self._root.holds(config):
            raise AdaptSegError(f"{place} does not exist; it is part of Mapillary Vistas and says what label ids mean")
        try:
            names = [str(label["name"]) for label in json.loads(self._root.content(config))["labels"]]
        except (ValueError, KeyError, TypeError) as error:
            raise AdaptSegError(f"{place} is no config of Mapillary Vistas: {error!r}") from error
        return class_table(names, self._version, place)

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._root.file(self._image(key)))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        with self._suspecting_the_version():
            return read_train_ids(*self._files(key), self.class_table)

    def label_counts(self, key: str) -> tuple[tuple[int, int], npt.NDArray[np.int64]]:
        with self._suspecting_the_version():
            return count_train_ids(*self._files(key), self.class_table)

    @contextmanager
    def _suspecting_the_version(self) -> Iterator[None]:
        """Unknown ids are those of the other release, most likely: says so."""
        try:
            yield
        except AdaptSegError as error:
            if "are unknown to class table" not in str(error):
                raise
            other = next(version for version in _COUNTS if version != self._version)
            raise AdaptSegError(
                f"{error}: {self._version} has ids 0 to {_COUNTS[self._version] - 1}; if these labels are of {other}, "
                f"set version: {other}"
            ) from error

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._root.header(self._image(key)))

    def instances(self, key: str) -> npt.NDArray[np.int32]:
        """Instance ids (H, W) int32 as the files spell them (raw class id * 256 + number); 0 = stuff or void."""
        self._require_labelled(key)
        file = self._root.file(f"{self._instances}/{key}.png")
        ids = read_ids(file).astype(np.int32)
        check_same_size(ids.shape, file, self._root.header(self._image(key)))
        things = np.append(self.class_table.things, np.zeros(VOID + 1 - self.class_table.num_classes, bool))
        return np.where(things[self.class_table.train_ids(ids >> 8)], ids, 0).astype(np.int32)

    def identity(self) -> dict[str, Any]:
        if not self.labelled:
            return super().identity()
        stamps = self._root.stamps(f"{self._labels}/{key}.png" for key in self.keys)
        return {**super().identity(), "labels": self._root.where(self._labels), "stamps": stamps}

    def _files(self, key: str) -> tuple[Path, Path]:
        """Labels and image, the latter for its header."""
        self._require_labelled(key)
        return self._root.file(f"{self._labels}/{key}.png"), self._root.header(self._image(key))

    def _image(self, key: str) -> str:
        return f"{self._images}/{key}.jpg"

    def _require_labelled(self, key: str) -> None:
        if not self.labelled:
            raise AdaptSegError(
                f"Mapillary Vistas: the annotation of split 'test' is not public (asked for scene '{key}')"
            )


def class_table(names: list[str], version: Version, config: str) -> ClassTable:
    """Cityscapes' 19 classes with the raw ids of a release: the positions of `names` in its config.

    Raises:
        AdaptSegError: the config is of the other release, or names a class that `CLASSES` does not know.
    """
    if len(names) != _COUNTS[version]:
        meant = next((v for v, number in _COUNTS.items() if number == len(names)), None)
        advice = f"set version: {meant}" if meant else "the file of the release, unchanged, is expected"
        raise AdaptSegError(f"{config} names {len(names)} classes, {version} has {_COUNTS[version]}; {advice}")
    if unknown := [name for name in names if name not in CLASSES]:
        raise AdaptSegError(
            f"{config} names {len(unknown)} unknown classes: {', '.join(unknown[:4])}; the file of the release, "
            "unchanged, is expected"
        )
    mapped = [CLASSES[name] for name in names]
    raw_ids = {c.name: tuple(i for i, name in enumerate(mapped) if name == c.name) for c in CITYSCAPES.classes}
    void = tuple(i for i, name in enumerate(mapped) if name is None)
    table = tuple(replace(c, raw_ids=raw_ids[c.name]) for c in CITYSCAPES.classes)
    return ClassTable(f"mapillary {version}", table, void)
