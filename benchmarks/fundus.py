"""The recipe `fundus` with cross-entropy and with focal loss on coloured discs, as one table.

    python benchmarks/fundus.py [--backbone resnet50] [--image-size 64] [--epochs 15] [--seeds 1]

Real fundus photographs cannot be shipped, so synthetic discs replace them: a textured, reddish disc with vessels and a
bright optic disc on black; the class `disease` adds a few small yellow or dark-red spots of varied contrast. 40 % of
the images are of `disease`, in folders `disease` and `normal` as in published data (400 for training and 200 held out
by default). They are read by `--layout folders --positive-class disease --channels 3`. The split `val`, a fifth of the
training images, selects the epoch and the threshold of sensitivity >= 0.9. The network starts from random weights,
since the recipe's ImageNet weights need a network connection. For each loss and seed, the table shows the AUC of the
held-out images, and recall and precision of `disease` at 0.5 and at that threshold. The probabilities are not
calibrated, since calibration would hide the effect of the losses.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RULE = "sensitivity>=0.9"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--train", type=int, default=400, help="images for train and val")
    parser.add_argument("--test", type=int, default=200, help="held-out images")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings for both losses; they override the recipe"
    )
    parser.add_argument("--keep", help="folder in which data and runs are kept")
    arguments = parser.parse_args()

    from kmura.classification.fit import fit
    from kmura.config import RecordsConfig, load_config, parse_setting
    from kmura.evaluation.evaluate import evaluate
    from kmura.evaluation.scoring import ScoreOptions
    from kmura.records.writer import build_records

    with tempfile.TemporaryDirectory() as folder:
        root = Path(arguments.keep or folder)
        for split, count in (("train", arguments.train), ("test", arguments.test)):
            write_discs(root / "eyes" / split, count, seed=split == "test")
        options = RecordsConfig(channels=3, val_fraction=0.2)
        build_records(root / "eyes", root / "records", layout="folders", positive_class="disease", options=options)
        print(f"{arguments.backbone}, {arguments.image_size} pixels, {arguments.epochs} epochs, {platform.platform()}")
        print("loss | seed | AUC | recall, precision at 0.5 | threshold | recall, precision there | s")
        for loss in ("cross_entropy", "focal"):
            for seed in range(arguments.seeds):
                started = time.time()
                settings = {
                    "model.backbone": arguments.backbone,
                    "model.weights": "none",
                    "data.image_size": arguments.image_size,
                    "train.epochs": arguments.epochs,
                    "train.loss": loss,
                    "train.seed": seed,
                }
                config = load_config("fundus", settings | dict(map(parse_setting, arguments.set)))
                run = fit(root / "records", area="eyes", runs=root / f"{loss}-{seed}", config=config)
                evaluation = evaluate(
                    run.folder, options=ScoreOptions(calibration="none", rules=(RULE,), resamples=500)
                )
                scores = evaluation.scores.splits["test"]["image"].scores
                point = evaluation.scores.operating_points["test"][0]
                print(
                    f"{loss} | {seed} | {scores['auc']} | {scores['recall']}, {scores['precision']} | "
                    f"{point.threshold:.3f} | {point.scores['recall']}, {point.scores['precision']} | "
                    f"{time.time() - started:.0f}",
                    flush=True,
                )


def write_discs(folder: Path, count: int, seed: int, side: int = 192) -> None:
    """Writes `count` PNGs to `folder/disease` and `folder/normal`, in the ratio 2 to 3."""
    import numpy as np
    from PIL import Image

    for number in range(count):
        name = "disease" if number % 5 < 2 else "normal"
        path = folder / name / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        disc = fundus_disc(np.random.default_rng([seed, number]), name == "disease", side)
        Image.fromarray(disc).save(path)


def fundus_disc(rng, disease: bool, side: int):
    """Returns one disc, uint8 [side, side, 3]."""
    import numpy as np
    from scipy import ndimage

    rows, columns = np.mgrid[:side, :side] / side - 0.5
    radius = np.hypot(rows, columns)
    noise = ndimage.gaussian_filter(rng.normal(size=(side, side)), side / 40)
    texture = 1 + 0.10 * noise / noise.std()
    tint = np.array([0.72, 0.34, 0.14]) * rng.uniform(0.8, 1.15, 3)
    image = tint * (texture * (1.1 - 0.7 * radius**2))[..., None]
    centre = np.array([rng.uniform(-0.05, 0.05), rng.choice([-0.22, 0.22])])
    bright = np.exp(-(((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * 0.05**2)))
    image += bright[..., None] * np.array([0.25, 0.25, 0.12])
    for _ in range(rng.integers(5, 9)):  # vessels start at the optic disc and bend slowly
        angle, place = rng.uniform(0, 2 * np.pi), centre.copy()
        for step in range(90):
            angle += rng.normal(0, 0.09)
            place = place + 0.006 * np.array([np.sin(angle), np.cos(angle)])
            if np.hypot(*place) > 0.46:
                break
            y, x = ((place + 0.5) * side).astype(int)
            width = max(1, int(side / 90 * (1 - step / 110)))
            image[max(0, y - width) : y + width, max(0, x - width) : x + width] *= 0.93
    if disease:
        for _ in range(rng.integers(3, 10)):
            angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.4)
            spot = np.hypot(rows - far * np.sin(angle), columns - far * np.cos(angle))
            inside = np.clip(1.5 - spot / rng.uniform(0.012, 0.03), 0, 1)[..., None]
            colour = np.array([0.95, 0.85, 0.45]) if rng.random() < 0.6 else np.array([0.35, 0.05, 0.04])
            share = rng.uniform(0.35, 0.9)
            image = image * (1 - share * inside) + share * inside * colour
    image = np.where(radius[..., None] < 0.47, image + rng.normal(0, 0.02, image.shape), 0)
    return (255 * np.clip(image, 0, 1)).astype(np.uint8)


if __name__ == "__main__":
    main()
