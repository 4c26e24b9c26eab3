"""The model that is compiled and fitted around a classifier, so that the classifier itself stays plain."""

import keras


class Trainer(keras.Model):
    """A classifier with the training step for batches of `kmura.data.pipeline.train_dataset`.

    The classifier is never compiled: what is saved of it carries no optimizer and loads without this class.
    """

    def __init__(self, classifier: keras.Model, **kwargs):
        super().__init__(name="trainer", **kwargs)
        self.classifier = classifier
        self.built = True  # the classifier is; saves Keras a symbolic pass through it

    def call(self, images, training=None):
        return self.classifier(images, training=training)

    def train_step(self, batch):
        """Keras' own step on `mixed_image` [B, H, W, C] and `mixed_label` [B, L]."""
        return super().train_step((batch["mixed_image"], batch["mixed_label"]))
