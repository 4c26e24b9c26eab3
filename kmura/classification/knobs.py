"""What changes from epoch to epoch, and from run to run of one model, without a new trace."""

import keras

from kmura.config import ClassificationConfig
from kmura.training.optimizers import inner_optimizer, set_learning_rate


class EpochKnobs(keras.callbacks.Callback):
    """Sets learning rate, L2 penalty, CAM-erasing and the part of the backbone that learns at the begin of every epoch,
    as the configuration asks. Another part needs another trace of the step, all else none.

    A function of the epoch alone, so that a resumed run turns the same knobs. Mixing changes by epoch inside the data
    set (`kmura.data.pipeline.train_dataset`).
    """

    def __init__(self, config: ClassificationConfig):
        super().__init__()
        self.config = config

    def on_train_begin(self, logs=None):
        set_learning_rate(inner_optimizer(self.model.optimizer), self.config.train.learning_rate)

    def on_epoch_begin(self, epoch, logs=None):
        train, erase = self.config.train, self.config.cam
        frozen = train.frozen_until_epoch is not None and epoch < train.frozen_until_epoch
        self.model.set_learning_part("none" if frozen else train.unfreeze)
        optimizer = inner_optimizer(self.model.optimizer)
        if epoch == train.frozen_until_epoch:
            optimizer.begin_late()
        slow = train.slow_from_epoch is not None and epoch + 1 >= train.slow_from_epoch
        if not train.plateau_patience:  # which has a say of its own
            set_learning_rate(optimizer, train.learning_rate * (train.slow_factor if slow else 1.0))
        optimizer.l2.assign(train.weight_decay)
        self.model.set_erasing(erase.from_epoch is not None and epoch + 1 >= erase.from_epoch, erase)
