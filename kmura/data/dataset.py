"""The data set of one area of a records folder: its manifest, the task of a model, and batches of images and labels.

TensorFlow is imported only when batches are made, so counts and checks are fast.
"""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from kmura.config import AugmentConfig, DataConfig, MixConfig, ViewsConfig
from kmura.data.fold_index import fold_index
from kmura.data.index import Index, read_index
from kmura.errors import InputError
from kmura.records.leakage import patient_leaks
from kmura.records.manifest import Manifest, per_class, read_manifest
from kmura.records.schema import SPLITS
from kmura.tasks import ALL, Task, is_joint, model_task, task_of

if TYPE_CHECKING:
    import tensorflow as tf


PREPARATION = ("max_side", "encoding", "quality")  # options of the records that determine the pixels


class Dataset:
    """The images and labels of one area of a records folder, or of all its areas.

    Attributes:
        records: the records folder.
        area: an area of the manifest, or `all`.
        config: image size, resizing, cache, task and folds.
        manifest: the manifest of the records folder.
        labels: the task of the model: its classes, targets and probabilities.
        splits: the splits of the area; for `all`, the splits that at least one area has.

    With `config.folds`, the splits are those of a fold of a cross-validation, see `kmura.data.fold_index.fold_index`.
    """

    config_class: ClassVar[type] = DataConfig

    def __init__(
        self,
        records: str | os.PathLike,
        area: str = ALL,
        config: DataConfig | None = None,
        *,
        manifest: Manifest | None = None,
    ):
        """
        Args:
            records: the records folder.
            area: an area of the manifest, or `all`.
            config: image size, resizing, cache and task; None is the default DataConfig.
            manifest: of the records, if it has been read already.

        Raises:
            InputError: the records or the area do not exist, or the records do not support the task.
        """
        if not isinstance(area, str) or not isinstance(config, self.config_class | None):
            raise InputError(
                f"{type(self).__name__} takes the name of an area and a {self.config_class.__name__} (the stage `data` "
                f"of a configuration), not {area!r} and {type(config).__name__}"
            )
        self.records, self.area, self.config = Path(records), area, config or self.config_class()
        self.manifest: Manifest = manifest or read_manifest(records)
        if not self.manifest.areas:
            raise InputError(f"{records} contains no areas; build the records again")
        areas = self.manifest.areas.values() if area == ALL else [self.manifest.area(area, records)]
        self.splits = tuple(dict.fromkeys(split for of_area in areas for split in of_area))
        if self._number_of_folds:
            self.splits = SPLITS
        wanted = getattr(self.config, "task", "auto")
        self.labels: Task = model_task(self.records_task, list(self.manifest.areas), area, wanted)
        self._indexes: dict[str, Index] = {}

    @property
    def _number_of_folds(self) -> int:
        """The number of folds that replace the splits of the records; 0 for none."""
        return self.config.folds if isinstance(self.config, DataConfig) else 0

    @property
    def records_task(self) -> Task:
        """The task that the labels of the records define."""
        return task_of(self.manifest.task, self.manifest.classes)

    def of_area(self, area: str, config: DataConfig | None = None) -> "Dataset":
        """Returns the data set of another area of the same records; None keeps the configuration."""
        return Dataset(self.records, area, config or self.config, manifest=self.manifest)

    def models(self) -> list[str]:
        """Returns the areas to train, one model per entry: every area, `all` (one joint model), or this area."""
        if self.area == ALL and not is_joint(self.records_task, list(self.manifest.areas), self.config.task):
            return list(self.manifest.areas)
        return [self.area]

    def index(self, split: str) -> Index:
        """Returns the positions, labels and identifiers of the records of a split; see `kmura.data.index.Index`.

        Raises:
            InputError: the split does not exist; a shard is missing, truncated or damaged; a label is not a class.
        """
        if split not in self._indexes:
            if number := self._number_of_folds:
                index = fold_index(self.records, self.manifest, self.area, number, self.config.fold, split)
            else:
                index = read_index(self.records, self.area, split)
            self._indexes[split] = index
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
        """Returns augmented batches of the epochs `first_epoch` to `epochs` - 1; each epoch has `steps` batches.

        A batch is a dictionary: `image` float32 [B, S, S, C] in 0..255; `label` float32 [B, L] (binary: L = 1, 0 or 1;
        multiclass: one-hot; multilabel: 0 or 1 for each class); `mixed_image` and `mixed_label`, which equal `image`
        and `label` if mixing is off. Images without a known label are excluded; a label that is unknown beside known
        ones (multilabel) is -1. The last batch of an epoch may be smaller.

        Every epoch draws all images in a new order. Order and augmentation depend only on (seed, epoch, position):
        results are bit-identical if training resumes at an epoch, or with another cache or number of threads.

        Args:
            augment: random augmentations; None is the default AugmentConfig.
            mix: MixUp and CutMix, and the epoch until which they are used; None disables mixing.
            batch_size: images per batch, B.
            seed: 0 or more.
            epochs: the epoch to stop before.
            first_epoch: the epoch to start with, counted from 0.
            split: the split to draw from.
            balanced: draw the classes equally often in epochs of the same length: images of rare classes are repeated,
                some images of frequent classes are not drawn. Not supported for multilabel tasks.

        Raises:
            InputError: see `index`; an image cannot be decoded (raised here if a cache is filled, otherwise during
                iteration, see `readable_errors`); no image has a known label.
        """
        from kmura.data.pipeline import train_batches

        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("seed", seed, 0)
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

    def views(
        self,
        *,
        views: ViewsConfig | None = None,
        positives: str = "image",
        batch_size: int = 16,
        seed: int = 0,
        epochs: int = 1,
        first_epoch: int = 0,
        split: str = "train",
    ) -> "tf.data.Dataset":
        """Returns batches of pairs of views of the epochs `first_epoch` to `epochs` - 1, for pretraining.

        A batch is a dictionary: `image` float32 [2 B, S, S, C] in 0..255, the first views of the pairs and then the
        second views; `label` float32 [B, L] of the first views' images as in `train`, -1 where unknown; `group` int32
        [B], equal for images that are positives of each other.

        Every epoch draws all images in a new order, with or without a label; the images left over by the last whole
        batch are not used in that epoch. Order, partners and views depend only on (seed, epoch, position).

        Args:
            views: the random changes; None is the default ViewsConfig.
            positives: `image`, `study` or `patient`: where the second view of a pair is taken from. With `study` it is
                another image of the study, drawn anew in every epoch; an image without a partner is its own.
            batch_size: pairs per batch, B.
            seed, epochs, first_epoch, split: as in `train`.

        Raises:
            InputError: as in `train`; also if the split has fewer images than a batch, or no study (or patient) has two
                images.
        """
        from kmura.data.views import view_batches

        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("seed", seed, 0)
        return view_batches(
            self.index(split),
            self.labels,
            data=self.config,
            views=views or ViewsConfig(),
            positives=positives,
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
            first_epoch=first_epoch,
        )

    def eval(self, split: str, *, batch_size: int = 32) -> "tf.data.Dataset":
        """Returns batches of a whole split in the order of the records, which is the order of `rows`.

        A batch is a dictionary: `image` float32 [B, S, S, C] in 0..255; `label` float32 [B, L] as in `train`, -1 where
        unknown (the whole row of a multiclass image); `patient`, `study`, `path` strings [B].

        Raises:
            InputError: as in `train`, except that unknown labels are allowed.
        """
        from kmura.data.pipeline import eval_batches

        _check_at_least("batch_size", batch_size, 1)
        return eval_batches(self.index(split), self.labels, data=self.config, batch_size=batch_size)

    def images(self, split: str, rows: Sequence[int]) -> np.ndarray:
        """Returns images of a split as `eval` returns them: float32 [len(rows), S, S, C] in 0..255.

        Args:
            split: the split.
            rows: row numbers of the table that the method `rows` returns.

        Raises:
            InputError: as in `eval`.
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
        """Returns the labels of a split: class ids int64 [n, 1], or 0 and 1 [n, L] (multilabel); -1 is unknown."""
        index = self.index(split)
        return self.labels.ids(index.labels, index.keys["area"])

    def rows(self, split: str) -> pd.DataFrame:
        """Returns a table with one row per image, in the order of `eval`: area, patient, study, image (path), labels.

        Binary and multiclass tasks have a column `label`, the class id. Multilabel tasks have one column `label_CLASS`
        of 0 and 1 per class. -1 is unknown. The metadata that the records keep follow, as text.
        """
        labels = pd.DataFrame(self.ids(split), columns=self.labels.label_columns)
        return pd.concat([self.index(split).keys, labels, self.index(split).columns], axis=1)

    def folds(self, split: str) -> np.ndarray:
        """Returns the fold of each image of a split, int64 [n] from 0; -1 if there are no folds."""
        return self.index(split).folds

    def steps(self, batch_size: int = 16, split: str = "train") -> int:
        """Returns the number of batches per epoch of `train`."""
        return -(-len(self.index(split).known()) // batch_size)

    def counts(self, split: str) -> tuple[int, ...]:
        """Returns the number of images of each class in a split: classes of the records, or of the joint model.

        Raises:
            InputError: the split does not exist.
        """
        manifest = self.manifest
        if self._number_of_folds:
            labels = self.ids(split) if self.labels.is_joint else self.index(split).labels
            task = self.labels if self.labels.is_joint else self.records_task
            return per_class(task.name, len(task.classes), map(tuple, labels.tolist()))
        if self.labels.is_joint:
            areas = self.labels.areas[: self.labels.abnormal]
            by_area = [manifest.split(name, split, self.records).per_class for name in areas]
            return (*(positives for _, positives in by_area), *(negatives for negatives, _ in by_area))
        if self.area == ALL:
            of_areas = [splits[split].per_class for splits in manifest.areas.values() if split in splits]
            return tuple(map(sum, zip(*of_areas, strict=True)))
        return manifest.split(self.area, split, self.records).per_class

    def count_names(self) -> tuple[str, ...]:
        """Returns the names of the classes that `counts` counts."""
        return self.labels.classes if self.labels.is_joint else self.manifest.classes

    def negatives(self, split: str) -> list[int]:
        """Returns the number of images in a split that are known not to have each label (multilabel records)."""
        return (self.index(split).labels == 0).sum(axis=0).tolist()

    def balance(self, split: str = "train") -> list[float]:
        """Returns weights that balance the classes of a split.

        For softmax models: images / (classes x images of the class), one weight per class. Otherwise: negatives /
        positives, one weight per label, over the images whose label is known.
        """
        counts = self.counts(split)
        if self.labels.softmax:
            return [sum(counts) / (len(counts) * number) for number in counts]
        if not self.records_task.by_label:
            return [counts[0] / counts[1]]
        return (np.array(self.negatives(split)) / counts).tolist()

    def check(self, splits: Sequence[str] = ("train", "val")) -> None:
        """Checks that each split contains every class, and for multilabel records also images without each label.

        With folds, `test` is checked too, except for multilabel records, whose labels may be too rare for that.

        Raises:
            InputError: a split is missing, has no images of a class, or (multilabel) no images without a label.
        """
        if self._number_of_folds and not self.records_task.by_label:
            splits = tuple(dict.fromkeys((*splits, "test")))
        for split in splits:
            counts = {f"of {name}": number for name, number in zip(self.count_names(), self.counts(split), strict=True)}
            if self.records_task.by_label:
                without = zip(self.count_names(), self.negatives(split), strict=True)
                counts |= {f"without {name}": number for name, number in without}
            missing = [name for name, number in counts.items() if number == 0]
            if missing:
                fix = "add some" if split == "train" else "build with a larger --val-fraction or use --select-on test"
                fix += ", or build the records without that area" if self.labels.is_joint else ""
                if self._number_of_folds:
                    split, fix = self._name_in_folds(split), "give fewer --folds, or add images"
                raise InputError(
                    f"area {self.area} has no images {' or '.join(missing)} in the {split} split of {self.records}; "
                    f"{fix}"
                )

    def _name_in_folds(self, split: str) -> str:
        """What a split of a fold is, for messages."""
        number, fold = self.config.folds, self.config.fold
        held_out = {"test": fold, "val": (fold + 1) % number}
        return (
            f"{split} (fold {held_out[split]} of {number})" if split in held_out else f"{split} (fold {fold} is test)"
        )

    def check_inputs(self, inputs: str, run: str | os.PathLike) -> None:
        """Checks that the records are those that a run was trained on.

        Args:
            inputs: the fingerprint of the run's records.
            run: the run folder, for the error message.

        Raises:
            InputError: the fingerprint differs.
        """
        if self.manifest.inputs != inputs:
            raise InputError(f"{self.records} are not the records that {run} was trained on; give those with --records")

    def preparation(self) -> dict:
        """Returns what determines the pixels of an image of these records, besides its file."""
        options = self.manifest.options
        return {name: options[name] for name in PREPARATION if name in options}

    def leaks(self) -> tuple[str, ...]:
        """Returns one sentence for each kind of leakage between the splits of this area.

        The build looks for patients and identical images in two splits. In records of an earlier kmura, which did not,
        patients are compared here, and identical images are not. Folds consist of whole patients; identical images in
        the splits that they are made of may be in two folds.

        Raises:
            InputError: the indexes of earlier records are missing or damaged.
        """
        area = self.area if self.area != ALL or len(self.manifest.areas) > 1 else next(iter(self.manifest.areas))
        leaks = self.manifest.leaks
        if self._number_of_folds:
            leaks = [leak for leak in leaks or () if leak.kind == "images" and set(leak.splits) >= {"train", "val"}]
        elif leaks is None:
            leaks = ()
            if self.manifest.has_patients:
                keys = ((split, self.index(split).keys["patient"]) for split in self.splits)
                leaks = patient_leaks(area, ((patient, split) for split, names in keys for patient in names))
        return tuple(leak.text for leak in leaks if leak.area == area)

    def readable_errors(self, split: str | None = None) -> contextlib.AbstractContextManager[None]:
        """Returns a context manager that turns TensorFlow's errors about damaged records into a readable InputError.

        Args:
            split: the split to search for the damage; None searches all splits.
        """
        from kmura.data.decoded import readable_errors

        return readable_errors(self.records, self.area, split)


def _check_at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise InputError(f"{name} is {value}; {low} or more is needed")


def dataset_of(records: "str | os.PathLike | Dataset", area: str, config: DataConfig) -> Dataset:
    """Returns `records` if it is a Dataset of this area and configuration, otherwise a Dataset of that folder."""
    if not isinstance(records, Dataset):
        return Dataset(records, area, config)
    return records if (records.area, records.config) == (area, config) else records.of_area(area, config)
