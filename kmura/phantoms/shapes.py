"""The solids of which phantoms are made (tubes, balls and sheets) and the camera that projects them.

Coordinates are millimetres in the anatomical position of a right arm seen from the front: x points to the side of the
thumb, y from the shoulder to the fingers, z to the viewer; the elbow is the origin. The camera mirrors the image for a
left arm.
"""

import dataclasses
import math

import numpy as np

SAMPLES = 30  # points along a tube
# 0..1 along a tube, denser at both ends, where the outline curves
ALONG = (1 - np.cos(np.linspace(0, math.pi, SAMPLES))) / 2
ROUND = np.linspace(0, 2 * math.pi, 28, endpoint=False)  # angles of an outline
_CIRCLE = np.stack([np.cos(ROUND), np.sin(ROUND)])  # [2, 28]


@dataclasses.dataclass(frozen=True)
class Camera:
    """A parallel projection of millimetres in space to pixels of an image."""

    matrix: np.ndarray  # [2, 3] pixels per mm
    offset: np.ndarray  # [2] pixels
    scale: float  # pixels per mm

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixel positions [..., 2] of points [..., 3] in mm."""
        return points @ self.matrix.T + self.offset


@dataclasses.dataclass(frozen=True)
class Edges:
    """The outline of a projected tube, in pixels, sampled at `ALONG`."""

    centre: np.ndarray  # [N, 2]
    normal: np.ndarray  # [N, 2] unit vectors towards `left`
    left: np.ndarray  # [N] distance of the outer outline from the centre line
    right: np.ndarray  # [N]
    cortex: np.ndarray  # [N] thickness of the bright wall

    def sides(self, inset: float = 0.0, shrink: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Left and right outline [N, 2], moved inwards by `inset` times the cortex and scaled by `shrink`."""
        left = np.maximum(self.left * shrink - inset * self.cortex, 0)[:, None]
        right = np.maximum(self.right * shrink - inset * self.cortex, 0)[:, None]
        return self.centre + self.normal * left, self.centre - self.normal * right


@dataclasses.dataclass(frozen=True)
class Tube:
    """A long bone, the skin of a finger or a plate: a centre line with an elliptic cross-section."""

    path: np.ndarray  # [N, 3] mm
    wide: np.ndarray  # [N, 2] half-width along `side` and against it, mm
    deep: np.ndarray  # [N] half-width along `front`, mm
    side: np.ndarray  # [3] unit vector
    front: np.ndarray  # [3] unit vector
    cortex: np.ndarray  # [N] mm

    def edges(self, camera: Camera) -> Edges:
        """The outline of the projected tube."""
        centre = camera.project(self.path)
        run = np.empty_like(centre)
        run[1:-1] = centre[2:] - centre[:-2]
        run[0], run[-1] = centre[1] - centre[0], centre[-1] - centre[-2]
        run /= np.sqrt((run * run).sum(1) + 1e-12)[:, None]
        normal = np.stack([-run[:, 1], run[:, 0]], 1)
        across, depth = normal @ (camera.matrix @ self.side), normal @ (camera.matrix @ self.front)
        left, right = (0, 1) if across[len(across) // 2] > 0 else (1, 0)
        deep = self.deep * depth
        return Edges(
            centre,
            normal,
            np.hypot(self.wide[:, left] * across, deep),
            np.hypot(self.wide[:, right] * across, deep),
            self.cortex * camera.scale,
        )


@dataclasses.dataclass(frozen=True)
class Ball:
    """A carpal, a condyle or a muscle belly: an ellipsoid with a slightly irregular outline."""

    centre: np.ndarray  # [3] mm
    axes: np.ndarray  # [3, 3] half-axes as columns, mm
    wobble: np.ndarray  # [28] factors about 1
    cortex: float  # mm
    level: int | None = None  # gray level that overrides the medulla of the bone (a fossa is darker, a condyle lighter)

    def outline(self, camera: Camera, inset: float = 0.0, shrink: float = 1.0) -> np.ndarray:
        """The outline [28, 2], pixels; `inset` is in units of the cortex."""
        axes = camera.matrix @ self.axes
        gram = axes @ axes.T
        a = math.sqrt(max(gram[0, 0], 1e-9))
        b = gram[0, 1] / a
        c = math.sqrt(max(gram[1, 1] - b * b, 1e-9))
        shrink -= inset * self.cortex * camera.scale / max(math.sqrt(a * c), 1e-9)
        ring = np.array([[a, 0], [b, c]]) @ (_CIRCLE * (self.wobble * max(shrink, 0)))
        return ring.T + camera.project(self.centre)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A flat bone (the blade of the scapula): a closed outline in space."""

    points: np.ndarray  # [N, 3] mm
    rim: float  # width of the bright border, mm


@dataclasses.dataclass(frozen=True)
class Bone:
    """Parts that are drawn as one, so that overlapping parts do not add up. Lesions are placed in the first part."""

    name: str
    parts: tuple[Tube | Ball | Sheet, ...]
    cortex_level: int
    medulla_level: int

    def reaches(self, camera: Camera, size: tuple[int, int]) -> bool:
        """Whether any part of the bone can be visible in an image of `size` (width, height), pixels."""
        main = self.parts[0]
        points = main.path if isinstance(main, Tube) else main.points if isinstance(main, Sheet) else main.centre
        flat = camera.project(np.atleast_2d(points))
        room = 50 * camera.scale  # no part of a bone is more than 50 mm away from the centre line of the first
        return bool((flat.max(0) > -room).all() and (flat.min(0) < np.add(size, room)).all())


@dataclasses.dataclass(frozen=True)
class Pose:
    """The position of a patient before the camera. Angles are in degrees."""

    turn: float = 0.0  # about the long axis: 0 frontal, 90 lateral
    tilt: float = 0.0  # about the transverse axis
    roll: float = 0.0  # in the image plane
    elbow: float = 0.0  # flexion
    fingers: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)  # flexion of thumb ... little finger
    curl: float = 0.0  # flexion of each finger joint
    spread: float = 1.0
    alone: bool = False  # only this finger is visible (lateral view), its neighbours are folded away


@dataclasses.dataclass(frozen=True)
class Figure:
    """One patient in one pose, and the region on which the image is centred."""

    bones: tuple[Bone, ...]
    skin: tuple[Tube | Ball, ...]
    air: tuple[Ball, ...]  # lungs
    region: np.ndarray  # [K, 3] mm, points that must be in the image
    sites: dict[str, tuple[float, float]]  # bone name -> interval (0..1 along it) where a lesion may be


def rotation(turn: float, tilt: float, roll: float) -> np.ndarray:
    """The rotation matrix of angles in degrees: about y, then x, then in the image plane."""
    a, b, c = (math.radians(angle) for angle in (turn, tilt, roll))
    about_y = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return about_z @ about_x @ about_y
