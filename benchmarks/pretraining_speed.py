"""Cost of a pretraining step: a step on B pairs of views, as a multiple of two supervised steps on B images.

    python benchmarks/pretraining_speed.py [--methods simclr vicreg] [--encoder resnet18_small] [--image-size 28]
        [--batch-size 128] [--projector 512 128] [--precision float32 mixed_bfloat16] [--steps 8] [--rounds 3]

Both train the same encoder on one batch that stays in memory, with the train_step that `kmura pretrain` and
`kmura fit` run (forward pass, backward pass, optimizer, metrics), without reading data and without making views. The
steps of the two alternate in rounds within one process; the ratio is of the medians. Images are random.
"""

import argparse
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from training_speed import machine

from kmura.classification.cam_erasing import CamErasingModel
from kmura.config import CamConfig, PretrainingConfig, load_config
from kmura.models.build import build_model
from kmura.models.projection import ProjectionNetwork
from kmura.pretraining.methods import METHODS
from kmura.pretraining.pair_learner import optimizer
from kmura.tasks import Binary
from kmura.training.optimizers import AdamL2

WARM_UP = 2  # steps before the first round; the first traces and optimises the graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--encoder", default="resnet18_small")
    parser.add_argument("--image-size", type=int, default=28, help="pixels")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs, and images of a supervised step")
    parser.add_argument("--projector", nargs="+", type=int, default=[512, 128], help="units of the projection head")
    parser.add_argument("--precision", nargs="+", default=["float32"])
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    size, batch = arguments.image_size, arguments.batch_size
    print(f"{arguments.encoder}, {size} px, batch {batch}, projector {arguments.projector}\n")
    print(f"{'':12}{'precision':18}{'supervised s/step':>20}{'pretraining s/step':>20}{'ratio to two':>14}")
    for precision in arguments.precision:
        keras.config.set_dtype_policy(precision)
        for method in arguments.methods:
            contenders = {"supervised": supervised(arguments), "pretraining": pretraining(arguments, method)}
            for step in contenders.values():
                timed(step, WARM_UP)
            walls = {name: [] for name in contenders}
            for _ in range(arguments.rounds):
                for name, step in contenders.items():
                    walls[name] += timed(step, arguments.steps)
            one, pair = (statistics.median(walls[name]) for name in ("supervised", "pretraining"))
            print(f"{method:12}{precision:18}{one:20.3f}{pair:20.3f}{pair / (2 * one):14.2f}", flush=True)


def timed(step, count: int) -> list[float]:
    """Returns the wall time of each of `count` steps, seconds."""
    walls = []
    for _ in range(count):
        started = time.perf_counter()
        step()
        walls.append(time.perf_counter() - started)
    return walls


def supervised(arguments: argparse.Namespace):
    """Returns a function that makes one step of `kmura fit`."""
    size, batch = arguments.image_size, arguments.batch_size
    classifier = build_model(backbone=arguments.encoder, weights="none", image_size=size)
    model = CamErasingModel(classifier, can_erase=False, how=CamConfig(), learning_part="all")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer=AdamL2(1e-4), loss=loss, jit_compile=False)
    model.optimizer.build(classifier.trainable_variables)
    labels = (np.arange(batch)[:, None] % 2).astype(np.float32)
    return stepping(model, {"mixed_image": random_images(batch, size), "mixed_label": labels})


def pretraining(arguments: argparse.Namespace, method: str):
    """Returns a function that makes one step of `kmura pretrain`."""
    size, batch = arguments.image_size, arguments.batch_size
    settings = {
        "encoder.backbone": arguments.encoder,
        "method.method": method,
        "method.projector": list(arguments.projector),
        "train.batch_size": batch,
    }
    config = load_config(None, settings, PretrainingConfig)
    network = ProjectionNetwork(
        backbone=arguments.encoder, image_size=size, channels=1, num_classes=1, projector=arguments.projector
    )
    model = METHODS[method](network, Binary(("normal", "abnormal")), config.method)
    model.compile(optimizer=optimizer(config, network, 100), jit_compile=False)
    model.optimizer.build(network.trainable_variables)
    labels = (np.arange(batch)[:, None] % 2).astype(np.float32)
    group = np.arange(batch, dtype=np.int32)
    return stepping(model, {"image": random_images(2 * batch, size), "label": labels, "group": group})


def stepping(model: keras.Model, batch: dict):
    """Returns a function that trains a model on a batch once and waits for the result."""
    model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def step() -> None:
        float(model.train_function(batches)["loss"])

    return step


def random_images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, 1)).astype(np.float32)


if __name__ == "__main__":
    main()
