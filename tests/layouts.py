"""Tiny data sets in their published layouts, made by code: every file has the format of the real one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from adaptseg.data.mapillary_classes import CLASSES

H, W = 6, 8
RNG = np.random.default_rng(0)

ONLY_V12 = {
    "human--person", "marking--crosswalk-zebra", "marking--general", "object--billboard", "object--traffic-light",
}  # fmt: skip
V20 = sorted(name for name in CLASSES if name not in ONLY_V12)
V12 = sorted(
    name
    for name in CLASSES
    if name in ONLY_V12
    or (not name.startswith(
        ("marking", "human--person--", "object--traffic-light--", "object--sign--", "object--traffic-sign--direction",
         "object--traffic-sign--temporary", "object--traffic-sign--information", "object--traffic-sign--ambiguous")
    )
    and name not in {
        "construction--barrier--ambiguous", "construction--barrier--concrete-block",
        "construction--barrier--road-median", "construction--barrier--road-side", "construction--barrier--separator",
        "construction--barrier--temporary", "construction--flat--driveway", "construction--flat--parking-aisle",
        "construction--flat--road-shoulder", "construction--flat--traffic-island", "construction--structure--garage",
        "object--parking-meter", "object--support--pole-group", "object--traffic-cone",
        "object--vehicle--vehicle-group", "object--water-valve", "void--dynamic", "void--ground", "void--static",
    })
)  # fmt: skip
"""Both releases list their classes by name in this order."""


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def picture(height: int = H, width: int = W) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def palette_labels(path: Path, ids: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8), "L").convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette(RNG.integers(0, 256, 768).tolist())
    image.save(path)
    return path


def mapillary(
    root: Path, version: str = "v1.2", *, alone: bool = False, keys: tuple[str, ...] = ("a-_1", "b2")
) -> Path:
    """`alone`: the release that held v1.2 alone."""
    names = V12 if version == "v1.2" else V20
    labels = [{"name": name, "readable": name, "color": [1, 2, 3], "instances": False} for name in names]
    root.mkdir(parents=True, exist_ok=True)
    (root / ("config.json" if alone else f"config_{version}.json")).write_text(json.dumps({"labels": labels}))
    for folder in ("training", "validation"):
        base = root / folder if alone else root / folder / version
        for number, key in enumerate(keys):
            save(root / folder / "images" / f"{key}.jpg", picture())
            ids = (np.arange(H * W).reshape(H, W) * 3 + number) % len(names)
            palette_labels(base / "labels" / f"{key}.png", ids)
            save(base / "instances" / f"{key}.png", (ids * 256 + 2).astype(np.uint16))
    save(root / "testing/images/t1.jpg", picture())
    return root


def pack(folder: Path, archive: Path, *, prefix: str = "", inside: str = "") -> str:
    """Zip what lies below folder/inside; member names begin at `folder`, after `prefix`."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted((folder / inside).rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(folder).as_posix())
    return str(archive)


def break_member(archive: Path, member: str) -> None:
    """Overwrite the middle of a member's content, as a bad copy does."""
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo(member)
    content = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len(info.filename.encode())
    middle = start + info.compress_size // 2
    content[middle : middle + 4] = bytes(255 - byte for byte in content[middle : middle + 4])
    archive.write_bytes(content)
