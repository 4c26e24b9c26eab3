"""Overhead of CAM-erasing over a plain Keras step, and the overhead that its passes require; DenseNet-121, one run.

    python benchmarks/erasing_overhead.py [--backbone densenet121] [--image-size 224] [--batch-size 16] [--rounds 3]
        [--precision float32]

Every k steps, a step with erasing needs one more inference pass (for the map) and one more training pass (loss and
gradients of the erased images): required = (plain + (inference + gradients) / k) / plain. All are measured in one
process on one batch that stays in memory, in turns of 8 steps; the best turn of each is reported. "Plain" is `fit` of
the same classifier with Keras' `train_step` in the same precision.
"""

import argparse
import os
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
STEPS = 8  # per turn, so that `every 8` erases once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()

    import keras
    import numpy as np
    import tensorflow as tf

    from kmura.classification.cam_erasing import CamErasingModel
    from kmura.classification.losses import WeightedBinaryCrossentropy
    from kmura.config import CamConfig
    from kmura.models.build import build_model
    from kmura.training.optimizers import AdamL2

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(arguments.precision)
    size, batch = arguments.image_size, arguments.batch_size
    images = np.random.default_rng(0).uniform(0, 255, (batch, size, size, 1)).astype("float32")
    labels = (np.arange(batch)[:, None] % 2).astype("float32")
    named = {"image": images, "label": labels, "mixed_image": images, "mixed_label": labels}

    def compiled(model, trainable):
        optimizer = AdamL2(1e-4)
        model.compile(optimizer, WeightedBinaryCrossentropy(1.0), jit_compile=False)
        optimizer.build(trainable)
        return model

    def of_plain():
        classifier = build_model(backbone=arguments.backbone, weights="none", image_size=size)
        return compiled(classifier, classifier.trainable_variables)

    plain, erasing = of_plain(), None
    classifier = build_model(backbone=arguments.backbone, weights="none", image_size=size)
    erasing = compiled(CamErasingModel(classifier), classifier.trainable_variables)
    infer = tf.function(lambda x: classifier(x, training=False))
    datasets = {
        plain: tf.data.Dataset.from_tensors((images, labels)).repeat(),
        erasing: tf.data.Dataset.from_tensors(named).repeat(),
    }

    def steps_of(model, every=None):
        if every is not None:
            erasing.set_erasing(bool(every), CamConfig(erase_every=every or 1))
            erasing.optimizer.iterations.assign(0)
        ends = []

        class Ends(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                if not ends:
                    ends.append(time.perf_counter())

            def on_train_batch_end(self, batch, logs=None):
                ends.append(time.perf_counter())

        model.fit(datasets[model], steps_per_epoch=STEPS, verbose=0, callbacks=[Ends()], shuffle=False)
        return (ends[-1] - ends[0]) / STEPS

    def inference():
        started = time.perf_counter()
        for _ in range(4):
            infer(images).numpy()
        return (time.perf_counter() - started) / 4

    def gradients():
        started = time.perf_counter()
        for _ in range(4):
            erasing._compute_gradients(tf.constant(images), tf.constant(labels))[0].numpy()
        return (time.perf_counter() - started) / 4

    contenders = {
        "plain": lambda: steps_of(plain),
        "inference": inference,
        "gradients": gradients,
        "off": lambda: steps_of(erasing, 0),
        "every 8": lambda: steps_of(erasing, 8),
        "every 1": lambda: steps_of(erasing, 1),
    }
    best = {}
    for number in range(arguments.rounds + 1):  # the first round traces
        for name, contender in contenders.items():
            seconds = contender()
            if number:
                best[name] = min(best.get(name, seconds), seconds)

    print(f"{arguments.backbone}, {size} px, batch {batch}, {arguments.precision}, {platform.platform()}")
    print(
        f"plain step {best['plain']:.3f} s, inference pass {best['inference']:.3f} s, "
        f"loss and gradients {best['gradients']:.3f} s\n"
    )
    print("erasing | s/step | x plain | required | x required")
    for name, every in (("off", None), ("every 8", 8), ("every 1", 1)):
        required = 1 + (0 if every is None else (best["inference"] + best["gradients"]) / every / best["plain"])
        ratio = best[name] / best["plain"]
        print(f"{name:7} | {best[name]:6.3f} | {ratio:7.2f} | {required:8.2f} | {ratio / required:10.2f}")


if __name__ == "__main__":
    main()
