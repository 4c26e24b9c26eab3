"""The plan of a study of phantoms, made before drawing: views, patient, exposure field, marker, lesion."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kmura.phantoms.anatomy import figure
from kmura.phantoms.shapes import ALONG, Bone, Camera, Figure, Pose, rotation

AREAS = ("XR_ELBOW", "XR_FINGER", "XR_FOREARM", "XR_HAND", "XR_HUMERUS", "XR_SHOULDER", "XR_WRIST")
KINDS = ("fracture", "hardware", "lytic")
SPLITS = ("train", "valid")
MAX_VIEWS = 4

_VIEW_COUNTS = (0.12, 0.33, 0.42, 0.13)  # probabilities of 1, 2, 3 and 4 views; MURA has 2.7 images per study
SECOND_STUDY = 0.15  # probability that a patient has a second study
_ONE_VIEW_ONLY = 0.12  # probability that only one of several views shows the lesion

# separate streams of random numbers: adding a lesion or a marker does not change the rest of the image
_STREAMS = ("anatomy", "study", "camera", "lesion", "exposure", "shortcut", "tree", "views")

# the projections of an area, the most common first; a study has some of them
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


@dataclasses.dataclass(frozen=True)
class StudyKey:
    """The key of all random numbers of a study."""

    seed: int
    area: str
    split: str
    study: int
    patient: int  # index of the patient's first study

    def rng(self, stream: str, view: int = 0) -> np.random.Generator:
        """The random numbers of one stream: of the patient for `anatomy`, of the study otherwise."""
        number = self.patient if stream == "anatomy" else self.study
        key = (AREAS.index(self.area), SPLITS.index(self.split), number, view, _STREAMS.index(stream))
        return np.random.default_rng([self.seed, *key])


@dataclasses.dataclass(frozen=True)
class Shot:
    """One view before it is drawn."""

    figure: Figure
    camera: Camera
    size: tuple[int, int]  # width, height of the working image, pixels
    finer: int  # working pixels per pixel of the final image, along each axis
    extent: float  # longest side of the image in mm
    field: np.ndarray | None  # corners [4, 2] of the collimated field, pixels
    letter: tuple[float, float, float, float] | None  # centre x, y, height, degrees, pixels
    left: bool  # the patient's left side

    @property
    def longest(self) -> int:
        """The longest side of the working image, pixels."""
        return max(self.size)


@dataclasses.dataclass(frozen=True)
class Lesion:
    """The lesion of an abnormal study, the same in all views that show it."""

    kind: str
    bone: str
    at: float  # 0..1 along the bone
    extent: float  # mm; relative sizes refer to it
    views: tuple[int, ...]
    form: dict  # sizes and angles, drawn once for all views


def _plan_shot(key: StudyKey, pose: Pose, view: int, left: bool, side: int) -> Shot:
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
        inset = rng.uniform(-0.04, 0.09, 4) * longest  # a negative inset is outside the image: no border on that side
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
    return Shot(body, camera, size, finer, extent, field, letter, left)


def view_count(key: StudyKey) -> int:
    """The number of views of a study, 1 to MAX_VIEWS."""
    return 1 + int(key.rng("views").choice(MAX_VIEWS, p=_VIEW_COUNTS))


def plan_shots(key: StudyKey, side: int) -> list[Shot]:
    """The views of a study."""
    count = view_count(key)
    rng = key.rng("study")
    left = bool(rng.random() < 0.5)
    poses = _PROJECTIONS[key.area]
    weights = np.array((0.4, 0.3, 0.18, 0.12))
    chosen = rng.choice(len(poses), size=count, replace=False, p=weights)
    return [_plan_shot(key, poses[which], view, left, side) for view, which in enumerate(chosen)]


def _inside(point: np.ndarray, shot: Shot) -> bool:
    """Whether a lesion at `point` is visible: in the image and the collimated field, not under the marker."""
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


def bone_named(body: Figure, name: str) -> Bone:
    """The bone of a figure with this name."""
    return next(bone for bone in body.bones if bone.name == name)


def plan_lesion(key: StudyKey, shots: Sequence[Shot], kind: str | None) -> Lesion:
    """The lesion of an abnormal study: its kind, its position, and the views that show it."""
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
            main = bone_named(shots[view].figure, bone).parts[0]
            point = shots[view].camera.project(main.path[np.searchsorted(ALONG, at)])
            if _inside(point, shots[view]):
                seen.append(view)
        if best is None or len(seen) > best[0]:
            best = (len(seen), bone, at, seen)
        if len(seen) == len(views):
            break
    _, bone, at, seen = best  # if all 40 positions fail, which is rare, the best of them is used
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
    return Lesion(kind or drawn, bone, at, extent, tuple(seen or views), form)
