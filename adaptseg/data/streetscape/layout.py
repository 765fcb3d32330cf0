"""Where things stand in a scene of Streets: the ground, both sides of the road, and the traffic on it.

Order of drawing: sky, ground, skyline, houses and gardens (far to near), what bounds the pavement, then everything on
the street by falling depth. Along a straight road a plane further out never hides one further in: the order is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from adaptseg.data.streetscape import fabric, traffic
from adaptseg.data.streetscape.canvas import Board, Camera, Canvas, Dice, Drawing, Palette

_FAR = 150.0
_LANE = 3.3


@dataclass(frozen=True)
class Habits:
    """How often things occur in a domain (probabilities, densities in 0..1) and how its camera is mounted (metres,
    shares of the height)."""

    eye: tuple[float, float]
    horizon: tuple[float, float]
    houses: float
    storeys: tuple[float, float]
    bounded: float
    trees: float
    verge: float
    parked: float
    lane_traffic: float
    truck: float
    bus: float
    tram: float
    people: int
    riders: float
    parked_two_wheelers: float
    bonnet: float


GAME = Habits(
    eye=(1.5, 1.9), horizon=(0.42, 0.50), houses=0.66, storeys=(7, 18), bounded=0.3, trees=0.3, verge=0.25,
    parked=0.35, lane_traffic=0.45, truck=0.1, bus=0.08, tram=0.16, people=5, riders=0.2, parked_two_wheelers=0.28,
    bonnet=0.0,
)  # fmt: skip
TARGET = Habits(
    eye=(1.2, 1.5), horizon=(0.40, 0.47), houses=0.58, storeys=(7, 18), bounded=0.38, trees=0.4, verge=0.3,
    parked=0.55, lane_traffic=0.55, truck=0.08, bus=0.07, tram=0.16, people=7, riders=0.22, parked_two_wheelers=0.36,
    bonnet=0.8,
)  # fmt: skip


class _Side(NamedTuple):
    """One side of the road: -1 left or 1 right; distances from the camera's line, in metres, always positive."""

    sign: int
    kerb: float
    path: float
    lot: float
    parking: bool


_Standing = list[tuple[float, Callable[[], None]]]


def compose(dice: Dice, habits: Habits, palette: Palette, height: int, width: int) -> Drawing:
    """Draw one scene on a canvas of height x width pixels."""
    camera = Camera(
        width=width,
        height=height,
        focal=1.27 * (height * width) ** 0.5 * dice.between(0.92, 1.08),
        horizon=height * dice.between(*habits.horizon),
        centre=width * dice.between(0.44, 0.56),
        eye=dice.between(*habits.eye),
        bend=dice.between(-0.0006, 0.0006),
    )
    canvas = Canvas(camera, palette, dice)
    tram = dice.chance(habits.tram)
    sides = _sides(dice, habits, tram)
    canvas.sky()
    _ground(canvas, sides, tram)
    crossing = dice.between(11, 30) if dice.chance(0.45) else 0.0
    _markings(canvas, sides, crossing)
    _skyline(canvas)
    for side in sides:
        _lots(canvas, side, habits)
    standing: _Standing = []
    for side in sides:
        _pavement(canvas, side, habits, standing)
    _carriageway(canvas, sides, habits, tram, standing)
    if crossing:
        _crossing(canvas, sides, crossing, standing)
    for _, draw in sorted(standing, key=lambda item: -item[0]):
        draw()
    if dice.chance(habits.bonnet):
        _bonnet(canvas)
    return canvas.finish()


def _sides(dice: Dice, habits: Habits, tram: bool) -> tuple[_Side, _Side]:
    made = []
    for sign in (-1, 1):
        parking = dice.chance(habits.parked)
        lanes = 1 + dice.chance(0.3) if sign < 0 else int(dice.chance(0.15))
        kerb = 1.75 + _LANE * lanes + 2.3 * parking + (3.4 if tram and sign < 0 else 0.0)
        path = kerb + (dice.between(0.8, 2.2) if dice.chance(habits.verge) else 0.0)
        made.append(_Side(sign, kerb, path, path + dice.between(2.2, 5.0), parking))
    return made[0], made[1]


def _ground(canvas: Canvas, sides: tuple[_Side, _Side], tram: bool) -> None:
    camera, dice = canvas.camera, canvas.dice
    grass, slab, kerb, asphalt = (canvas.paint(role) for role in ("grass", "slab", "kerb", "asphalt"))
    terrain, sidewalk, road = canvas.ground("terrain"), canvas.ground("sidewalk"), canvas.ground("road")
    for side in sides:
        s = side.sign
        yard = (terrain, grass) if dice.chance(0.6) else (sidewalk, slab)
        yard[0].fill(yard[1], camera.strip(s * side.lot, s * 150.0, 0, _FAR), 0.95)
        terrain.fill(grass, camera.strip(s * side.kerb, s * side.path, 0, _FAR))
        # A little under what bounds it: rounding must not leave a gap.
        sidewalk.fill(slab, camera.strip(s * side.path, s * (side.lot + 0.3), 0, _FAR))
        for joint in range(1, 12):
            z = 4.0 + 2.2 * joint
            sidewalk.fill(slab, camera.strip(s * side.path, s * side.lot, z, z + 0.12), 0.86)
        if dice.chance(0.25):  # a side street
            z = dice.between(18, 60)
            road.fill(asphalt, camera.strip(s * side.kerb, s * 90.0, z, z + dice.between(6, 9)))
    left, right = sides
    road.fill(asphalt, camera.strip(-left.kerb, right.kerb, 0, _FAR))
    for _ in range(dice.count(0, 3)):  # patches of newer or older surface
        x, z = dice.between(-left.kerb, right.kerb - 1), dice.between(6, 25)
        patch = camera.strip(x, min(x + dice.between(0.8, 2.5), right.kerb), z, z + dice.between(2, 8))
        road.fill(asphalt, patch, dice.choose((0.85, 0.92, 1.1)))
    for side in sides:
        edge = side.sign * side.kerb
        sidewalk.fill(kerb, camera.strip(edge, edge + side.sign * 0.22, 0, _FAR))
    if tram:
        rail = canvas.paint("rail")
        for x in (-left.kerb + 0.95, -left.kerb + 2.4):
            road.fill(rail, camera.strip(x, x + 0.12, 0, _FAR))


def _markings(canvas: Canvas, sides: tuple[_Side, _Side], crossing: float) -> None:
    camera, dice = canvas.camera, canvas.dice
    white, pen = canvas.paint("marking"), canvas.ground("road")
    left, right = sides
    start, dash, gap = dice.between(0, 6), dice.choose((3.0, 4.0, 6.0)), dice.choose((4.0, 6.0))
    lines = [-1.75]
    if left.kerb - 2.3 * left.parking > 1.75 + 1.9 * _LANE:
        lines.append(-1.75 - _LANE)
    if right.kerb - 2.3 * right.parking > 1.75 + 0.9 * _LANE:
        lines.append(1.75)
    if dice.chance(0.15):
        pen.fill(white, camera.strip(lines[0], lines[0] + 0.14, 0, _FAR))
        lines = lines[1:]
    for x in lines:
        z = start
        while z < 80:
            if z + dash > camera.nearest:
                pen.fill(white, camera.strip(x, x + 0.14, z, z + dash))
            z += dash + gap
    for side in sides:
        if side.parking:
            x = side.sign * (side.kerb - 2.2)
            pen.fill(white, camera.strip(x, x + 0.1, 0, _FAR), 0.85)
    if crossing:
        x = -left.kerb + 0.4
        while x < right.kerb - 0.5:
            pen.fill(white, camera.strip(x, x + 0.5, crossing, crossing + 3.0))
            x += 1.0
        pen.fill(white, camera.strip(-1.6, right.kerb - 0.2, crossing - 1.5, crossing - 1.1))


def _skyline(canvas: Canvas) -> None:
    """What closes the view at the end of the road."""
    dice = canvas.dice
    x, wood = -110.0, dice.between(0.2, 0.8)
    while x < 110:
        width = dice.between(7, 18)
        board = Board(canvas, x, _FAR)
        if dice.chance(wood):
            leaf, pen, top = canvas.paint("leaf"), canvas.stuff("vegetation", _FAR), dice.between(6, 13)
            pen.fill(
                leaf, board.at(((-2, 0), (width + 2, 0), (width, top * 0.8), (width / 2, top), (0, top * 0.7))), 0.9
            )
        else:
            pen, top = canvas.stuff("building", _FAR), dice.between(7, 24)
            pen.fill(canvas.paint("facade"), board.box(0, 0, width, top), 0.85)
            pen.fill(canvas.paint("roof"), board.box(0, top, width, top + 1.5))
        x += width


def _lots(canvas: Canvas, side: _Side, habits: Habits) -> None:
    """Houses, gardens and gaps behind the pavement, and what bounds them: wall, fence or hedge."""
    dice, s = canvas.dice, side.sign
    plots: list[Callable[[], None]] = []
    bounds: list[Callable[[], None]] = []
    built_up = dice.chance(habits.houses)
    z = 3.0
    while z < 135:
        length = dice.between(9, 24)
        far = z + length
        garden = dice.chance(habits.bounded)
        if dice.chance(0.85 if built_up else 0.25):
            x = side.lot + (dice.between(2.5, 6) if garden else 0.0)
            height = dice.between(*habits.storeys)
            plots.append(partial(fabric.building, canvas, s, s * x, z, far, height))
        else:
            garden = garden or dice.chance(0.35)
            for _ in range(3 + dice.count(0, 2)):
                deep, along = dice.between(1.5, 16), dice.between(z, far)
                tall = dice.between(5, 12)
                plots.append(partial(fabric.tree, canvas, s * (side.lot + deep), along, tall))
            plots.append(partial(fabric.bush, canvas, s * (side.lot + dice.between(1, 4)), z + 0.6 * length, 2.2))
        if garden:
            kind = dice.choose((fabric.wall, fabric.fence, fabric.fence, fabric.hedge))
            bounds.append(partial(kind, canvas, s * (side.lot - 0.05), z, far - 1.0))
        z = far + (dice.between(5, 9) if dice.chance(0.15) else 0.0)
    for draw in (*reversed(plots), *reversed(bounds)):
        draw()


def _pavement(canvas: Canvas, side: _Side, habits: Habits, standing: _Standing) -> None:
    """Furniture at the kerb, people, parked two-wheelers."""
    dice, s = canvas.dice, side.sign
    row_of_trees = dice.chance(habits.trees)
    edge = s * (side.kerb + 0.45)
    z = dice.between(7, 12)
    while z < 90:
        kind = dice.unit()
        if row_of_trees and kind < 0.6:
            standing.append((z, partial(fabric.tree, canvas, edge + s * 0.4, z, dice.between(5, 9))))
        elif kind < 0.4:
            standing.append((z, partial(fabric.lamp, canvas, edge, z)))
        elif kind < 0.6:
            standing.append((z, partial(fabric.traffic_sign, canvas, edge, z)))
        elif kind < 0.76:
            standing.append((z, partial(fabric.bollard, canvas, edge, z)))
        elif kind < 0.88:
            standing.append((z, partial(fabric.bin_or_box, canvas, s * (side.lot - 0.6), z)))
        z += dice.between(5, 13)
    for _ in range(dice.count(0, habits.people)):
        x, z = dice.between(side.path + 0.4, side.lot - 0.2), 1 / dice.between(1 / 55, 1 / 9)
        standing.append((z, partial(traffic.person, canvas, s * x, z)))
    if dice.chance(habits.parked_two_wheelers):
        motor, z = dice.chance(0.4), dice.between(9, 24)
        for i in range(dice.count(1, 2)):
            x, deep = s * (side.path + dice.between(0.4, 1.2)), z + 1.4 * i
            wheeler = partial(traffic.two_wheeler, canvas, x, deep, motor=motor, ridden=False, sideways=True)
            standing.append((deep, wheeler))


def _carriageway(canvas: Canvas, sides: tuple[_Side, _Side], habits: Habits, tram: bool, standing: _Standing) -> None:
    """Moving and parked vehicles, the tram on its rails, riders."""
    dice = canvas.dice
    left, _ = sides
    if tram:
        z = dice.between(18, 46)
        standing.append((z, partial(traffic.tram, canvas, -left.kerb + 1.7, z)))
    lanes = [(0.0, False, 11.0), (-_LANE - 0.1, True, 8.0)]
    if left.kerb - 2.3 * left.parking - 3.4 * tram > 1.75 + 1.9 * _LANE:
        lanes.append((-2 * _LANE - 0.1, True, 9.0))
    for x, oncoming, first in lanes:
        z = first + dice.between(0, 26)
        while z < 110:
            if dice.chance(habits.lane_traffic):
                z += _vehicle(canvas, habits, x + dice.between(-0.25, 0.25), z, oncoming, standing)
            z += dice.between(7, 26)
    for side in sides:
        if side.parking:
            inset = 1.2 + (3.4 if tram and side.sign < 0 else 0.0)
            z = dice.between(5, 14)
            while z < 80:
                if dice.chance(0.72):
                    x = side.sign * (side.kerb - inset)
                    standing.append((z, partial(traffic.car, canvas, x, z, oncoming=side.sign < 0)))
                z += dice.between(5.4, 6.6)
    for side in sides:
        if dice.chance(habits.riders):
            x, z = side.sign * (side.kerb - 2.4 * side.parking - 0.6), 1 / dice.between(1 / 32, 1 / 9)
            motor, sideways = dice.chance(0.42), dice.chance(0.35)
            rider = partial(traffic.two_wheeler, canvas, x, z, motor=motor, ridden=True, sideways=sideways)
            standing.append((z, rider))


def _vehicle(canvas: Canvas, habits: Habits, x: float, z: float, oncoming: bool, standing: _Standing) -> float:
    """Put one vehicle into a lane and return the length (m) that it takes."""
    kind = canvas.dice.unit()
    draw, length = (traffic.car, 5.0)
    if kind < habits.truck:
        draw, length = traffic.truck, 9.0
    elif kind < habits.truck + habits.bus:
        draw, length = traffic.bus, 12.0
    if draw is not traffic.car:  # a lorry right ahead would hide the whole street
        z = max(z, 15.0)
    standing.append((z, partial(draw, canvas, x, z, oncoming=oncoming)))
    return length + z * 0.05


def _crossing(canvas: Canvas, sides: tuple[_Side, _Side], z: float, standing: _Standing) -> None:
    """Signals at the stop line and people on the stripes."""
    dice = canvas.dice
    left, right = sides
    standing.append((z - 1, partial(fabric.traffic_light, canvas, right.kerb + 0.5, z - 1)))
    if dice.chance(0.6):
        standing.append((z + 4, partial(fabric.traffic_light, canvas, -left.kerb - 0.5, z + 4)))
    for _ in range(dice.count(0, 2)):
        x, deep = dice.between(-left.kerb, right.kerb), z + dice.between(0.4, 2.8)
        standing.append((deep, partial(traffic.person, canvas, x, deep)))


def _bonnet(canvas: Canvas) -> None:
    """The car that carries the camera: void, as in data sets that mask the ego vehicle."""
    paint, pen = canvas.paint("bonnet"), canvas.stuff("void", 2.0)
    w, h = canvas.camera.width, canvas.camera.height
    top = canvas.dice.between(0.9, 0.95)
    crest = [(0.0, 0.045), (0.15, 0.018), (0.35, 0.003), (0.65, 0.003), (0.85, 0.018), (1.0, 0.045)]
    pen.fill(paint, [(0, h), *((u * w, (top + v) * h) for u, v in crest), (w, h)])
    pen.fill(paint, [(0.1 * w, h), (0.25 * w, (top + 0.03) * h), (0.6 * w, (top + 0.025) * h), (0.5 * w, h)], 1.35)
