"""The network that is pretrained: an encoder, a projection head and a linear probe."""

from collections.abc import Sequence

import keras
from keras import layers

from kmura.errors import InputError
from kmura.models.base import ImageClassifier

PROBE = "probe"  # name of the probe's last layer


@keras.saving.register_keras_serializable("kmura")
class ProjectionNetwork(ImageClassifier):
    """Maps images [B, height, width, channels] float32 in 0..255 to a dictionary of float32 outputs.

    `features` [B, F]: the global average of P5, the input of a classifier's head. `embedding` [B, D]: their projection,
    on which the loss of pretraining is computed. `probe` [B, L]: logits of a linear layer on the normalised features,
    whose gradient does not reach the encoder.
    """

    head_sees = ("P5",)
    branches = {"cnn": "P5"}

    def __init__(
        self,
        backbone: str = "densenet121",
        image_size: int | tuple[int, int] = 224,
        projector: Sequence[int] = (2048, 2048, 2048),
        projector_norm: bool = False,
        **common,
    ):
        """
        Args:
            projector: units of the layers of the projection head, first to last; the last is D.
            projector_norm: use batch normalisation also after the last layer.
            backbone, image_size, **common: see ImageClassifier; `num_classes` is L.
        """
        own = {"projector": list(projector), "projector_norm": projector_norm}
        super().__init__(backbone=backbone, image_size=image_size, **own, **common)

    @classmethod
    def check(cls, *, projector: Sequence[int], projector_norm: bool, **common):
        if not projector or min(projector) < 1:
            raise InputError(f"projector is {list(projector)}; give the units of one or more layers, each 1 or more")
        return super().check(**common)

    @staticmethod
    def _finished(images, normalized, maps, config):
        features = layers.GlobalAveragePooling2D(dtype="float32", name="features")(maps["P5"])
        embedding = projected(features, config["projector"], last_norm=config["projector_norm"])
        probe = layers.BatchNormalization(
            center=False, scale=False, dtype="float32", name=f"{PROBE}_normalized"
        )(StoppedGradient(dtype="float32", name=f"{PROBE}_features")(features))  # fmt: skip
        probe = layers.Dense(config["num_classes"], dtype="float32", name=PROBE)(probe)
        return maps, {"features": features, "embedding": embedding, "probe": probe}


def projected(features, units: Sequence[int], *, last_norm: bool):
    """Returns the projection of features [B, F]: dense layers with batch normalisation and ReLU between them, [B, D].

    With `last_norm` and two layers this is the projection head of SimCLR (Chen et al. 2020), without it and with three
    layers the expander of VICReg (Bardes et al. 2022).

    Args:
        features: [B, F].
        units: units of each layer, first to last.
        last_norm: use batch normalisation after the last layer, whose bias is then left out.
    """
    for number, width in enumerate(units):
        last = number == len(units) - 1
        norm = last_norm or not last
        features = layers.Dense(width, use_bias=not norm, name=f"projector{number}")(features)
        if norm:
            features = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"projector{number}_bn")(features)
        if not last:
            features = layers.Activation("relu", name=f"projector{number}_relu")(features)
    return layers.Activation("linear", dtype="float32", name="embedding")(features)


@keras.saving.register_keras_serializable("kmura")
class StoppedGradient(layers.Layer):
    """Returns its input; no gradient flows back through it."""

    def call(self, inputs):
        return keras.ops.stop_gradient(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape
