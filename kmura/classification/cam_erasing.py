"""CAM-erasing: a second loss on images without the region that a class activation map marks."""

import keras
import tensorflow as tf

from kmura import cam
from kmura.config import CamConfig
from kmura.models.backbones import BACKBONES
from kmura.models.freezing import set_trainable


class CamErasingModel(keras.Model):
    """A wrapper that is compiled and fitted to train a classifier; the classifier itself is not changed.

    Each step computes the loss of the mixed batch. While erasing is on, every `erase_every` steps, the class activation
    map of the clean batch towards the predicted class gives a mask of the top 1 - q of each image's map. The clean
    batch with this region set to black or to the mean color (in all images, only in those of one class, or only in the
    first ones) and with its own labels gives a second loss, and the total loss is

        loss = (1 - alpha_cam) * loss_mixed + alpha_cam * loss_erased.

    All settings of erasing are variables, so changing them between epochs, phases or trials does not retrace the step.
    The saved classifier has no optimizer and loads without this class.

    Attributes:
        classifier: the functional model, with `feature_maps`.
        erasing: 0 or 1. This and the following variables are set with `set_erasing`.
        alpha_cam: 0 to 1.
        erase_q: above 0 and below 1.
        erase_every: steps, 1 or more.
        erase_positive, erase_negative: 0 or 1, whether images of that class are erased.
    """

    def __init__(
        self,
        classifier: keras.Model,
        *,
        can_erase: bool = True,
        how: CamConfig | None = None,
        learning_part: str = "all",
        **kwargs,
    ):
        """
        Args:
            classifier: maps images [B, H, W, C] to logits [B, L].
            can_erase: False removes erasing from the step permanently, which halves the tracing time.
            how: feature map and method of the class activation map, and what is erased; None takes the defaults. Its
                other settings are set with `set_erasing`.
            learning_part: the part of the backbone that is trainable at first, see `unfreeze` of TrainConfig.
        """
        super().__init__(name="trainer", **kwargs)
        self.classifier = classifier
        self._how = how = how or CamConfig()
        self._cam = None
        if can_erase:
            self._cam = cam.CamEngine(classifier, method=how.method, tap=how.tap, fallback=cam.FALLBACKS[how.tap])
        self.erasing = self._knob("erasing", 0)
        self.alpha_cam = self._knob("alpha_cam", CamConfig.alpha_cam)
        self.erase_q = self._knob("erase_q", CamConfig.erase_q)
        self.erase_every = self._knob("erase_every", CamConfig.erase_every)
        self.erase_positive = self._knob("erase_positive", 1)
        self.erase_negative = self._knob("erase_negative", 1)
        self._learning_part, self._traced = learning_part, {}
        self.built = True  # the classifier is built; this saves a symbolic pass

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        self._traced = {}
        self._trace_gradients_anew()

    def _trace_gradients_anew(self) -> None:
        # a separate function, so that both passes of a step with erasing share one trace; retraced after each
        # `compile`, since loss and trainable variables may have changed
        self._compute_gradients = tf.function(self._loss_and_gradients, reduce_retracing=True)

    def _knob(self, name: str, value: float):
        initial = keras.initializers.Constant(value)
        return self.add_weight(shape=(), initializer=initial, dtype="float32", trainable=False, name=name)

    def set_erasing(self, on: bool, how: CamConfig) -> None:
        """Sets whether to erase now (regardless of `how.from_epoch`), and the settings of erasing."""
        self.erasing.assign(float(on))
        self.alpha_cam.assign(how.alpha_cam)
        self.erase_q.assign(how.erase_q)
        self.erase_every.assign(how.erase_every)
        self.erase_positive.assign(float(how.erase != "negative"))
        self.erase_negative.assign(float(how.erase != "positive"))

    def set_learning_part(self, part: str) -> None:
        """Sets the trainable part of the convolutional backbone, see `unfreeze` of TrainConfig.

        The step is traced once per part, at its first use. The optimizer must have been built for all variables that
        are ever trained.

        Raises:
            InputError: `part` has more convolutions than the backbone.
        """
        if part == self._learning_part:
            return
        set_trainable(self.classifier, part)
        self._traced[self._learning_part] = self._compute_gradients, self.train_function
        self._learning_part = part
        if part in self._traced:
            self._compute_gradients, self.train_function = self._traced[part]
        else:
            self._trace_gradients_anew()
            self.make_train_function(force=True)

    def call(self, images, training=None):
        return self.classifier(images, training=training)

    def train_step(self, batch):
        """Trains on `mixed_image` [B, H, W, C] and `mixed_label` [B, L]; also on `image` and `label` when erasing."""
        images, labels = batch["mixed_image"], batch["mixed_label"]
        if self._cam is None:
            return super().train_step((images, labels))
        loss, logits, gradients = self._compute_gradients(images, labels)

        def plain():
            return loss, gradients

        def erased():
            maps, _ = self._cam(batch["image"])
            mask = cam.erase_mask(maps, self.erase_q, of=self._how.erase_of) * self._chosen(batch["label"])
            other_loss, _, other = self._compute_gradients(self._filled(batch["image"], mask), batch["label"])
            share = tf.convert_to_tensor(self.alpha_cam)
            both = [(1 - share) * mixed + share * clean for mixed, clean in zip(gradients, other, strict=True)]
            return (1 - share) * loss + share * other_loss, both

        step = tf.cast(self.optimizer.iterations, tf.float32)
        due = (self.erasing > 0) & (tf.math.floormod(step, self.erase_every) == 0)
        total, gradients = tf.cond(due, erased, plain)
        self.optimizer.apply(gradients, self.trainable_variables)
        # Keras divides the loss by the replicas of a distribution strategy, so that their gradients can be summed
        total *= tf.distribute.get_strategy().num_replicas_in_sync
        self._loss_tracker.update_state(total, sample_weight=tf.shape(images)[0])
        return self.compute_metrics(images, labels, logits)

    def _chosen(self, labels):
        """Returns 1 for images that are erased, else 0, [B, 1, 1]; with several logits their class does not matter."""
        if labels.shape[-1] == 1:
            chosen = tf.where(labels[:, 0] >= 0.5, self.erase_positive, self.erase_negative)
        else:
            chosen = tf.ones(tf.shape(labels)[0])
        if self._how.erase_images != "all":
            chosen *= tf.cast(tf.cumsum(chosen) <= self._how.erase_images, tf.float32)
        return chosen[:, None, None]

    def _filled(self, images, mask):
        """Returns the images [B, H, W, C] with the pixels of the mask [B, H, W] set to `erase_fill`."""
        kept = images * (1 - mask)[..., None]
        if self._how.erase_fill == "black":
            return kept
        mean = tf.constant(BACKBONES[self.classifier.get_config()["backbone"]].mean, tf.float32)
        if images.shape[-1] == 1:  # the gray image becomes three equal channels
            mean = tf.reduce_mean(mean, keepdims=True)
        return kept + mask[..., None] * mean

    def _symbolic_build(self, iterator=None, data_batch=None):
        # under a distribution strategy Keras builds the metrics from a batch, and would take the dictionary as input
        if isinstance(data_batch, dict):
            data_batch = (data_batch["mixed_image"], data_batch["mixed_label"])
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)

    def _loss_and_gradients(self, images, labels):
        with tf.GradientTape() as tape:
            logits = self.classifier(images, training=True)
            loss = self.compute_loss(images, labels, logits, training=True)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        # gradients of Swin's position tables are sparse, and the branches of tf.cond cannot return sparse tensors
        return loss, logits, [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
