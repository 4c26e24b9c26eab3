"""Parameters, seconds per training step and peak memory of the published U-Net on slices of 512 x 512 pixels.

    python benchmarks/unet_step.py [--size 512] [--batch-size 4] [--precision float32 mixed_bfloat16] [--steps 5]

Each precision is measured in a process of its own, with random images and labels: 20 maps without a background map,
widths 32 to 1024, Tversky loss, as in the recipe `ct-axial`.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", nargs="+", default=["float32", "mixed_bfloat16"])
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{arguments.size} px, batch {arguments.batch_size}, {platform.platform()}\n")
    print("precision | parameters | s/step | loss, first and last step | peak memory, GB")
    print(" | ".join(["---"] * 5), flush=True)
    for precision in arguments.precision:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(measured, (precision, arguments.size, arguments.batch_size, arguments.steps)), flush=True)


def measured(precision: str, size: int, batch_size: int, steps: int) -> str:
    """Returns the row of one precision."""
    import keras

    from kmura.models.unet import build_unet
    from kmura.segmentation.overlap_losses import SegmentationLoss

    keras.config.set_dtype_policy(precision)
    model = build_unet(classes=20, background=False, dropout=0.3, seed=0)
    loss = SegmentationLoss(alpha=0.85, beta=0.15, background=False)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (batch_size, size, size, 1)).astype(np.float32)
    labels = rng.integers(0, 21, (batch_size, size, size)).astype(np.uint8)
    losses, seconds = [float(model.train_on_batch(images, labels))], []
    for _ in range(steps):
        began = time.perf_counter()
        losses.append(float(model.train_on_batch(images, labels)))
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    spread = f"{np.mean(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
    return f"{precision} | {model.count_params():,} | {spread} | {losses[0]:.4f}, {losses[-1]:.4f} | {peak:.2f}"


if __name__ == "__main__":
    main()
