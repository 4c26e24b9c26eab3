"""The learner of the kind `classification`: a compiled classifier that trains one or several runs with one trace."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kmura import metrics
from kmura.classification.cam_erasing import CamErasingModel
from kmura.classification.losses import make_loss
from kmura.config import ClassificationConfig
from kmura.data.dataset import Dataset
from kmura.models.build import build_model
from kmura.models.freezing import set_trainable
from kmura.runs.predictions import study_keys_of
from kmura.tasks import Task
from kmura.training.callbacks import has_stopped, plateau_callbacks
from kmura.training.loop import Learner
from kmura.training.optimizers import AdamL2, inner_optimizer, learning_rate, set_learning_rate


class ClassificationLearner(Learner):
    """A compiled classifier for a data set. Runs that differ only in variable settings share it and its trace.

    Variable settings are the learning rate, the L2 penalty, all settings of mixing, and the settings of CAM-erasing
    that a search covers. Use the learner inside `kmura.training.loop.session`.

    Attributes:
        dataset: the training and validation data.
        config: configuration of the current run; `configure` replaces it.
        model: the CamErasingModel around the classifier.
        saved: the classifier.
    """

    loss = "val_loss_img"

    def __init__(self, dataset: Dataset, config: ClassificationConfig, *, load_weights: bool = True):
        """
        Args:
            dataset: data set whose splits have all classes.
            config: configuration of the first run.
            load_weights: False skips pretrained weights, for a run that continues from a checkpoint.

        Raises:
            InputError: weights cannot be loaded, or records cannot be read.
        """
        self.dataset, self.config, self.monitor = dataset, config, config.train.monitor
        task, train = dataset.labels, config.train
        self.steps = dataset.steps(train.batch_size)
        classifier = build_model(
            **dataclasses.asdict(config.model) | ({} if load_weights else {"weights": "none", "swin_weights": "none"}),
            image_size=config.data.image_size,
            channels=dataset.manifest.channels,
            num_classes=task.outputs,
            seed=train.seed,
        )
        set_trainable(classifier, train.unfreeze)
        learning = classifier.trainable_variables  # all that are trained in any epoch
        self.saved = classifier
        self.model = CamErasingModel(
            classifier,
            can_erase=config.cam.from_epoch is not None,
            how=config.cam,
            learning_part=train.unfreeze,
        )
        self.model.compile(
            optimizer=AdamL2(learning_rate(train, self.steps), l2=train.weight_decay),
            loss=make_loss(task, train, dataset.balance("train")),
            metrics=[_accuracy(task)],
            jit_compile=False,  # XLA is slower than oneDNN on CPU
        )
        self.model.optimizer.build(learning)  # otherwise Keras traces the step twice
        if train.frozen_until_epoch is not None:
            inner_optimizer(self.model.optimizer).set_late(classifier.backbone.trainable_variables)
        self._batches = None
        self._validation = None

    def configure(self, config: ClassificationConfig) -> None:
        """Sets the configuration of the next run, which may differ from the first one only in variable settings."""
        self.config = config

    def batches(self, first: int, last: int) -> tf.data.Dataset:
        if self._validation is None:
            self._validation = _Validation(self.dataset, self.config.train.select_on)
        # kept until the next run has its own, since both share the decoded images
        self._batches = self.dataset.train(
            augment=self.config.augment,
            mix=self.config.mix,
            batch_size=self.config.train.batch_size,
            seed=self.config.train.seed,
            epochs=last,
            first_epoch=first,
            balanced=self.config.train.sampling == "balanced",
        )
        return self._batches

    def validate(self) -> dict[str, float]:
        return self._validation.scores(self.saved, self.model.loss)

    def knobs(self) -> list[keras.callbacks.Callback]:
        return [EpochKnobs(self.config)]

    def callbacks(self, history: Sequence[Mapping[str, Any]]) -> list[keras.callbacks.Callback]:
        return plateau_callbacks(self.config.train, history, self.loss)

    def has_stopped(self, history: Sequence[Mapping[str, Any]]) -> bool:
        return has_stopped(self.config.train, history, self.loss)


class EpochKnobs(keras.callbacks.Callback):
    """Sets learning rate, L2 penalty, CAM-erasing and the trainable part of the backbone at the start of every epoch.

    These depend only on the epoch, so a resumed run uses the same values. Only a change of the trainable part retraces
    the step. Mixing is changed by the data set (`kmura.data.dataset.Dataset.train`).
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
        if not train.plateau_patience:  # else ReduceLROnPlateau sets the rate
            set_learning_rate(optimizer, train.learning_rate * (train.slow_factor if slow else 1.0))
        optimizer.l2.assign(train.weight_decay)
        self.model.set_erasing(erase.from_epoch is not None and epoch + 1 >= erase.from_epoch, erase)


class _Validation:
    """The images, studies and labels of the split that selects the best epoch."""

    def __init__(self, dataset: Dataset, split: str):
        rows = dataset.rows(split)
        self.task = dataset.labels
        self.images = dataset.eval(split).map(_images)
        self.study = study_keys_of(rows)
        self.label = rows[self.task.label_columns].to_numpy()

    def scores(self, classifier: keras.Model, loss: keras.losses.Loss) -> dict[str, float]:
        """Returns the current scores of the classifier, from one prediction pass."""
        logits = classifier.predict(self.images, verbose=0)
        return validation_scores(self.study, self.label, logits, loss, self.task)


def validation_scores(study, label: np.ndarray, logit: np.ndarray, loss, task: Task) -> dict[str, float]:
    """Returns the validation scores of an epoch at image and study level.

    Names: `val_loss_img val_acc_img val_auc_img val_f1_img val_acc_study val_auc_study val_f1_study`. The probability
    of a study is the mean over its images. For several classes, accuracy and F1 (weighted by class size) are those of
    the most probable class, and AUC is the mean over the classes, each against the rest. For several labels, all scores
    are means over the labels, each over the images in which it is known. The AUC of a single class is NaN.

    Args:
        study: study ids [N].
        label: class ids [N, 1] (binary: 0 or 1), or for several labels 0 and 1 [N, L]; -1 is unknown.
        logit: logits [N, L].
        loss: function of (targets [N, L], logits [N, L]).
        task: task of the model.
    """
    known = (label >= 0).any(axis=1)
    study, label, logit = np.asarray(study)[known], label[known], logit[known].astype(np.float64)
    probability = task.probabilities(logit)
    pooled = metrics.pool_classes(study, probability, normalize=task.softmax)
    image, by_study = (
        _scores(labels, value, task) for labels, value in ((label, probability), (label[pooled.first], pooled.value))
    )
    scores = {
        "val_loss_img": loss(task.targets(label), logit.astype("float32")),
        "val_acc_img": image["accuracy"][0],
        "val_auc_img": image["auc"][0],
        "val_f1_img": image["f1"][0],
        "val_acc_study": by_study["accuracy"][0],
        "val_auc_study": by_study["auc"][0],
        "val_f1_study": by_study["f1"][0],
    }
    return {name: float(value) for name, value in scores.items()}


def _scores(label: np.ndarray, probability: np.ndarray, task: Task) -> dict[str, np.ndarray]:
    if task.softmax:
        scores = metrics.multiclass_scores(label[:, 0], probability)
        return scores | {"f1": scores["f1_weighted"]}
    return metrics.multilabel_scores(label, probability)


class _KnownAccuracy(keras.metrics.MeanMetricWrapper):
    """The share of the known labels that are predicted; a negative label is unknown."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        known = keras.ops.cast(y_true >= 0, "float32")
        return keras.metrics.Mean.update_state(self, self._fn(y_true, y_pred), sample_weight=known)


def _accuracy(task: Task) -> keras.metrics.Metric:
    if task.by_label:
        return _KnownAccuracy(_right, name="acc")
    return keras.metrics.MeanMetricWrapper(_right_class if task.softmax else _right, name="acc")


def _right(labels, logits):
    """Returns 1 where logit and label belong to the same class, else 0; mixed labels may lie between 0 and 1."""
    return keras.ops.cast((labels >= 0.5) == (logits >= 0), "float32")


def _right_class(labels, logits):
    """Returns 1 where the largest logit and the largest label belong to the same class, else 0."""
    return keras.ops.cast(keras.ops.argmax(labels, axis=-1) == keras.ops.argmax(logits, axis=-1), "float32")


def _images(batch):
    return batch["image"]
