"""The learner of the kind `segmentation`: a U-Net for the slices of one plane, validated on whole volumes."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kmura.config import SegmentationConfig
from kmura.data.slices import SliceSampler, SliceTargets, slice_batches, slices_drawn
from kmura.data.volume_dataset import PLANE_AXES, Volume, VolumeDataset, slice_size
from kmura.errors import InputError
from kmura.metrics import overlap
from kmura.models.unet import UNet, build_unet
from kmura.segmentation.overlap_losses import SegmentationLoss
from kmura.segmentation.slice_prediction import SlicePredictor, class_numbers
from kmura.segmentation.targets import targets_of
from kmura.training.loop import Learner
from kmura.training.optimizers import AdamL2, learning_rate

RAREST = 1e-4  # share of the voxels, of an initial bias


class SegmentationLearner(Learner):
    """A U-Net for a data set of volumes. Use it inside `kmura.training.loop.session`.

    Attributes:
        dataset: the volumes.
        config: configuration of the run.
        targets: the classes of the network.
        model, saved: the U-Net.
    """

    monitor = "val_dice"

    def __init__(self, dataset: VolumeDataset, config: SegmentationConfig, *, load_weights: bool = True):
        """
        Args:
            dataset: data set with the splits `train` and `val`.
            config: configuration of the run.
            load_weights: False skips pretrained weights, for a run that continues from a checkpoint.

        Raises:
            InputError: a split has no volumes, the records cannot be read, or weights cannot be loaded.
        """
        self.dataset, self.config = dataset, config
        train, data = config.train, config.data
        self.targets = targets_of(dataset.classes, merged=data.sides == "merged")
        volumes = dataset.of_split("train")
        dataset.names("val")  # raises if there are none
        self.size = slice_size(list(dataset.volumes.values()), data)
        self._sampler = SliceSampler(volumes, data, self.targets, self.size)
        across = PLANE_AXES[data.plane][0]
        self._rows = np.array(
            [(place, number) for place, volume in enumerate(volumes) for number in range(volume.gray.shape[across])],
            np.int32,
        )
        seen = [np.moveaxis(volume.mask, across, 0).any(axis=(1, 2)) for volume in volumes]
        self._empty = ~np.concatenate(seen)
        drawn = slices_drawn(self._empty, data.empty, data.epoch_slices)
        if drawn < train.batch_size:
            raise InputError(
                f"an epoch has {drawn} {data.plane} slices of the training volumes of {dataset.area}, fewer than a "
                f"batch of {train.batch_size}; reduce train.batch_size, or raise data.epoch_slices"
            )
        self.steps = drawn // train.batch_size
        self.saved = self.model = network(config, self.targets, volumes, load_weights=load_weights)
        self.model.compile(
            optimizer=AdamL2(learning_rate(train, self.steps), l2=train.weight_decay),
            loss=SegmentationLoss(
                tversky=config.loss.tversky,
                alpha=config.loss.alpha,
                beta=config.loss.beta,
                focal_gamma=config.loss.focal_gamma,
                cross_entropy=config.loss.cross_entropy,
                background=config.model.background,
            ),
            jit_compile=False,
        )
        self.model.optimizer.build(self.model.trainable_variables)  # otherwise Keras traces the step twice
        self._predictor = SlicePredictor(self.model, data, self.targets, background=config.model.background)

    def batches(self, first: int, last: int) -> tf.data.Dataset:
        batches, _ = slice_batches(
            self._sampler,
            self._rows,
            self._empty,
            augment=self.config.augment,
            empty_share=self.config.data.empty,
            epoch_slices=self.config.data.epoch_slices,
            batch_size=self.config.train.batch_size,
            seed=self.config.train.seed,
            epochs=last,
            first_epoch=first,
        )
        return batches

    def validate(self) -> dict[str, float]:
        """Returns the scores of the network on the whole val volumes: columns of `history.csv`.

        `val_loss`: cross-entropy per voxel, the mean over the volumes. `val_dice`, `val_iou`: means over the classes
        without background. `val_dice_CLASS`: of each class. The classes are those of the network.
        """
        data, total, losses = self.config.data, 0, []
        for volume in self.dataset.of_split("val"):
            truth = self.targets.table[volume.mask]
            log_loss = _LogLoss(truth, data.plane)
            predicted = class_numbers(log_loss.watched(self._predictor.slices(volume)), truth.shape, data.plane)
            losses.append(log_loss.mean)
            total = total + overlap.confusion(truth, predicted, len(self.targets.names) + 1)
        dice, iou = overlap.dice(total)[1:], overlap.iou(total)[1:]
        scores = {
            "val_loss": float(np.mean(losses)),
            "val_dice": float(np.nanmean(dice)),
            "val_iou": float(np.nanmean(iou)),
        }
        return scores | {f"val_dice_{name}": float(value) for name, value in zip(self.targets.names, dice, strict=True)}


class _LogLoss:
    """The mean cross-entropy of a volume, summed up while its slices pass by."""

    def __init__(self, truth: np.ndarray, plane: str):
        self._truth, self._sum, self._count = np.moveaxis(truth, PLANE_AXES[plane][0], 0), 0.0, 0

    def watched(self, slices):
        for number, value in enumerate(slices):
            chosen = np.take_along_axis(value, self._truth[number][..., None].astype(np.int64), axis=-1)
            self._sum -= float(np.log(np.maximum(chosen, 1e-7)).sum(dtype=np.float64))
            self._count += chosen.size
            yield value

    @property
    def mean(self) -> float:
        return self._sum / max(1, self._count)


def network(
    config: SegmentationConfig, targets: SliceTargets, volumes: Sequence[Volume], *, load_weights: bool
) -> UNet:
    """Returns the U-Net of a configuration; it begins with the shares of the classes in the training volumes.

    Args:
        config: of the run.
        targets: the classes of the network.
        volumes: for training.
        load_weights: whether the encoder gets its initial weights.
    """
    counts = sum(
        np.bincount(targets.table[volume.mask].ravel(), minlength=len(targets.names) + 1) for volume in volumes
    )
    share = np.maximum(counts / counts.sum(), RAREST)
    bias = np.log(share) if config.model.background else np.log(share[1:] / (1 - share[1:]))
    model, data = config.model, config.data
    return build_unet(
        classes=len(targets.names),
        weights=config.model.weights if load_weights else "none",
        initial_bias=bias.tolist(),
        slices=data.slices,
        coordinate=data.sides == "coordinate",
        widths=model.widths,
        norm=model.norm,
        groups=model.groups,
        noise=model.noise,
        dropout=model.dropout,
        background=model.background,
        encoder=None if model.encoder == "none" else model.encoder,
        fused_batch_norm=model.fused_batch_norm,
        seed=config.train.seed,
    )
