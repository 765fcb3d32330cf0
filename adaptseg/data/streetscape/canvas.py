"""Paper and pencil of Streets: dice, a pinhole camera over flat ground, and a canvas of numbered surfaces.

Every shape is drawn once, as a surface number. Colour, class, instance and depth are tables over those numbers, so the
image, the labels and the instances of a scene agree by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

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


class Dice:
    """Random choices from one seed. Only `Generator.random` is used: its stream is the most stable numpy offers."""

    def __init__(self, *entropy: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        self._pool: list[float] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._pool:
            self._pool = self._generator.random(512).tolist()
        return self._pool.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def choose(self, options: Sequence[_T]) -> _T:
        return options[int(self.unit() * len(options))]

    def count(self, low: int, high: int) -> int:
        """Uniform integer, both ends included."""
        return low + int(self.unit() * (high - low + 1))


class Role(NamedTuple):
    """What a part is made of: its possible colours, how far a channel strays, its grain and whether it shines.

    `grain` is the amplitude (grey levels) of coarse, medium and fine texture; `glow` the share of its colour that the
    part keeps in the dark.
    """

    colors: tuple[Color, ...]
    stray: int = 4
    grain: tuple[int, int, int] = (0, 0, 0)
    glow: float = 0.0


class Paint(NamedTuple):
    """One colour mixed for one thing."""

    role: str
    color: Color


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

    def column(self, x: float, z: float) -> float:
        return self.centre + self.focal * (x / z + self.bend * z)

    def row(self, y: float, z: float) -> float:
        return self.horizon + self.focal * (self.eye - y) / z

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        return self.column(x, z), self.row(y, z)

    @property
    def nearest(self) -> float:
        """Depth (m) of the ground just below the lower edge of the picture."""
        return 0.96 * self.focal * self.eye / (self.height - self.horizon)

    def strip(self, left: float, right: float, near: float, far: float, y: float = 0.0) -> Points:
        """A ribbon along the road at height y: from `left` to `right` (m) and from `near` to `far` (m)."""
        near = max(near, self.nearest)
        depths = [near, *(z for z in (8.0, 12.0, 18.0, 28.0, 45.0, 75.0, 115.0) if near < z < far), far]
        there = [self.point(left, y, z) for z in depths]
        return there + [self.point(right, y, z) for z in reversed(depths)]


class Light(NamedTuple):
    """A lamp that lights its surroundings at night: position and reach in canvas pixels, colour in 0..1."""

    x: float
    y: float
    reach: float
    color: tuple[float, float, float]


class Drawing(NamedTuple):
    """A finished canvas: surface numbers (h, w) int32, shadow mask (h, w) bool, one table row per surface.

    Inverse depth (1/m) of a pixel = base + slope * column + drop * |row - horizon| in canvas pixels: exact for planes.
    """

    surfaces: npt.NDArray[np.int32]
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
    """Collects surfaces; later shapes cover earlier ones."""

    def __init__(self, camera: Camera, palette: Mapping[str, Role], dice: Dice) -> None:
        self.camera, self.palette, self.dice = camera, palette, dice
        self.lights: list[Light] = []
        self._shapes: list[tuple[int, Points]] = []
        self._shadows: list[tuple[int, Points]] = []
        self._rows: list[tuple[int, int, Color, str, Plane]] = []
        self._instances = 0

    def paint(self, role: str) -> Paint:
        """Mix one of the role's colours."""
        material, dice = self.palette[role], self.dice
        r, g, b = dice.choose(material.colors)
        stray = material.stray
        common, tint = dice.between(-stray, stray), dice.between(-stray, stray) / 2
        return Paint(role, (_level(r + common + tint), _level(g + common), _level(b + common - tint)))

    def surface(self, train_id: int, instance: int, paint: Paint, light: float, plane: Plane) -> int:
        r, g, b = paint.color
        color = (_level(r * light), _level(g * light), _level(b * light))
        self._rows.append((train_id, instance, color, paint.role, plane))
        return len(self._rows) - 1

    def fill(self, surface: int, points: Points) -> None:
        self._shapes.append((surface, points))

    def sees(self, x: float, z: float, reach: float) -> bool:
        """Whether anything within `reach` metres to the left or right of (X = x, Z = z) can be in the picture."""
        column, margin = self.camera.column(x, z), self.camera.focal * reach / z
        return -margin < column < self.camera.width + margin

    def cast(self, points: Points) -> None:
        """Lay a shadow on the ground; whatever stands on the ground hides it."""
        self._shadows.append((1, points))

    def thing(self, name: str, depth: float) -> Pen:
        """A pen for a new object of a thing class, standing upright at `depth` (m)."""
        self._instances += 1
        return Pen(self, TRAIN_ID[name], self._instances, Plane(base=1 / depth))

    def stuff(self, name: str, depth: float) -> Pen:
        """A pen for stuff (or void) standing upright at `depth` (m)."""
        return Pen(self, TRAIN_ID[name], 0, Plane(base=1 / depth))

    def ground(self, name: str) -> Pen:
        """A pen for stuff that lies on the ground."""
        return Pen(self, TRAIN_ID[name], 0, Plane(drop=1 / (self.camera.focal * self.camera.eye), ground=True))

    def wall(self, name: str, x: float, near: float, far: float) -> Pen:
        """A pen for stuff on an upright plane along the road at X = x, seen from depth `near` to `far`."""
        here, there = self.camera.column(x, near), self.camera.column(x, far)
        slope = (1 / near - 1 / far) / (here - there) if abs(here - there) > 1 else 0.0
        return Pen(self, TRAIN_ID[name], 0, Plane(base=1 / near - slope * here, slope=slope))

    def sky(self) -> None:
        """Cover everything with sky; its inverse depth grows upwards, so haze thickens towards the horizon."""
        pen = Pen(self, TRAIN_ID["sky"], 0, Plane(drop=0.03 / self.camera.height))
        w, h = self.camera.width, self.camera.height
        pen.fill(self.paint("sky"), [(0, 0), (w, 0), (w, h), (0, h)])

    def finish(self) -> Drawing:
        train_ids, instances, colors, roles, planes = zip(*self._rows, strict=True)
        materials = [self.palette[role] for role in roles]
        return Drawing(
            fill_polygons(self.camera.height, self.camera.width, self._shapes),
            fill_polygons(self.camera.height, self.camera.width, self._shadows) > 0,
            np.array(train_ids, np.uint8),
            np.array(instances, np.int32),
            np.array(colors, np.uint8),
            np.array([m.grain for m in materials], np.float32),
            np.array([m.glow for m in materials], np.float32),
            np.array([p.ground for p in planes]),
            np.array([p[:3] for p in planes], np.float32),
            self.lights,
            self.camera,
        )


def _level(value: float) -> int:
    return min(max(int(value), 0), 255)


class Pen:
    """Draws the parts of one object, or of one piece of stuff."""

    def __init__(self, canvas: Canvas, train_id: int, instance: int, plane: Plane) -> None:
        self.canvas, self._train_id, self._instance, self._plane = canvas, train_id, instance, plane
        self._surfaces: dict[tuple[Paint, float], int] = {}

    def fill(self, paint: Paint, points: Points, light: float = 1.0) -> None:
        """Fill a polygon given in canvas pixels; `light` scales the colour."""
        surface = self._surfaces.get((paint, light))
        if surface is None:
            surface = self.canvas.surface(self._train_id, self._instance, paint, light, self._plane)
            self._surfaces[paint, light] = surface
        self.canvas.fill(surface, points)


class Board:
    """A flat figure facing the camera, drawn in metres from its foot; `mirror` flips it."""

    def __init__(self, canvas: Canvas, x: float, z: float, *, y: float = 0.0, scale: float = 1.0, mirror: bool = False):
        self.left, self.foot = canvas.camera.point(x, y, z)
        self.unit = scale * canvas.camera.focal / z
        self._across = -self.unit if mirror else self.unit

    def at(self, points: Points) -> Points:
        return [(self.left + self._across * x, self.foot - self.unit * y) for x, y in points]

    def box(self, x0: float, y0: float, x1: float, y1: float) -> Points:
        return self.at(((x0, y0), (x1, y0), (x1, y1), (x0, y1)))

    def disc(self, x: float, y: float, rx: float, ry: float | None = None) -> Points:
        ry = rx if ry is None else ry
        return self.at([(x + rx * cx, y + ry * cy) for cx, cy in CIRCLE])

    def limb(self, x0: float, y0: float, x1: float, y1: float, thickness: float) -> Points:
        """A bar from one point to another; thicker across its longer direction."""
        t = thickness / 2
        if abs(x1 - x0) > abs(y1 - y0):
            return self.at(((x0, y0 - t), (x1, y1 - t), (x1, y1 + t), (x0, y0 + t)))
        return self.at(((x0 - t, y0), (x1 - t, y1), (x1 + t, y1), (x0 + t, y0)))
