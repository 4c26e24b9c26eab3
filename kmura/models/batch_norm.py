"""Batch normalisation through TensorFlow's fused kernel, in a layer that is otherwise Keras' own.

Keras 3 on TensorFlow writes batch normalisation out in a dozen operations; TensorFlow has one kernel for it. With the
kernel a training step of DenseNet-121 (224 pixels, batch 16, float32) took 2.3 s, without it 3.3 s (two cores of an AMD
EPYC); in mixed_bfloat16 1.5 s and 2.8 s. `benchmarks/training_speed.py` measures it.
"""

import keras
import tensorflow as tf

KERNEL_DTYPES = ("float32", "float16", "bfloat16")


@keras.saving.register_keras_serializable("kmura", name="FusedBatchNormalization")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` computed by TensorFlow's fused kernel where that kernel applies.

    Constructor, config, weights, initial values and the meaning of `training` and `trainable` are the
    parent's. What
    differs is one number: the kernel adds the *unbiased* variance (N / (N - 1) of the batch's, N = batch *
    height * width) to the moving variance, as torch does and Keras does not. The outputs of training are the
    same; at N = 16 * 7 * 7 the moving variance differs by 0.13 %.

    The kernel takes images [batch, height, width, channels] normalised over channels, in float32, float16 or
    bfloat16 with float32 weights and statistics. Anything else (another axis or rank, a mask, `renorm`,
    `synchronized`, float64) is left to the parent.
    """

    def call(self, inputs, training=None, mask=None):
        if mask is not None or not self._kernel_applies(inputs):
            return super().call(inputs, training=training, mask=mask)
        learns = bool(training) and self.trainable
        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(inputs, self.compute_dtype),
            scale=tf.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels),
            offset=tf.convert_to_tensor(self.beta) if self.center else tf.zeros(channels),
            mean=tf.convert_to_tensor(self.moving_mean),
            variance=tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            exponential_avg_factor=1.0 - self.momentum,
            is_training=learns,
        )
        if learns:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return outputs

    def _kernel_applies(self, inputs) -> bool:
        return (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.compute_dtype in KERNEL_DTYPES
            and self.variable_dtype == "float32"
            and not self.renorm
            and not self.synchronized
        )


# Keras' weight files address a layer by the name of its class ("layers/batch_normalization_7/vars/0"). Under
# the parent's name, files written with either class load into the other: presets of keras-hub into a model
# with fused layers, and the other way round.
FusedBatchNormalization.__name__ = keras.layers.BatchNormalization.__name__


def set_batch_norm(model: keras.Model, *, momentum: float, fused: bool) -> None:
    """Gives all batch normalisation of `model` this momentum and, if `fused`, the fused kernel; in place.

    A layer becomes fused by taking another class: the two have the same state and differ in `call` alone.
    Cloning would build the network twice (2 s for DenseNet-121) and turn a keras-hub backbone into a plain
    Functional.

    Args:
        model: not yet compiled or traced; nested models are reached too.
        momentum: share of the old moving statistics kept at each training step (Keras' sense; torch's 0.1 is
            0.9).
        fused: False leaves the kernel of each layer as it is.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            set_batch_norm(layer, momentum=momentum, fused=fused)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
            if fused and type(layer) is keras.layers.BatchNormalization:
                object.__setattr__(layer, "__class__", FusedBatchNormalization)
