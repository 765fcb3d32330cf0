"""What moves in Streets: cars, trucks, buses, trams, people, two-wheelers and their riders. Lengths in metres."""

from __future__ import annotations

from adaptseg.data.streetscape.canvas import CIRCLE, Board, Canvas, Light, Paint, Pen, Points


class _Hull:
    """A box on wheels: its end facing the camera and its flank towards the middle of the picture.

    End points are (share of the width from left, height); flank points (metres from the end that faces us, height).
    """

    def __init__(self, canvas: Canvas, x: float, z: float, width: float) -> None:
        self._camera, self._left, self._right, self._z = canvas.camera, x - width / 2, x + width / 2, z
        self._flank_x = self._left if self._left > 0 else self._right
        self.flank_seen = self._left > 0 or self._right < 0

    def end(self, points: Points, *, back: float = 0.0) -> Points:
        return self._camera.across(self._left, self._right - self._left, self._z + back, points)

    def end_box(self, u0: float, y0: float, u1: float, y1: float, *, back: float = 0.0) -> Points:
        return self.end(((u0, y0), (u1, y0), (u1, y1), (u0, y1)), back=back)

    def flank(self, points: Points) -> Points:
        return self._camera.along(self._flank_x, self._z, points)

    def flank_box(self, d0: float, y0: float, d1: float, y1: float) -> Points:
        return self.flank(((d0, y0), (d1, y0), (d1, y1), (d0, y1)))

    def wheel(self, d: float, radius: float) -> Points:
        return self.flank([(d + radius * dx, radius * (1 + dy)) for dx, dy in CIRCLE])

    def deck(self, d0: float, y0: float, d1: float, y1: float, inset: float = 0.0) -> Points:
        """A surface across the whole width, from d0 at height y0 to d1 at height y1."""
        near = self.end(((inset, y0), (1 - inset, y0)), back=d0)
        return [*near, *reversed(self.end(((inset, y1), (1 - inset, y1)), back=d1))]


def _shadow(canvas: Canvas, x: float, z: float, width: float, length: float) -> None:
    half = width / 2 + 0.15
    corners = ((-half, -0.3), (half, -0.3), (half + 0.5, length), (-half, length))
    canvas.cast(canvas.camera.flat([(x + dx, z + dz) for dx, dz in corners]))


def _lamps(canvas: Canvas, pen: Pen, hull: _Hull, y: float, *, oncoming: bool) -> None:
    """Two head- or tail-lights; at night the headlights dazzle."""
    lamp = canvas.paint("headlight" if oncoming else "taillight")
    for u in (0.04, 0.80):
        box = hull.end_box(u, y, u + 0.16, y + 0.16)
        pen.fill(lamp, box)
        color = (1.0, 0.95, 0.8) if oncoming else (0.9, 0.15, 0.1)
        reach = (box[1][0] - box[0][0]) * (3.0 if oncoming else 1.6)
        canvas.lights.append(Light((box[0][0] + box[1][0]) / 2, box[0][1], reach, color))


def car(canvas: Canvas, x: float, z: float, *, oncoming: bool = False) -> None:
    """A hatchback, a saloon or a van; the back faces us unless `oncoming`."""
    if not (canvas.sees(x, z, 1.0) or canvas.sees(x, z + 5.0, 1.0)):  # neither end in view
        return
    dice = canvas.dice
    body, glass, rubber = canvas.paint("car"), canvas.paint("car_glass"), canvas.paint("rubber")
    width, length, height, bonnet = dice.choose(
        ((1.75, 3.9, 1.5, 0.9), (1.8, 4.5, 1.45, 1.1), (1.85, 4.7, 1.68, 1.0), (1.95, 5.0, 1.95, 0.6))
    )
    boot = 0.1 if height > 1.47 else 0.75
    front, back = (bonnet, boot) if oncoming else (boot, bonnet)
    hull, pen, waist = _Hull(canvas, x, z, width), canvas.thing("car", z), 0.92
    _shadow(canvas, x, z, width, length)
    near = z < 40  # further out, small parts are less than a pixel
    if hull.flank_seen:
        pen.fill(body, hull.flank(((0, 0.28), (0, waist - 0.08), (length, waist - 0.12), (length, 0.28))), 0.8)
        roof = [(front + 0.45, height), (length - back - 0.4, height)]
        pen.fill(body, hull.flank([(front, waist - 0.1), *roof, (length - back + 0.1, waist - 0.12)]), 0.8)
        panes = [(front + 0.5, height - 0.1), (length - back - 0.5, height - 0.1)]
        pen.fill(glass, hull.flank([(front + 0.25, waist), *panes, (length - back - 0.1, waist)]), 0.85)
        middle = length * 0.5
        if near:
            pen.fill(body, hull.flank_box(middle - 0.05, waist, middle + 0.05, height - 0.05), 0.7)
        for d in (0.75, length - 0.8) if near else ():
            pen.fill(rubber, hull.wheel(d, 0.32))
            pen.fill(rubber, hull.wheel(d, 0.17), 3.0)
    pen.fill(
        rubber, hull.end(((0.04, 0), (0.2, 0), (0.2, 0.3), (0.8, 0.3), (0.8, 0), (0.96, 0), (0.96, 0.4), (0.04, 0.4)))
    )
    if near:
        pen.fill(body, hull.deck(0, waist - 0.06, front, waist), 1.1)
    cabin = ((0.03, waist - 0.04), (0.97, waist - 0.04), (0.86, height), (0.14, height))
    pen.fill(body, hull.end(cabin, back=front))
    pane = ((0.12, waist + 0.02), (0.88, waist + 0.02), (0.8, height - 0.1), (0.2, height - 0.1))
    pen.fill(glass, hull.end(pane, back=front + 0.05))
    pen.fill(body, hull.end(((0, 0.28), (1, 0.28), (1, waist - 0.16), (0.94, waist), (0.06, waist), (0, waist - 0.16))))
    if near:
        pen.fill(rubber, hull.end_box(0.05, 0.26, 0.95, 0.42), 1.8)
        pen.fill(canvas.paint("plate"), hull.end_box(0.36, 0.46, 0.64, 0.6))
    _lamps(canvas, pen, hull, 0.64, oncoming=oncoming)


def truck(canvas: Canvas, x: float, z: float, *, oncoming: bool = False) -> None:
    """A lorry: a cargo box behind a separate, lower cab; the chassis shows between the wheels."""
    dice = canvas.dice
    cargo, cab, glass = canvas.paint("cargo"), canvas.paint("truck_cab"), canvas.paint("car_glass")
    rubber, stripe = canvas.paint("rubber"), canvas.paint("truck_cab")
    width, length, height = 2.4, dice.between(6.5, 9.0), dice.between(3.0, 3.7)
    hull, pen = _Hull(canvas, x, z, width), canvas.thing("truck", z)
    _shadow(canvas, x, z, width, length)
    c0, c1, b0, b1 = (0.0, 1.9, 2.2, length) if oncoming else (length - 1.9, length, 0.0, length - 2.2)
    if hull.flank_seen:
        pen.fill(rubber, hull.flank_box(0, 0.5, length, 1.0), 1.6)
        pen.fill(cab, hull.flank(((c0, 0.5), (c1, 0.5), (c1, 2.5), (c0, 2.7))), 0.8)
        pen.fill(glass, hull.flank_box(c0 + 0.4, 1.6, c1 - 0.5, 2.3))
        pen.fill(cargo, hull.flank_box(b0, 1.0, b1, height), 0.82)
        pen.fill(stripe, hull.flank_box(b0, 1.7, b1, 2.2), 0.82)
        for d in (1.0, 2.1, length - 1.0):
            pen.fill(rubber, hull.wheel(d, 0.5))
    for u in (0.04, 0.78):
        pen.fill(rubber, hull.end_box(u, 0, u + 0.18, 0.7))
    if oncoming:
        pen.fill(cargo, hull.end_box(0.02, 1.0, 0.98, height, back=b0))
        pen.fill(cab, hull.end_box(0, 0.4, 1, 2.65))
        pen.fill(glass, hull.end_box(0.07, 1.55, 0.93, 2.4))
        pen.fill(rubber, hull.end_box(0.2, 0.7, 0.8, 1.3), 2.0)
        pen.fill(canvas.paint("plate"), hull.end_box(0.38, 0.46, 0.62, 0.6))
    else:
        pen.fill(rubber, hull.end_box(0, 0.55, 1, 1.0), 1.6)
        pen.fill(cargo, hull.end_box(0, 0.95, 1, height))
        pen.fill(cargo, hull.end_box(0.485, 0.95, 0.515, height), 0.6)
        for u in (0.3, 0.66):
            pen.fill(cargo, hull.end_box(u, 1.1, u + 0.03, height - 0.2), 0.75)
        pen.fill(stripe, hull.end_box(0, 1.0, 1, 1.25))
    _lamps(canvas, pen, hull, 0.7, oncoming=oncoming)


def bus(canvas: Canvas, x: float, z: float, *, oncoming: bool = False) -> None:
    """A city bus: one tall box on wheels, a band of windows, doors, a lit route panel."""
    body, glass, rubber, route = (canvas.paint(role) for role in ("bus", "car_glass", "rubber", "route"))
    width, length, height = 2.5, 11.5, 3.1
    hull, pen = _Hull(canvas, x, z, width), canvas.thing("bus", z)
    _shadow(canvas, x, z, width, length)
    if hull.flank_seen:
        pen.fill(body, hull.flank_box(0, 0.35, length, height), 0.8)
        pen.fill(glass, hull.flank_box(0.3, 1.45, length - 0.3, 2.6))
        for i in range(1, 6):
            pen.fill(body, hull.flank_box(i * 1.9, 1.45, i * 1.9 + 0.2, 2.6), 0.6)
        for d in (1.2, 5.6):
            pen.fill(glass, hull.flank_box(d, 0.45, d + 1.1, 2.6), 0.8)
        for d in (2.9, length - 2.6):
            pen.fill(rubber, hull.wheel(d, 0.48))
    for u in (0.05, 0.8):
        pen.fill(rubber, hull.end_box(u, 0, u + 0.15, 0.5))
    pen.fill(body, hull.end(((0, 0.32), (1, 0.32), (1, 2.9), (0.93, height), (0.07, height), (0, 2.9))))
    low = 1.15 if oncoming else 1.75
    pen.fill(glass, hull.end_box(0.06, low, 0.94, 2.5))
    if oncoming:
        pen.fill(body, hull.end_box(0.485, low, 0.515, 2.5), 0.6)
    else:
        pen.fill(body, hull.end_box(0.15, 0.75, 0.85, 1.45), 0.7)
    pen.fill(route, hull.end_box(0.2, 2.62, 0.8, 2.92))
    pen.fill(rubber, hull.end_box(0, 0.3, 1, 0.45), 1.6)
    _lamps(canvas, pen, hull, 0.55, oncoming=oncoming)


def tram(canvas: Canvas, x: float, z: float) -> None:
    """A tram (class train): long, two-toned, no wheels to see, one lamp under a slanted windscreen, a pantograph."""
    body, belt, glass, rubber = (canvas.paint(role) for role in ("tram", "tram_belt", "car_glass", "rubber"))
    width, length, height = 2.5, 26.0, 3.35
    hull, pen = _Hull(canvas, x, z, width), canvas.thing("train", z)
    _shadow(canvas, x, z, width, length)
    if hull.flank_seen:
        pen.fill(rubber, hull.flank_box(0.2, 0.1, length, 0.6))
        pen.fill(belt, hull.flank_box(0, 0.35, length, 1.3), 0.82)
        pen.fill(body, hull.flank_box(0, 1.3, length, height), 0.82)
        pen.fill(glass, hull.flank_box(1.0, 1.5, length, 2.55))
        for d in (2.2, 6.2, 11.2, 16.2, 21.2):
            pen.fill(body, hull.flank_box(d, 0.5, d + 0.5, 2.7))
        for d in (8.6, 17.2):
            pen.fill(rubber, hull.flank_box(d, 0.3, d + 0.7, height), 1.5)
    pen.fill(rubber, hull.deck(3.0, height, 3.2, height + 0.9, 0.3), 1.5)
    pen.fill(rubber, hull.end_box(0.2, height + 0.85, 0.8, height + 0.98, back=3.2), 1.5)
    pen.fill(body, hull.end(((0.03, 0.2), (0.97, 0.2), (1, 1.3), (0.9, height), (0.1, height), (0, 1.3))))
    pen.fill(belt, hull.end(((0.02, 0.3), (0.98, 0.3), (1, 1.25), (0, 1.25))))
    pen.fill(glass, hull.end(((0.07, 1.45), (0.93, 1.45), (0.84, 2.75), (0.16, 2.75))))
    pen.fill(canvas.paint("route"), hull.end_box(0.3, 2.85, 0.7, 3.15))
    lamp = hull.end_box(0.42, 0.8, 0.58, 1.1)
    pen.fill(canvas.paint("headlight"), lamp)
    canvas.lights.append(Light(lamp[0][0], lamp[0][1], 2.5 * (lamp[1][0] - lamp[0][0]), (1.0, 0.95, 0.8)))


def person(canvas: Canvas, x: float, z: float) -> None:
    """Someone who walks or stands: head, hair, torso, arms, legs in a stride."""
    dice = canvas.dice
    if not canvas.sees(x, z, 0.5):
        return
    skin, hair, coat, trousers = (canvas.paint(role) for role in ("skin", "hair", "coat", "trousers"))
    scale = dice.choose((0.68, 0.92, 0.97, 1.0, 1.04))
    board = Board(canvas, x, z, scale=scale, mirror=dice.chance(0.5))
    pen, stride, swing = canvas.thing("person", z), dice.between(0.03, 0.3), dice.between(0.02, 0.22)
    canvas.cast(canvas.camera.flat([(x + 0.35 * dx, z + 0.5 * dz) for dx, dz in CIRCLE]))
    pen.fill(trousers, board.limb(0.04, 0.85, stride, 0.03, 0.17), 0.85)
    pen.fill(trousers, board.limb(-0.04, 0.85, -stride, 0.03, 0.17))
    pen.fill(coat, board.limb(-0.17, 1.4, -0.2 - swing, 0.85, 0.12), 0.8)
    pen.fill(coat, board.at(((-0.2, 0.78), (0.2, 0.78), (0.23, 1.42), (0.1, 1.5), (-0.1, 1.5), (-0.23, 1.42))))
    pen.fill(coat, board.limb(0.18, 1.4, 0.2 + swing, 0.85, 0.12), 0.8)
    pen.fill(hair, board.disc(0, 1.65, 0.13, 0.15))
    pen.fill(skin, board.disc(0.03, 1.61, 0.1, 0.12))


def _bicycle(canvas: Canvas, board: Board, z: float, *, sideways: bool) -> None:
    frame, rubber, spokes = canvas.paint("bicycle"), canvas.paint("rubber"), canvas.paint("spokes")
    pen = canvas.thing("bicycle", z)
    if not sideways:
        pen.fill(rubber, board.disc(0, 0.34, 0.08, 0.34))
        pen.fill(frame, board.box(-0.07, 0.42, 0.07, 1.0))
        pen.fill(frame, board.box(-0.16, 0.5, 0.16, 0.66), 0.8)
        pen.fill(rubber, board.limb(-0.26, 1.0, 0.26, 1.0, 0.09))
        return
    for dx in (-0.52, 0.52):
        pen.fill(rubber, board.disc(dx, 0.34, 0.36))
        pen.fill(spokes, board.disc(dx, 0.34, 0.27))
    for x0, y0, x1, y1 in ((-0.52, 0.34, -0.15, 0.85), (-0.15, 0.85, 0.38, 0.8), (-0.1, 0.32, 0.38, 0.8)):
        pen.fill(frame, board.limb(x0, y0, x1, y1, 0.09))
    pen.fill(frame, board.limb(-0.2, 0.95, -0.08, 0.3, 0.08))
    pen.fill(frame, board.limb(0.34, 1.0, 0.52, 0.34, 0.08))
    pen.fill(rubber, board.limb(-0.32, 0.96, -0.06, 0.96, 0.09))
    pen.fill(rubber, board.limb(0.2, 1.05, 0.42, 1.05, 0.08))


def _motorcycle(canvas: Canvas, board: Board, z: float, *, sideways: bool) -> None:
    body, rubber, steel = canvas.paint("motorcycle"), canvas.paint("rubber"), canvas.paint("steel")
    pen = canvas.thing("motorcycle", z)
    if not sideways:
        pen.fill(rubber, board.disc(0, 0.33, 0.12, 0.33))
        pen.fill(
            body, board.at(((-0.22, 0.42), (0.22, 0.42), (0.26, 0.85), (0.14, 1.08), (-0.14, 1.08), (-0.26, 0.85)))
        )
        pen.fill(rubber, board.limb(-0.42, 1.1, 0.42, 1.1, 0.08))
        pen.fill(canvas.paint("taillight"), board.box(-0.1, 0.7, 0.1, 0.82))
        pen.fill(steel, board.box(0.2, 0.3, 0.32, 0.5))
        return
    for dx in (-0.7, 0.7):
        pen.fill(rubber, board.disc(dx, 0.32, 0.33))
        pen.fill(steel, board.disc(dx, 0.32, 0.17))
    pen.fill(steel, board.at(((-0.45, 0.25), (0.35, 0.25), (0.4, 0.6), (-0.3, 0.6))), 0.7)
    pen.fill(body, board.at(((-0.95, 0.85), (-0.2, 0.62), (0.45, 0.62), (0.55, 0.95), (0.1, 1.02), (-0.3, 0.82))))
    pen.fill(rubber, board.at(((-0.85, 0.86), (0.0, 0.78), (0.0, 0.9), (-0.8, 0.98))))
    pen.fill(steel, board.limb(0.42, 1.1, 0.7, 0.32, 0.1))
    pen.fill(rubber, board.limb(0.2, 1.14, 0.5, 1.12, 0.08))
    pen.fill(canvas.paint("headlight"), board.disc(0.58, 0.95, 0.1))


def two_wheeler(canvas: Canvas, x: float, z: float, *, motor: bool, ridden: bool, sideways: bool) -> None:
    """A bicycle or motorcycle, parked or with a rider: an object of its own above it."""
    dice = canvas.dice
    board = Board(canvas, x, z, mirror=dice.chance(0.5), scale=1.08)
    length = 0.8 if sideways else 0.3
    canvas.cast(canvas.camera.flat([(x + length * dx, z + 0.5 * dz) for dx, dz in CIRCLE]))
    (_motorcycle if motor else _bicycle)(canvas, board, z, sideways=sideways)
    if not ridden:
        return
    skin, coat, trousers, helmet = (canvas.paint(role) for role in ("skin", "jacket", "trousers", "helmet"))
    pen: Pen = canvas.thing("rider", z)
    if sideways:
        pen.fill(trousers, board.limb(-0.1, 0.98, 0.2, 0.68, 0.2))
        pen.fill(trousers, board.limb(0.2, 0.72, 0.02, 0.22, 0.15))
        pen.fill(coat, board.at(((-0.3, 0.92), (0.04, 0.92), (0.34, 1.4), (0.14, 1.52), (-0.08, 1.42))))
        pen.fill(coat, board.limb(0.2, 1.36, 0.42, 1.08, 0.12), 0.8)
        _head(pen, board, 0.3, skin, helmet)
        return
    for u in (-0.2, 0.2):
        pen.fill(trousers, board.limb(u * 0.7, 0.95, u * 1.25, 0.32, 0.16))
    pen.fill(coat, board.at(((-0.2, 0.85), (0.2, 0.85), (0.27, 1.38), (0.1, 1.5), (-0.1, 1.5), (-0.27, 1.38))))
    for u in (-1, 1):
        pen.fill(coat, board.limb(0.25 * u, 1.36, 0.34 * u, 1.02, 0.12), 0.8)
    _head(pen, board, 0.0, skin, helmet)


def _head(pen: Pen, board: Board, x: float, skin: Paint, helmet: Paint) -> None:
    pen.fill(skin, board.disc(x + 0.03, 1.62, 0.1, 0.12))
    pen.fill(helmet, board.disc(x, 1.69, 0.15, 0.12))
