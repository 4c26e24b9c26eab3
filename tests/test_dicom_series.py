"""DICOM series as volumes: order, geometry, what is refused."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_ct_series
from scipy import ndimage
from volume_files import UPRIGHT, refused, values_of, world

from kmura.segmentation.volumes import (
    read_volume,
)

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


SLICES = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8))
STRAIGHT = [(-10, 20, 3 * number) for number in range(6)]


def test_a_series_is_ordered_by_position_and_rescaled(tmp_path):
    write_ct_series(tmp_path, SLICES[::-1], STRAIGHT[::-1])
    image = read_volume(tmp_path)
    assert image.GetPixelID() == sitk.sitkInt16
    assert np.array_equal(values_of(image), SLICES)
    assert image.GetSpacing() == pytest.approx((3, 2, 3))
    assert image.GetOrigin() == pytest.approx((-10, 20, 0))
    assert image.GetDirection() == pytest.approx(UPRIGHT)


def test_a_fractional_slope_is_applied(tmp_path):
    write_ct_series(tmp_path, SLICES / 2, STRAIGHT, slope=0.5)
    assert np.array_equal(values_of(read_volume(tmp_path)), SLICES / 2)


def test_one_of_several_series_is_chosen_by_its_uid(tmp_path):
    first = write_ct_series(tmp_path, SLICES, STRAIGHT)
    second = write_ct_series(tmp_path, SLICES[:4] + 1, STRAIGHT[:4], first=50)
    refused(read_volume, tmp_path, "contains 2 series", f"{first} (6 slices)", f"{second} (4 slices)")
    refused(lambda path: read_volume(path, series="1.2"), tmp_path, "no series 1.2", f"{first} (6 slices)")
    assert np.array_equal(values_of(read_volume(tmp_path, series=second)), SLICES[:4] + 1)


def heights(*numbers):
    """Returns positions of slices with these numbers."""
    return [(-10, 20, 3 * number) for number in numbers]


SERIES = {
    "a missing slice": ({"positions": heights(0, 1, 2, 4, 5, 6)}, "1 slice is missing between 002.dcm and 003.dcm"),
    "missing slices": ({"positions": heights(0, 3, 4, 5, 6, 7)}, "2 slices are missing between 000.dcm and 001.dcm"),
    "uneven spacing": ({"positions": heights(0, 1, 2, 3, 4, 16 / 3)}, "005.dcm are 4.000 mm apart, others 3.000 mm"),
    "the same position": ({"positions": heights(0, 1, 2, 2, 3, 4)}, "002.dcm and 003.dcm are at the same position"),
    "a shifted slice": ({"positions": [*STRAIGHT[:3], (-10, 25, 9), *STRAIGHT[4:]]}, "003.dcm is shifted against"),
    "no position": ({"ImagePositionPatient": None}, "000.dcm states no valid position"),
    "no pixel spacing": ({"PixelSpacing": None}, "000.dcm states no valid voxel size"),
    "pixel spacing 0": ({"PixelSpacing": [0, 1]}, "000.dcm states no valid voxel size"),
    "no orientation": ({"ImageOrientationPatient": None}, "000.dcm states no valid orientation"),
    "sheared rows": ({"orientation": (1, 0, 0, 0.6, 0.8, 0)}, "000.dcm states directions that are not perpendicular"),
}


@pytest.mark.parametrize("case", SERIES)
def test_an_incomplete_series_is_refused(case, tmp_path):
    options, part = SERIES[case]
    write_ct_series(tmp_path, SLICES, **{"positions": STRAIGHT} | options)
    refused(read_volume, tmp_path, part)


def test_a_series_with_a_localizer_or_slices_of_other_sizes_is_refused(tmp_path):
    series = write_ct_series(tmp_path / "a", SLICES, STRAIGHT)
    write_ct_series(tmp_path / "a", SLICES[:1], [(0, 0, 50)], (1, 0, 0, 0, 0, -1), series=series, first=50)
    refused(read_volume, tmp_path / "a", "have different directions; remove the localizer")
    series = write_ct_series(tmp_path / "b", SLICES, STRAIGHT)
    write_ct_series(tmp_path / "b", SLICES[:1, :4], [(-10, 20, 18)], series=series, first=50)
    refused(read_volume, tmp_path / "b", "have different sizes")
    write_ct_series(tmp_path / "c", SLICES[:1], STRAIGHT[:1])
    refused(read_volume, tmp_path / "c", "a series of one slice")


@pytest.mark.parametrize("angle", [-22, 22])
@pytest.mark.parametrize("along", ["the table", "the slice"])
def test_slices_of_a_tilted_gantry_come_to_the_places_they_had_in_the_patient(angle, along, tmp_path, capfd):
    # the values are a linear function of the position, which linear interpolation reproduces
    tilt = np.deg2rad(angle)
    if along == "the table":  # as scanners write it: the planes are tilted, the table moves along z
        rows, step = np.array([0, np.cos(tilt), -np.sin(tilt)]), np.array([0, 0, 3.0])
    else:
        rows, step = np.array([0, 1.0, 0]), np.array([0, -3 * np.tan(tilt), 3.0])
    y, x = np.mgrid[:20, :8]
    places = [(-10, 20, -7) + number * step for number in range(6)]
    points = np.stack([place + 3 * x[..., None] * (1, 0, 0) + 2 * y[..., None] * rows for place in places])

    def value(position):
        return position @ (1.5, 7.0, -4.0) + 100

    write_ct_series(tmp_path, value(points).round(), places, (1, 0, 0, *rows), GantryDetectorTilt=angle)
    image = read_volume(tmp_path)
    assert capfd.readouterr() == ("", "")  # no warnings of libraries
    measured, positions = values_of(image), world(image)
    inside = measured > -1000  # the sheared grid has corners without data
    assert inside.any(axis=2).sum(axis=1).min() >= 19  # the grid has room for all 20 rows of each slice
    inside = ndimage.binary_erosion(inside, np.ones((1, 3, 1)))  # SimpleITK repeats the border for half a pixel
    assert np.abs(measured - value(positions))[inside].max() < 1.01  # rounded to whole numbers
    directions = np.reshape(image.GetDirection(), (3, 3))
    assert np.allclose(directions.T @ directions, np.eye(3))
    normal = np.cross((1, 0, 0), rows)
    assert image.GetSpacing() == pytest.approx((3, 2, step @ normal))


def test_a_damaged_slice_is_refused(tmp_path):
    write_ct_series(tmp_path, SLICES, STRAIGHT)
    path = tmp_path / "003.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    refused(read_volume, tmp_path)
