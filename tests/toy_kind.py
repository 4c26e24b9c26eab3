"""A kind of learning for tests: a network with two parameters that learns the mean gray level of an image.

`python -m toy_kind RECORDS RUNS EPOCHS` trains it; `register` adds it to the registry of kinds.
"""

import dataclasses
import sys
from typing import Literal

import keras
import numpy as np

from kmura.config import DataConfig
from kmura.data.dataset import Dataset
from kmura.files import reading_json, write_json
from kmura.kinds import KINDS, Kind
from kmura.report.chapter import Chapter, Table, Text
from kmura.runs.run import LOSSES, Run
from kmura.training.loop import Learner, train_run

assert "val_loss" in LOSSES


@dataclasses.dataclass(frozen=True)
class ToyTrain:
    epochs: int = 3
    batch_size: int = 4
    seed: int = 0
    precision: Literal["float32"] = "float32"
    deterministic: bool = True


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    data: DataConfig = DataConfig(image_size=16)
    train: ToyTrain = ToyTrain()


class MeanGray(Learner):
    monitor = "val_loss"

    def __init__(self, dataset: Dataset, config: ToyConfig, *, load_weights: bool = True):
        self.dataset, self.config = dataset, config
        self.steps = dataset.steps(config.train.batch_size)
        images = keras.Input((config.data.image_size,) * 2 + (1,))
        center = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(images))
        self.saved = self.model = keras.Model(images, keras.layers.Dense(1)(keras.layers.Dropout(0.1)(center)))
        self.model.compile(keras.optimizers.Adam(0.05), "mse")
        self.model.optimizer.build(self.model.trainable_variables)

    def batches(self, first, last):
        train = self.config.train
        batches = self.dataset.train(batch_size=train.batch_size, seed=train.seed, epochs=last, first_epoch=first)
        return batches.map(lambda batch: (batch["image"], mean_gray(batch["image"])))

    def validate(self):
        batches = self.dataset.eval("val").map(lambda batch: (batch["image"], mean_gray(batch["image"])))
        return {"val_loss": self.model.evaluate(batches, verbose=0)}


def mean_gray(images):
    return keras.ops.mean(images, axis=(1, 2)) / 255


def evaluate(run: Run) -> dict[str, float]:
    images = np.concatenate([batch["image"] for batch in run.dataset().eval("test").as_numpy_iterator()])
    error = np.abs(run.model().predict(images, verbose=0) - mean_gray(images)).mean()
    write_json(run.folder.metrics, {"error": float(error)})
    return evaluation(run)


def evaluation(run: Run) -> dict[str, float]:
    with reading_json(run.folder.metrics, fix="evaluate again") as scores:
        return {"error": scores["error"]}


def chapter(run: Run, number: int, eda) -> Chapter:
    error = evaluation(run)["error"]
    headline = (Text(f"{run.area}, mean gray:", strong=True), Text(f" missed by {255 * error:.1f} of 255."))
    rows = tuple((row.epoch, f"{row.val_loss:.4f}") for row in run.history().itertuples())
    return Chapter(f"run{number}", "Toy", run.area, str(run), headline, (Table("Epochs", ("epoch", "loss"), rows),))


TOY = Kind(config=ToyConfig, learner=MeanGray, evaluate=evaluate, evaluation=evaluation, chapter=chapter)


def train(records, runs, epochs=3, callbacks=()):
    KINDS["toy"] = TOY
    config = ToyConfig(train=ToyTrain(epochs=epochs))
    dataset = Dataset(records, "XR_WRIST", config.data)
    return train_run(dataset, "toy", config, kind="toy", runs=runs, callbacks=callbacks, command="a test")


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]))
