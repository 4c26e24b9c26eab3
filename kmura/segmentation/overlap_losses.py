"""The losses of segmentation: Tversky, focal Tversky and cross-entropy, from logits and class numbers.

Shapes: B images, H x W pixels, K maps. Everything is computed in float32.
"""

import keras
from keras import ops

from kmura.errors import InputError

UNKNOWN = -1  # label of a voxel that takes part in no loss


def tversky_loss(truth, probabilities, known, *, alpha: float, beta: float, smooth: float, per_image: bool = False):
    """Returns 1 - T of each map, float32 [K], or of each image and map [B, K], where T is the Tversky index.

    Salehi et al. 2017 (equations 2 and 3), for the probabilities p and the truth g of a class:

        T = (TP + s) / (TP + alpha FP + beta FN + s), TP = sum p g, FP = sum p (1 - g), FN = sum (1 - p) g,

    with s = 0. T with alpha = beta = 0.5 is the soft Dice coefficient, with alpha = beta = 1 the soft IoU. Without s, a
    class that is absent from the truth has the loss 1 and no gradient; with s, its false positives have one.

    `keras.losses.tversky` is not used: it has no s, and up to Keras 3.15.1 it exchanges the two weights (its `alpha`
    multiplies the false negatives, contrary to its documentation; corrected in Keras' pull request 23333).

    Args:
        truth: [B, H, W, K] of 0 and 1.
        probabilities: [B, H, W, K] in 0..1.
        known: [B, H, W, 1] of 1, and 0 where the truth is unknown.
        alpha: weight of the false positives.
        beta: weight of the false negatives.
        smooth: s, in voxels.
        per_image: whether the sums are those of an image; otherwise they are those of the batch.
    """
    axes = (1, 2) if per_image else (0, 1, 2)
    probabilities = ops.cast(probabilities, "float32") * known
    truth = truth * known
    true_positives = ops.sum(truth * probabilities, axis=axes)
    false_positives = ops.sum(probabilities, axis=axes) - true_positives
    false_negatives = ops.sum(truth, axis=axes) - true_positives
    below = true_positives + alpha * false_positives + beta * false_negatives + smooth
    return 1 - (true_positives + smooth) / ops.maximum(below, keras.config.epsilon())


def focal(loss, gamma: float):
    """Returns loss ** (1 / gamma), the focal Tversky loss of a class (Abraham & Khan 2019, equation 4).

    The exponent is 1 / gamma as in the paper, which recommends gamma = 4 / 3 and sums over the classes; their code and
    others call the exponent gamma. Their alpha is the weight of the false negatives, here it is that of the false
    positives. Above gamma = 1, the slope at a loss of 0 is infinite; losses below 1e-7 have no gradient.

    Args:
        loss: 1 - T, in 0..1.
        gamma: above 0; 1 returns the loss.
    """
    return loss if gamma == 1 else ops.power(ops.maximum(loss, keras.config.epsilon()), 1 / gamma)


@keras.saving.register_keras_serializable("kmura")
class SegmentationLoss(keras.losses.Loss):
    """The weighted sum of the focal Tversky loss and the cross-entropy, from class numbers and logits of a U-Net.

    loss = w_T mean_k (1 - T_k) ** (1 / gamma) + w_C C. The mean is that over the classes, and C is the mean over the
    known voxels of the cross-entropy of the softmax, or without a background map that of the sigmoids, which is also a
    mean over the maps. A voxel with the label -1 is unknown and takes part in nothing.

    Labels are int [B, H, W] or [B, H, W, 1]; logits [B, H, W, K], with the map of the background first
    (`background=True`), or with map k - 1 for class k.
    """

    def __init__(
        self,
        *,
        tversky: float = 1.0,
        cross_entropy: float = 0.0,
        alpha: float = 0.5,
        beta: float = 0.5,
        focal_gamma: float = 1.0,
        smooth: float = 1.0,
        background: bool = True,
        include_background: bool = False,
        per_image: bool = False,
        name: str = "segmentation",
        **kwargs,
    ):
        """
        Args:
            tversky: w_T, 0 or more.
            cross_entropy: w_C, 0 or more.
            alpha: weight of the false positives in T.
            beta: weight of the false negatives in T.
            focal_gamma: gamma, see `focal`.
            smooth: s in voxels, see `tversky_loss`.
            background: whether the first logit is that of the background.
            include_background: whether the mean over the classes includes the background.
            per_image: whether T and C are those of each image, and the loss their mean; otherwise they are those of the
                batch.
            name, **kwargs: see keras.losses.Loss.

        Raises:
            InputError: a number is out of range.
        """
        super().__init__(name=name, **kwargs)
        for key, value in {"tversky": tversky, "cross_entropy": cross_entropy, "smooth": smooth}.items():
            if value < 0:
                raise InputError(f"loss.{key} is {value}; give 0 or more")
        if tversky == cross_entropy == 0:
            raise InputError("loss.tversky and loss.cross_entropy are both 0; set one of them above 0")
        if min(alpha, beta) < 0 or max(alpha, beta) == 0:
            raise InputError(f"loss.alpha is {alpha} and loss.beta {beta}; give 0 or more, and one above 0")
        if focal_gamma <= 0:
            raise InputError(f"loss.focal_gamma is {focal_gamma}; give a number above 0, 1 for the plain Tversky loss")
        if include_background and not background:
            raise InputError("include_background needs a map of the background; set background, or remove it")
        self.options = {
            "tversky": tversky,
            "cross_entropy": cross_entropy,
            "alpha": alpha,
            "beta": beta,
            "focal_gamma": focal_gamma,
            "smooth": smooth,
            "background": background,
            "include_background": include_background,
            "per_image": per_image,
        }

    def call(self, y_true, y_pred):
        """Returns the loss, a scalar, or with `per_image` [B]."""
        options = self.options
        logits = ops.cast(y_pred, "float32")
        labels = ops.cast(y_true, "int32")  # Keras converts them to float32, which holds integers up to 2 ** 24
        labels = labels[..., 0] if len(labels.shape) == len(logits.shape) else labels
        known = ops.cast(labels != UNKNOWN, "float32")  # [B, H, W]
        total = 0.0
        if options["tversky"]:
            total += options["tversky"] * self._tversky(labels, logits, known[..., None])
        if options["cross_entropy"]:
            total += options["cross_entropy"] * self._cross_entropy(labels, logits, known)
        return total

    def _tversky(self, labels, logits, known):
        options = self.options
        if options["background"]:
            probabilities = ops.softmax(logits, axis=-1)
            first = 0 if options["include_background"] else 1
            probabilities = probabilities[..., first:]
        else:
            probabilities, first = ops.sigmoid(logits), 1
        truth = ops.one_hot(labels - first, probabilities.shape[-1], dtype="float32")  # of negative numbers: zeros
        names = ("alpha", "beta", "smooth", "per_image")
        losses = tversky_loss(truth, probabilities, known, **{name: options[name] for name in names})
        return ops.mean(focal(losses, options["focal_gamma"]), axis=-1)

    def _cross_entropy(self, labels, logits, known):
        if self.options["background"]:
            # an unknown label is replaced by 0, which is then multiplied by 0
            losses = keras.losses.sparse_categorical_crossentropy(ops.maximum(labels, 0), logits, from_logits=True)
        else:
            truth = ops.one_hot(labels - 1, logits.shape[-1], dtype="float32")
            losses = keras.losses.binary_crossentropy(truth, logits, from_logits=True)
        axes = (1, 2) if self.options["per_image"] else (0, 1, 2)
        return ops.sum(losses * known, axis=axes) / ops.maximum(ops.sum(known, axis=axes), 1.0)

    def get_config(self):
        return super().get_config() | self.options
