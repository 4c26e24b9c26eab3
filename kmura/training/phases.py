"""What changes from epoch to epoch: a function of the epoch alone, so that a resumed run turns the same knobs."""

import keras

from kmura.config import Config


class EpochKnobs(keras.callbacks.Callback):
    """Sets the learning rate and CAM-erasing at the begin of every epoch, as the configuration asks.

    Mixing changes by epoch inside the data set (`kmura.data.pipeline.train_dataset`).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config

    def on_epoch_begin(self, epoch, logs=None):
        train, erase = self.config.train, self.config.cam
        if train.slow_from_epoch is not None:
            slow = epoch + 1 >= train.slow_from_epoch
            self.model.optimizer.learning_rate.assign(train.learning_rate * (0.1 if slow else 1.0))
        self.model.set_erasing(
            erase.from_epoch is not None and epoch + 1 >= erase.from_epoch,
            alpha_cam=erase.alpha_cam,
            erase_q=erase.erase_q,
            erase_every=erase.erase_every,
        )
