"""Small volumes and checks that the tests of volumes share."""

import numpy as np
import pytest
import SimpleITK as sitk

from kmura.errors import InputError

UPRIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)


def volume(dtype=np.float32, shape=(4, 5, 6), spacing=(1, 2, 3)):
    """Returns a sitk.Image of different values with the size (6, 5, 4)."""
    image = sitk.GetImageFromArray((np.arange(np.prod(shape)).reshape(shape) - 7).astype(dtype))
    image.SetSpacing(spacing)
    image.SetOrigin((-3, 4, 5))
    return image


def values_of(image):
    return sitk.GetArrayFromImage(image)


def world(image):
    """Returns the positions [Z, Y, X, 3] of all voxels, mm, computed without SimpleITK's resampling."""
    shape = image.GetSize()[::-1]
    indices = np.stack(np.indices(shape)[::-1], axis=-1)
    directions = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    return indices @ directions.T + image.GetOrigin()


def centroids(labels):
    """Returns the centroid [3] of each class, mm."""
    classes, positions = values_of(labels), world(labels)
    return np.array([positions[classes == number].mean(axis=0) for number in np.unique(classes) if number])


def dice(first, second, number):
    return 2 * np.sum((first == number) & (second == number)) / (np.sum(first == number) + np.sum(second == number))


def refused(read, path, *parts):
    """Checks that reading gives an error of one line that contains the path and the parts."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), ";", *parts):
        assert part in message
    return message
