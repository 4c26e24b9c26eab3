"""The synthetic skeleton of a phantom: posed bones and skin of every area, without lesions."""

import math
from collections.abc import Sequence

import numpy as np

from kmura.phantoms.shapes import ALONG, ROUND, SAMPLES, Ball, Bone, Figure, Pose, Sheet, Tube, rotation


def _blend(at: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Weights [N, K] that interpolate K values at positions `at` [K] to positions `where` [N] (cubic Hermite)."""
    slope = np.gradient(np.eye(len(at)), at, axis=0)
    cell = np.clip(np.searchsorted(at, where, "right") - 1, 0, len(at) - 2)
    width = (at[cell + 1] - at[cell])[:, None]
    s = (where - at[cell])[:, None] / width
    start, end = np.eye(len(at))[cell], np.eye(len(at))[cell + 1]
    return (
        (2 * s**3 - 3 * s**2 + 1) * start
        + (s**3 - 2 * s**2 + s) * width * slope[cell]
        + (3 * s**2 - 2 * s**3) * end
        + (s**3 - s**2) * width * slope[cell + 1]
    )


def _profile(at: Sequence[float], half: Sequence[float]) -> np.ndarray:
    return _blend(np.array(at, float), ALONG) @ np.array(half, float)


# half-widths along a bone, as fractions of the largest half-width
PROFILES = {
    "even": np.ones(SAMPLES),
    "metacarpal": _profile((0, 0.08, 0.2, 0.5, 0.75, 0.9, 1), (0.95, 0.97, 0.74, 0.55, 0.66, 0.97, 0.9)),
    "phalanx": _profile((0, 0.08, 0.25, 0.55, 0.8, 0.93, 1), (1, 0.98, 0.7, 0.56, 0.6, 0.76, 0.72)),
    "tip": _profile((0, 0.1, 0.3, 0.6, 0.85, 1), (1, 0.95, 0.56, 0.42, 0.58, 0.5)),
    "radius": _profile(
        (0, 0.04, 0.07, 0.11, 0.16, 0.25, 0.5, 0.75, 0.87, 0.95, 1),
        (0.7, 0.74, 0.52, 0.46, 0.6, 0.5, 0.52, 0.52, 0.7, 0.98, 0.96),
    ),
    "ulna": _profile((0, 0.06, 0.15, 0.3, 0.5, 0.75, 0.9, 0.96, 1), (0.9, 1, 0.9, 0.68, 0.62, 0.54, 0.5, 0.7, 0.62)),
    "humerus": _profile(
        (0, 0.06, 0.12, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97, 1),
        (0.76, 0.76, 0.64, 0.5, 0.42, 0.4, 0.42, 0.5, 0.76, 1, 0.92),
    ),
    "humerus_depth": _profile(
        (0, 0.06, 0.12, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97, 1),
        (0.74, 0.74, 0.6, 0.5, 0.42, 0.4, 0.38, 0.34, 0.3, 0.26, 0.24),
    ),
    "clavicle": _profile((0, 0.1, 0.3, 0.55, 0.8, 0.93, 1), (1.0, 0.85, 0.62, 0.58, 0.68, 0.95, 1)),
    "forearm_skin": _profile((0, 0.2, 0.5, 0.8, 0.95, 1), (1, 1, 0.86, 0.66, 0.62, 0.66)),
    "arm_skin": _profile((0, 0.25, 0.6, 0.85, 1), (1, 0.98, 0.86, 0.78, 0.84)),
    "forearm_depth": _profile((0, 0.2, 0.5, 0.8, 0.95, 1), (1, 1, 0.8, 0.52, 0.42, 0.4)),
    "palm_skin": _profile((0, 0.25, 0.6, 1), (0.74, 0.78, 0.98, 1)),
    "finger_skin": _profile((0, 0.3, 0.6, 0.8, 1), (1, 0.9, 0.88, 0.8, 0.68)),
}
_WALL = 0.22 + 0.78 * np.sin(math.pi * ALONG) ** 1.3  # the cortex is thick in the middle of a shaft, thin at the ends


_FROM_END = np.minimum(ALONG, 1 - ALONG)
_STEPS = 1 / np.diff(ALONG).max()  # length of a tube in units of its longest step
_WAVES = np.stack([np.sin(9 * ALONG), np.cos(9 * ALONG), np.sin(16 * ALONG), np.cos(16 * ALONG)], 1)
# number of control points -> weights that turn control points, evenly spaced, into the centre line
_PATHS = {count: _blend(np.linspace(0, 1, count), ALONG) for count in range(2, 7)}


class _Builder:
    """Collects the bones and skin of one patient. The order of the random draws must not depend on the pose."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.size = rng.uniform(0.92, 1.08)
        self.girth = rng.uniform(0.85, 1.25)
        self.stout = rng.uniform(0.9, 1.15)  # bone width
        self.wall = rng.uniform(0.75, 1.25)
        self.density = rng.uniform(0.82, 1.15)
        self.bones: list[Bone] = []
        self.skin: list[Tube | Ball] = []
        self.air: list[Ball] = []
        self.frame, self.origin = np.eye(3), np.zeros(3)

    def place(self, points) -> np.ndarray:
        return np.asarray(points, float) @ self.frame.T * self.size + self.origin

    def at(self, origin, flexion: float = 0.0) -> None:
        """Makes later points relative to `origin`, which is placed now, and flexed by `flexion` degrees."""
        self.origin = self.place(origin)
        self.frame = self.frame @ rotation(0, flexion, 0)

    def tube(
        self, points, profile, half, *, depth=None, deep_profile=None, side=(1, 0, 0), wall=0.36, wobble=0.035, cap=0.6
    ) -> Tube:
        path = _PATHS[len(points)] @ self.place(points)
        steps = path[1:] - path[:-1]
        length = math.sqrt((steps * steps).sum(1).max()) * _STEPS
        half *= self.size
        round_off = max(cap * half / length, 1e-3)
        end = np.maximum(1 - _FROM_END / round_off, 0)
        ends = (1 - end * end * np.sqrt(end)) ** 0.4
        shape = PROFILES[profile] * ends
        waves = _WAVES @ self.rng.uniform(-1, 1, (4, 2))
        wide = half * shape[:, None] * (1 + 1.4 * wobble * waves)
        deep = (half if depth is None else depth * self.size) * PROFILES[deep_profile or profile] * ends
        axis = path[-1] - path[0]
        axis = axis / math.sqrt(axis @ axis)
        side = self.frame @ side
        side = side - axis * (side @ axis)
        side /= math.sqrt(side @ side)
        (a, b, c), (d, e, f) = axis, side
        front = np.array([b * f - c * e, c * d - a * f, a * e - b * d])
        slim = half * PROFILES[profile][SAMPLES // 2]
        return Tube(path, wide, deep, side, front, wall * self.wall * slim * _WALL)

    def ball(self, centre, radii, lean: float = 0.0, cortex: float = 0.9, wobble: float = 0.05, level=None) -> Ball:
        phase = self.rng.uniform(0, 2 * math.pi, 3)
        waves = np.cos(2 * ROUND + phase[0]) + np.cos(3 * ROUND + phase[1]) + 0.6 * np.cos(4 * ROUND + phase[2])
        axes = self.frame @ rotation(0, 0, lean) @ np.diag(radii) * self.size
        return Ball(self.place(centre), axes, 1 + wobble * waves, cortex * self.wall * self.size, level)

    def bone(self, name: str, *parts, cortex: int = 138, medulla: int = 80) -> None:
        self.bones.append(Bone(name, parts, int(cortex * self.density), int(medulla * self.density)))

    def long_bone(self, name, start, end, profile, half, bow=(0, 0, 0), **options) -> None:
        start, end = np.asarray(start, float), np.asarray(end, float)
        middle = (start + end) / 2 + np.asarray(bow, float)
        self.bone(name, self.tube([start, middle, end], profile, half * self.stout, **options))

    def wrap(self, points, profile, half, depth=None, **options) -> None:
        half, depth = half * self.girth, None if depth is None else depth * self.girth
        self.skin.append(self.tube(points, profile, half, depth=depth, wobble=0.02, **options))

    def belly(self, centre, radii, lean: float = 0.0) -> None:
        self.skin.append(self.ball(centre, np.asarray(radii) * self.girth, lean, wobble=0.02))


# thumb to little finger: base of the metacarpal (x, y from the wrist), its direction in degrees, lengths of
# the metacarpal and the phalanges, half-widths; mm
_RAYS = (
    ((22, 36), 36, (46, 32, 23), (7.2, 7.0, 6.6)),
    ((15, 42), 8, (67, 41, 24, 18), (7.4, 7.6, 6.6, 5.4)),
    ((2, 43), 0, (65, 46, 29, 19), (7.2, 7.8, 6.9, 5.6)),
    ((-9, 41), -7, (58, 43, 28, 19), (6.5, 7.3, 6.5, 5.4)),
    ((-18, 38), -15, (53, 34, 20, 17), (6.4, 6.7, 5.8, 5.0)),
)
# name, centre, half-axes, lean; mm from the wrist
_CARPALS = (
    ("scaphoid", (12, 15, 0), (7, 12, 7), -38),
    ("lunate", (-1, 11, 0), (8.5, 7.5, 8), 10),
    ("triquetrum", (-13, 16, -2), (7, 8, 7), 35),
    ("pisiform", (-15, 18, 8), (5, 5.5, 5), 0),
    ("trapezium", (20, 27, 3), (7.5, 8, 7), -30),
    ("trapezoid", (12, 33, 0), (6, 7, 7), 0),
    ("capitate", (1, 29, 0), (7, 12.5, 8), 0),
    ("hamate", (-11, 30, 1), (8, 10.5, 8), 15),
)


def _hand(
    b: _Builder, pose: Pose, rays: Sequence[int] = (0, 1, 2, 3, 4), carpals: bool = True, reach: int = 4
) -> list[np.ndarray]:
    """Adds a hand with its wrist at the origin of the builder and returns the joints [K, 3] of each ray, mm.

    Each ray is drawn up to bone number `reach` (1 is the metacarpal, 4 the tip).
    """
    if carpals:
        for name, centre, radii, lean in _CARPALS:
            radii = np.array(radii) * b.rng.uniform(0.88, 1.0)
            b.bone(name, b.ball(centre, radii, lean + b.rng.normal(0, 5), 1.2, 0.07), cortex=118, medulla=80)
        b.wrap([(0, -16, 0), (0, 20, 0), (1, 55, 0), (2, 108, 0)], "palm_skin", 39, 16, deep_profile="even", cap=0.12)
        b.wrap([(12, 5, 2), (24, 35, 5), (31, 64, 5)], "even", 17, 15)
    chains = []
    patient, own = b.rng, b.rng.spawn(5)  # a ray looks the same with and without its neighbours
    for ray in range(5):
        b.rng = own[ray]
        (x, y), aim, lengths, halves = _RAYS[ray]
        lengths = np.array(lengths) * b.rng.uniform(0.95, 1.05)
        aim += b.rng.normal(0, 1.5)
        if ray not in rays:
            continue
        aim = math.radians(aim * (pose.spread if ray else 1.0))
        side = (0.55, 0, 0.83) if ray == 0 else (1, 0, 0)
        point = np.array([x, y, 4.0 if ray == 0 else 0.0])
        chain = [point]
        flexion = 0.0 if ray else math.radians(12)
        for joint, (length, half) in enumerate(zip(lengths, halves, strict=True)):
            if joint:
                flexion += math.radians(pose.fingers[ray] if joint == 1 else pose.curl)
            lean = aim * (1.25 if joint else 1.0) if ray else aim * (0.75 if joint else 1.0)
            heading = np.array(
                [math.sin(lean) * math.cos(flexion), math.cos(lean) * math.cos(flexion), math.sin(flexion)]
            )
            start, end = point + heading * 0.8, point + heading * (length - 0.8)
            profile = "metacarpal" if joint == 0 else "tip" if joint == len(lengths) - 1 else "phalanx"
            bow = np.array([0, -math.sin(flexion), math.cos(flexion)]) * -0.02 * length
            if joint < reach:
                b.long_bone(f"{profile}{ray + 1}{joint}", start, end, profile, half, bow, depth=half * 0.82, side=side)
            point = point + heading * length
            chain.append(point)
        first = 1 if ray else 0
        tip = chain[-1] + (chain[-1] - chain[-2]) * 0.2
        start = chain[first] - (chain[first + 1] - chain[first]) * (0.25 if carpals else 1.1)
        b.wrap([start, *chain[first + 1 : -1], tip], "finger_skin", 1.4 * halves[1], 1.3 * halves[1], side=side)
        chains.append(b.place(chain))
    b.rng = patient
    return chains


def _forearm(b: _Builder) -> None:
    """Adds radius and ulna below the elbow (the builder's origin); the wrist is at (0, 245, 0)."""
    radius = b.tube(
        [(15, 14, 2), (14, 92, 3), (17, 170, 3), (9, 247, 0)], "radius", 15.5 * b.stout, depth=11.5, cap=0.35
    )
    b.bone("radius", radius, b.ball((20, 243, 0), (4, 7, 5)))
    ulna = b.tube([(-7, 16, -4), (-8, 90, -4), (-11, 163, -2), (-14, 236, -4)], "ulna", 11.5 * b.stout, depth=11)
    hook = b.tube([(-7, 40, -7), (-7, 10, -15), (-7, -19, -15)], "even", 10, depth=7.5)
    b.bone("ulna", ulna, hook, b.ball((-7, 17, 7), (9, 5, 8), 0), b.ball((-20, 235, -5), (2.5, 7, 2.5)))
    b.belly((0, 0, -2), (40, 36, 37))
    b.wrap(
        [(0, 5, 0), (0, 90, 0), (0, 180, 0), (0, 255, 0)], "forearm_skin", 44, 38, deep_profile="forearm_depth", cap=0.1
    )


def _humerus(b: _Builder, spin: float = 0.0) -> None:
    """Adds the humerus above the elbow (the builder's origin)."""
    shaft = b.tube(
        [(6, -292, 0), (4, -200, 2), (1, -100, 2), (0, 0, 0)],
        "humerus",
        28 * b.stout,
        depth=28 * b.stout,
        deep_profile="humerus_depth",
        wall=0.4,
        cap=0.28,
    )
    turned = rotation(spin, 0, 0)
    head, knob = turned @ np.array([-13, 0, -4]), turned @ np.array([13, 0, 6])
    b.bone(
        "humerus",
        shaft,
        b.ball(head + (4, -292, 0), (24, 23, 23), -20, 1.2, 0.015, level=96),
        b.ball(knob + (6, -285, 0), (10, 17, 10), 0, 1.4, 0.03),
        b.ball((-8, 0, 3), (14, 10, 11), -8, 1.0, 0.03),
        b.ball((13, 0, 4), (11, 10, 11), 0, 1.0, 0.03),
        b.ball((0, -18, 0), (10, 7, 3), 0, 0.4, 0.05, level=52),
    )
    b.wrap([(14, -285, 0), (8, -180, 0), (3, -80, 0), (0, 12, 0)], "arm_skin", 50, 48, cap=0.25)


def _shoulder(b: _Builder) -> None:
    """Adds scapula, clavicle, ribs, lung and trunk beside the head of the humerus."""
    blade = np.array(
        [
            (-36, -312, 2),
            (-38, -272, 0),
            (-62, -235, -10),
            (-98, -172, -26),
            (-112, -172, -32),
            (-128, -240, -46),
            (-136, -318, -50),
            (-112, -332, -40),
            (-72, -318, -18),
        ],
        float,
    )
    blade += b.rng.normal(0, 2.5, blade.shape)
    closed = np.concatenate([blade, blade[:1]])
    outline = _blend(np.linspace(0, 1, len(closed)), np.linspace(0, 1, 44)) @ b.place(closed)
    b.bone("blade", Sheet(outline, 4.0 * b.wall), cortex=70, medulla=34)
    b.bone(
        "glenoid",
        b.ball((-34, -291, 0), (6, 19, 13), -8, 1.6, 0.04),
        b.ball((-48, -291, -4), (15, 16, 9), -8, 0.0, 0.06, level=52),
        cortex=112,
        medulla=70,
    )
    b.bone(
        "acromion",
        b.tube([(-124, -296, -50), (-70, -318, -44), (-14, -338, -34), (10, -334, -8)], "clavicle", 10, depth=8),
        cortex=92,
        medulla=56,
    )
    b.bone(
        "coracoid",
        b.ball((-40, -318, 16), (15, 8, 15), -24, 1.0, 0.04),
        b.ball((-54, -312, 2), (10, 8, 8), 20, 0.6, 0.04),
        cortex=92,
        medulla=60,
    )
    b.bone(
        "clavicle",
        b.tube(
            [(-2, -342, -6), (-50, -352, -6), (-100, -346, 16), (-168, -336, 30)],
            "clavicle",
            9.5 * b.stout,
            depth=8,
            wall=0.4,
        ),
        cortex=120,
        medulla=72,
    )
    for rib in range(7):
        top = -352 + 26 * rib + b.rng.normal(0, 2)
        reach = min(16.0 * rib, 44)
        b.bone(
            f"rib{rib}",
            b.tube(
                [
                    (-200, top - 4, -80),
                    (-150 + reach / 2, top, -66),
                    (-112 + reach / 2, top + 28, -14),
                    (-122 + reach / 2, top + 62, 46),
                    (-175, top + 92, 74),
                ],
                "even",
                6,
                depth=4,
            ),
            cortex=52,
            medulla=34,
        )
    b.belly((10, -276, 0), (44, 62, 46))
    b.belly((-70, -290, -10), (70, 58, 44))
    b.belly((-190, -230, 0), (104, 160, 95))
    b.wrap([(-190, -420, 0), (-120, -372, -8), (-20, -336, -6)], "even", 44, 40)
    b.air.append(b.ball((-186, -250, 0), (74, 118, 80), 4, wobble=0.02))


def figure(area: str, rng: np.random.Generator, pose: Pose) -> Figure:
    """The bones and skin of one area in a pose.

    `rng` determines the patient: a new generator of the same seed for every pose gives the same anatomy.
    """
    b = _Builder(rng)
    sites: dict[str, tuple[float, float]]
    if area == "XR_SHOULDER":
        _humerus(b, spin=pose.elbow)  # the elbow is outside the image: the angle turns the arm about its own axis
        _shoulder(b)
        region = b.place([(48, -300, 0), (-140, -290, 0), (-40, -372, 0), (-20, -205, 0)])
        sites = {"humerus": (0.09, 0.24), "clavicle": (0.15, 0.72)}
    elif area == "XR_HUMERUS":
        _humerus(b)
        _shoulder(b)
        region = b.place([(45, -300, 0), (-62, -300, 0), (0, -342, 0), (0, 34, 0), (40, -100, 0), (-40, -100, 0)])
        b.at((0, 0, 0), pose.elbow)
        _forearm(b)
        sites = {"humerus": (0.12, 0.84)}
    elif area == "XR_ELBOW":
        _humerus(b)
        arm = b.place([(42, -92, 0), (-42, -92, 0), (0, -92, 40), (0, -30, -34)])
        b.at((0, 0, 0), pose.elbow)
        _forearm(b)
        region = np.concatenate([arm, b.place([(40, 95, 0), (-40, 95, 0), (0, 95, 32), (0, 30, -34)])])
        sites = {"humerus": (0.74, 0.9), "ulna": (0.1, 0.36), "radius": (0.1, 0.34)}
    elif area == "XR_FOREARM":
        _humerus(b)
        b.at((0, 0, 0), pose.elbow)
        _forearm(b)
        region = b.place([(44, -24, 0), (-44, -24, 0), (0, -24, 40), (0, -20, -40), (0, 272, 0)])
        b.at((0, 245, 0))
        _hand(b, pose, reach=1)
        sites = {"radius": (0.16, 0.9), "ulna": (0.16, 0.92)}
    elif area == "XR_WRIST":
        _forearm(b)
        region = b.place([(38, 180, 0), (-38, 180, 0), (40, 328, 0), (-40, 328, 0), (0, 250, 28), (0, 250, -28)])
        b.at((0, 245, 0))
        _hand(b, pose, reach=2)
        sites = {
            "radius": (0.76, 0.92),
            "ulna": (0.76, 0.92),
            "metacarpal10": (0.25, 0.75),
            "metacarpal50": (0.2, 0.7),
        }
    elif area == "XR_HAND":
        _forearm(b)
        b.at((0, 245, 0))
        chains = _hand(b, pose)
        tips = np.stack([chain[-1] for chain in chains])
        region = np.concatenate([b.place([(35, -6, 0), (-35, -6, 0)]), tips + b.place([(0, 8, 0)]) - b.origin])
        sites = {
            f"{kind}{ray}{joint}": stretch
            for ray in range(1, 6)
            for kind, joint, stretch in (("metacarpal", 0, (0.2, 0.8)), ("phalanx", 1, (0.25, 0.75)))
        }
    elif area == "XR_FINGER":
        ray = int(b.rng.choice(5, p=(0.2, 0.25, 0.25, 0.15, 0.15)))
        near = [ray] if pose.alone or ray == 0 else [other for other in (ray - 1, ray, ray + 1) if 1 <= other <= 4]
        chains = dict(zip(near, _hand(b, pose, near, carpals=False), strict=True))
        finger = chains[ray]
        half = 13 * b.size
        region = np.concatenate(
            [
                finger[1:] + (half, 0, 0),
                finger[1:] - (half, 0, 0),
                finger[1:] + (0, 0, half),
                finger[1:] - (0, 0, half),
                [finger[1] * 0.6 + finger[0] * 0.4],
                [finger[-1] * 1.3 - finger[-2] * 0.3],
            ]
        )
        sites = {f"phalanx{ray + 1}{joint}": (0.2, 0.8) for joint in ((1,) if ray == 0 else (1, 2))}
    else:
        raise ValueError(f"no anatomy for area {area!r}")
    return Figure(tuple(b.bones), tuple(b.skin), tuple(b.air), region, sites)
