"""The one fit loop: a model compiled and traced once, and the runs that it trains."""

import contextlib
import dataclasses
import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from kmura.classification.cam_erasing import CamErasingModel
from kmura.classification.knobs import EpochKnobs
from kmura.classification.losses import make_loss
from kmura.classification.validation import StudyValidation
from kmura.config import ClassificationConfig
from kmura.data import pipeline
from kmura.data.labels import labelling
from kmura.errors import InputError, reason
from kmura.files import replacing
from kmura.models.build import build_model
from kmura.models.freezing import set_trainable
from kmura.records.manifest import read_manifest
from kmura.runs.checkpoint import LastCheckpoint
from kmura.runs.run import LOSSES, RunFolder
from kmura.training.callbacks import StopOnNonFiniteLoss, is_stopped, non_finite_loss, patient_callbacks
from kmura.training.optimizers import AdamL2, inner_optimizer, learning_rate

log = logging.getLogger("kmura")


@contextlib.contextmanager
def session(config: ClassificationConfig) -> Iterator[None]:
    """Seeds, precision and determinism for a block of training, with Keras' own state cleared before it."""
    policy = keras.config.dtype_policy()
    keras.backend.clear_session()
    keras.utils.set_random_seed(config.train.seed)
    keras.config.set_dtype_policy(config.train.precision)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        gc.unfreeze()  # what `_collecting_garbage_later` has set aside


class Trainer:
    """The compiled model of an area; runs whose configurations differ in knobs alone share one, traced once.

    Knobs are the learning rate, the L2 penalty, all of mixing and all of CAM-erasing but whether there is any. To be
    used inside `session`.

    Attributes:
        model: the CamErasingModel around the classifier.
        steps: batches of an epoch.
    """

    def __init__(
        self, records: str | os.PathLike, area: str, config: ClassificationConfig, *, load_weights: bool = True
    ):
        """
        Args:
            records: folder of shards and manifest.
            area: one area of the records, with both classes in its splits.
            config: of the first run, and of all others but for their knobs.
            load_weights: False leaves pretrained weights unread: a checkpoint will bring them all.

        Raises:
            InputError: weights that cannot be loaded; records that cannot be read.
        """
        manifest = read_manifest(records)
        self.labels = labelling(manifest, area, config.data.task)
        self.records, self.area, self.config = records, area, config
        self.steps = pipeline.steps_per_epoch(records, area, batch_size=config.train.batch_size)
        classifier = build_model(
            **dataclasses.asdict(config.model) | ({} if load_weights else {"weights": "none", "swin_weights": "none"}),
            image_size=config.data.image_size,
            channels=manifest.channels,
            num_classes=self.labels.outputs,
            seed=config.train.seed,
        )
        set_trainable(classifier, config.train.unfreeze)
        learning = classifier.trainable_variables  # whatever learns in any epoch
        self.model = CamErasingModel(
            classifier,
            can_erase=config.cam.from_epoch is not None,
            tap=config.cam.tap,
            learning_part=config.train.unfreeze,
        )
        self.model.compile(
            optimizer=AdamL2(learning_rate(config.train, self.steps), l2=config.train.weight_decay),
            loss=make_loss(self.labels.task, config.train, self.labels.balance(records, area, "train")),
            metrics=[keras.metrics.MeanMetricWrapper(_right_class if self.labels.softmax else _right, name="acc")],
            jit_compile=False,  # XLA is slower than oneDNN on CPU
        )
        self.model.optimizer.build(learning)  # otherwise Keras traces the step twice
        if config.train.frozen_until_epoch is not None:
            inner_optimizer(self.model.optimizer).set_late(classifier.backbone.trainable_variables)
        self._variables = [*classifier.variables, *self.model.optimizer.variables]  # weights, random states, moments
        self._initial = None
        self._data = None
        self._validation = None

    @property
    def classifier(self) -> keras.Model:
        return self.model.classifier

    def keep_initial(self) -> None:
        """Remembers the state the variables have now, so that every run begins with it."""
        self._initial = [variable.numpy() for variable in self._variables]

    def run(
        self,
        config: ClassificationConfig,
        folder: RunFolder,
        *,
        resume: bool = True,
        epochs: int | None = None,
        worth_keeping: float = -np.inf,
        on_start: Callable[[], None] = lambda: None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> pd.DataFrame:
        """Trains a run to its last epoch, from the checkpoint in its folder if there is one; its history.

        Args:
            config: of this run.
            folder: where `last/`, `best.keras` and `history.csv` are kept.
            resume: False begins anew whatever the folder holds.
            epochs: stop after this many; default `config.train.epochs`.
            worth_keeping: a best epoch below this score leaves no `best.keras`.
            on_start: called when everything that training needs is there, before anything is written.
            callbacks: further Keras callbacks; they see all scores in their logs.

        Raises:
            InputError: a damaged checkpoint, a loss that is no number, a full disk.
        """
        epochs = epochs or config.train.epochs
        last = LastCheckpoint(folder.last, self._variables)
        epochs_done, state = (last.restore() if resume else None) or (0, {"history": []})
        if is_stopped(config.train, state["history"]):
            log.info("%s: val_loss_img had stopped falling, nothing is left to train", folder.path)
            epochs = epochs_done
        if epochs_done == 0 and self._initial is not None:
            for variable, value in zip(self._variables, self._initial, strict=True):
                variable.assign(value)
        if epochs_done < epochs:
            # kept until the next run has its own: the two share the decoded images
            self._data = pipeline.train_dataset(
                self.records,
                self.area,
                data=config.data,
                augment=config.augment,
                mix=config.mix,
                batch_size=config.train.batch_size,
                seed=config.train.seed,
                epochs=epochs,
                first_epoch=epochs_done,
                balanced=config.train.sampling == "balanced",
            )
            validation = self._validating(config)
        on_start()
        if epochs_done:
            done = f"going on after epoch {epochs_done} of" if epochs_done < epochs else "done are all of"
            log.info("%s: %s %d epochs", folder.path, done, epochs)
        keeper = _RunKeeper(folder, last, self.classifier, config.train.monitor, state, worth_keeping)
        if epochs_done < epochs:
            knobs, finite = EpochKnobs(config), StopOnNonFiniteLoss(folder.last)
            patient = patient_callbacks(config.train, keeper.history)
            with _collecting_garbage_later() as first_batch:
                self.model.fit(
                    self._data,
                    steps_per_epoch=self.steps,
                    initial_epoch=epochs_done,
                    epochs=epochs,
                    callbacks=[knobs, finite, validation, keeper, first_batch, *patient, *callbacks],
                    shuffle=False,  # the data set is in its order already
                    verbose=0,
                )
            if len(keeper.history) < epochs and is_stopped(config.train, keeper.history):
                patience = config.train.stop_patience
                log.info("%s: stopped, val_loss_img has not fallen for %d epochs", folder.path, patience)
        return keeper.table()

    def _validating(self, config: ClassificationConfig) -> StudyValidation:
        if self._validation is None:
            split = config.train.select_on
            images = pipeline.eval_dataset(self.records, self.area, split, data=config.data).map(_images)
            rows = pipeline.row_keys(self.records, self.area, split, config.data.task)
            self._validation = StudyValidation(self.classifier, images, rows, self.model.loss, self.labels.task)
        return self._validation


class _RunKeeper(keras.callbacks.Callback):
    """Writes `last/`, `best.keras` and `history.csv` after every epoch.

    A new best classifier waits in `last/` until the state names it; a kill in between either repeats the epoch or
    finds it there, so that `best.keras` and the history never tell of different epochs.
    """

    def __init__(
        self, folder: RunFolder, last: LastCheckpoint, classifier, monitor: str, state: dict, worth_keeping: float
    ):
        super().__init__()
        self.worth_keeping = worth_keeping
        self.folder, self.last, self.classifier, self.monitor = folder, last, classifier, monitor
        self.history = state["history"]
        self._promote(state.get("best_file"))
        self._write_history()

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        values = {name: float(value) for name, value in logs.items()}
        if np.isnan(values["val_loss_img"]):  # the last step of the epoch: its own loss was still a number
            raise non_finite_loss(f"the validation loss is nan after epoch {epoch + 1}", self.folder.last, epoch)
        rate = float(self.model.optimizer.learning_rate)
        sign = -1 if self.monitor in LOSSES else 1
        score = sign * values[self.monitor]
        known = [sign * row[self.monitor] for row in self.history if row["best"]]
        best = not np.isnan(score) and (not known or score > known[-1])
        seconds = round(time.monotonic() - self.started, 2)
        row = {"epoch": epoch + 1, **values, "learning_rate": rate, "seconds": seconds, "best": best}
        logs.update({"best": best, "learning_rate": rate, "seconds": seconds})
        self.history.append(row)
        best_file = f"best-{epoch + 1:05d}.keras" if best and score >= self.worth_keeping else None
        if best_file:
            try:
                self.last.folder.mkdir(parents=True, exist_ok=True)
                self.classifier.save(self.last.folder / best_file)
            except OSError as error:
                raise InputError(f"cannot write to {self.last.folder}: {reason(error)}; free space") from error
        self.last.save(epoch + 1, {"history": self.history, "best_file": best_file}, keep=best_file)
        self._promote(best_file)
        self._write_history()

    def _promote(self, best_file: str | None) -> None:
        if best_file and (self.last.folder / best_file).exists():
            os.replace(self.last.folder / best_file, self.folder.best)

    def table(self) -> pd.DataFrame:
        """The history as a table; `best` marks each epoch that was better than all before it."""
        return pd.DataFrame(self.history)

    def _write_history(self):
        if self.history:
            with replacing(self.folder.history) as file:
                self.table().to_csv(file, index=False)


@contextlib.contextmanager
def _collecting_garbage_later() -> Iterator[keras.callbacks.Callback]:
    """A callback whose first batch ends a pause of Python's garbage collector.

    Tracing makes millions of objects that all stay: searching them for garbage takes 2 s of DenseNet-121's first step,
    and 2 s now and then later. They are set aside until the end of the `session`.
    """

    class FirstBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if was_on and not gc.isenabled():
                gc.freeze()
                gc.enable()

    was_on = gc.isenabled()
    gc.disable()
    try:
        yield FirstBatch()
    finally:
        if was_on:
            gc.enable()


def _right(labels, logits):
    """1 where logit and label, which mixing may leave between 0 and 1, are of the same side; else 0."""
    return keras.ops.cast((labels >= 0.5) == (logits >= 0), "float32")


def _right_class(labels, logits):
    """1 where the largest logit is of the class that has the largest label, else 0."""
    return keras.ops.cast(keras.ops.argmax(labels, axis=-1) == keras.ops.argmax(logits, axis=-1), "float32")


def _images(batch):
    return batch["image"]
