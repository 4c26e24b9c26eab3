"""Maps per second of DenseNet-121 at 224 pixels: kmura's engine, tf-keras-vis and the bare forward pass, in one run.

    python benchmarks/cam_speed.py [--batch-sizes 16 1] [--rounds 3] [--images 2000]

All explain the same images by Grad-CAM++ of the last feature map, in one process, in turns; the median turn is
reported. With --images N, the engine then explains N images, and the increase of the process' memory is printed.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=0)
    arguments = parser.parse_args()

    import keras
    import numpy as np
    import tensorflow as tf
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus

    from kmura import cam
    from kmura.explain.saliency import saliency_maps
    from kmura.models.build import build_model

    keras.utils.set_random_seed(0)
    size = arguments.image_size
    model = build_model(backbone=arguments.backbone, weights="none", image_size=size)
    engine = cam.CamEngine(model, fallback=None)
    forward = tf.function(lambda images: model(images, training=False))
    # tf-keras-vis needs the name of the layer to explain; the classifier contains it in an inner model
    inputs = keras.Input((size, size, 1))
    tap = keras.layers.Identity(name="tap")(keras.Model(model.input, model.feature_maps["P5"])(inputs))
    theirs = GradcamPlusPlus(keras.Model(inputs, keras.Model(model.feature_maps["P5"], model.output)(tap)), clone=False)

    def of_tf_keras_vis(images):
        options = {"penultimate_layer": "tap", "seek_penultimate_conv_layer": False}
        return theirs(lambda output: output[:, 0], images, **options)

    contenders = {
        "bare forward pass": lambda images: forward(images).numpy(),
        "kmura Grad-CAM++": lambda images: engine.compiled(images)[0].numpy(),
        "tf-keras-vis Grad-CAM++": of_tf_keras_vis,
        "tf-keras-vis saliency": lambda images: saliency_maps(model, images),
    }
    for batch in arguments.batch_sizes:
        images = np.random.default_rng(0).uniform(0, 255, (batch, size, size, 1)).astype(np.float32)
        speeds = {name: [] for name in contenders}
        for contender in contenders.values():
            contender(images)  # traces
        for _ in range(arguments.rounds):
            for name, contender in contenders.items():
                turns, start = 0, time.perf_counter()
                while time.perf_counter() - start < 4 or not turns:
                    contender(images)
                    turns += 1
                speeds[name].append(turns * batch / (time.perf_counter() - start))
        for name, rates in speeds.items():
            print(f"batch {batch:3}  {name:26}{statistics.median(rates):8.1f} maps/s", flush=True)
    if arguments.images:
        batch = np.zeros((16, size, size, 1), np.float32)
        engine.compiled(batch)
        before = _memory()
        for _ in range(arguments.images // 16):
            engine.compiled(batch)[0].numpy()
        print(f"memory after {arguments.images} images: {_memory() - before:+.0f} MB")


def _memory() -> float:
    """Returns the resident memory of this process, MB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
