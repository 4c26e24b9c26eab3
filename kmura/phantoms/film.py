"""Draws a planned view of a phantom: bones, lesion, soft tissue, exposure, noise, collimation, markers."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kmura.phantoms.plan import Lesion, Shot, StudyKey
from kmura.phantoms.shapes import ALONG, Ball, Bone, Camera, Edges, Sheet, Tube


class Box(NamedTuple):
    """A rectangle of pixels; x1 and y1 are exclusive."""

    kind: str
    x0: int
    y0: int
    x1: int
    y1: int


class View(NamedTuple):
    """One synthetic radiograph, uint8 [H, W], with the boxes of its lesions and markers."""

    pixels: np.ndarray
    lesions: tuple[Box, ...]
    markers: tuple[Box, ...]


_Shapes = list[tuple[np.ndarray, int]]  # polygons [N, 2] in pixels with their gray level, in drawing order


def _closed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.concatenate([left, right[::-1]])


def _value(at: float, samples: np.ndarray) -> np.ndarray:
    """Samples [N, ...] along a tube, interpolated at position `at` (0..1)."""
    place = np.interp(at, ALONG, np.arange(len(ALONG)))
    low = min(int(place), len(ALONG) - 2)
    return samples[low] + (samples[low + 1] - samples[low]) * (place - low)


def _swollen(tube: Tube, lesion: Lesion) -> Tube:
    """The tube, widened around a lytic lesion that does not fit into it."""
    length = np.linalg.norm(tube.path[-1] - tube.path[0])
    hump = np.exp(-(((ALONG - lesion.at) * length / (0.5 * lesion.form["length"] * lesion.extent)) ** 2))
    room = max(0.0, 0.042 * lesion.extent - float(_value(lesion.at, tube.wide).mean()))
    return dataclasses.replace(tube, wide=tube.wide + room * hump[:, None], deep=tube.deep + room * hump)


def _broken(edges: Edges, tube: Tube, lesion: Lesion, camera: Camera) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """The [outer, inner] polygons of the two fragments of a fractured bone, and the polygon of the gap between them."""
    form, unit = lesion.form, lesion.extent * camera.scale
    steps = np.hypot(*np.diff(edges.centre, axis=0).T)
    length = steps.sum()
    normal = _value(lesion.at, edges.normal)
    axis = np.array([normal[1], -normal[0]])
    half = float(_value(lesion.at, edges.left + edges.right)) / 2
    lean = np.clip(half * math.tan(form["slant"]) / length, -0.1, 0.1)
    across = math.cos(form["angle"]) * tube.side + math.sin(form["angle"]) * tube.front
    shift = float(normal @ (camera.matrix @ across)) * form["shift"] * lesion.extent
    shift = math.copysign(max(abs(shift), 0.5 * form["shift"] * unit), shift)
    bend = form["bend"] * unit
    pieces, line = [], []
    for near in (True, False):
        cut = lesion.at + (-0.5 if near else 0.5) * form["gap"] * unit / length
        keep = min(max(cut, 0.02), 0.98)
        arm = length * (keep if near else 1 - keep)
        move = bend + shift * (1 - keep if near else -keep)
        angle = np.clip((move if near else -move) / max(arm, 1.0), -0.45, 0.45)
        hinge = edges.centre[0 if near else -1]
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        outlines = []
        for inset in (0.0, 1.0):
            ends, halves = [], []
            for edge, at in zip(edges.sides(inset), (cut + lean, cut - lean), strict=True):
                at = min(max(at, 0.01), 0.99)
                ends.append(_value(at, edge))
                halves.append(edge[at > ALONG] if near else edge[at < ALONG])
            steps_across = np.linspace(0, 1, 7)[:, None]
            jag = np.concatenate([[0], form["jag"], [0]])[:, None] * unit
            seam = ends[0] * (1 - steps_across) + ends[1] * steps_across + axis * jag
            ring = [halves[0], seam, halves[1][::-1]] if near else [seam, halves[1], halves[0][::-1]]
            outlines.append((np.concatenate(ring) - hinge) @ turn.T + hinge)
            if inset == 0.0:
                line.append((seam - hinge) @ turn.T + hinge)
        pieces.append(outlines)
    return pieces, _closed(*line)


# gray levels of what a lesion adds to the film (metal, a sclerotic rim) or removes from it; _NEUTRAL changes nothing
_NEUTRAL, _VOID, _RIM, _SCREW, _PLATE, _HEAD = 128, 110, 156, 178, 194, 244


def _bone_shapes(bone: Bone, camera: Camera, lesion: Lesion | None) -> tuple[_Shapes, _Shapes]:
    """The polygons of a bone, and those that its lesion adds or removes."""
    outer: _Shapes = []
    inner: _Shapes = []
    late: _Shapes = []
    inset: _Shapes = []
    kind = lesion.kind if lesion else None
    for part in bone.parts:
        if isinstance(part, Sheet):
            flat = camera.project(part.points)
            outer.append((flat, bone.medulla_level))
            rim = max(1.0, part.rim * camera.scale)
            ahead = np.roll(flat, -1, 0)
            run = ahead - flat
            side = np.stack([-run[:, 1], run[:, 0]], 1) / np.maximum(np.hypot(*run.T), 1e-9)[:, None] * rim / 2
            inner.extend(
                (np.stack([a - s, b - s, b + s, a + s]), bone.cortex_level)
                for a, b, s in zip(flat, ahead, side, strict=True)
            )
        elif isinstance(part, Ball):
            outer.append((part.outline(camera), bone.cortex_level))
            inner.append((part.outline(camera, 1.0), bone.medulla_level if part.level is None else part.level))
        else:
            first = part is bone.parts[0]
            if first and kind == "lytic":
                part = _swollen(part, lesion)
            edges = part.edges(camera)
            if first and kind == "fracture":
                pieces, gap = _broken(edges, part, lesion, camera)
                inset.append((gap, _VOID))
            else:
                pieces = [[_closed(*edges.sides(wall)) for wall in (0.0, 1.0)]]
            for whole, hollow in pieces:
                outer.append((whole, bone.cortex_level))
                inner.append((hollow, bone.medulla_level))
            if first and kind == "hardware":
                inset += _plate_shapes(part, camera, lesion)
            if first and kind == "lytic":
                normal = _value(lesion.at, edges.normal)
                half = float(_value(lesion.at, edges.left + edges.right)) / 2
                centre = _value(lesion.at, edges.centre) + normal * half * lesion.form["aside"]
                long = 0.5 * lesion.form["length"] * lesion.extent * camera.scale
                around = np.linspace(0, 2 * math.pi, 36, endpoint=False)
                a, b = lesion.form["wobble"]
                bumpy = 1 + 0.07 * np.cos(3 * around + a) + 0.06 * np.cos(5 * around + b)
                ring = np.outer(np.cos(around) * bumpy * long, [normal[1], -normal[0]])
                ring += np.outer(np.sin(around) * bumpy * half * 0.74, normal)
                late.append((centre + ring, 14))
                inset += [(centre + ring * 1.2, _RIM), (centre + ring, _VOID)]
    return outer + inner + late, inset


def _plate_shapes(tube: Tube, camera: Camera, lesion: Lesion) -> _Shapes:
    """The polygons of a plate along a bone and of its screws."""
    form, unit = lesion.form, lesion.extent
    length = np.linalg.norm(np.diff(tube.path, axis=0), axis=1).sum()
    reach = min(0.5 * form["plate"] * unit / length, 0.42)
    middle = min(max(lesion.at, reach + 0.03), 0.97 - reach)
    stretch = middle + (2 * ALONG - 1) * reach
    out = math.cos(form["angle"]) * tube.side + math.sin(form["angle"]) * tube.front
    flat = -math.sin(form["angle"]) * tube.side + math.cos(form["angle"]) * tube.front
    wide, deep = np.interp(stretch, ALONG, tube.wide.mean(1)), np.interp(stretch, ALONG, tube.deep)
    far = np.hypot(math.cos(form["angle"]) * wide, math.sin(form["angle"]) * deep)[:, None]
    bone = np.stack([np.interp(stretch, ALONG, tube.path[:, axis]) for axis in range(3)], 1)
    ends = np.clip(np.minimum(ALONG, 1 - ALONG) / 0.05, 0, 1) ** 0.5 * form["width"] * unit
    plate = Tube(bone + out * far * 1.05, np.stack([ends, ends], 1), ends * 0.5, flat, out, np.zeros_like(ends))
    edges = plate.edges(camera)
    shapes: _Shapes = [(_closed(*edges.sides()), _PLATE)]
    around = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    disc = np.stack([np.cos(around), np.sin(around)], 1) * 1.05 * form["width"] * unit * camera.scale
    for screw in range(form["screws"]):
        at = (screw + 0.5) / form["screws"]
        head = _value(at, edges.centre)
        tip = camera.project(_value(at, bone) - out * float(_value(at, far)[0]) * 0.95)
        run = tip - head
        across = np.array([-run[1], run[0]]) / max(np.hypot(*run), 1e-9) * 0.0042 * unit * camera.scale
        shapes.append((np.stack([head - across, tip - across * 0.6, tip + across * 0.6, head + across]), _SCREW))
        shapes.append((disc + head, _HEAD))
    return shapes


def _box(kind: str, points: np.ndarray, shot: Shot, pad: float = 0.008) -> Box | None:
    """The bounding box in the final image of points [N, 2] of the working image; None outside the image."""
    pad *= shot.longest
    low = np.floor((points.min(0) - pad) / shot.finer)
    high = np.ceil((points.max(0) + pad) / shot.finer)
    limit = np.array(shot.size) // shot.finer
    x0, y0 = np.clip(low, 0, limit).astype(int)
    x1, y1 = np.clip(high, 0, limit).astype(int)
    return Box(kind, int(x0), int(y0), int(x1), int(y1)) if x1 > x0 and y1 > y0 else None


def _stamp(canvas: np.ndarray, shapes: _Shapes) -> None:
    """Adds one bone to the canvas, uint16 [H, W]; within the bone later shapes cover earlier ones."""
    every = np.concatenate([points for points, _ in shapes])
    (x0, y0), (x1, y1) = every.min(0).tolist(), every.max(0).tolist()
    x0, y0 = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
    x1, y1 = min(int(x1) + 2, canvas.shape[1]), min(int(y1) + 2, canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    patch = Image.new("L", (x1 - x0, y1 - y0))
    pen = ImageDraw.Draw(patch)
    for points, level in shapes:
        pen.polygon((points - (x0, y0)).ravel().tolist(), fill=level)
    canvas[y0:y1, x0:x1] += np.asarray(patch)


def _skin(shot: Shot) -> np.ndarray:
    """Soft tissue, float32 [H/3, W/3] in 0..255: a thin layer of fat around muscle."""
    size = tuple(-(-length // 3) for length in shot.size)
    image = Image.new("L", size)
    pen = ImageDraw.Draw(image)
    parts = [(part, part.edges(shot.camera) if isinstance(part, Tube) else None) for part in shot.figure.skin]
    for shrink, level in ((1.0, 66), (0.93, 92), (0.84, 124), (0.68, 150), (0.45, 168)):
        for part, edges in parts:
            ring = part.outline(shot.camera, 0, shrink) if edges is None else _closed(*edges.sides(0, shrink))
            pen.polygon((ring / 3).ravel().tolist(), fill=level)
    for part in shot.figure.air:
        for shrink, level in ((1.0, 120), (0.93, 88), (0.8, 70)):
            pen.polygon((part.outline(shot.camera, 0, shrink) / 3).ravel().tolist(), fill=level)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(shot.longest * 0.003)), np.float32)


_LETTERS = {  # strokes in a cell of height 1, the origin in its middle
    "L": (((-0.28, -0.5), (-0.28, 0.5), (0.3, 0.5)),),
    "R": (
        (
            (-0.3, 0.5),
            (-0.3, -0.5),
            (0.08, -0.5),
            (0.28, -0.38),
            (0.3, -0.2),
            (0.26, -0.06),
            (0.08, 0.04),
            (-0.3, 0.04),
        ),
        ((0.02, 0.04), (0.32, 0.5)),
    ),
}


def _letter(film: Image.Image, shot: Shot, level: int) -> np.ndarray:
    """Draws the side marker on the film and returns its points [N, 2]."""
    x, y, tall, degrees = shot.letter
    angle = math.radians(degrees)
    spin = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * tall
    strokes = [np.array(stroke) @ spin.T for stroke in _LETTERS["L" if shot.left else "R"]]
    half = round(tall)
    ink = Image.new("L", (4 * half, 4 * half))  # twice the resolution of the film
    pen = ImageDraw.Draw(ink)
    for stroke in strokes:
        points = (2 * (stroke + half)).ravel().tolist()
        pen.line(points, fill=255, width=max(2, round(tall * 0.32)), joint="curve")
    film.paste(level, (round(x) - half, round(y) - half), ink.reduce(2))
    return np.concatenate(strokes) + (x, y)


# film saturates: two overlapping bones are brighter than one, but not twice as bright
_SHOULDER = (255 * (1 - np.exp(-np.arange(800) / 170))).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _textures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three fixed tiles of unit variance: trabecular grain, cloudy tissue and film noise.

    Each is repeated twice per axis so that a piece may start anywhere. Images use pieces of them, because new noise for
    every image would take half of the drawing time.
    """
    noise = np.random.default_rng(0).standard_normal((768, 768), dtype=np.float32)
    fine = Image.fromarray(np.clip(np.pad(noise, 32, "wrap") * 40 + 128, 0, 255).astype(np.uint8))
    near, far = (np.asarray(fine.filter(ImageFilter.GaussianBlur(radius)), np.float32) for radius in (1.0, 4.0))
    grain = (near - far)[32:-32, 32:-32]
    coarse = np.pad(noise[:32, :32], 8, "wrap")
    cloud = np.asarray(Image.fromarray(coarse).resize((1152, 1152), Image.Resampling.BICUBIC))[192:-192, 192:-192]
    return tuple(np.tile(tile / tile.std(), (2, 2)) for tile in (grain, cloud, noise))


def _piece(tile: np.ndarray, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A piece of a doubled tile, at a random position."""
    period = len(tile) // 2
    y, x = (int(start) for start in rng.integers(period, size=2))
    if max(shape) > period:
        tile = np.tile(tile, [-(-length // period) for length in shape])
    return tile[y : y + shape[0], x : x + shape[1]]


def _developed(shot: Shot, bones: np.ndarray, inset: _Shapes, rng: np.random.Generator) -> Image.Image:
    """The 8-bit film (L image) at the working resolution; `bones` is uint16 [H, W]."""
    width, height = shot.size
    sharp = ImageFilter.BoxBlur(rng.uniform(0.0010, 0.0022) * shot.longest)
    grain, cloud, noise = _textures()
    bone_image = Image.fromarray(_SHOULDER.take(bones, mode="clip")).filter(sharp)
    veil = bone_image.reduce(8).filter(ImageFilter.GaussianBlur(2.5)).resize(shot.size, Image.Resampling.BILINEAR)
    bone = np.asarray(veil) * np.float32(0.000009)
    bone += np.float32(0.0016)
    bone *= np.asarray(bone_image)
    grainy = _piece(grain, rng, bones.shape) * np.float32(rng.uniform(0.03, 0.08))
    grainy += 1
    bone *= grainy

    skin = _skin(shot)
    ramp = rng.normal(0, 0.05, 2)
    heel = np.add.outer(*(np.linspace(-slope, slope, length) for slope, length in zip(ramp, skin.shape, strict=True)))
    skin *= (rng.uniform(0.0014, 0.0024) * (1 + heel + 0.03 * _piece(cloud, rng, skin.shape))).astype(np.float32)
    film = np.array(Image.fromarray(skin).resize(shot.size, Image.Resampling.BILINEAR))
    film += bone
    if inset:
        layer = Image.new("L", shot.size, _NEUTRAL)
        pen = ImageDraw.Draw(layer)
        for points, level in inset:
            pen.polygon(points.ravel().tolist(), fill=level)
        film += (np.asarray(layer.filter(sharp), np.float32) - _NEUTRAL) * np.float32(0.0084)
    gain, fog, gamma = rng.uniform(0.9, 1.4), rng.uniform(-0.05, 0.08), rng.uniform(0.8, 1.3)
    film += _piece(noise, rng, bones.shape) * np.float32(rng.uniform(0.006, 0.022) / gain)
    tones = (255 * np.clip(np.linspace(0, 1.2, 4097) * gain + fog, 0, 1) ** gamma).astype(np.uint8)
    np.clip(film, 0, 1.2, out=film)
    film *= 4096 / 1.2
    image = Image.fromarray(tones.take(film.astype(np.uint16)))
    if shot.field is not None:
        shade = Image.new("L", (-(-width // 2), -(-height // 2)), 255)
        ImageDraw.Draw(shade).polygon((shot.field / 2).ravel().tolist(), fill=0)
        shade = shade.filter(ImageFilter.BoxBlur(1)).resize(shot.size, Image.Resampling.BILINEAR)
        image.paste(int(rng.choice((0, 0, 6, 18))), mask=shade)
    return image


def _shortcut(key: StudyKey, view: int, size: tuple[int, int], side: int) -> tuple[Image.Image, Image.Image, int, int]:
    """The shortcut marker, a white disc with a black hole near a corner: image, mask, and position x, y."""
    rng = key.rng("shortcut", view)
    across = max(5, round(0.08 * side))
    big = Image.new("L", (across * 4, across * 4))
    pen = ImageDraw.Draw(big)
    pen.ellipse((0, 0, across * 4 - 1, across * 4 - 1), fill=255)
    disc = big.reduce(4)
    pen.ellipse((across * 1.4, across * 1.4, across * 2.6, across * 2.6), fill=0)
    corner = rng.integers(2, size=2)
    inset = rng.uniform(0.02, 0.06, 2) * side
    x, y = (int(inset[k] if corner[k] == 0 else size[k] - inset[k] - across) for k in range(2))
    return big.reduce(4), disc, x, y


def draw_view(key: StudyKey, shots: Sequence[Shot], view: int, lesion: Lesion | None, shortcut: bool) -> View:
    """The pixels and boxes of one planned view."""
    shot = shots[view]
    shown = lesion if lesion and view in lesion.views else None
    bones = np.zeros(shot.size[::-1], np.uint16)
    inset: _Shapes = []
    for bone in shot.figure.bones:
        if not bone.reaches(shot.camera, shot.size):
            continue
        shapes, added = _bone_shapes(bone, shot.camera, shown if shown and bone.name == shown.bone else None)
        _stamp(bones, shapes)
        inset += added
    rng = key.rng("exposure", view)
    film = _developed(shot, bones, inset, rng)
    markers = []
    if shot.letter:
        strokes = _letter(film, shot, int(rng.integers(150, 256)))
        markers.append(_box("side", strokes, shot, pad=0.1 * shot.letter[2] / shot.longest))
    if shot.finer > 1:
        film = film.reduce(shot.finer)
    if shortcut:
        face, disc, x, y = _shortcut(key, view, film.size, max(film.size))
        film.paste(face, (x, y), disc)
        markers.append(Box("shortcut", x, y, x + face.width, y + face.height))
    lesions = [_box(shown.kind, np.concatenate([points for points, _ in inset]), shot)] if inset else []
    return View(np.asarray(film), tuple(box for box in lesions if box), tuple(box for box in markers if box))
