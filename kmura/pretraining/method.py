"""The base class of the methods of pretraining: what a step does, apart from the loss of the method."""

import abc

import keras
import tensorflow as tf

from kmura.tasks import Task


class PretrainingModel(keras.Model, abc.ABC):
    """A wrapper that is compiled and fitted to pretrain a network; the network itself is not changed.

    A step encodes both views of all pairs in one pass. Its loss is the sum of the terms of the method and of the
    cross-entropy of the probe, over the first views with a known label. A method is a subclass that defines `terms`;
    the registry is `kmura.pretraining.methods.METHODS`.

    Attributes:
        network: the ProjectionNetwork.
        term_names: the terms of the method, columns of the history.
        normalised: whether the method compares embeddings of length 1; decides in which unit the standard deviation of
            the embeddings is reported.
    """

    term_names: tuple[str, ...]
    normalised: bool = False

    def __init__(self, network: keras.Model, task: Task, **kwargs):
        """
        Args:
            network: the ProjectionNetwork.
            task: of the probe's labels.
        """
        super().__init__(name="pretrainer", **kwargs)
        self.network, self._softmax = network, task.softmax
        self._means = [keras.metrics.Mean(name=name) for name in (*self.term_names, "probe_loss")]
        self.built = True  # the network is built; this saves a symbolic pass

    @abc.abstractmethod
    def terms(self, first, second, group) -> dict[str, tf.Tensor]:
        """Returns the weighted terms of the loss, scalars by the names of `term_names`.

        Args:
            first, second: embeddings of the two views, float32 [B, D].
            group: int32 [B], see `kmura.data.dataset.Dataset.views`.
        """

    def call(self, images, training=None):
        return self.network(images, training=training)

    @property
    def metrics(self):
        return [self._loss_tracker, *self._means]

    def train_step(self, batch):
        """Trains on a batch of `kmura.data.dataset.Dataset.views`."""
        return super().train_step((batch["image"], {"label": batch["label"], "group": batch["group"]}))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        pairs = tf.shape(y["label"])[0]
        embedding = y_pred["embedding"]
        values = self.terms(embedding[:pairs], embedding[pairs:], y["group"])
        values["probe_loss"] = probe_loss(y["label"], y_pred["probe"][:pairs], softmax=self._softmax)
        for mean in self._means:
            mean.update_state(values[mean.name])
        return tf.add_n(list(values.values()))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return self.get_metrics_result()

    def _symbolic_build(self, iterator=None, data_batch=None):
        """Keras builds losses and metrics from a batch here; there are none to build."""


def probe_loss(labels, logits, *, softmax: bool):
    """Returns the mean cross-entropy of the known labels, a scalar; 0 if none is known.

    Args:
        labels: targets float32 [B, L], -1 where unknown (for softmax the whole row).
        logits: float32 [B, L].
        softmax: whether the classes are mutually exclusive.
    """
    known = tf.cast(labels >= 0, tf.float32)
    targets = tf.maximum(labels, 0.0)
    if softmax:
        losses, known = tf.nn.softmax_cross_entropy_with_logits(targets, logits), known[:, 0]
    else:
        losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    return tf.math.divide_no_nan(tf.reduce_sum(known * losses), tf.reduce_sum(known))
