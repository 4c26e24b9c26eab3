"""Phantoms: a MURA-shaped tree of synthetic radiographs, made from seeds.

Each image is a projection of a posed skeleton (`phantom_anatomy`) with soft tissue, exposure, noise, collimation
and an L/R marker. The views of a study share the patient and the lesion. An abnormal study carries one lesion: a
displaced fracture, a plate with screws, or a lytic hole with a sclerotic rim; now and then only one of its views
shows it, and the others are clean. Everything follows from (seed, area, split, study, view), whoever computes it.
"""

import contextlib
import csv
import dataclasses
import functools
import math
import multiprocessing
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kmura.errors import InputError, reason
from kmura.records.phantom_anatomy import ALONG, Ball, Bone, Camera, Edges, Figure, Pose, Sheet, Tube, figure, rotation

AREAS = ("XR_ELBOW", "XR_FINGER", "XR_FOREARM", "XR_HAND", "XR_HUMERUS", "XR_SHOULDER", "XR_WRIST")
KINDS = ("fracture", "hardware", "lytic")
SPLITS = ("train", "valid")
MAX_VIEWS = 4

_VIEW_COUNTS = (0.12, 0.33, 0.42, 0.13)  # of 1, 2, 3 and 4 views; MURA has 2.7 images a study
_SECOND_STUDY = 0.15  # patients with two studies
_ONE_VIEW_ONLY = 0.12  # abnormal studies of several views whose lesion shows in one view alone

# separate streams of random numbers: adding a lesion or a marker leaves the rest of the image as it was
_STREAMS = ("anatomy", "study", "camera", "lesion", "exposure", "shortcut", "tree", "views")

# the projections of an area, the usual ones first; a study takes some of them
_PROJECTIONS = {
    "XR_ELBOW": (Pose(), Pose(90, elbow=88), Pose(42, elbow=8), Pose(-40, elbow=8)),
    "XR_FINGER": (
        Pose(roll=180),
        Pose(88, roll=180, fingers=(5, 6, 6, 6, 6), curl=8, alone=True),
        Pose(45, roll=180, fingers=(3, 4, 4, 4, 4), curl=5, alone=True),
        Pose(-25, roll=180),
    ),
    "XR_FOREARM": (Pose(), Pose(90, roll=85, elbow=85), Pose(38), Pose(90, elbow=88)),
    "XR_HAND": (
        Pose(roll=180, spread=1.15),
        Pose(42, roll=180, fingers=(0, 22, 16, 10, 4), curl=8, spread=1.1),
        Pose(78, roll=180, fingers=(0, 52, 36, 20, 4), curl=6),
        Pose(-28, roll=180, spread=1.15),
    ),
    "XR_HUMERUS": (Pose(), Pose(80, elbow=60), Pose(38), Pose(-20)),
    "XR_SHOULDER": (Pose(elbow=10), Pose(-6, elbow=65), Pose(-62, elbow=20), Pose(28, elbow=0)),
    "XR_WRIST": (
        Pose(roll=180),
        Pose(88, roll=180, fingers=(0, 12, 10, 8, 6)),
        Pose(42, roll=180, fingers=(0, 10, 8, 6, 4)),
        Pose(-35, roll=180),
    ),
}


class Box(NamedTuple):
    """A rectangle of pixels; x1 and y1 are exclusive."""

    kind: str
    x0: int
    y0: int
    x1: int
    y1: int


class View(NamedTuple):
    """One synthetic radiograph, uint8 [H, W], with the boxes of what is not anatomy."""

    pixels: np.ndarray
    lesions: tuple[Box, ...]
    markers: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class PhantomSummary:
    """How much was written, over both splits and all areas."""

    images: int
    studies: int
    patients: int


# --- planning: everything about a study except pixels ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Key:
    """What every random draw of a study is keyed by."""

    seed: int
    area: str
    split: str
    study: int
    patient: int  # index of the patient's first study

    def rng(self, stream: str, view: int = 0) -> np.random.Generator:
        who = self.patient if stream == "anatomy" else self.study
        place = (AREAS.index(self.area), SPLITS.index(self.split), who, view, _STREAMS.index(stream))
        return np.random.default_rng([self.seed, *place])


@dataclasses.dataclass(frozen=True)
class _Shot:
    """One view before it is drawn."""

    figure: Figure
    camera: Camera
    size: tuple[int, int]  # width, height of the working image, pixels
    finer: int  # working pixels per pixel of the final image
    extent: float  # longest side of the image in mm
    field: np.ndarray | None  # corners [4, 2] of the collimated field, pixels
    letter: tuple[float, float, float, float] | None  # centre x, y, height, degrees, pixels
    left: bool  # the patient's left side

    @property
    def longest(self) -> int:
        return max(self.size)


@dataclasses.dataclass(frozen=True)
class _Lesion:
    kind: str
    bone: str
    at: float  # 0..1 along the bone
    extent: float  # the mm that relative sizes refer to
    views: tuple[int, ...]
    form: dict  # sizes and angles, drawn once for all views


def _plan_shot(key: _Key, pose: Pose, view: int, left: bool, side: int) -> _Shot:
    rng = key.rng("camera", view)
    turned = dataclasses.replace(
        pose,
        turn=pose.turn + rng.normal(0, 5),
        tilt=rng.normal(0, 4),
        roll=pose.roll + rng.normal(0, 7) + (rng.random() < 0.06) * 90,
        elbow=pose.elbow + rng.normal(0, 6),
        curl=pose.curl + abs(rng.normal(0, 3)),
    )
    body = figure(key.area, key.rng("anatomy"), turned)
    matrix = rotation(turned.turn, turned.tilt, turned.roll)[:2]
    if left:
        matrix = matrix * [[-1], [1]]
    flat = body.region @ matrix.T
    low, high = flat.min(0), flat.max(0)
    margin = rng.uniform(0.03, 0.12, 2) * (high - low).max()
    width, height = (high - low) + 2 * margin
    extent = max(width, height)
    narrow = rng.uniform(0.5, 0.72)
    width, height = max(width, narrow * extent), max(height, narrow * extent)
    finer = min(math.ceil(360 / side), 4)
    cells = [max(16, round(side * length / extent)) for length in (width, height)]
    size = (cells[0] * finer, cells[1] * finer)
    scale = max(size) / extent
    middle = (low + high) / 2 + rng.uniform(-0.6, 0.6, 2) * margin
    camera = Camera(matrix * scale, np.array(size) / 2 - middle * scale, scale)
    longest = max(size)
    field = None
    if rng.random() < 0.6:
        inset = rng.uniform(-0.04, 0.09, 4) * longest  # a negative inset lies outside: no border on that side
        x0, y0, x1, y1 = inset[0], inset[1], size[0] - inset[2], size[1] - inset[3]
        angle = math.radians(rng.normal(0, 2.5))
        spin = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        field = (corners - corners.mean(0)) @ spin.T + corners.mean(0)
    letter = None
    if rng.random() < 0.75:
        tall = rng.uniform(0.05, 0.09) * longest
        along, inset = rng.uniform(0.12, 0.88), rng.uniform(0.07, 0.16) * longest
        x, y = (
            (along * size[0], inset),
            (along * size[0], size[1] - inset),
            (inset, along * size[1]),
            (size[0] - inset, along * size[1]),
        )[rng.integers(4)]
        letter = (x, y, tall, rng.choice((0, 0, 0, 90, 180)) + rng.normal(0, 8))
    return _Shot(body, camera, size, finer, extent, field, letter, left)


def _view_count(key: _Key) -> int:
    return 1 + int(key.rng("views").choice(MAX_VIEWS, p=_VIEW_COUNTS))


def _plan_shots(key: _Key, side: int) -> list[_Shot]:
    """The views of a study."""
    count = _view_count(key)
    rng = key.rng("study")
    left = bool(rng.random() < 0.5)
    poses = _PROJECTIONS[key.area]
    weights = np.array((0.4, 0.3, 0.18, 0.12))
    chosen = rng.choice(len(poses), size=count, replace=False, p=weights)
    return [_plan_shot(key, poses[which], view, left, side) for view, which in enumerate(chosen)]


def _inside(point: np.ndarray, shot: _Shot) -> bool:
    """Whether a lesion at `point` would be seen: in the image, in the collimated field, not under the marker."""
    margin = 0.08 * shot.longest
    if not (margin < point[0] < shot.size[0] - margin and margin < point[1] < shot.size[1] - margin):
        return False
    if shot.letter and math.dist(point, shot.letter[:2]) < 0.14 * shot.longest:
        return False
    if shot.field is None:
        return True
    edge = np.roll(shot.field, -1, 0) - shot.field
    away = point - shot.field
    depth = (edge[:, 0] * away[:, 1] - edge[:, 1] * away[:, 0]) / np.hypot(edge[:, 0], edge[:, 1])
    return bool(depth.min() > margin)


def _plan_lesion(key: _Key, shots: Sequence[_Shot], kind: str | None) -> _Lesion:
    """The lesion of an abnormal study: what, where, and in which views it shows."""
    rng = key.rng("lesion")
    drawn = str(rng.choice(KINDS, p=(0.4, 0.3, 0.3)))
    views = list(range(len(shots)))
    if len(shots) > 1 and rng.random() < _ONE_VIEW_ONLY:
        views = [int(rng.integers(len(shots)))]
    sites = shots[0].figure.sites
    best: tuple[int, str, float, list[int]] | None = None
    for _ in range(40):
        bone = str(rng.choice(list(sites)))
        at = float(rng.uniform(*sites[bone]))
        seen = []
        for view in views:
            main = _bone(shots[view].figure, bone).parts[0]
            point = shots[view].camera.project(main.path[np.searchsorted(ALONG, at)])
            if _inside(point, shots[view]):
                seen.append(view)
        if best is None or len(seen) > best[0]:
            best = (len(seen), bone, at, seen)
        if len(seen) == len(views):
            break
    _, bone, at, seen = best  # 40 places rarely fail all; the best of them then shows in as many views as it can
    extent = max(shots[view].extent for view in (seen or views))
    form = {
        "angle": rng.uniform(0, 2 * math.pi),
        "slant": math.radians(rng.uniform(-48, 48)),
        "gap": rng.uniform(0.024, 0.040),
        "shift": rng.uniform(0.030, 0.065),
        "bend": rng.uniform(-0.03, 0.03),
        "jag": rng.normal(0, 0.006, 5),
        "length": rng.uniform(0.11, 0.17),
        "plate": rng.uniform(0.18, 0.32),
        "width": rng.uniform(0.010, 0.015),
        "screws": int(rng.integers(4, 8)),
        "wobble": rng.uniform(0, 2 * math.pi, 2),
        "aside": rng.uniform(-0.15, 0.15),
    }
    return _Lesion(kind or drawn, bone, at, extent, tuple(seen or views), form)


# --- drawing --------------------------------------------------------------------------------------------------

_Shapes = list[tuple[np.ndarray, int]]  # polygons [N, 2] in pixels with their gray level, in drawing order


def _bone(body: Figure, name: str) -> Bone:
    return next(bone for bone in body.bones if bone.name == name)


def _closed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.concatenate([left, right[::-1]])


def _value(at: float, samples: np.ndarray) -> np.ndarray:
    """Samples [N, ...] along a tube, interpolated at one place."""
    place = np.interp(at, ALONG, np.arange(len(ALONG)))
    low = min(int(place), len(ALONG) - 2)
    return samples[low] + (samples[low + 1] - samples[low]) * (place - low)


def _swollen(tube: Tube, lesion: _Lesion) -> Tube:
    """The tube blown up around a lytic lesion that would not fit into it."""
    length = np.linalg.norm(tube.path[-1] - tube.path[0])
    hump = np.exp(-(((ALONG - lesion.at) * length / (0.5 * lesion.form["length"] * lesion.extent)) ** 2))
    room = max(0.0, 0.042 * lesion.extent - float(_value(lesion.at, tube.wide).mean()))
    return dataclasses.replace(tube, wide=tube.wide + room * hump[:, None], deep=tube.deep + room * hump)


def _broken(edges: Edges, tube: Tube, lesion: _Lesion, camera: Camera) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Outlines of the two fragments, [outer, inner] polygons of each, and the gap between them."""
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


# levels of what a lesion adds to the film (metal, a sclerotic rim) or takes from it; `_NEUTRAL` changes nothing
_NEUTRAL, _VOID, _RIM, _SCREW, _PLATE, _HEAD = 128, 110, 156, 178, 194, 244


def _bone_shapes(bone: Bone, camera: Camera, lesion: _Lesion | None) -> tuple[_Shapes, _Shapes]:
    """The polygons of a bone, and those of what its lesion adds or takes away."""
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


def _plate_shapes(tube: Tube, camera: Camera, lesion: _Lesion) -> _Shapes:
    """A plate along a bone with screws through it."""
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


def _box(kind: str, points: np.ndarray, shot: _Shot, pad: float = 0.008) -> Box | None:
    """The pixels of the final image that points of the working image span; None outside the image."""
    pad *= shot.longest
    low = np.floor((points.min(0) - pad) / shot.finer)
    high = np.ceil((points.max(0) + pad) / shot.finer)
    limit = np.array(shot.size) // shot.finer
    x0, y0 = np.clip(low, 0, limit).astype(int)
    x1, y1 = np.clip(high, 0, limit).astype(int)
    return Box(kind, int(x0), int(y0), int(x1), int(y1)) if x1 > x0 and y1 > y0 else None


def _stamp(canvas: np.ndarray, shapes: _Shapes) -> None:
    """Adds one bone to the canvas, uint16 [H, W]; inside the bone later shapes cover earlier ones."""
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


def _skin(shot: _Shot) -> np.ndarray:
    """Soft tissue at a third of the working resolution, float32 [H/3, W/3] in 0..255: thin fat, muscle within."""
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


_LETTERS = {  # strokes in a cell one unit high, origin in its middle
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


def _letter(film: Image.Image, shot: _Shot, level: int) -> np.ndarray:
    """Puts the side marker on the film; gives its points."""
    x, y, tall, degrees = shot.letter
    angle = math.radians(degrees)
    spin = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * tall
    strokes = [np.array(stroke) @ spin.T for stroke in _LETTERS["L" if shot.left else "R"]]
    half = round(tall)
    ink = Image.new("L", (4 * half, 4 * half))  # twice as fine as the film
    pen = ImageDraw.Draw(ink)
    for stroke in strokes:
        points = (2 * (stroke + half)).ravel().tolist()
        pen.line(points, fill=255, width=max(2, round(tall * 0.32)), joint="curve")
    film.paste(level, (round(x) - half, round(y) - half), ink.reduce(2))
    return np.concatenate(strokes) + (x, y)


# film saturates: two bones on top of each other are brighter than one, but not twice as bright
_SHOULDER = (255 * (1 - np.exp(-np.arange(800) / 170))).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _textures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three fixed tiles of unit variance, each twice side by side so that a piece may start anywhere: trabecular
    grain, cloudy tissue and film noise. Images take pieces of them; fresh noise would cost half of the drawing."""
    noise = np.random.default_rng(0).standard_normal((768, 768), dtype=np.float32)
    fine = Image.fromarray(np.clip(np.pad(noise, 32, "wrap") * 40 + 128, 0, 255).astype(np.uint8))
    near, far = (np.asarray(fine.filter(ImageFilter.GaussianBlur(radius)), np.float32) for radius in (1.0, 4.0))
    grain = (near - far)[32:-32, 32:-32]
    coarse = np.pad(noise[:32, :32], 8, "wrap")
    cloud = np.asarray(Image.fromarray(coarse).resize((1152, 1152), Image.Resampling.BICUBIC))[192:-192, 192:-192]
    return tuple(np.tile(tile / tile.std(), (2, 2)) for tile in (grain, cloud, noise))


def _piece(tile: np.ndarray, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A piece of a doubled tile, at a place that `rng` chooses."""
    period = len(tile) // 2
    y, x = (int(start) for start in rng.integers(period, size=2))
    if max(shape) > period:
        tile = np.tile(tile, [-(-length // period) for length in shape])
    return tile[y : y + shape[0], x : x + shape[1]]


def _developed(shot: _Shot, bones: np.ndarray, inset: _Shapes, rng: np.random.Generator) -> Image.Image:
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


def _shortcut(key: _Key, view: int, size: tuple[int, int], side: int) -> tuple[Image.Image, Image.Image, int, int]:
    """The shortcut marker, its mask and its place x, y: a white disc with a black hole near a corner."""
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


def _draw(key: _Key, shots: Sequence[_Shot], view: int, lesion: _Lesion | None, shortcut: bool) -> View:
    """One planned view as pixels and boxes."""
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


def render_view(
    area: str,
    *,
    seed: int = 0,
    split: str = "train",
    study: int = 0,
    view: int = 0,
    lesion: bool | str = False,
    side: int = 512,
    shortcut: bool = False,
    patient: int | None = None,
) -> View:
    """One synthetic radiograph: uint8 pixels [H, W] (longest side `side`), lesion boxes, marker boxes.

    A pure function of its arguments. `lesion` True puts the lesion of the study into the views that show it (none
    of the others), one of `KINDS` does so with that kind, False gives the same image without. `patient` is the
    index of the first study of the same patient. `view` counts from 0; `study_views` says how many there are.

    Raises:
        InputError: an unknown area, split or kind, or a view that the study does not have.
    """
    _one_of("area", area, AREAS)
    _one_of("split", split, SPLITS)
    if not isinstance(lesion, bool):
        _one_of("lesion", lesion, KINDS)
    key = _Key(seed, area, split, study, study if patient is None else patient)
    shots = _plan_shots(key, side)
    if not 0 <= view < len(shots):
        raise InputError(f"view {view}: study {study} of {area} has {len(shots)} views; choose 0 to {len(shots) - 1}")
    found = _plan_lesion(key, shots, None if isinstance(lesion, bool) else lesion) if lesion else None
    return _draw(key, shots, view, found, shortcut)


def study_views(area: str, *, seed: int = 0, split: str = "train", study: int = 0) -> int:
    """The number of views of a study, 1 to 4."""
    return _view_count(_Key(seed, area, split, study, study))


# --- writing --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Task:
    """One study to write."""

    key: _Key
    folder: str  # relative to the root of the tree, posix
    positive: bool
    shortcut: float
    side: int
    rgb_fraction: float


def _write_study(root: str, task: _Task) -> tuple[int, list[tuple], list[tuple]]:
    """Writes the images of a study; gives their number, the rows of lesions.csv and of markers.csv."""
    shots = _plan_shots(task.key, task.side)
    lesion = _plan_lesion(task.key, shots, None) if task.positive else None
    folder = Path(root, task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    lesions, markers = [], []
    for view in range(len(shots)):
        chance = task.key.rng("tree", view)
        marked = bool(chance.random() < task.shortcut) and task.positive and task.key.split == "train"
        drawn = _draw(task.key, shots, view, lesion, marked)
        channels = 3 if chance.random() < task.rgb_fraction else 1
        name = f"image{view + 1}.png"
        (folder / name).write_bytes(_png(np.repeat(drawn.pixels[:, :, None], channels, 2)))
        lesions += [(f"{task.folder}/{name}", *box) for box in drawn.lesions]
        markers += [(f"{task.folder}/{name}", *box) for box in drawn.markers]
    return len(shots), lesions, markers


def _png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels [H, W, 1 or 3].

    Pillow tries all filters on each row and takes three times as long, which is a fifth of the time of an image.
    """
    height, width, channels = pixels.shape
    lines = np.empty((height, 1 + width * channels), np.uint8)
    lines[:, 0] = 2  # the filter "up": each row as its difference from the one above
    rows = pixels.reshape(height, -1)
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    deflate = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", deflate.compress(lines) + deflate.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _tasks(areas: Sequence[str], studies: dict[str, int], seed: int, positive_fraction: float, **form) -> list[_Task]:
    """Every study of the tree. Patients are numbered through, so no patient stands in two splits or areas."""
    tasks, number = [], 0
    for split, count in studies.items():
        for area in areas:
            place = (seed, AREAS.index(area), SPLITS.index(split))
            rng = np.random.default_rng(place)
            positives = round(count * positive_fraction)
            if 0 < positive_fraction < 1 < count:
                positives = min(max(positives, 1), count - 1)
            labels = rng.permutation(count) < positives
            second = rng.random(count) < _SECOND_STUDY
            first, visit = 0, 1
            for study in range(count):
                if study and second[study] and visit == 1:
                    visit = 2
                else:
                    first, visit, number = study, 1, number + 1
                verdict = "positive" if labels[study] else "negative"
                folder = f"{split}/{area}/patient{number:05d}/study{visit}_{verdict}"
                tasks.append(_Task(_Key(seed, area, split, study, first), folder, bool(labels[study]), **form))
    return tasks


def write_phantoms(
    out: str | os.PathLike,
    *,
    areas: Iterable[str] = AREAS,
    train_studies: int = 200,
    valid_studies: int = 60,
    seed: int = 0,
    side: int = 512,
    positive_fraction: float = 0.5,
    shortcut: float = 0.0,
    rgb_fraction: float = 0.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Counts of what was written: a MURA-shaped tree of synthetic radiographs at `out`.

    Beside the images and the four lists of MURA stand `lesions.csv` (where the lesion is) and `markers.csv` (where
    the L/R letter and the shortcut marker are), of columns image, kind, x0, y0, x1, y1. The tree appears whole or
    not at all, and its bytes do not depend on the number of workers.

    `train_studies` and `valid_studies` count per area. `side` is the longest side in pixels. `rgb_fraction` of the
    images are stored as RGB, as many of MURA are. `progress` is called with studies done and studies in all.

    `shortcut` is for measuring shortcut learning: with this probability an image of an abnormal TRAINING study
    carries a marker of one fixed look near a corner. No normal and no validation image carries it, so a model that
    leans on it looks good in training and falls behind on `valid`; `markers.csv` says where it stands.

    `workers` processes draw (default: one a processor, fewer for small trees; 1 stays in this process). A script
    that asks for more needs the usual `if __name__ == "__main__":` guard.

    Raises:
        InputError: `out` exists and is not empty or cannot be written; an argument is outside its range.
    """
    out, areas = Path(os.path.abspath(out)), tuple(areas)
    if not areas:
        raise InputError(f"areas is empty; choose from {', '.join(AREAS)}")
    for area in areas:
        _one_of("area", area, AREAS)
    if len(set(areas)) < len(areas):
        raise InputError(f"areas {', '.join(areas)}: an area is named twice; name each once")
    for name, value in (("train_studies", train_studies), ("valid_studies", valid_studies)):
        _at_least(name, value, 1)
    _at_least("seed", seed, 0)
    _at_least("side", side, 32)
    if workers is not None:
        _at_least("workers", workers, 1)
    fractions = {"positive_fraction": positive_fraction, "shortcut": shortcut, "rgb_fraction": rgb_fraction}
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; give a fraction from 0 to 1")
    studies = {"train": train_studies, "valid": valid_studies}
    tasks = _tasks(areas, studies, seed, positive_fraction, shortcut=shortcut, side=side, rgb_fraction=rgb_fraction)
    if workers is None:
        workers = max(1, min(os.cpu_count() or 1, len(tasks) // 24))
    try:
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} exists and is not empty; choose a new folder or empty it first")
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; choose a new folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = out.with_name(f".{out.name}.{os.getpid()}.part")
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of a dead process that had our number
            aside.mkdir()
            results = _write_studies(aside, tasks, workers, progress)
            _write_lists(aside, tasks, results)
            if out.is_dir():
                out.rmdir()  # empty; some systems do not rename onto a folder
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except BrokenProcessPool as error:
        raise InputError(
            f"cannot write {out}: a drawing process died (out of memory, or the script that called lacks "
            "`if __name__ == '__main__':`); use workers=1"
        ) from error
    except OSError as error:
        place = error.filename if error.filename in map(str, out.parents) else out
        raise InputError(f"cannot write {place}: {reason(error)}; free space or choose another folder") from error
    patients = sum(task.key.patient == task.key.study for task in tasks)
    return PhantomSummary(sum(result[0] for result in results), len(tasks), patients)


def _write_studies(root: Path, tasks: Sequence[_Task], workers: int, progress) -> list:
    """What `_write_study` gives for each task, in the order of the tasks."""
    work = functools.partial(_write_study, str(root))
    results = []
    with contextlib.ExitStack() as stack:
        if workers > 1:
            # spawned, not forked: the caller may have started TensorFlow's threads
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            done = pool.map(work, tasks, chunksize=8)
        else:
            done = map(work, tasks)
        for result in done:
            results.append(result)
            if progress:
                progress(len(results), len(tasks))
    return results


def _write_lists(root: Path, tasks: Sequence[_Task], results: Sequence) -> None:
    """The four lists of MURA and the two lists of boxes."""
    for split in SPLITS:
        here = [(task, result) for task, result in zip(tasks, results, strict=True) if task.key.split == split]
        _write_rows(
            root / f"{split}_image_paths.csv",
            ((f"MURA-v1.1/{task.folder}/image{view + 1}.png",) for task, result in here for view in range(result[0])),
        )
        _write_rows(
            root / f"{split}_labeled_studies.csv",
            ((f"MURA-v1.1/{task.folder}/", int(task.positive)) for task, _ in here),
        )
    header = ("image", *Box._fields)
    _write_rows(root / "lesions.csv", [header, *(row for _, lesions, _ in results for row in lesions)])
    _write_rows(root / "markers.csv", [header, *(row for _, _, markers in results for row in markers)])


def _write_rows(path: Path, rows: Iterable[tuple]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} {value!r} is unknown; choose from {', '.join(allowed)}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{name} is {value}; give {least} or more")
