"""One object per records, area and `DataConfig`: what the records hold, what a model is to tell of it, its batches.

TensorFlow is imported when batches are made, not before: counting and checking take no seconds.
"""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kmura.config import AugmentConfig, DataConfig, MixConfig
from kmura.data.index import Index, read_index
from kmura.errors import InputError
from kmura.records.manifest import Manifest, read_manifest
from kmura.tasks import ALL, Task, is_joint, model_task, task_of

if TYPE_CHECKING:
    import tensorflow as tf


class Dataset:
    """The images of one area of a records folder, or of all its areas, for a model.

    Attributes:
        records: the records folder.
        area: an area of the manifest, or `all`.
        config: image size, resizing, cache and task.
        manifest: what the records hold.
        labels: the task of the model: its classes, targets, probabilities.
        splits: the splits that the area has; of all areas those that any area has.
    """

    def __init__(self, records: str | os.PathLike, area: str = ALL, config: DataConfig | None = None):
        """
        Raises:
            InputError: no such records or area, or a task that the records do not serve.
        """
        self.records, self.area, self.config = Path(records), area, config or DataConfig()
        self.manifest: Manifest = read_manifest(records)
        if not self.manifest.areas:
            raise InputError(f"{records} holds no areas; build the records again")
        areas = self.manifest.areas.values() if area == ALL else [self.manifest.area(area, records)]
        self.splits = tuple(dict.fromkeys(split for of_area in areas for split in of_area))
        self.labels: Task = model_task(self.records_task, list(self.manifest.areas), area, self.config.task)
        self._indexes: dict[str, Index] = {}

    @property
    def records_task(self) -> Task:
        """The task that the labels of the records themselves serve."""
        return task_of(self.manifest.task, self.manifest.classes)

    def of_area(self, area: str) -> "Dataset":
        """The data set of another area of the same records."""
        return Dataset(self.records, area, self.config)

    def models(self) -> list[str]:
        """The areas that get a model of their own where `area` asks for: all areas, one joint model, or this one."""
        if self.area == ALL and not is_joint(self.records_task, list(self.manifest.areas), self.config.task):
            return list(self.manifest.areas)
        return [self.area]

    def index(self, split: str) -> Index:
        """Where the records of a split lie and what is known of each; see `kmura.data.index.Index`.

        Raises:
            InputError: no such split; a shard missing, cut or damaged; a label outside the classes.
        """
        if split not in self._indexes:
            self._indexes[split] = read_index(self.records, self.area, split)
        return self._indexes[split]

    def train(
        self,
        *,
        augment: AugmentConfig | None = None,
        mix: MixConfig | None = None,
        batch_size: int = 16,
        seed: int = 0,
        epochs: int = 1,
        first_epoch: int = 0,
        split: str = "train",
        balanced: bool = False,
    ) -> "tf.data.Dataset":
        """Augmented batches of the epochs `first_epoch` to `epochs` - 1, one after another; each has `steps` batches.

        A batch is a dictionary: `image` float32 [B, S, S, C] in 0..255; `label` float32 [B, L] (binary: L = 1, 0 or 1;
        multiclass: one-hot; multilabel: 0 or 1 for each class); `mixed_image` and `mixed_label`, the same where nothing
        is mixed. Images whose label is not known in full are left out. The last batch of an epoch may be smaller.

        Every epoch draws all images in a new order. Order and augmentation are functions of (seed, epoch, position)
        alone: resuming at an epoch, another cache or another number of threads changes no bit.

        Args:
            augment: random changes; None is the default AugmentConfig.
            mix: what is mixed, and until which epoch; None mixes nothing.
            batch_size: images per batch, B.
            seed: 0 or more.
            epochs: the epoch to stop before.
            first_epoch: the epoch to start with, counted from 0.
            split: the split to draw from.
            balanced: an epoch, of the same length, draws the classes equally often: images of rare classes several
                times, some of frequent classes not at all. Not for several labels.

        Raises:
            InputError: see `index`; an image that cannot be decoded (here where a cache is filled, else while
                iterating, see `readable_errors`); no image with a known label.
        """
        from kmura.data.pipeline import train_batches

        return train_batches(
            self.index(split),
            self.labels,
            data=self.config,
            augment=augment or AugmentConfig(),
            mix=mix,
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
            first_epoch=first_epoch,
            balanced=balanced,
        )

    def eval(self, split: str, *, batch_size: int = 32) -> "tf.data.Dataset":
        """Batches of a whole split in the order of the records, which is that of `rows`.

        A batch is a dictionary: `image` float32 [B, S, S, C] in 0..255; `label` float32 [B, L] as in `train`, -1 where
        unknown (for a multiclass image the whole row); `patient`, `study`, `path` strings [B].

        Raises:
            InputError: as `train`; unknown labels are no error here.
        """
        from kmura.data.pipeline import eval_batches

        return eval_batches(self.index(split), self.labels, data=self.config, batch_size=batch_size)

    def images(self, split: str, rows: Sequence[int]) -> np.ndarray:
        """Some images of a split as the model gets them in evaluation: float32 [len(rows), S, S, C] in 0..255.

        Args:
            split: the split.
            rows: places in the order of `rows`.

        Raises:
            InputError: as `eval`.
        """
        import tensorflow as tf

        from kmura.data.decoded import image_source

        index, size = self.index(split), self.config.image_size
        if not len(rows):
            return np.zeros((0, size, size, self.manifest.channels), np.float32)
        images_of = image_source(index, dataclasses.replace(self.config, cache="off"))
        with self.readable_errors(split):
            batches = tf.data.Dataset.from_tensor_slices(np.asarray(rows, np.int64)).batch(32).map(images_of)
            return np.concatenate(list(batches.as_numpy_iterator())).astype(np.float32)

    def ids(self, split: str) -> np.ndarray:
        """The model's labels of a split, -1 where unknown: class ids int64 [n, 1], or 0 and 1 [n, L] (multilabel)."""
        index = self.index(split)
        return self.labels.ids(index.labels, index.keys["area"])

    def rows(self, split: str) -> pd.DataFrame:
        """One row per image, in the order of `eval`: area, patient, study, image (its path), and the labels.

        Binary and multiclass: `label` is the class id. Multilabel: a column `label_CLASS` of 0 and 1 for each class.
        -1 is unknown.
        """
        columns = pd.DataFrame(self.ids(split), columns=self.labels.label_columns)
        return pd.concat([self.index(split).keys, columns], axis=1)

    def steps(self, batch_size: int = 16, split: str = "train") -> int:
        """The number of batches of an epoch of `train`."""
        return -(-len(self.index(split).known()) // batch_size)

    def counts(self, split: str) -> tuple[int, ...]:
        """Images of each class of the records (of a joint model: of its own classes) in a split.

        Raises:
            InputError: there is no such split.
        """
        manifest = self.manifest
        if self.labels.is_joint:
            areas = self.labels.areas[: self.labels.abnormal]
            by_area = [manifest.split(name, split, self.records).per_class for name in areas]
            return (*(positives for _, positives in by_area), *(negatives for negatives, _ in by_area))
        if self.area == ALL:
            per_class = [splits[split].per_class for splits in manifest.areas.values() if split in splits]
            return tuple(map(sum, zip(*per_class, strict=True)))
        return manifest.split(self.area, split, self.records).per_class

    def count_names(self) -> tuple[str, ...]:
        """What `counts` counts: the classes of the records, or those of a joint model."""
        return self.labels.classes if self.labels.is_joint else self.manifest.classes

    def negatives(self, split: str) -> list[int]:
        """Images of a split that are known not to have each label, of multilabel records."""
        return (self.index(split).labels == 0).sum(axis=0).tolist()

    def balance(self, split: str = "train") -> list[float]:
        """Weights that balance the classes of a split.

        Of a softmax model images / (classes x images of the class) for each class; else negatives / positives of each
        label, of the images for which it is known.
        """
        counts = self.counts(split)
        if self.labels.softmax:
            return [sum(counts) / (len(counts) * number) for number in counts]
        if not self.records_task.by_label:
            return [counts[0] / counts[1]]
        return (np.array(self.negatives(split)) / counts).tolist()

    def check(self, splits: Sequence[str] = ("train", "val")) -> None:
        """Refuses splits from which nothing could be learned or chosen.

        Raises:
            InputError: a split is missing or lacks a class, or a label is never absent in it; says how to fix it.
        """
        for split in splits:
            counts = {f"of {name}": number for name, number in zip(self.count_names(), self.counts(split), strict=True)}
            if self.records_task.by_label:
                without = zip(self.count_names(), self.negatives(split), strict=True)
                counts |= {f"without {name}": number for name, number in without}
            missing = [name for name, number in counts.items() if number == 0]
            if missing:
                fix = "add some" if split == "train" else "build with a larger --val-fraction or use --select-on test"
                fix += ", or build without such an area" if self.labels.is_joint else ""
                raise InputError(
                    f"area {self.area} has no images {' or '.join(missing)} in its {split} split of {self.records}; "
                    f"{fix}"
                )

    def check_inputs(self, inputs: str, run: str | os.PathLike) -> None:
        """Refuses records other than those that a run was trained on.

        Args:
            inputs: the fingerprint of the run's records.
            run: folder of the run, for the error.
        """
        if self.manifest.inputs != inputs:
            raise InputError(f"{self.records} are not the records that {run} was trained on; give those with --records")

    def readable_errors(self, split: str | None = None) -> contextlib.AbstractContextManager[None]:
        """A block in which damage met while batches are drawn becomes an InputError that names the record.

        Args:
            split: where to look for the damage; None looks in all splits.
        """
        from kmura.data.decoded import readable_errors

        return readable_errors(self.records, self.area, split)


def dataset_of(records: "str | os.PathLike | Dataset", area: str, config: DataConfig) -> Dataset:
    """`records` itself if it is a Dataset of this area and configuration, else the Dataset of that folder."""
    if not isinstance(records, Dataset):
        return Dataset(records, area, config)
    return records if (records.area, records.config) == (area, config) else Dataset(records.records, area, config)
