"""Images per second of `kmura predict` on 512-pixel PNGs and of the bare model on prepared tensors, in one run.

    python benchmarks/predict_speed.py [--images 64] [--rounds 3]

DenseNet-121 at 224 pixels with random weights. Both get the same number of images in the same batches, alternately in
one process; the result is the median of the ratios of the rounds. Loading the model is not included.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from kmura.models.build import build_model
    from kmura.phantoms.radiographs import AREAS, render_view
    from kmura.prediction import predict as room
    from kmura.prediction.predictor import load_predictor

    size, batch = arguments.image_size, arguments.batch_size
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(backbone=arguments.backbone, weights="none", image_size=size)
        model.save(Path(folder, "model.keras"))
        for number in range(arguments.images):
            pixels = render_view(AREAS[number % len(AREAS)], study=number, side=arguments.side).pixels
            Image.fromarray(pixels).save(
                Path(folder, f"{number:04}.png")
            )  # Pillow's encoding is slower to decode than kmura's
        predictor = load_predictor(Path(folder, "model.keras"))
        room.load_predictor = lambda *_, **__: predictor
        bare = tf.function(lambda images: model(images, training=False), autograph=False)
        ready = np.random.default_rng(0).uniform(0, 255, (batch, size, size, 1)).astype(np.float32)
        ready = tf.constant(ready)

        def of_bare():
            for _ in range(arguments.images // batch):
                bare(ready).numpy()

        def of_predict():
            room.predict("model", folder, batch_size=batch)

        of_predict(), of_bare()  # traces both
        ratios = []
        for _ in range(arguments.rounds):
            seconds = []
            for contender in (of_bare, of_predict):
                start = time.perf_counter()
                contender()
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[0] / seconds[1])
            speeds = [arguments.images / duration for duration in seconds]
            print(f"bare {speeds[0]:6.1f} images/s   predict {speeds[1]:6.1f}   ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
