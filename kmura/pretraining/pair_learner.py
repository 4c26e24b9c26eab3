"""The learner of the kind `pretraining`: a network with a projection head, trained on pairs of views."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kmura import metrics
from kmura.config import PretrainingConfig
from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.models import weights
from kmura.models.build import seeded
from kmura.models.projection import PROBE, ProjectionNetwork
from kmura.pretraining.collapse import Spread, spread
from kmura.pretraining.methods import METHODS
from kmura.training.loop import Learner
from kmura.training.optimizers import LARS, learning_rate

VAL_SEED = 2**31 - 2  # of the views of val, which are the same in every epoch and run
MAX_VAL = 2048  # images of val whose spread is measured

log = logging.getLogger("kmura")


class PretrainingLearner(Learner):
    """A network and a method of pretraining for a data set. Use it inside `kmura.training.loop.session`.

    Attributes:
        dataset: the images; labels are used by the probe alone.
        config: configuration of the run.
        model: the PretrainingModel of the method.
        saved: the ProjectionNetwork.
    """

    loss = "val_loss"

    def __init__(self, dataset: Dataset, config: PretrainingConfig, *, load_weights: bool = True):
        """
        Args:
            dataset: data set with the splits `train` and `val`.
            config: configuration of the run.
            load_weights: False skips pretrained weights, for a run that continues from a checkpoint.

        Raises:
            InputError: weights cannot be loaded, records cannot be read, or they have too few images.
        """
        self.dataset, self.config = dataset, config
        train, images = config.train, len(dataset.index("train"))
        self.monitor = "epoch" if train.select == "last" else train.select
        self.steps = images // train.batch_size
        self._labelled = len(dataset.index("val").known()) > 0
        if train.select == "val_probe_auc" and not self._labelled:
            raise InputError(
                f"area {dataset.area} has no labelled images in its val split; use train.select=last or val_loss"
            )
        self.saved = network(dataset, config, load_weights=load_weights)
        self.model = METHODS[config.method.method](self.saved, dataset.labels, config.method)
        self.model.compile(
            optimizer=optimizer(config, self.saved, max(1, self.steps // train.accumulate)), jit_compile=False
        )
        self.model.optimizer.build(self.saved.trainable_variables)  # otherwise Keras traces the step twice

    def batches(self, first: int, last: int) -> tf.data.Dataset:
        train = self.config.train
        # kept until the end, since the decoded images are shared with validation
        self._batches = self.dataset.views(
            views=self.config.views,
            positives=self.config.method.positives,
            batch_size=train.batch_size,
            seed=train.seed,
            epochs=last,
            first_epoch=first,
        )
        self._clean = self.dataset.eval("val").map(lambda batch: batch["image"])
        self._labels = self.dataset.labels.targets(self.dataset.ids("val"))
        pairs = min(train.batch_size, len(self._labels))
        self._pairs = self.dataset.views(
            views=self.config.views, batch_size=pairs, seed=VAL_SEED, epochs=1, split="val"
        )
        return self._batches

    def validate(self) -> dict[str, float]:
        """Returns the scores of the network on val: columns of `history.csv`.

        `val_loss` and `val_TERM`: of the method, on two views of each image. `val_std`, `val_rank`: of the embeddings
        of the unchanged images, see `Spread`. `val_probe_auc`: ROC AUC of the probe, the mean over several classes or
        labels; only with labelled images.
        """
        terms = []
        for batch in self._pairs:
            embedding = self.saved.predict_on_batch(batch["image"])["embedding"]
            pairs = len(embedding) // 2
            values = self.model.terms(embedding[:pairs], embedding[pairs:], batch["group"])
            terms.append([float(values[name]) for name in self.model.term_names])
        means = dict(zip(self.model.term_names, np.mean(terms, axis=0), strict=True))
        outputs = self.saved.predict(self._clean, verbose=0)
        self.spread = spread(outputs["embedding"][:MAX_VAL], normalised=self.model.normalised)
        scores = {"val_loss": sum(means.values())}
        scores |= {f"val_{name}": value for name, value in means.items() if len(means) > 1}
        scores |= {"val_std": self.spread.std, "val_rank": self.spread.rank}
        if self._labelled:
            probabilities = self.dataset.labels.probabilities(outputs["probe"].astype(np.float64))
            scores["val_probe_auc"] = metrics.macro_auc(self._labels, probabilities)
        return scores

    def callbacks(self, history: Sequence[Mapping[str, Any]]) -> list[keras.callbacks.Callback]:
        return [CollapseWarning(self, [Spread(row["val_std"], row["val_rank"]).has_collapsed for row in history])]


class CollapseWarning(keras.callbacks.Callback):
    """Logs one warning as soon as the embeddings have collapsed in two epochs in a row.

    One epoch alone is no sign: after the first steps the moving statistics of the normalisations are still far off.
    """

    def __init__(self, learner: PretrainingLearner, collapsed: Sequence[bool]):
        """
        Args:
            learner: whose `spread` is watched.
            collapsed: whether the embeddings had collapsed, for each of the finished epochs of a resumed run.
        """
        super().__init__()
        self.learner, self.collapsed = learner, list(collapsed)

    def on_epoch_end(self, epoch, logs=None):
        before = self._is_certain
        self.collapsed.append(self.learner.spread.has_collapsed)
        if self._is_certain and not before:
            log.warning(
                "WARNING: epoch %d: %s; the encoder learns nothing, change the weights of the loss, train.base_rate or "
                "train.optimizer",
                epoch + 1,
                self.learner.spread.text,
            )

    @property
    def _is_certain(self) -> bool:
        pairs = zip(self.collapsed, self.collapsed[1:], strict=False)
        return any(first and second for first, second in pairs)


def network(dataset: Dataset, config: PretrainingConfig, *, load_weights: bool) -> ProjectionNetwork:
    """Returns the network of a configuration, with the initial weights of its encoder.

    Raises:
        InputError: a value does not fit, or the weights cannot be loaded.
    """
    encoder = config.encoder
    with seeded(config.train.seed):
        built = ProjectionNetwork(
            backbone=encoder.backbone,
            image_size=config.data.image_size,
            channels=dataset.manifest.channels,
            num_classes=dataset.labels.outputs,
            **config.method.projection,
            batch_norm_momentum=encoder.batch_norm_momentum,
            fused_batch_norm=encoder.fused_batch_norm,
            torch_padding=encoder.torch_padding,
        )
    if load_weights:
        weights.load_weights(built, encoder.weights)
    return built


def optimizer(
    config: PretrainingConfig, model: ProjectionNetwork, updates_per_epoch: int
) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a configuration for a network.

    Biases, normalisations and the probe have no weight decay, and with LARS no adaptation.

    Args:
        config: of the run.
        model: the network.
        updates_per_epoch: number of updates, for the schedule.
    """
    train = config.train
    rate = learning_rate(train, updates_per_epoch)
    excluded = [
        variable
        for variable in model.trainable_variables
        if len(variable.shape) < 2 or variable is model.get_layer(PROBE).kernel
    ]
    common = {"gradient_accumulation_steps": train.accumulate if train.accumulate > 1 else None}
    if train.optimizer == "lars":
        chosen = LARS(rate, momentum=train.momentum, l2=train.weight_decay, trust=train.trust, **common)
        chosen.exclude(excluded)
        return chosen
    if train.optimizer == "sgd":
        chosen = keras.optimizers.SGD(rate, momentum=train.momentum, weight_decay=train.weight_decay, **common)
    else:
        chosen = keras.optimizers.AdamW(rate, weight_decay=train.weight_decay, **common)
    chosen.exclude_from_weight_decay(var_list=excluded)
    return chosen
