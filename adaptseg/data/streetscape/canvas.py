"""Paper and pencil of Streets: dice, a pinhole camera over flat ground, and a canvas of numbered surfaces.

Every shape is drawn once, as a surface number. Colour, class, instance and depth are tables over those numbers, so the
image, the labels and the instances of a scene agree by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from adaptseg.classes import STREETS, VOID
from adaptseg.data.streetscape.raster import Points, fill_polygons

Color = tuple[int, int, int]
_T = TypeVar("_T")

OVERSAMPLING = 2
"""The canvas is this much finer than the picture: colours are averaged (smooth edges), labels are sampled."""

TRAIN_ID: dict[str, int] = {**{name: i for i, name in enumerate(STREETS.names)}, "void": VOID}

# A regular 12-gon of radius 1: round enough at this size.
_H = 0.8660254037844386
CIRCLE: Points = (
    *((1.0, 0.0), (_H, 0.5), (0.5, _H), (0.0, 1.0), (-0.5, _H), (-_H, 0.5)),
    *((-1.0, 0.0), (-_H, -0.5), (-0.5, -_H), (0.0, -1.0), (0.5, -_H), (_H, -0.5)),
)


_ROUND = tuple((1.0, dx, dy) for dx, dy in CIRCLE)


class Dice:
    """Random choices from one seed. Only `Generator.random` is used: its stream is the most stable numpy offers."""

    def __init__(self, *entropy: int) -> None:
        self.unit: Callable[[], float] = _units(entropy).__next__  # a scene asks for thousands: no call in between
        """Uniform in [0, 1)."""

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def choose(self, options: Sequence[_T]) -> _T:
        return options[int(self.unit() * len(options))]

    def count(self, low: int, high: int) -> int:
        """Uniform integer, both ends included."""
        return low + int(self.unit() * (high - low + 1))


def _units(entropy: tuple[int, ...]) -> Iterator[float]:
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
    while True:
        yield from reversed(generator.random(512).tolist())


class Role(NamedTuple):
    """What a part is made of: its possible colours, how far a channel strays, its grain and whether it shines.

    `grain` is the amplitude (grey levels) of coarse, medium and fine texture; `glow` the share of its colour that the
    part keeps in the dark.
    """

    colors: tuple[Color, ...]
    stray: int = 4
    grain: tuple[int, int, int] = (0, 0, 0)
    glow: float = 0.0


class Palette:
    """Roles as tables, one row per possible colour (a swatch): all paints of a scene are then mixed in one go."""

    def __init__(self, roles: Mapping[str, Role]) -> None:
        materials = [(role, color) for role in roles.values() for color in role.colors]
        numbers = iter(range(len(materials)))
        self.swatches = {name: [next(numbers) for _ in role.colors] for name, role in roles.items()}
        self.colors = np.array([color for _, color in materials], np.float64)
        self.stray = np.array([role.stray for role, _ in materials], np.float64)
        self.grain = np.array([role.grain for role, _ in materials], np.float32)
        self.glow = np.array([role.glow for role, _ in materials], np.float32)


Paint = int
"""One colour mixed for one thing: its number on the canvas."""


@dataclass(frozen=True)
class Camera:
    """A pinhole `eye` metres above flat ground; pixels are canvas pixels, metres are X right, Y up, Z ahead.

    `bend` (1/m) moves the world sideways by bend * Z**2: a road that curves without leaving flat-ground arithmetic.
    """

    width: int
    height: int
    focal: float
    horizon: float
    centre: float
    eye: float
    bend: float

    # The arithmetic of `column` and `row` stands again in what projects many points: calls cost more than sums.

    def column(self, x: float, z: float) -> float:
        return self.centre + self.focal * (x / z + self.bend * z)

    def row(self, y: float, z: float) -> float:
        return self.horizon + self.focal * (self.eye - y) / z

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        return self.centre + self.focal * (x / z + self.bend * z), self.horizon + self.focal * (self.eye - y) / z

    def across(self, left: float, width: float, z: float, points: Points) -> Points:
        """Points (share of `width` from `left`, Y) on an upright plane across the road."""
        centre, horizon, focal, eye, drift = self.centre, self.horizon, self.focal, self.eye, self.bend * z
        return [(centre + focal * ((left + u * width) / z + drift), horizon + focal * (eye - y) / z) for u, y in points]

    def along(self, x: float, start: float, points: Points) -> Points:
        """Points (Z - `start`, Y) on an upright plane along the road."""
        centre, horizon, focal, eye, bend = self.centre, self.horizon, self.focal, self.eye, self.bend
        return [
            (centre + focal * (x / (z := start + d) + bend * z), horizon + focal * (eye - y) / z) for d, y in points
        ]

    def flat(self, points: Points) -> Points:
        """Points (X, Z) on the ground."""
        centre, horizon, focal, eye, bend = self.centre, self.horizon, self.focal, self.eye, self.bend
        return [(centre + focal * (x / z + bend * z), horizon + focal * eye / z) for x, z in points]

    @property
    def nearest(self) -> float:
        """Depth (m) of the ground just below the lower edge of the picture."""
        return 0.96 * self.focal * self.eye / (self.height - self.horizon)

    def strip(self, left: float, right: float, near: float, far: float, y: float = 0.0) -> Points:
        """A ribbon along the road at height y: from `left` to `right` (m) and from `near` to `far` (m)."""
        near = max(near, self.nearest)
        depths = [near, *(z for z in (8.0, 12.0, 18.0, 28.0, 45.0, 75.0, 115.0) if near < z < far), far]
        ahead, back = [(z, y) for z in depths], [(z, y) for z in reversed(depths)]
        return [*self.along(left, 0.0, ahead), *self.along(right, 0.0, back)]


class Light(NamedTuple):
    """A lamp that lights its surroundings at night: position and reach in canvas pixels, colour in 0..1."""

    x: float
    y: float
    reach: float
    color: tuple[float, float, float]


class Drawing(NamedTuple):
    """A finished canvas: surface numbers (h, w) unsigned, shadow mask (h, w) bool, one table row per surface.

    Inverse depth (1/m) of a pixel = base + slope * column + drop * |row - horizon| in canvas pixels: exact for planes.
    """

    surfaces: npt.NDArray[np.unsignedinteger[Any]]
    shadow: npt.NDArray[np.bool_]
    train_ids: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.int32]
    colors: npt.NDArray[np.uint8]
    grain: npt.NDArray[np.float32]
    glow: npt.NDArray[np.float32]
    ground: npt.NDArray[np.bool_]
    planes: npt.NDArray[np.float32]
    lights: list[Light]
    camera: Camera


class Plane(NamedTuple):
    """Where a surface stands, as inverse depth (see `Drawing`)."""

    base: float = 0.0
    slope: float = 0.0
    drop: float = 0.0
    ground: bool = False


class Canvas:
    """Collects shapes, each a surface of its own; later ones cover earlier ones."""

    def __init__(self, camera: Camera, palette: Palette, dice: Dice) -> None:
        self.camera, self.palette, self.dice = camera, palette, dice
        self.lights: list[Light] = []
        self._pens: list[tuple[int, int, Plane]] = []
        self._mixes: list[tuple[int, float, float]] = []
        self._shapes: list[tuple[Points, int, Paint, float]] = []
        self._shadows: list[Points] = []
        self._instances = 0

    def paint(self, role: str) -> Paint:
        """Mix one of the role's colours."""
        dice = self.dice
        self._mixes.append((dice.choose(self.palette.swatches[role]), dice.unit(), dice.unit()))
        return len(self._mixes) - 1

    def sees(self, x: float, z: float, reach: float) -> bool:
        """Whether anything within `reach` metres to the left or right of (X = x, Z = z) can be in the picture."""
        column, margin = self.camera.column(x, z), self.camera.focal * reach / z
        return -margin < column < self.camera.width + margin

    def cast(self, points: Points) -> None:
        """Lay a shadow on the ground; whatever stands on the ground hides it."""
        self._shadows.append(points)

    def pen(self, name: str, instance: int, plane: Plane) -> Pen:
        self._pens.append((TRAIN_ID[name], instance, plane))
        return Pen(self._shapes, len(self._pens) - 1)

    def thing(self, name: str, depth: float) -> Pen:
        """A pen for a new object of a thing class, standing upright at `depth` (m)."""
        self._instances += 1
        return self.pen(name, self._instances, Plane(base=1 / depth))

    def stuff(self, name: str, depth: float) -> Pen:
        """A pen for stuff (or void) standing upright at `depth` (m)."""
        return self.pen(name, 0, Plane(base=1 / depth))

    def ground(self, name: str) -> Pen:
        """A pen for stuff that lies on the ground."""
        return self.pen(name, 0, Plane(drop=1 / (self.camera.focal * self.camera.eye), ground=True))

    def wall(self, name: str, x: float, near: float, far: float) -> Pen:
        """A pen for stuff on an upright plane along the road at X = x, seen from depth `near` to `far`."""
        here, there = self.camera.column(x, near), self.camera.column(x, far)
        slope = (1 / near - 1 / far) / (here - there) if abs(here - there) > 1 else 0.0
        return self.pen(name, 0, Plane(base=1 / near - slope * here, slope=slope))

    def sky(self) -> None:
        """Cover everything with sky; its inverse depth grows upwards, so haze thickens towards the horizon."""
        pen = self.pen("sky", 0, Plane(drop=0.03 / self.camera.height))
        w, h = self.camera.width, self.camera.height
        pen.fill(self.paint("sky"), [(0, 0), (w, 0), (w, h), (0, h)])

    def finish(self) -> Drawing:
        outlines, pens, paints, lights = zip(*self._shapes, strict=True)
        pen, paint, light = np.array(pens), np.array(paints), np.array(lights)[:, None]
        train_ids, instances, planes = zip(*self._pens, strict=True)
        stands = np.array(planes)[pen]
        swatches, colors = self._mixed()
        swatch = swatches[paint]
        # Numbers start at 1 and the sky, the first shape, covers everything: none is left at 0.
        surfaces = fill_polygons(self.camera.height, self.camera.width, outlines)
        surfaces -= 1
        return Drawing(
            surfaces,
            fill_polygons(self.camera.height, self.camera.width, self._shadows) > 0,
            np.array(train_ids, np.uint8)[pen],
            np.array(instances, np.int32)[pen],
            _levels(colors[paint] * light).astype(np.uint8),
            self.palette.grain[swatch],
            self.palette.glow[swatch],
            stands[:, 3] > 0,
            stands[:, :3].astype(np.float32),
            self.lights,
            self.camera,
        )

    def _mixed(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Swatch (N,) and colour (N, 3) of every paint: channels stray together, and red against blue half as far."""
        numbers, common, tint = np.array(self._mixes).T
        swatches = numbers.astype(np.int64)
        stray = self.palette.stray[swatches]
        common, tint = 2 * stray * common - stray, (2 * stray * tint - stray) / 2
        r, g, b = self.palette.colors[swatches].T
        return swatches, _levels(np.stack((r + common + tint, g + common, b + common - tint), 1))


def _levels(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(np.trunc(values), 0, 255)


class Pen:
    """Draws the parts of one object, or of one piece of stuff."""

    def __init__(self, shapes: list[tuple[Points, int, Paint, float]], number: int) -> None:
        self._shapes, self._number = shapes, number

    def fill(self, paint: Paint, points: Points, light: float = 1.0) -> None:
        """Fill a polygon given in canvas pixels; `light` scales the colour."""
        self._shapes.append((points, self._number, paint, light))


class Board:
    """A flat figure facing the camera, drawn in metres from its foot; `mirror` flips it."""

    def __init__(self, canvas: Canvas, x: float, z: float, *, y: float = 0.0, scale: float = 1.0, mirror: bool = False):
        self.left, self.foot = canvas.camera.point(x, y, z)
        self.unit = scale * canvas.camera.focal / z
        self._across = -self.unit if mirror else self.unit

    def at(self, points: Points) -> Points:
        left, foot, across, unit = self.left, self.foot, self._across, self.unit
        return [(left + across * x, foot - unit * y) for x, y in points]

    def ring(self, x: float, y: float, rx: float, ry: float, spokes: Sequence[tuple[float, float, float]]) -> Points:
        """A closed line around (x, y); a spoke is (length across, direction across, height)."""
        left, foot, across, unit = self.left, self.foot, self._across, self.unit
        return [(left + across * (x + rx * k * dx), foot - unit * (y + ry * up)) for k, dx, up in spokes]

    def box(self, x0: float, y0: float, x1: float, y1: float) -> Points:
        return self.at(((x0, y0), (x1, y0), (x1, y1), (x0, y1)))

    def disc(self, x: float, y: float, rx: float, ry: float | None = None) -> Points:
        return self.ring(x, y, rx, rx if ry is None else ry, _ROUND)

    def limb(self, x0: float, y0: float, x1: float, y1: float, thickness: float) -> Points:
        """A bar from one point to another; thicker across its longer direction."""
        t = thickness / 2
        if abs(x1 - x0) > abs(y1 - y0):
            return self.at(((x0, y0 - t), (x1, y1 - t), (x1, y1 + t), (x0, y0 + t)))
        return self.at(((x0 - t, y0), (x1 - t, y1), (x1 + t, y1), (x0 + t, y0)))
