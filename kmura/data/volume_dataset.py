"""The data set of one area of volumes: gray values and class numbers of whole volumes, joined from their slices.

A volume is an array [Z, Y, X] in the axis order of SimpleITK's arrays, with x to the patient's left, y to the back and
z to the head. Records hold its axial slices, so that every plane can be taken from the same records.
"""

import dataclasses
import functools
import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from kmura.config.segmentation import SlicesConfig
from kmura.data.dataset import Dataset
from kmura.data.index import read_shard
from kmura.errors import InputError
from kmura.records.manifest import VolumeFacts, read_manifest, shard_paths
from kmura.records.schema import SPLITS

PLANE_AXES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}  # axes of slice number, row and column


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """One volume.

    Attributes:
        name: unique within the area.
        gray: uint8 [Z, Y, X], the window of gray values as 0..255.
        mask: uint8 [Z, Y, X], class numbers; 0 is background.
        facts: its geometry, window and mid-sagittal plane.
    """

    name: str
    gray: np.ndarray
    mask: np.ndarray
    facts: VolumeFacts

    @property
    def spacing(self) -> np.ndarray:
        """Size of a voxel along z, y, x, mm, float64 [3]."""
        return np.array(self.facts.spacing[::-1])

    def left_of_middle(self) -> np.ndarray:
        """Returns the distance of each voxel to the mid-sagittal plane, mm, positive to the left, float32 [Z, Y, X]."""
        normal, offset = self.middle
        axes = [number * axis for number, axis in zip(normal, self._millimetres(), strict=True)]
        return (axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :] - offset).astype(np.float32)

    @property
    def middle(self) -> tuple[np.ndarray, float]:
        """The mid-sagittal plane: unit normal along z, y, x [3], and distance from the centre of the volume, mm."""
        return np.array(self.facts.normal[::-1]), self.facts.offset

    def _millimetres(self) -> list[np.ndarray]:
        """Distances of the voxels from the centre of the volume along z, y, x, mm."""
        return [
            (np.arange(count) - (count - 1) / 2) * size
            for count, size in zip(self.gray.shape, self.spacing, strict=True)
        ]


class VolumeDataset(Dataset):
    """The volumes of one area of a records folder, and the split that each belongs to.

    Attributes:
        config: plane, size, folds; see SlicesConfig.
        volumes: name -> volume, read at the first use.
    """

    config_class = SlicesConfig

    def __init__(self, records: str | os.PathLike, area: str, config: SlicesConfig | None = None, **options):
        """
        Args:
            records, area, **options: see Dataset.
            config: None is the default SlicesConfig.

        Raises:
            InputError: see Dataset; the records do not contain volumes, or there are fewer of them than folds.
        """
        super().__init__(records, area, config, **options)
        if not self.manifest.volumes:
            raise InputError(
                f"{records} contains no volumes; build them with: kmura segment build ROOT --out {records}"
            )
        self.split_of = self._split_of()
        self.splits = tuple(split for split in SPLITS if split in self.split_of.values())

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 1, 2, ...; 0 is background."""
        return self.manifest.classes

    def preparation(self) -> dict:
        """Returns the window (HU) and the usual size of a voxel along x, y, z (mm), to which a scan is resampled."""
        facts = [one for one in self.manifest.volumes.values() if one.area == self.area]
        spacing = np.median([one.spacing for one in facts], axis=0)
        return {"window": list(facts[0].window), "spacing": [float(round(size, 6)) for size in spacing]}

    def names(self, split: str) -> list[str]:
        """Returns the names of the volumes of a split.

        Raises:
            InputError: there are none.
        """
        names = [name for name, of_volume in self.split_of.items() if of_volume == split]
        if not names:
            raise InputError(
                f"area {self.area} of {self.records} has no {split} volumes; there are: {', '.join(self.splits)}; "
                "set data.folds, or build the records again with more volumes"
            )
        return names

    def of_split(self, split: str) -> list[Volume]:
        """Returns the volumes of a split."""
        return [self.volumes[name] for name in self.names(split)]

    @functools.cached_property
    def volumes(self) -> dict[str, Volume]:
        """All volumes of the area by name.

        Raises:
            InputError: a shard is missing or damaged, or a slice is missing.
        """
        slices: dict[str, dict[int, tuple[bytes, bytes]]] = {name: {} for name in self.split_of}
        for counts in self.manifest.area(self.area, self.records).values():
            for path in shard_paths(self.records, counts):
                for _, record in read_shard(self.records, path):
                    slices[record.study][int(record.path.rpartition("/")[2])] = (record.image, record.mask)
        return {name: self._volume(name, of_volume) for name, of_volume in slices.items()}

    def _volume(self, name: str, slices: dict[int, tuple[bytes, bytes]]) -> Volume:
        facts = self.manifest.volumes[name]
        columns, rows, count = facts.size
        if sorted(slices) != list(range(count)):
            raise InputError(
                f"volume {name} in {self.records} has {len(slices)} of {count} slices; build the records again"
            )
        gray, mask = (np.empty((count, rows, columns), np.uint8) for _ in range(2))
        for number, parts in slices.items():
            for array, encoded in zip((gray, mask), parts, strict=True):
                array[number] = np.asarray(Image.open(io.BytesIO(encoded)))
        return Volume(name, gray, mask, facts)

    def _split_of(self) -> dict[str, str]:
        """Volume -> its split: that of the records, or that of the fold."""
        mine = {name: facts.split for name, facts in self.manifest.volumes.items() if facts.area == self.area}
        folds, fold = self.config.folds, self.config.fold
        if not folds:
            return mine
        names = sorted(mine, key=natural_order)
        if folds > len(names):
            raise InputError(
                f"data.folds is {folds}, but area {self.area} of {self.records} has {len(names)} volumes; give "
                f"{len(names)} or fewer"
            )
        split = {0: "test", 1: "val"}
        return {name: split.get((number - fold) % folds, "train") for number, name in enumerate(names)}


def only_area(records: str | os.PathLike) -> str:
    """Returns the only area of a records folder.

    Raises:
        InputError: there are several.
    """
    areas = list(read_manifest(records).areas)
    if len(areas) != 1:
        raise InputError(f"{records} has the areas {', '.join(areas)}; choose one with --area")
    return areas[0]


def slice_size(volumes: Sequence[Volume], config: SlicesConfig) -> tuple[int, int]:
    """Returns rows and columns of the slices: `data.size`, or the largest of the volumes."""
    if all(config.size):
        return config.size
    _, row, column = PLANE_AXES[config.plane]
    return tuple(max(volume.gray.shape[axis] for volume in volumes) for axis in (row, column))


def natural_order(name: str) -> tuple:
    """A key that sorts `2` before `10`."""
    return (0, int(name), "") if name.isdigit() else (1, 0, name)
