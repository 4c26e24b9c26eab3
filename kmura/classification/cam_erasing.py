"""CAM-erasing: now and then the model must also be right without the part of the image that it looks at most."""

import keras
import tensorflow as tf

from kmura import cam
from kmura.config import CamConfig
from kmura.models.freezing import set_trainable


class CamErasingModel(keras.Model):
    """The model that is compiled and fitted around a classifier; the classifier itself stays plain.

    A step computes the loss on the mixed batch. Every `erase_every` steps, while erasing is on, the Grad-CAM++ of the
    clean batch towards the predicted side gives a mask of the top 1 - q of each image's positive map; the clean batch
    with that part black (of all images, or of those of one side alone) and with its own labels gives a second loss, and

        loss = (1 - alpha_cam) * loss_mixed + alpha_cam * loss_erased.

    All knobs are variables: changing them between epochs, phases or trials does not trace the step again. What is saved
    of the classifier carries no optimizer and loads without this class.

    Attributes:
        classifier: the functional model, with `feature_maps`.
        erasing: 0 or 1; alpha_cam: 0..1; erase_q: in (0, 1); erase_every: steps, 1 or more; erase_positive and
            erase_negative: 0 or 1, whether images of that side lose anything. Set with `set_erasing`.
    """

    def __init__(
        self,
        classifier: keras.Model,
        *,
        can_erase: bool = True,
        tap: str = "P5",
        learning_part: str = "all",
        **kwargs,
    ):
        """
        Args:
            classifier: gives logits [B, L] for images [B, H, W, C].
            can_erase: False leaves erasing out of the step for good; it is traced in half the time.
            tap: the feature map that decides what is erased, see CamConfig.
            learning_part: of its backbone that learns now, see `unfreeze` of TrainConfig.
        """
        super().__init__(name="trainer", **kwargs)
        self.classifier = classifier
        self._cam = cam.CamEngine(classifier, tap=tap, fallback=cam.FALLBACKS[tap]) if can_erase else None
        self.erasing = self._knob("erasing", 0)
        self.alpha_cam = self._knob("alpha_cam", CamConfig.alpha_cam)
        self.erase_q = self._knob("erase_q", CamConfig.erase_q)
        self.erase_every = self._knob("erase_every", CamConfig.erase_every)
        self.erase_positive = self._knob("erase_positive", 1)
        self.erase_negative = self._knob("erase_negative", 1)
        self._learning_part, self._traced = learning_part, {}
        self.built = True  # the classifier is; saves Keras a symbolic pass through it

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        self._traced = {}
        self._trace_gradients_anew()

    def _trace_gradients_anew(self) -> None:
        # a function of its own, so that both passes of a step with erasing are traced once; and anew after each
        # `compile`: loss and trainable variables may be others
        self._compute_gradients = tf.function(self._loss_and_gradients, reduce_retracing=True)

    def _knob(self, name: str, value: float):
        initial = keras.initializers.Constant(value)
        return self.add_weight(shape=(), initializer=initial, dtype="float32", trainable=False, name=name)

    def set_erasing(self, on: bool, how: CamConfig) -> None:
        """Turns the knobs: whether to erase now (whatever `from_epoch` says), and how."""
        self.erasing.assign(float(on))
        self.alpha_cam.assign(how.alpha_cam)
        self.erase_q.assign(how.erase_q)
        self.erase_every.assign(how.erase_every)
        self.erase_positive.assign(float(how.erase != "negative"))
        self.erase_negative.assign(float(how.erase != "positive"))

    def set_learning_part(self, part: str) -> None:
        """Lets a part of the convolutional backbone learn, see `unfreeze` of TrainConfig.

        Each part is traced once, when it first learns. The optimizer must have been built for all that ever do.

        Raises:
            InputError: more convolutions than there are.
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
        """One step on `mixed_image` [B, H, W, C], `mixed_label` [B, L] and, when it is due, `image` and `label`."""
        images, labels = batch["mixed_image"], batch["mixed_label"]
        if self._cam is None:
            return super().train_step((images, labels))
        loss, logits, gradients = self._compute_gradients(images, labels)

        def plain():
            return loss, gradients

        def erased():
            maps, _ = self._cam(batch["image"])
            kept = 1 - cam.erase_mask(maps, self.erase_q) * self._chosen(batch["label"])
            other_loss, _, other = self._compute_gradients(batch["image"] * kept[..., None], batch["label"])
            share = tf.convert_to_tensor(self.alpha_cam)
            both = [(1 - share) * one + share * two for one, two in zip(gradients, other, strict=True)]
            return (1 - share) * loss + share * other_loss, both

        step = tf.cast(self.optimizer.iterations, tf.float32)
        due = (self.erasing > 0) & (tf.math.floormod(step, self.erase_every) == 0)
        total, gradients = tf.cond(due, erased, plain)
        self.optimizer.apply(gradients, self.trainable_variables)
        # Keras divides the loss by the replicas of a distribution strategy, so that their gradients may be summed
        total *= tf.distribute.get_strategy().num_replicas_in_sync
        self._loss_tracker.update_state(total, sample_weight=tf.shape(images)[0])
        return self.compute_metrics(images, labels, logits)

    def _chosen(self, labels):
        """1 for images that are to lose what the mask covers, else 0: [B, 1, 1]; of several logits every image."""
        if labels.shape[-1] != 1:
            return 1.0
        return tf.where(labels >= 0.5, self.erase_positive, self.erase_negative)[:, :, None]

    def _symbolic_build(self, iterator=None, data_batch=None):
        # under a distribution strategy Keras makes the metrics from a batch, and takes a dictionary for the input
        if isinstance(data_batch, dict):
            data_batch = (data_batch["mixed_image"], data_batch["mixed_label"])
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)

    def _loss_and_gradients(self, images, labels):
        with tf.GradientTape() as tape:
            logits = self.classifier(images, training=True)
            loss = self.compute_loss(images, labels, logits, training=True)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        # Swin's tables of positions have sparse ones, which the branches of a condition may not return
        return loss, logits, [None if each is None else tf.convert_to_tensor(each) for each in gradients]
