"""Synthetic CT heads with twenty labelled regions, for tests and demonstrations.

A head is an ellipsoid of brain in a skull and a scalp, with ventricles. Each hemisphere has ten regions: four deep
ones, which differ in gray value, and six of the outer brain, which differ in position alone, as the ASPECTS regions do.
The files have the layout that `kmura segment build` expects: `1.nii.gz` (the scan, tilted), `1.txt` (the ITK transform
from the space of the labels to that of the scan), `1-seg.nii.gz` (the labels); then `2.nii.gz`, ...
"""

import os
from pathlib import Path

import numpy as np
from scipy import ndimage

from kmura.errors import InputError
from kmura.itk import simpleitk

AIR, SCALP, BONE, BRAIN, FLUID = -1000.0, 40.0, 900.0, 32.0, 5.0  # HU
NOISE = 6.0  # standard deviation, HU
FIELD = 200.0  # side of the volume, mm
BRAIN_AXES = (62.0, 80.0, 55.0)  # half axes to the left, to the back and to the head, mm
SKULL, SKIN = 8.0, 6.0  # thickness, mm
# region of one side -> centre (to the left, back, head) and half axes as shares of those of the brain, HU
DEEP = {
    "caudate": ((0.20, -0.18, 0.15), (0.10, 0.18, 0.16), 41.0),
    "lentiform": ((0.42, -0.02, 0.00), (0.13, 0.20, 0.18), 45.0),
    "internal_capsule": ((0.30, 0.05, 0.06), (0.05, 0.24, 0.20), 25.0),
    "insula": ((0.61, 0.00, -0.02), (0.06, 0.26, 0.22), 38.0),
}
ORDER = ("caudate", "lentiform", "internal_capsule", "insula", "M4", "M5", "M6", "M1", "M2", "M3")


def write_heads(
    out: str | os.PathLike, heads: int = 4, *, spacing: float = 4.0, seed: int = 0, max_angle: float = 10.0
) -> Path:
    """Writes heads and returns their folder; the same arguments give the same voxels.

    Args:
        out: the folder.
        heads: number of heads.
        spacing: size of a voxel, mm.
        seed: of the shapes, the tilts and the noise.
        max_angle: largest tilt of a scan about each axis, degrees.

    Raises:
        InputError: SimpleITK is not installed, or an argument is not positive.
    """
    sitk = simpleitk()
    if heads < 1 or not spacing > 0:
        raise InputError(f"heads is {heads} and spacing {spacing:g} mm; give 1 or more, and a positive size of a voxel")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for number in range(1, heads + 1):
        rng = np.random.default_rng([seed, number])
        image, labels = head(rng, spacing)
        angles = np.radians(rng.uniform(-max_angle, max_angle, 3))
        tilt = sitk.Euler3DTransform((0.0, 0.0, 0.0), *angles.tolist(), rng.uniform(-6, 6, 3).tolist())
        scan = sitk.Resample(image, image, tilt.GetInverse(), sitk.sitkLinear, AIR)
        noisy = sitk.GetArrayFromImage(scan) + rng.normal(0, NOISE, scan.GetSize()[::-1])
        tilted = sitk.GetImageFromArray(np.clip(noisy, -1024, 3071).round().astype(np.int16))
        tilted.CopyInformation(scan)
        matrix = sitk.AffineTransform(3)  # written as the older data set has it: a matrix and an offset
        matrix.SetMatrix(tilt.GetMatrix())
        matrix.SetTranslation(tilt.GetTranslation())
        sitk.WriteImage(tilted, str(out / f"{number}.nii.gz"))
        sitk.WriteTransform(matrix, str(out / f"{number}.txt"))
        sitk.WriteImage(labels, str(out / f"{number}-seg.nii.gz"))
    return out


def head(rng: np.random.Generator, spacing: float):
    """Returns a head and its labels on one grid, SimpleITK images: HU float32, and class numbers uint8.

    Labels 1 to 10 are on the patient's left, 11 to 20 on the right, in the order of ORDER.

    Args:
        rng: of the shape.
        spacing: size of a voxel, mm.
    """
    sitk = simpleitk()
    count = round(FIELD / spacing)
    axis = (np.arange(count) - (count - 1) / 2) * spacing
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    size = np.array(BRAIN_AXES) * rng.uniform(0.92, 1.08, 3)
    # a smooth deformation, the same for both sides up to a little: heads are nearly symmetric
    bend = [ndimage.zoom(rng.normal(0, 2.0, (4, 4, 4)), count / 4, order=3, mode="nearest") for _ in range(3)]
    x, y, z = (place + shift for place, shift in zip((x, y, z), bend, strict=True))
    inner = np.sqrt((x / size[0]) ** 2 + (y / size[1]) ** 2 + (z / size[2]) ** 2)
    thickness = size.mean()
    hu = np.full(inner.shape, AIR)
    # face and neck: without them, a head would also be symmetric about other planes
    below = z < -0.55 * size[2]
    hu[below & (np.hypot(x, y - 0.25 * size[1]) < 0.8 * size[0])] = SCALP
    hu[below & (np.hypot(x, y - 0.3 * size[1]) < 0.2 * size[0])] = BONE
    face = (
        (x / (0.7 * size[0])) ** 2
        + ((y + 0.75 * size[1]) / (0.5 * size[1])) ** 2
        + ((z + 0.7 * size[2]) / size[2]) ** 2
    )
    hu[face < 1] = SCALP
    hu[inner < 1 + (SKULL + SKIN) / thickness] = SCALP
    hu[inner < 1 + SKULL / thickness] = BONE
    hu[inner < 1] = BRAIN
    hu[(np.abs(x) < 0.16 * size[0]) & (np.abs(y) < 0.3 * size[1]) & (np.abs(z - 6) < 0.14 * size[2])] = FLUID
    labels = np.zeros(inner.shape, np.uint8)
    across, back, up = np.abs(x) / size[0], y / size[1], z / size[2]
    outer = (inner < 0.97) & (across > 0.5) & (np.abs(back) < 0.75) & (up > -0.45)
    third = np.clip(np.floor((back + 0.75) / 0.5), 0, 2).astype(int)
    for place in range(3):
        for first, level in ((8, up <= 0.15), (5, up > 0.15)):
            labels[outer & level & (third == place)] = first + place
    for place, (centre, half, value) in enumerate(DEEP.values(), start=1):
        distance = sum(
            ((along - middle) / share) ** 2
            for along, middle, share in zip((across, back, up), centre, half, strict=True)
        )
        inside = distance < 1
        labels[inside], hu[inside] = place, value
    labels[(labels > 0) & (x < 0)] += len(ORDER)
    image = sitk.GetImageFromArray(ndimage.gaussian_filter(hu, 0.5).astype(np.float32))
    numbers = sitk.GetImageFromArray(labels)
    for one in (image, numbers):
        one.SetSpacing((spacing,) * 3)
        one.SetOrigin((float(axis[0]),) * 3)
    return image, numbers
