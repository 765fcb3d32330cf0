"""Label tables: raw id -> train id -> name -> colour -> thing or stuff. The only place that knows 19, 11 or 255."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import yaml

from adaptseg.errors import AdaptSegError

VOID = 255
"""Label value of pixels that belong to no class: never trained on, never counted in a metric."""

_RAW_IDS = 1 << 16  # label files have 16 bits at most
_RAW_BYTES = 1 << 8  # most have 8
_UNKNOWN = VOID - 1


@dataclass(frozen=True)
class SemanticClass:
    """One class: its name, its colour in pictures (RGB, 0..255), thing or stuff, and the raw ids that mean it.

    In a table, no raw ids become the train id.
    """

    name: str
    color: tuple[int, int, int]
    thing: bool = False
    raw_ids: tuple[int, ...] = ()


class ClassTable:
    """The classes of a data set in train-id order, and how its label files spell them. Immutable by convention.

    (A plain class, since the command line would take a dataclass apart into arguments of its own.)

    Args:
        name: what to call the table in messages.
        classes: at most 255 classes; the train id is the position.
        void_ids: raw ids that are legal in label files and mean "no class". A raw id in neither list is an error.
        subsets: name -> the classes that a further mean IoU is taken over, as the field reports it beside the mean over
            all; the name becomes part of a metric's ("16": `val/miou_16`).
    """

    def __init__(
        self,
        name: str,
        classes: tuple[SemanticClass, ...],
        void_ids: tuple[int, ...] = (VOID,),
        subsets: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        if not 2 <= len(classes) <= VOID:
            raise AdaptSegError(f"class table '{name}': {len(classes)} classes given, 2 to {VOID} allowed")
        self.name, self.void_ids = name, void_ids
        self.subsets = dict(subsets or {})
        self.classes = tuple(replace(c, raw_ids=c.raw_ids or (train_id,)) for train_id, c in enumerate(classes))
        if duplicates := sorted({n for n in self.names if self.names.count(n) > 1}):
            raise AdaptSegError(f"class table '{name}': names given twice: {', '.join(duplicates)}")
        raw_ids = [*void_ids, *(raw for c in self.classes for raw in c.raw_ids)]
        if wrong := [raw for raw in raw_ids if not 0 <= raw < _RAW_IDS]:
            raise AdaptSegError(f"class table '{name}': raw id {wrong[0]} is outside 0..{_RAW_IDS - 1}")
        self._lookup = np.full(max(raw_ids) + 1, -1, np.int32)  # no longer than needed: every worker gets a copy
        for raw in void_ids:
            self._claim(raw, VOID)
        for train_id, semantic_class in enumerate(self.classes):
            for raw in semantic_class.raw_ids:
                self._claim(raw, train_id)
        self._bytes = self._byte_table()
        for subset, members in self.subsets.items():
            if not subset.replace("_", "").isalnum():
                raise AdaptSegError(f"class table '{name}': subset name '{subset}'; letters, digits and _ are allowed")
            if not members or len(set(members)) < len(members) or not set(members) <= set(self.names):
                raise AdaptSegError(
                    f"class table '{name}': subset {subset} is {', '.join(members) or 'empty'}; some of the table's "
                    "classes, each once, are expected"
                )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassTable) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"ClassTable({self.name!r}, {', '.join(self.names)})"

    def _claim(self, raw: int, train_id: int) -> None:
        if self._lookup[raw] not in (-1, train_id):
            raise AdaptSegError(f"class table '{self.name}': raw id {raw} is claimed twice")
        self._lookup[raw] = train_id

    def _byte_table(self) -> bytes | None:
        """Train id of each raw id below 256, 254 = unknown; None where a class has train id 254 itself."""
        if len(self.classes) > _UNKNOWN:
            return None
        known = np.full(_RAW_BYTES, -1, np.int32)
        short = self._lookup[:_RAW_BYTES]
        known[: len(short)] = short
        return np.where(known < 0, _UNKNOWN, known).astype(np.uint8).tobytes()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def things(self) -> npt.NDArray[np.bool_]:
        """(C,) bool: which classes are countable objects."""
        return np.array([c.thing for c in self.classes])

    @property
    def colors(self) -> npt.NDArray[np.uint8]:
        """(256, 3) uint8 palette indexed by train id; void is black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = [c.color for c in self.classes]
        return palette

    @property
    def fingerprint(self) -> str:
        """Hash of what makes predictions comparable: names in train-id order (colours and raw ids may differ)."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    def train_ids(self, raw: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Raw label ids (H, W), any integer dtype, to train ids (H, W) uint8 with 255 = void.

        Raises:
            AdaptSegError: names the raw ids that the table does not know.
        """
        if raw.dtype == np.uint8 and self._bytes is not None:  # translated byte by byte, in half the time
            content = bytearray(raw.tobytes()).translate(self._bytes)
            quick = np.frombuffer(content, np.uint8).reshape(raw.shape)
            if not (quick == _UNKNOWN).any():
                return quick
        clipped = np.clip(raw, 0, len(self._lookup) - 1)
        mapped = self._lookup[clipped]
        unknown = (mapped < 0) | (clipped != raw)
        if unknown.any():
            listed = ", ".join(str(v) for v in np.unique(raw[unknown])[:8])
            raise AdaptSegError(f"label ids {listed} are unknown to class table '{self.name}'")
        return mapped.astype(np.uint8)

    def colorize(self, labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Train ids (H, W) to an RGB picture (H, W, 3) uint8."""
        return self.colors[labels]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for YAML, JSON and checkpoints; `from_dict` reads it back."""
        return {
            "name": self.name,
            "classes": [{**asdict(c), "color": list(c.color), "raw_ids": list(c.raw_ids)} for c in self.classes],
            "void_ids": list(self.void_ids),
            # Only where declared: hashes of earlier tables name caches on disk.
            **({"subsets": {name: list(members) for name, members in self.subsets.items()}} if self.subsets else {}),
        }

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> ClassTable:
        """Inverse of `to_dict`. Per class, `thing` defaults to false and `raw_ids` to `id`, which defaults to the
        position; `ignore_index: 255` is read as `void_ids: [255]`.

        Raises:
            AdaptSegError: an unknown key, which is rather a misspelt one.
            KeyError, TypeError, ValueError: a missing key or a wrong type.
        """
        _refuse_unknown(table, {"name", "classes", "void_ids", "ignore_index", "fingerprint", "subsets"}, "the table")
        classes: list[SemanticClass] = []
        for position, row in enumerate(table["classes"]):
            _refuse_unknown(row, {"id", "name", "color", "thing", "raw_ids"}, f"class {position}")
            red, green, blue = (int(value) for value in row["color"])
            if not all(0 <= value <= 255 for value in (red, green, blue)):
                raise AdaptSegError(f"class {position}: colour {row['color']} is outside 0..255")
            listed: Any = row.get("raw_ids") or [row.get("id", position)]
            if not isinstance(listed, (list, tuple)):
                raise AdaptSegError(f"class {position}: raw_ids is {listed!r}; a list of ids is expected")
            raw_ids = tuple(int(raw) for raw in cast(list[Any], listed))
            classes.append(SemanticClass(str(row["name"]), (red, green, blue), bool(row.get("thing", False)), raw_ids))
        void_ids = table.get("void_ids", [table.get("ignore_index", VOID)])
        subsets = {str(name): tuple(str(c) for c in members) for name, members in table.get("subsets", {}).items()}
        return cls(str(table["name"]), tuple(classes), tuple(int(raw) for raw in void_ids), subsets)

    @classmethod
    def from_file(cls, path: str | Path) -> ClassTable:
        """Read a class table from YAML or JSON:

            name: my-cameras
            void_ids: [255]
            classes:
              - {name: road, color: [128, 64, 128], raw_ids: [0]}
              - {name: car, color: [0, 0, 142], thing: true, raw_ids: [1, 2]}
            subsets: {vehicles: [car]}        # optional: a further mean IoU, over these classes alone

        Raises:
            AdaptSegError: names the file and what is missing or wrong in it.
        """
        path = Path(path)
        if not path.is_file():
            raise AdaptSegError(f"class table {path} does not exist")
        try:
            table = yaml.safe_load(path.read_text())
            if not isinstance(table, dict):
                raise TypeError("expected a mapping with the keys name, classes, void_ids")
            return cls.from_dict({"name": path.stem, **table})
        except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            reason = f"missing key {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise AdaptSegError(f"class table {path}: {reason}") from error

    def without(self, absent: tuple[str, ...], name: str, subsets: dict[str, tuple[str, ...]]) -> ClassTable:
        """A table of this one's other classes, in their order; the ids of the absent ones mean no class."""
        void = tuple(raw for c in self.classes if c.name in absent for raw in c.raw_ids)
        kept = tuple(c for c in self.classes if c.name not in absent)
        return ClassTable(name, kept, (*self.void_ids, *void), subsets)

    def require_same(self, other: ClassTable, where: str) -> None:
        """Raise unless `other` has the same classes in the same order."""
        if self.fingerprint != other.fingerprint:
            raise AdaptSegError(
                f"{where}: class table '{other.name}' ({', '.join(other.names)}) differs from "
                f"'{self.name}' ({', '.join(self.names)}); give both domains the same table"
            )


def _refuse_unknown(given: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(given) - known):
        raise AdaptSegError(f"{where} has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}")


def _table(name: str, rows: list[tuple[str, tuple[int, int, int], bool, tuple[int, ...]]], void: tuple[int, ...]):
    return ClassTable(name, tuple(SemanticClass(*row) for row in rows), void)


CITYSCAPES = _table(
    # cityscapesScripts, helpers/labels.py: name, colour, hasInstances, id of the 19 evaluated classes.
    "cityscapes",
    [
        ("road", (128, 64, 128), False, (7,)),
        ("sidewalk", (244, 35, 232), False, (8,)),
        ("building", (70, 70, 70), False, (11,)),
        ("wall", (102, 102, 156), False, (12,)),
        ("fence", (190, 153, 153), False, (13,)),
        ("pole", (153, 153, 153), False, (17,)),
        ("traffic light", (250, 170, 30), False, (19,)),
        ("traffic sign", (220, 220, 0), False, (20,)),
        ("vegetation", (107, 142, 35), False, (21,)),
        ("terrain", (152, 251, 152), False, (22,)),
        ("sky", (70, 130, 180), False, (23,)),
        ("person", (220, 20, 60), True, (24,)),
        ("rider", (255, 0, 0), True, (25,)),
        ("car", (0, 0, 142), True, (26,)),
        ("truck", (0, 0, 70), True, (27,)),
        ("bus", (0, 60, 100), True, (28,)),
        ("train", (0, 80, 100), True, (31,)),
        ("motorcycle", (0, 0, 230), True, (32,)),
        ("bicycle", (119, 11, 32), True, (33,)),
    ],
    # ids that are annotated but not evaluated; 255 appears where licence plates (-1) were written as uint8.
    (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 34, 255),
)

CAMVID = _table(
    # The 11 classes of the SegNet authors' CamVid; their label files write 11 for void, other copies 255.
    "camvid",
    [
        ("sky", (128, 128, 128), False, (0,)),
        ("building", (128, 0, 0), False, (1,)),
        ("pole", (192, 192, 128), False, (2,)),
        ("road", (128, 64, 128), False, (3,)),
        ("pavement", (60, 40, 222), False, (4,)),
        ("tree", (128, 128, 0), False, (5,)),
        ("sign", (192, 128, 128), False, (6,)),
        ("fence", (64, 64, 128), False, (7,)),
        ("car", (64, 0, 128), True, (8,)),
        ("pedestrian", (64, 64, 0), True, (9,)),
        ("bicyclist", (0, 128, 192), True, (10,)),
    ],
    (11, 255),
)

_SYNTHIA_IDS = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
"""SYNTHIA's ids of Cityscapes' 19 classes in their order (GBW specification 4.1). RAND-CITYSCAPES shows 16 of them: no
terrain, truck or train."""

_SYNTHIA_LACKS = ("terrain", "truck", "train")

SYNTHIA = ClassTable(
    "synthia",
    tuple(replace(c, raw_ids=(raw,)) for c, raw in zip(CITYSCAPES.classes, _SYNTHIA_IDS, strict=True)),
    (0, 13, 14, 22),  # void, parking slot, road work, lane marking
    subsets={
        "16": tuple(n for n in CITYSCAPES.names if n not in _SYNTHIA_LACKS),
        "13": tuple(n for n in CITYSCAPES.names if n not in (*_SYNTHIA_LACKS, "wall", "fence", "pole")),
    },
)
"""Published results from SYNTHIA are means over the 16 classes it shows, or over 13, without wall, fence and pole."""

_THIRTEEN = {"13": SYNTHIA.subsets["13"]}

SYNTHIA_16 = SYNTHIA.without(_SYNTHIA_LACKS, "synthia-16", _THIRTEEN)
CITYSCAPES_16 = CITYSCAPES.without(_SYNTHIA_LACKS, "cityscapes-16", _THIRTEEN)
"""The 16 classes alone, for methods whose networks have 16 outputs (RIPU, CBDA): terrain, truck and train are void."""

STREETS = ClassTable("streets", tuple(SemanticClass(c.name, c.color, c.thing) for c in CITYSCAPES.classes), (VOID,))
"""The embedded pair speaks Cityscapes' 19 classes; its labels are train ids already."""
