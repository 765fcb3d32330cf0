"""What stands still in Streets: buildings, walls, fences, hedges, trees, poles, lights, signs. Lengths in metres."""

from __future__ import annotations

from adaptseg.data.streetscape.canvas import CIRCLE, Board, Canvas, Light, Paint, Pen

_FLOOR = 3.1
_CANOPY = (1.0, 0.86, 1.08, 0.9, 1.05, 0.84)  # radii that make a 12-gon look like foliage
_SHADES = tuple(
    # Clumps darker below, lighter above. Per corner: radius, across, up; half of all corners of a scene are leaves.
    (size, light, tuple((k, dx, lift + size * k * dy) for (dx, dy), k in zip(CIRCLE, _CANOPY * 2, strict=True)))
    for lift, size, light in ((0.0, 1.0, 0.75), (0.25, 0.72, 1.0), (0.42, 0.4, 1.2))
)


class _Panel:
    """An upright wall along the road at X = x, or facing the camera, measured in metres along and up."""

    def __init__(self, canvas: Canvas, x: float, z: float, *, along_road: bool, side: int) -> None:
        self._camera, self._x, self._z = canvas.camera, x, z
        self._along_road, self._side = along_road, side

    def quad(self, a: float, low: float, b: float, high: float) -> list[tuple[float, float]]:
        camera = self._camera
        if self._along_road:
            near, far = self._z + a, self._z + b
            left, right = camera.column(self._x, near), camera.column(self._x, far)
        else:
            near = far = self._z
            left, right = camera.column(self._x + self._side * a, near), camera.column(self._x + self._side * b, near)
        horizon, foot, top = camera.horizon, camera.focal * (camera.eye - low), camera.focal * (camera.eye - high)
        return [
            (left, horizon + foot / near),
            (right, horizon + foot / far),
            (right, horizon + top / far),
            (left, horizon + top / near),
        ]

    def shows(self, quad: list[tuple[float, float]]) -> bool:
        """Whether any of it can be in the picture."""
        (left, foot), (right, other_foot), _, _ = quad
        width = self._camera.width
        return (left > 0 or right > 0) and (left < width or right < width) and (foot > 0 or other_foot > 0)


def building(canvas: Canvas, side: int, x: float, near: float, far: float, height: float) -> None:
    """A house on the `side` (-1 left, 1 right) whose facade stands at X = x from depth `near` to `far`."""
    dice = canvas.dice
    facade, window, trim = canvas.paint("facade"), canvas.paint("window"), canvas.paint("trim")
    lit, door = canvas.paint("window_lit"), canvas.paint("door")
    shop = canvas.paint("shop") if dice.chance(0.4) else None
    strips, bay, pitched = dice.chance(0.25), dice.between(2.4, 4.2), dice.chance(0.45)
    width, habit, roof = dice.between(9, 16), dice.count(0, 6), canvas.paint("roof")
    side_light, front_light = (0.82, 0.95) if side > 0 else (1.0, 0.88)
    pens = (canvas.wall("building", x, near, far), canvas.stuff("building", near))
    if pitched:
        ridge = height + dice.between(2, 4)
        camera = canvas.camera
        inner = x + side * width / 2
        eaves = [camera.point(x - side * 0.3, height, near), camera.point(x - side * 0.3, height, far)]
        pens[0].fill(roof, [*eaves, camera.point(inner, ridge, far), camera.point(inner, ridge, near)])
        gable = [camera.point(x, height, near), camera.point(x + side * width, height, near)]
        pens[1].fill(facade, [*gable, camera.point(inner, ridge, near)], front_light)
    for pen, along, length, light in ((pens[0], True, far - near, side_light), (pens[1], False, width, front_light)):
        panel = _Panel(canvas, x, near, along_road=along, side=side)
        front = panel.quad(0, 0, length, height)
        if not panel.shows(front):
            continue
        pen.fill(facade, front, light)
        if not pitched:
            pen.fill(trim, panel.quad(0, height - 0.6, length, height), light)
        if near < 90:
            _windows(pen, panel, length, height, bay, (window, lit, trim), strips=strips, habit=habit, light=light)
        if shop is not None:
            pen.fill(shop, panel.quad(0, 0, length, 3.0), light)
            pen.fill(window, panel.quad(0.05 * length, 0.6, 0.95 * length, 2.3), light)
        if near < 50:
            middle = length * (0.2 + 0.1 * habit)
            pen.fill(door, panel.quad(middle, 0, middle + 1.3, 2.2), light)


def _windows(
    pen: Pen,
    panel: _Panel,
    length: float,
    height: float,
    bay: float,
    paints: tuple[Paint, Paint, Paint],
    *,
    strips: bool,
    habit: int,
    light: float,
) -> None:
    glass, lit, trim = paints
    floors = int((height - 0.8) / _FLOOR)
    bays = max(int(length / bay), 1)
    step = length / bays
    for floor in range(floors):
        sill = floor * _FLOOR + 1.0
        if strips:
            if panel.shows(panel.quad(0, sill, length, sill)):
                pen.fill(glass, panel.quad(0.3, sill, length - 0.3, sill + 1.5), light)
            continue
        for i in range(bays):
            a, b = (i + 0.25) * step, (i + 0.75) * step
            pane = panel.quad(a, sill, b, sill + 1.6)
            if not panel.shows(pane):
                continue
            pen.fill(lit if (5 * floor + 3 * i + habit) % 7 < 2 else glass, pane, light)
            if habit % 2:
                pen.fill(trim, panel.quad(a - 0.1, sill - 0.2, b + 0.1, sill), light)


def wall(canvas: Canvas, x: float, near: float, far: float) -> None:
    """A free-standing wall along the road with a coping and courses of stone."""
    stone, coping = canvas.paint("wall"), canvas.paint("coping")
    height = canvas.dice.between(1.6, 2.6)
    pen = canvas.wall("wall", x, near, far)
    panel = _Panel(canvas, x, near, along_road=True, side=1)
    length = far - near
    pen.fill(stone, panel.quad(0, 0, length, height))
    for course in range(1, 4):
        y = height * course / 4
        pen.fill(stone, panel.quad(0, y, length, y + 0.07), 0.8)
    for post in range(1, int(length / 3.0)):
        pen.fill(stone, panel.quad(post * 3.0, 0, post * 3.0 + 0.3, height), 0.88)
    pen.fill(coping, panel.quad(0, height - 0.18, length, height))


def fence(canvas: Canvas, x: float, near: float, far: float) -> None:
    """Palings along the road: rails, posts and what shows between them, all labelled fence as annotators do."""
    rail, gap = canvas.paint("fence"), canvas.paint("fence_gap")
    height = canvas.dice.between(1.1, 1.8)
    pen = canvas.wall("fence", x, near, far)
    panel = _Panel(canvas, x, near, along_road=True, side=1)
    length = far - near
    pen.fill(gap, panel.quad(0, 0, length, height))
    step = 0.55
    for i in range(int(length / step)):
        if near + i * step > 45:
            break
        paling = panel.quad(i * step, 0, i * step + 0.24, height)
        if panel.shows(paling):
            pen.fill(rail, paling)
    pen.fill(rail, panel.quad(0, height - 0.16, length, height), 1.1)
    pen.fill(rail, panel.quad(0, 0.2, length, 0.36), 0.9)


def hedge(canvas: Canvas, x: float, near: float, far: float) -> None:
    """A clipped hedge along the road."""
    leaf = canvas.paint("leaf")
    height = canvas.dice.between(1.0, 2.2)
    pen = canvas.wall("vegetation", x, near, far)
    panel = _Panel(canvas, x, near, along_road=True, side=1)
    pen.fill(leaf, panel.quad(0, 0, far - near, height), 0.85)
    pen.fill(leaf, panel.quad(0, height * 0.75, far - near, height), 1.1)


def tree(canvas: Canvas, x: float, z: float, height: float) -> None:
    """A trunk and a crown of overlapping clumps, darker below, lighter above; the trunk counts as vegetation."""
    if not canvas.sees(x, z, 0.7 * height):
        return
    dice = canvas.dice
    bark, leaf = canvas.paint("bark"), canvas.paint("leaf")
    pen, board = canvas.stuff("vegetation", z), Board(canvas, x, z)
    crown = height * dice.between(0.26, 0.38)
    middle = height - crown
    pen.fill(bark, board.at(((-0.17, 0), (0.17, 0), (0.1, middle), (-0.1, middle))))
    clumps = [
        (dice.between(-0.75, 0.75) * crown, middle + dice.between(-0.6, 0.5) * crown, dice.between(0.5, 0.8) * crown)
        for _ in range(8 if z < 14 else 5 if z < 30 else 3 if z < 60 else 2)
    ]
    for size, light, spokes in _SHADES if z < 45 else _SHADES[:2]:
        for cx, cy, r in clumps:
            pen.fill(leaf, board.ring(cx, cy, r * size, r, spokes), light)
    canvas.cast(canvas.camera.flat([(x + dx * crown * 1.3 - 1.0, z + dz * 0.8 * crown) for dx, dz in CIRCLE]))


def bush(canvas: Canvas, x: float, z: float, size: float) -> None:
    leaf = canvas.paint("leaf")
    pen, board = canvas.stuff("vegetation", z), Board(canvas, x, z)
    for dx, dy, r, light in ((0, 0.3, 0.6, 0.75), (-0.4, 0.4, 0.45, 0.9), (0.35, 0.45, 0.5, 1.0), (0, 0.7, 0.35, 1.2)):
        pen.fill(leaf, board.disc(dx * size, dy * size, r * size, 0.85 * r * size), light)


def lamp(canvas: Canvas, x: float, z: float) -> None:
    """A street lamp that leans over the road, and the pool of light under it."""
    if not canvas.sees(x, z, 2.0):
        return
    reach = -1.6 if x > 0 else 1.6
    steel, bulb = canvas.paint("pole"), canvas.paint("bulb")
    pen, board = canvas.stuff("pole", z), Board(canvas, x, z)
    pen.fill(steel, board.box(-0.08, 0, 0.08, 6.8))
    pen.fill(steel, board.limb(0, 6.75, reach, 7.0, 0.12), 0.9)
    pen.fill(bulb, board.box(reach - 0.35, 6.85, reach + 0.35, 7.05))
    left, top = canvas.camera.point(x, 6.4, z)
    canvas.lights.append(Light(left + board.unit * reach, top, board.unit * 3.2, (1.0, 0.78, 0.45)))


def bollard(canvas: Canvas, x: float, z: float) -> None:
    steel, board = canvas.paint("pole"), Board(canvas, x, z)
    canvas.stuff("pole", z).fill(steel, board.box(-0.08, 0, 0.08, 0.95))


def traffic_light(canvas: Canvas, x: float, z: float) -> None:
    """A signal on its pole; wide roads get a second one on an arm above the carriageway."""
    steel, housing = canvas.paint("pole"), canvas.paint("signal")
    state = canvas.dice.choose(("signal_red", "signal_green"))
    lens = canvas.paint(state)
    board, pole, pen = Board(canvas, x, z), canvas.stuff("pole", z), canvas.stuff("traffic light", z)
    heads = [(0.0, 2.4)]
    height = 3.4
    if canvas.dice.chance(0.5):
        reach = -3.2 if x > 0 else 3.2
        height = 5.6
        pole.fill(steel, board.limb(0, 5.5, reach, 5.6, 0.14), 0.9)
        heads.append((reach, 4.7))
    pole.fill(steel, board.box(-0.08, 0, 0.08, height))
    for dx, foot in heads:
        pen.fill(housing, board.box(dx - 0.28, foot, dx + 0.28, foot + 1.25))
        for lens_row in range(3):
            on = lens_row == (2 if state == "signal_red" else 0)
            centre = foot + 0.24 + 0.385 * lens_row
            pen.fill(lens, board.disc(dx, centre, 0.165), 1.0 if on else 0.3)


def traffic_sign(canvas: Canvas, x: float, z: float) -> None:
    """A disc, a triangle, a square, or a direction board, on a post."""
    dice = canvas.dice
    steel, rim, plate = canvas.paint("pole"), canvas.paint("sign_rim"), canvas.paint("sign_plate")
    board, pen = Board(canvas, x, z), canvas.stuff("traffic sign", z)
    kind, foot = dice.choose(("disc", "triangle", "square", "board")), dice.between(2.0, 2.5)
    canvas.stuff("pole", z).fill(steel, board.box(-0.05, 0, 0.05, foot + 0.4))
    if kind == "disc":
        pen.fill(rim, board.disc(0, foot + 0.38, 0.42))
        pen.fill(plate, board.disc(0, foot + 0.38, 0.29))
    elif kind == "triangle":
        pen.fill(rim, board.at(((-0.5, foot), (0.5, foot), (0, foot + 0.88))))
        pen.fill(plate, board.at(((-0.28, foot + 0.13), (0.28, foot + 0.13), (0, foot + 0.6))))
    elif kind == "square":
        pen.fill(plate, board.box(-0.4, foot, 0.4, foot + 0.8))
        pen.fill(rim, board.box(-0.31, foot + 0.09, 0.31, foot + 0.71))
    else:
        pen.fill(plate, board.box(-1.1, foot, 1.1, foot + 1.0))
        pen.fill(rim, board.box(-1.02, foot + 0.08, 1.02, foot + 0.92))
        pen.fill(plate, board.box(-0.8, foot + 0.55, 0.5, foot + 0.7))
        pen.fill(plate, board.box(-0.8, foot + 0.28, 0.2, foot + 0.42))


def bin_or_box(canvas: Canvas, x: float, z: float) -> None:
    """Street clutter that no class names: void."""
    paint, board = canvas.paint("clutter"), Board(canvas, x, z)
    width, height = canvas.dice.between(0.25, 0.7), canvas.dice.between(0.8, 1.5)
    pen = canvas.stuff("void", z)
    pen.fill(paint, board.box(-width, 0, width, height))
    pen.fill(paint, board.box(-width - 0.05, height - 0.15, width + 0.05, height), 1.25)
    pen.fill(paint, board.box(-width * 0.6, height * 0.35, width * 0.6, height * 0.6), 0.7)
