"""The appearance of Streets: what things are painted with in each domain, and what weather and camera make of it.

Arithmetic here is elementwise (+ - * /, table look-ups, 8-bit rounding), so the same bits come out on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptseg.data.streetscape.canvas import OVERSAMPLING, Dice, Drawing, Role

_Floats = npt.NDArray[np.floating[Any]]  # float32 throughout; numpy's stubs lose track of it
Triple = tuple[float, float, float]
Range = tuple[float, float]

_SHARED: dict[str, Role] = {
    "rubber": Role(((28, 28, 30),), 4),
    "headlight": Role(((250, 248, 235),), 2, glow=1.0),
    "taillight": Role(((190, 30, 30),), 8, glow=0.9),
    "signal_red": Role(((250, 50, 40),), 3, glow=1.0),
    "signal_green": Role(((60, 235, 120),), 3, glow=1.0),
    "route": Role(((250, 170, 40),), 5, glow=0.9),
    "bulb": Role(((245, 235, 205),), 3, glow=1.0),
    "skin": Role(((225, 180, 150), (190, 140, 105), (120, 80, 60)), 8),
    "hair": Role(((40, 30, 26), (95, 66, 40), (160, 130, 80), (120, 120, 120)), 6),
}

GAME: dict[str, Role] = _SHARED | {
    "sky": Role(((92, 160, 246), (128, 184, 250), (178, 208, 246), (208, 224, 244)), 6, (8, 3, 0)),
    "asphalt": Role(((72, 76, 96), (86, 88, 102), (108, 108, 112)), 7, (4, 4, 5)),
    "marking": Role(((250, 248, 240),), 2),
    "slab": Role(((214, 186, 160), (196, 176, 162), (180, 168, 160)), 7, (4, 5, 5)),
    "kerb": Role(((236, 226, 212),), 3),
    "rail": Role(((140, 150, 180),), 3),
    "grass": Role(((126, 208, 66), (124, 178, 70), (142, 190, 92)), 8, (6, 8, 8)),
    "facade": Role(
        (
            (226, 148, 92), (202, 92, 80), (238, 212, 150), (206, 172, 196), (236, 178, 140), (186, 150, 120),
            (190, 192, 202), (160, 110, 92),
        ), 10, (4, 4, 5),
    ),
    "window": Role(((92, 148, 206), (76, 130, 190), (66, 92, 124)), 6, glow=0.1),
    "window_lit": Role(((128, 178, 226),), 5, glow=0.8),
    "trim": Role(((250, 240, 224),), 4),
    "shop": Role(((176, 52, 70), (58, 102, 170), (60, 140, 110)), 6),
    "door": Role(((110, 62, 42),), 6),
    "roof": Role(((150, 62, 52), (110, 70, 84)), 5, (2, 2, 3)),
    "wall": Role(((152, 132, 182), (140, 124, 170), (164, 148, 150)), 7, (5, 6, 6)),
    "coping": Role(((206, 192, 226),), 3),
    "fence": Role(((158, 98, 46), (122, 100, 88), (70, 110, 84)), 7, (3, 4, 5)),
    "fence_gap": Role(((96, 62, 34),), 4),
    "pole": Role(((44, 52, 72), (64, 70, 84), (104, 110, 122)), 6),
    "signal": Role(((244, 190, 36), (60, 62, 56)), 5),
    "sign_rim": Role(((28, 96, 214), (210, 40, 50)), 8, glow=0.3),
    "sign_plate": Role(((248, 250, 252),), 3, glow=0.3),
    "leaf": Role(((58, 158, 52), (72, 140, 50), (44, 120, 58), (104, 146, 62)), 9, (8, 12, 14)),
    "bark": Role(((120, 78, 44),), 5),
    "clutter": Role(((96, 106, 100), (180, 90, 50)), 6),
    "bonnet": Role(((40, 40, 60),), 4),
    "car": Role(
        (
            (214, 34, 40), (36, 92, 212), (248, 206, 40), (246, 246, 250), (52, 176, 90), (150, 60, 180),
            (52, 54, 62), (168, 172, 180),
        ), 9,
    ),
    "car_glass": Role(((44, 62, 92), (40, 46, 58)), 5),
    "plate": Role(((250, 250, 250),), 2),
    "cargo": Role(((245, 245, 240), (250, 160, 40), (90, 190, 230)), 5),
    "truck_cab": Role(((220, 70, 30), (30, 110, 190)), 7),
    "bus": Role(((252, 196, 24), (250, 180, 20), (226, 70, 60)), 7),
    "tram": Role(((236, 246, 238),), 4),
    "tram_belt": Role(((20, 150, 110), (170, 60, 70)), 7),
    "motorcycle": Role(((196, 24, 60), (30, 30, 36), (80, 90, 110)), 8),
    "steel": Role(((190, 196, 210),), 5),
    "bicycle": Role(((30, 190, 210), (236, 90, 160), (60, 64, 72)), 8),
    "spokes": Role(((164, 170, 186),), 5),
    "coat": Role(
        ((230, 60, 90), (60, 120, 230), (250, 220, 90), (120, 220, 190), (245, 245, 250), (70, 72, 84), (120, 90, 76)),
        9,
    ),
    "trousers": Role(((50, 60, 120), (90, 80, 70)), 8),
    "jacket": Role(((255, 130, 20), (200, 240, 40), (80, 80, 96)), 8),
    "helmet": Role(((250, 250, 250), (230, 40, 40), (50, 50, 56)), 6),
}  # fmt: skip

STREET: dict[str, Role] = _SHARED | {
    "sky": Role(((226, 230, 234), (198, 212, 226), (240, 238, 230), (176, 198, 222)), 8, (14, 6, 0)),
    "asphalt": Role(((118, 114, 110), (100, 100, 102), (130, 126, 120), (86, 88, 92), (108, 110, 114)), 8, (6, 5, 8)),
    "marking": Role(((206, 204, 196), (178, 176, 168)), 10, (8, 6, 6)),
    "slab": Role(((150, 146, 140), (132, 124, 120), (168, 156, 146), (176, 160, 142), (164, 142, 128)), 9, (8, 12, 12)),
    "kerb": Role(((164, 162, 158), (140, 138, 134)), 8, (4, 6, 6)),
    "rail": Role(((96, 84, 74),), 6),
    "grass": Role(((126, 120, 66), (100, 112, 58), (148, 134, 84), (96, 98, 52)), 10, (12, 14, 16)),
    "facade": Role(
        (
            (138, 84, 66), (158, 106, 82), (186, 172, 150), (128, 128, 130), (208, 200, 184), (100, 88, 80),
            (148, 134, 100), (112, 120, 132), (176, 140, 104), (90, 98, 100), (170, 162, 170), (196, 176, 120),
        ), 12, (10, 8, 11),
    ),
    "window": Role(((48, 52, 58), (70, 76, 84), (118, 128, 138), (36, 38, 40)), 9, (6, 6, 4), 0.02),
    "window_lit": Role(((86, 84, 76), (120, 112, 92), (60, 62, 66)), 9, (4, 4, 4), 1.3),
    "trim": Role(((170, 162, 150), (214, 208, 198), (88, 82, 78)), 10, (4, 4, 6)),
    "shop": Role(((70, 60, 56), (150, 40, 40), (40, 66, 92), (176, 160, 130), (52, 80, 60)), 12, (6, 8, 8), 0.25),
    "door": Role(((64, 48, 38), (50, 62, 58), (90, 84, 80)), 10),
    "roof": Role(((92, 62, 50), (72, 72, 78), (118, 74, 56), (86, 84, 80)), 9, (6, 8, 10)),
    "wall": Role(((150, 112, 90), (142, 138, 126), (116, 110, 100), (166, 156, 136)), 12, (14, 14, 14)),
    "coping": Role(((126, 120, 112), (160, 152, 142)), 8, (4, 6, 6)),
    "fence": Role(((70, 84, 76), (118, 120, 122), (52, 54, 56), (128, 112, 94)), 9, (5, 6, 8)),
    "fence_gap": Role(((92, 96, 72), (108, 104, 96), (76, 82, 62)), 9, (12, 14, 14)),
    "pole": Role(((138, 140, 138), (112, 116, 112), (154, 154, 150), (84, 92, 84)), 9, (4, 4, 6)),
    "signal": Role(((34, 36, 38), (44, 50, 46)), 5),
    "sign_rim": Role(((176, 40, 44), (36, 66, 132), (186, 152, 40)), 12, (3, 4, 4), 0.2),
    "sign_plate": Role(((222, 222, 216), (210, 190, 80)), 10, (3, 4, 4), 0.2),
    "leaf": Role(((70, 82, 44), (88, 92, 50), (56, 68, 46), (112, 100, 48), (128, 88, 44)), 10, (10, 18, 22)),
    "bark": Role(((84, 74, 64), (64, 56, 50)), 8, (6, 8, 10)),
    "clutter": Role(((80, 84, 80), (54, 70, 60), (120, 104, 84), (140, 140, 140)), 12, (6, 6, 8)),
    "bonnet": Role(((38, 40, 44), (60, 62, 66), (24, 24, 28)), 6, (6, 4, 2)),
    "car": Role(
        (
            (30, 32, 36), (66, 68, 72), (128, 132, 136), (178, 182, 184), (224, 224, 222), (36, 48, 80), (104, 26, 30),
            (58, 76, 70), (110, 98, 82), (22, 22, 24), (150, 154, 160), (60, 90, 130),
        ), 10, (4, 4, 3),
    ),
    "car_glass": Role(((38, 42, 46), (64, 74, 82), (24, 26, 28)), 8, (6, 4, 3), 0.02),
    "plate": Role(((220, 220, 210), (210, 190, 90)), 8),
    "cargo": Role(((214, 212, 206), (160, 160, 158), (120, 130, 150), (150, 60, 50), (86, 104, 84)), 10, (7, 6, 5)),
    "truck_cab": Role(((190, 190, 186), (60, 84, 120), (150, 44, 40), (70, 96, 80)), 12, (4, 4, 4)),
    "bus": Role(((200, 204, 204), (164, 40, 44), (66, 98, 142), (196, 168, 96)), 10, (5, 4, 4)),
    "tram": Role(((224, 208, 160), (214, 204, 178), (206, 172, 84)), 9, (5, 4, 4)),
    "tram_belt": Role(((158, 44, 44), (128, 40, 48), (150, 66, 40)), 10, (4, 4, 4)),
    "motorcycle": Role(((34, 34, 38), (120, 30, 30), (70, 74, 80), (40, 52, 84)), 10, (3, 4, 5)),
    "steel": Role(((150, 152, 154), (112, 112, 112)), 9, (3, 4, 5)),
    "bicycle": Role(((40, 42, 46), (120, 40, 40), (60, 90, 80), (150, 150, 150)), 12, (2, 4, 5)),
    "spokes": Role(((120, 118, 112), (138, 136, 130)), 10, (6, 8, 8)),
    "coat": Role(
        ((46, 48, 56), (84, 74, 66), (120, 40, 42), (60, 76, 100), (150, 146, 138), (34, 34, 36)), 14, (4, 6, 7),
    ),
    "trousers": Role(((44, 50, 68), (36, 36, 38), (96, 88, 76)), 10, (3, 5, 6)),
    "jacket": Role(((52, 54, 58), (130, 60, 40), (170, 170, 80), (40, 60, 96)), 12, (4, 6, 7)),
    "helmet": Role(((30, 30, 32), (200, 200, 196), (140, 40, 40)), 10),
}  # fmt: skip


@dataclass(frozen=True)
class Weather:
    """Light, air and camera of a look. Ranges are drawn uniformly per scene."""

    haze_color: Triple
    haze: Range  # extinction, 1/m
    ambient: tuple[Triple, Triple]  # colour of the light: darkest, brightest
    exposure: Range
    balance: float  # red and blue gains stray by this share
    noise: Range  # grey levels, half width of the triangular sensor noise
    blur: float  # weight of each neighbour in the 3-tap filter
    vignette: float  # loss of light in the corners
    shadow: Range  # what a shadow leaves of the light
    grain: float  # strength of material texture
    lamps: float = 0.0  # strength of lamps, windows and headlights


_DAY = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
WEATHER: dict[str, Weather] = {
    "game": Weather((176, 208, 246), (0.0015, 0.004), _DAY, (0.85, 1.15), 0.04, (3, 9), 0.05, 0.05, (0.65, 0.85), 1.0),
    "street": Weather(
        (206, 208, 208), (0.002, 0.006), _DAY, (0.85, 1.25), 0.06, (6, 14), 0.12, 0.22, (0.5, 0.9), 1.0
    ),
    "fog": Weather(
        (198, 200, 202), (0.012, 0.038), _DAY, (0.85, 1.15), 0.05, (6, 14), 0.16, 0.2, (0.85, 0.97), 0.9
    ),
    "night": Weather(
        (34, 36, 52), (0.005, 0.01), ((0.26, 0.27, 0.34), (0.42, 0.43, 0.52)), (0.95, 1.3), 0.08, (14, 30), 0.14, 0.3,
        (0.7, 0.95), 0.9, 1.0,
    ),
}  # fmt: skip


def render(drawing: Drawing, sampled: npt.NDArray[np.intp], look: str, *entropy: int) -> npt.NDArray[np.uint8]:
    """Turn a finished canvas, with the surface numbers (H, W) of its picture, into one look: RGB (H, W, 3) uint8."""
    weather, dice = WEATHER[look], Dice(*entropy)
    bits = np.random.Generator(np.random.PCG64(np.random.SeedSequence((*entropy, 1))))
    height, width = sampled.shape
    picture = _downsample(drawing)

    y, x = dice.count(0, height - 1), dice.count(0, width - 1)
    for amplitude, field in zip(drawing.grain.T * np.float32(weather.grain), _grain(height, width), strict=True):
        texture = np.take(amplitude, sampled)
        texture *= field[y : y + height, x : x + width]
        picture += texture

    shade = np.float32(dice.between(*weather.shadow))
    covered = np.take(drawing.ground, sampled) & drawing.shadow[1::OVERSAMPLING, 1::OVERSAMPLING]
    light = np.where(covered, shade, np.float32(1))
    darkest, brightest = weather.ambient
    share = dice.unit()
    if weather.lamps:
        ambient = _vector([a + (b - a) * share for a, b in zip(darkest, brightest, strict=True)])
        pools = _lamp_light(drawing, height, width) * np.float32(weather.lamps)
        picture *= np.maximum(light * ambient + np.float32(0.6) * pools, np.take(drawing.glow, sampled))
        picture += np.float32(46) * pools
    else:
        picture *= light

    _add_haze(picture, drawing, sampled, weather, dice)
    return _expose(picture, weather, dice, bits)


def _vector(values: Sequence[float]) -> _Floats:
    """One number per colour plane, shaped (3, 1, 1)."""
    return np.array(values, np.float32).reshape(3, 1, 1)


def _downsample(drawing: Drawing) -> _Floats:
    """Colours of the canvas, averaged over 2 x 2 canvas pixels: planes (3, H, W) float32."""
    r, g, b = drawing.colors.astype("<u8").T
    lanes = r | g << 16 | b << 32  # three 16-bit lanes in one word: four colours add up without a carry
    fine = np.take(lanes, drawing.surfaces)
    rows = fine[::2] + fine[1::2]
    summed = rows[:, ::2] + rows[:, 1::2]
    planes = summed.view("<u2").reshape(*summed.shape, 4)[..., :3].transpose(2, 0, 1)
    colors = planes.astype(np.float32, order="C")
    colors *= np.float32(0.25)
    return colors


@lru_cache(maxsize=4)
def _grain(height: int, width: int) -> tuple[_Floats, ...]:
    """Coarse, medium and fine noise in -1..1, twice the picture's size: each scene looks at another window of it."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((height, width))))
    fields = []
    for cells in (12, 40, 0):  # per 128 pixels; 0 = one value per pixel
        rows = max(2 * height * cells // 128, 4) if cells else 2 * height
        columns = max(2 * width * cells // 128, 4) if cells else 2 * width
        coarse = (2 * generator.random((rows, columns)) - 1).astype(np.float32)
        fields.append(_enlarge(coarse, 2 * height, 2 * width))
    return tuple(fields)


def _enlarge(field: _Floats, height: int, width: int) -> _Floats:
    """Bilinear enlargement of the last two axes, aligned at the corners."""
    for axis, size in ((-2, height), (-1, width)):
        have = field.shape[axis]
        if have == size:
            continue
        place = np.arange(size, dtype=np.float32) * np.float32((have - 1) / max(size - 1, 1))
        low = np.minimum(place.astype(np.int64), max(have - 2, 0))
        weight = place - low.astype(np.float32)
        weight = weight[:, None] if axis == -2 else weight
        below = np.take(field, low, axis)
        field = below + weight * (np.take(field, np.minimum(low + 1, have - 1), axis) - below)
    return field


def _lamp_light(drawing: Drawing, height: int, width: int) -> _Floats:
    """What lamps and our own headlights add at night: planes (3, H, W) float32, computed on a coarse grid."""
    step = 4
    camera, scale = drawing.camera, np.float32(OVERSAMPLING * step)
    rows = (np.arange(-(-height // step), dtype=np.float32) * scale)[:, None]
    columns = (np.arange(-(-width // step), dtype=np.float32) * scale)[None, :]
    pools = np.zeros((3, rows.size, columns.size), np.float32)
    for lamp in drawing.lights:
        if lamp.reach < camera.height / 64:  # far away: the lamp's own glow suffices
            continue
        reach = np.float32(1 / lamp.reach)
        dx, dy = (columns - np.float32(lamp.x)) * reach, (rows - np.float32(lamp.y)) * reach
        falloff = 1 / (1 + dx * dx + dy * dy)
        pools += falloff * falloff * _vector(lamp.color)
    ahead = np.maximum(rows - np.float32(camera.horizon), 0) * np.float32(1 / (0.3 * camera.height))
    across = (columns - np.float32(camera.centre)) * np.float32(1 / (0.32 * camera.width))
    beam = ahead / (1 + ahead * ahead) / (1 + across * across * across * across)
    pools += beam * _vector((1.1, 1.05, 0.9))
    return _enlarge(pools, height, width)


def _add_haze(picture: _Floats, drawing: Drawing, sampled: npt.NDArray[np.intp], weather: Weather, dice: Dice) -> None:
    """Mix in the colour of the air by depth; a table over inverse depth stands for exp()."""
    height, width = sampled.shape
    extinction, levels, nearest = dice.between(*weather.haze), 1024, 4.0
    clear = [0.0, *map(math.exp, (-extinction * nearest * levels / np.arange(1, levels)).tolist())]
    columns = np.arange(width, dtype=np.float32) * OVERSAMPLING
    rows = np.abs(np.arange(height, dtype=np.float32) * OVERSAMPLING - np.float32(drawing.camera.horizon))[:, None]
    base, slope, drop = (np.take(plane, sampled) for plane in drawing.planes.T * np.float32(nearest * levels))
    slope *= columns
    drop *= rows
    base += slope
    base += drop
    level = np.clip(base, 0, levels - 1, out=base).astype(np.intp)
    visible, air = np.take(np.array(clear, np.float32), level), _vector(weather.haze_color)
    picture -= air
    picture *= visible
    picture += air


def _expose(picture: _Floats, weather: Weather, dice: Dice, bits: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Exposure, white balance, vignette, blur, sensor noise and rounding to 8 bits."""
    _, height, width = picture.shape
    exposure = dice.between(*weather.exposure)
    red, blue = (1 + dice.between(-weather.balance, weather.balance) for _ in range(2))
    picture *= _vector((exposure * red, exposure, exposure * blue))
    if weather.vignette:
        picture *= _vignette(height, width, weather.vignette)
    if weather.blur:
        side, middle = np.float32(weather.blur), np.float32(1 - 2 * weather.blur)
        for lines in (picture.swapaxes(0, 1), picture.transpose(2, 0, 1)):
            _blur(lines, middle, side)
    noise = _bytes(bits, (2, 3, height, width))
    strength = np.float32(dice.between(*weather.noise) / 255)
    picture += np.multiply(np.subtract(*noise, dtype=np.int16), strength, dtype=np.float32)
    picture += np.float32(0.5)
    exposed = np.clip(picture, 0, 255, out=picture).astype(np.uint8)
    return np.stack(tuple(exposed), axis=-1)  # plane by plane: three times as fast as a transposed copy


@lru_cache(maxsize=4)
def _vignette(height: int, width: int, loss: float) -> _Floats:
    """What the lens lets through (H, W): all in the middle, 1 - `loss` in the corners."""
    rows = np.arange(height, dtype=np.float32) * np.float32(2 / (height - 1)) - 1
    columns = np.arange(width, dtype=np.float32) * np.float32(2 / (width - 1)) - 1
    corner = (rows * rows)[:, None] + columns * columns
    return 1 - np.float32(loss / 2) * corner


def _blur(lines: _Floats, middle: np.float32, side: np.float32) -> None:
    """3-tap filter along the first axis, in place; the outermost lines are their own neighbours."""
    beside = np.empty_like(lines)  # in the memory order of `lines`
    np.add(lines[:-2], lines[2:], out=beside[1:-1])
    np.add(lines[0], lines[1], out=beside[0])
    np.add(lines[-2], lines[-1], out=beside[-1])
    beside *= side
    lines *= middle
    lines += beside


def _bytes(bits: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Uniform bytes, the same as `bits.integers(0, 256, shape, np.uint8)`: raw words cost a third of it."""
    size = math.prod(shape)
    words = bits.bit_generator.random_raw(-(-size // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:size].reshape(shape)
