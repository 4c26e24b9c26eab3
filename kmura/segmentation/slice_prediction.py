"""Class probabilities of whole volumes from the slices of one plane."""

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from kmura.config.segmentation import SlicesConfig
from kmura.data.slices import SliceSampler, SliceTargets, volume_batches
from kmura.data.volume_dataset import PLANE_AXES, Volume
from kmura.models.unet import map_probabilities
from kmura.runs.run import Run
from kmura.segmentation.targets import targets_of

BATCH = 8  # slices per prediction


class SlicePredictor:
    """The class probabilities of slices by a network; it is traced once, for slices of any size.

    Attributes:
        config: plane, neighbours and sides of the network.
        targets: the classes of the network.
    """

    def __init__(
        self, model: keras.Model, config: SlicesConfig, targets: SliceTargets, *, background: bool, flips: bool = False
    ):
        """
        Args:
            model: the U-Net.
            config, targets: of its data.
            background: whether the first map is that of the background.
            flips: average with the prediction for the mirrored slice; sagittal slices have no mirror image.
        """
        self.config, self.targets = config, targets
        coordinate = config.sides == "coordinate"
        shape = (None, None, None, config.slices + coordinate)
        mirrored = targets.mirrored.astype(np.int32)

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
        def predicted(images):
            values = map_probabilities(model(images, training=False), background=background)
            if not flips or config.plane == "sagittal":
                return values
            turned = tf.reverse(images, axis=[2])
            if coordinate:
                turned = tf.concat([turned[..., :-1], -turned[..., -1:]], axis=-1)
            other = map_probabilities(model(turned, training=False), background=background)
            return (values + tf.gather(tf.reverse(other, axis=[2]), mirrored, axis=-1)) / 2

        self._predicted = predicted

    def slices(self, volume: Volume, batch_size: int = BATCH) -> Iterator[np.ndarray]:
        """Yields the class probabilities of the slices of a volume in order, float32 [rows, columns, K].

        Args:
            volume: its mask is not used.
            batch_size: slices per prediction.
        """
        across, row, column = PLANE_AXES[self.config.plane]
        shape = volume.gray.shape
        sampler = SliceSampler([volume], self.config, self.targets, (shape[row], shape[column]))
        for images in volume_batches(sampler, 0, shape[across], batch_size):
            yield from self._predicted(images).numpy()


def predictor_of(run: Run, *, flips: bool = False) -> SlicePredictor:
    """Returns the network of a run with the classes that it predicts."""
    config = run.config
    targets = targets_of(run.labels.classes, merged=config.data.sides == "merged")
    return SlicePredictor(run.model(), config.data, targets, background=config.model.background, flips=flips)


def class_numbers(slices: Iterator[np.ndarray], shape: Sequence[int], plane: str) -> np.ndarray:
    """Returns the most probable class of every voxel, uint8 [Z, Y, X], from the slices of one plane."""
    numbers = np.zeros(shape, np.uint8)
    moved = np.moveaxis(numbers, PLANE_AXES[plane][0], 0)
    for number, value in enumerate(slices):
        moved[number] = value.argmax(axis=-1)
    return numbers
