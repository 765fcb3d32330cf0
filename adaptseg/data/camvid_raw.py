"""CamVid (Brostow et al., 2009) as its authors publish it: 701 scenes of 720x960, labels as pictures of 32 colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptseg.classes import CAMVID, ClassTable, SemanticClass
from adaptseg.data.archives import Root
from adaptseg.data.files import check_same_size, choose, choose_listed, read_lines, require_labels
from adaptseg.data.scenes import Scenes, read_image, read_size
from adaptseg.errors import AdaptSegError

_IMAGES, _LABELS, _LABEL = "701_StillsRaw_full", "LabeledApproved_full", "_L.png"

Split = Literal["train", "val", "test", "all"]

# Colour of each of the 32 classes (label_colors.txt of the data set) by the one of SegNet's 11 that it belongs to. The
# grouping is the common one of SegNet reimplementations ("inferred": SegNet published label files, not the table).
_COLORS: dict[str | None, tuple[tuple[int, int, int], ...]] = {
    "sky": ((128, 128, 128),),
    # building, bridge, wall, tunnel, archway
    "building": ((128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)),
    "pole": ((192, 192, 128), (0, 0, 64)),  # column or pole, traffic cone
    "road": ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # road, driving and non-driving lane markings
    "pavement": ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # sidewalk, parking block, road shoulder
    "tree": ((128, 128, 0), (192, 192, 0)),  # tree, other vegetation
    "sign": ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # sign, other text, traffic light
    "fence": ((64, 64, 128),),
    # car, SUV or pick-up, truck or bus, train, other moving
    "car": ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),
    # pedestrian, child, cart or pram, animal
    "pedestrian": ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),
    "bicyclist": ((0, 128, 192), (192, 0, 192)),  # bicyclist, motorcycle or scooter
    None: ((0, 0, 0),),
}


def _code(color: tuple[int, int, int]) -> int:
    """All channels are multiples of 64 below 256: two bits each."""
    red, green, blue = (channel >> 6 for channel in color)
    return red | green << 2 | blue << 4


CAMVID_RAW = ClassTable(
    "camvid raw",
    tuple(
        SemanticClass(c.name, c.color, c.thing, tuple(_code(color) for color in _COLORS[c.name]))
        for c in CAMVID.classes
    ),
    tuple(_code(color) for color in _COLORS[None]),
)
"""SegNet's 11 classes; a raw id is a colour in two bits a channel, red lowest."""

_TRAIN_IDS = np.full(64, -1, np.int16)
for _color in (color for colors in _COLORS.values() for color in colors):
    _TRAIN_IDS[_code(_color)] = CAMVID_RAW.train_ids(np.array([[_code(_color)]]))[0, 0]


class CamVidRaw(Scenes):
    """Scenes of the original release; keys are the file stems (`0001TP_006690`), classes are SegNet's 11.

    Files: `701_StillsRaw_full/<key>.png` and `LabeledApproved_full/<key>_L.png`, RGB pictures of 32 colours.

    Args:
        root: the folder that holds both, or the published archives (`[701_StillsRaw_full.zip,
            LabeledApproved_full.zip]`).
        split: `train` (367), `val` (101) or `test` (233) of SegNet's lists, which go by sequence: of `0001TP` the
            frames from 008550 on and all of `Seq05VD` are test, frames 07959 to 08159 of `0016E5` are val, the rest is
            train. `all` = the 701 scenes.
        stems: text file with one stem a line, relative to the current folder, in place of SegNet's lists; needs
            split: all.
        count: use only so many scenes, spread evenly; None = all.

    Raises:
        AdaptSegError: the layout is another, the split is empty, `stems` names an absent image, or a label is missing.
    """

    def __init__(
        self, root: str | list[str], split: Split = "train", *, stems: str | None = None, count: int | None = None
    ) -> None:
        self.class_table = CAMVID_RAW
        if stems is not None and split != "all":
            raise AdaptSegError(f"CamVidRaw: stems and split '{split}' exclude each other; set split: all")
        self._root = Root(root, [_IMAGES, _LABELS])
        layout = f"{_IMAGES}/<scene>.png and {_LABELS}/<scene>{_LABEL}"
        found = list(self._root.find(_IMAGES, [".png"], layout=layout))
        if stems is not None:
            listing = Path(stems).expanduser()
            lines = [Path(line).stem for line in read_lines(listing)]
            found = choose_listed(found, lines, split=listing, folder=self._root.place(_IMAGES))
        chosen = [key for key in found if split in ("all", segnet_split(key))]
        source = f"CamVid split '{split}' in {self._root.place(_IMAGES)}"
        self.keys = choose(chosen, count, source=source, layout=layout)
        labels = self._root.find(_LABELS, [_LABEL.lower()], layout=layout)
        require_labels(self.keys, labels, folder=self._root.place(_LABELS), ending=_LABEL)

    def image(self, key: str) -> npt.NDArray[np.uint8]:
        return read_image(self._root.file(f"{_IMAGES}/{key}.png"))

    def labels(self, key: str) -> npt.NDArray[np.uint8]:
        """As `Scenes.labels`. AdaptSegError names the colours that are none of the 32."""
        file = self._root.file(self._label(key))
        colors = read_image(file)
        check_same_size(colors.shape[:2], file, self._root.header(f"{_IMAGES}/{key}.png"))
        codes = colors[..., 0] >> 6 | colors[..., 1] >> 6 << 2 | colors[..., 2] >> 6 << 4
        mapped = _TRAIN_IDS[codes]
        unknown = (mapped < 0) | (colors & 63).any(2)
        if unknown.any():
            listed = ", ".join(str(tuple(color)) for color in np.unique(colors[unknown], axis=0)[:4].tolist())
            raise AdaptSegError(
                f"{file}: colours {listed} are none of CamVid's 32; label pictures that were resized or compressed "
                "cannot be used"
            )
        return mapped.astype(np.uint8)

    def size(self, key: str) -> tuple[int, int]:
        return read_size(self._root.header(f"{_IMAGES}/{key}.png"))

    def identity(self) -> dict[str, Any]:
        stamps = self._root.stamps(self._label(key) for key in self.keys)
        return {**super().identity(), "labels": self._root.where(_LABELS), "stamps": stamps}

    def _label(self, key: str) -> str:
        return f"{_LABELS}/{key}{_LABEL}"


def segnet_split(key: str) -> Literal["train", "val", "test"]:
    """Which of SegNet's lists a frame such as `0016E5_07959` stands in."""
    sequence, _, frame = key.partition("_")
    if sequence == "Seq05VD" or (sequence == "0001TP" and frame >= "008550"):
        return "test"
    return "val" if sequence == "0016E5" and "07959" <= frame <= "08159" else "train"
