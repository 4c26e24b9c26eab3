"""Images per second of kmura's input pipeline, of its parts and of a PyTorch DataLoader, as one table from one run.

    python benchmarks/pipeline_speed.py [--images 640] [--seconds 5] [--rounds 5] [--torch-python PYTHON]

Draws synthetic radiographs (512 x 512, gray with film grain, 100 to 150 KB as PNG), stores them as RGB PNG files for
the loader and as records for kmura, and runs each contender in a separate process, in turn. Speeds are medians over the
rounds. Ratios are medians of the ratios within a round, because the speed of a shared machine drifts. The loader uses
PIL and torch in the same way as torchvision does on PIL images. It needs torch (2.13, CPU build), in this environment
or in the one of --torch-python; without torch its rows are skipped.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AREA, BATCH, SIZE = "XR_WRIST", 16, 224
PNG, JPEG, FILES = "records-png", "records-jpeg", "mura"


# --- contenders: each returns an endless iterator over the sizes of its batches --------------------------------------


def decode_alone(work):
    """Encoded images in memory -> pixels, which are discarded."""
    import tensorflow as tf

    return _endless(_encoded(work, PNG).map(lambda image: tf.shape(tf.io.decode_png(image, 1))[0], tf.data.AUTOTUNE))


def decode_jpeg_alone(work):
    """The same for records of JPEGs."""
    import tensorflow as tf

    return _endless(_encoded(work, JPEG).map(lambda image: tf.shape(tf.io.decode_jpeg(image, 1))[0], tf.data.AUTOTUNE))


def decode_resize_alone(work):
    """Encoded images in memory -> pixels -> 224 x 224 pixels by kmura's resizing."""
    import numpy as np
    import tensorflow as tf

    from kmura.data.resize import axis_weights, resized, taps_needed

    sides = np.array([[512, 512]])
    places, weights = axis_weights(tf.constant(sides), SIZE, "squash", taps_needed(sides, SIZE, "squash"))
    return _endless(
        _encoded(work, PNG).map(
            lambda image: resized(tf.io.decode_png(image, 1), places[0], weights[0]), tf.data.AUTOTUNE
        )
    )


def decode_resize_tensorflow(work):
    """The same with tf.image.resize(antialias=True)."""
    import tensorflow as tf

    def decode_and_resize(image):
        image = tf.image.resize(tf.io.decode_png(image, 1), (SIZE, SIZE), antialias=True)
        return tf.cast(image + 0.5, tf.uint8)

    return _endless(_encoded(work, PNG).map(decode_and_resize, tf.data.AUTOTUNE))


def train_png(work):
    """Dataset.train from lossless records, without a cache."""
    return _training(work, PNG, "off")


def train_cached(work):
    """Dataset.train, decoded images in memory."""
    return _training(work, PNG, "memory")


def train_jpeg(work):
    """Dataset.train from records of 320-pixel JPEGs, without a cache."""
    return _training(work, JPEG, "off")


def evaluate_png(work):
    """Dataset.eval from lossless records, without a cache."""
    from kmura.config import DataConfig
    from kmura.data.dataset import Dataset

    data = DataConfig(image_size=SIZE, cache="off")
    return (len(batch["image"]) for batch in Dataset(work / PNG, AREA, data).eval("train").repeat())


def torch_training(work):
    """DataLoader with 2 processes: RandomResizedCrop, rotation, flip, brightness, contrast, normalisation."""
    return _loader(work, _augmented)


def torch_validation(work):
    """DataLoader with 2 processes: resizing, conversion to a tensor, normalisation."""
    from PIL import Image

    return _loader(work, lambda image: image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _encoded(work, folder):
    import numpy as np
    import tensorflow as tf

    from kmura.data.index import read_index, read_shard

    shards = read_index(work / folder, AREA, "train").shards
    images = [record.image for path in shards for _, record in read_shard(work / folder, path)]
    return tf.data.Dataset.from_tensor_slices(np.array(images, object)).repeat()


def _endless(dataset):
    return (len(batch) for batch in dataset.batch(BATCH).prefetch(2))


def _training(work, folder, cache):
    from kmura.config import DataConfig
    from kmura.data.dataset import Dataset

    data = DataConfig(image_size=SIZE, cache=cache)
    dataset = Dataset(work / folder, AREA, data).train(batch_size=BATCH, epochs=10_000)
    return (len(batch["image"]) for batch in dataset)


def _loader(work, transform):
    import numpy as np
    import torch
    from PIL import Image

    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    class Images(torch.utils.data.Dataset):
        paths = sorted((work / FILES).rglob("*.png"))

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, number):
            with Image.open(self.paths[number]) as image:
                image = transform(image.convert("RGB"))
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            return pixels.to(torch.float32).div(255).sub_(mean).div_(deviation), number % 2

    def endless():
        loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
        while True:
            for images, _ in loader:
                yield len(images)

    return endless()


def _augmented(image):
    """Applies torchvision's transforms of the published training to a PIL image."""
    from PIL import Image, ImageEnhance

    width, height = image.size
    for _ in range(10):  # RandomResizedCrop(224, scale=(0.9, 1.1)) with torchvision's aspects
        area = width * height * random.uniform(0.9, 1.1)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:
        left, top, w, h = 0, 0, width, height
    image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    image = image.rotate(random.uniform(-15, 15), Image.Resampling.NEAREST)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in random.sample((ImageEnhance.Brightness, ImageEnhance.Contrast), 2):
        image = enhance(image).enhance(random.uniform(0.9, 1.1))
    return image


CONTENDERS = {
    "decode_alone": decode_alone,
    "decode_resize_alone": decode_resize_alone,
    "decode_resize_tensorflow": decode_resize_tensorflow,
    "train_png": train_png,
    "train_cached": train_cached,
    "evaluate_png": evaluate_png,
    "decode_jpeg_alone": decode_jpeg_alone,
    "train_jpeg": train_jpeg,
    "torch_training": torch_training,
    "torch_validation": torch_validation,
}


def measure(name: str, work: Path, seconds: float) -> float:
    """Returns the images per second of one contender, after one second of warm-up."""
    sizes = CONTENDERS[name](work)
    start = time.perf_counter()
    for _ in range(4):
        next(sizes)
    while time.perf_counter() - start < 1:
        next(sizes)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += next(sizes)
    return images / (time.perf_counter() - start)


# --- images, turns and the table -------------------------------------------------------------------------------------


def make_images(work: Path, count: int) -> None:
    """Writes `count` radiographs as RGB PNG files in MURA's folders, and builds gray PNG and JPEG records of them."""
    import numpy as np
    from PIL import Image

    from kmura.config import RecordsConfig
    from kmura.phantoms.radiographs import render_view
    from kmura.records.writer import build_records

    for number in range(count):
        pixels = render_view(AREA, study=number).pixels
        rows, columns = (512 - side for side in pixels.shape)
        pixels = np.pad(pixels, ((0, rows), (0, columns)), "symmetric")
        split = "train" if number else "test"
        study = "study1_positive" if number % 2 else "study1_negative"
        folder = work / FILES / split / AREA / f"patient{number:05}" / study
        folder.mkdir(parents=True)
        Image.fromarray(pixels).convert("RGB").save(folder / "image1.png")
    build_records(work / FILES, work / PNG, options=RecordsConfig(val_fraction=0))
    jpeg = RecordsConfig(val_fraction=0, encoding="jpeg", quality=95, max_side=320)
    build_records(work / FILES, work / JPEG, options=jpeg)


def take_turns(work: Path, seconds: float, rounds: int, torch_python: str) -> dict[str, list[float]]:
    """Returns the images per second in each round, for each contender that can run."""
    speeds = {}
    for turn in range(rounds):
        for name in CONTENDERS:
            python = torch_python if name.startswith("torch") else sys.executable
            command = [python, __file__, "--contender", name, "--work", str(work), "--seconds", str(seconds)]
            outcome = subprocess.run(command, capture_output=True, text=True)
            if outcome.returncode == 0:
                speeds.setdefault(name, []).append(json.loads(outcome.stdout.splitlines()[-1]))
            elif name in speeds:
                raise SystemExit(f"{name} failed in a later round: {outcome.stderr}")
            elif turn == 0:
                lines = outcome.stderr.strip().splitlines()
                print(f"{name} is skipped: {lines[-1] if lines else outcome.returncode}", flush=True)
    return speeds


def table(speeds: dict[str, list[float]]) -> str:
    """Returns the table: images per second and ratios to the references, medians over the rounds."""
    references = {"decode+resize": "decode_resize_alone", "uncached": "train_png", "loader": "torch_training"}
    lines = [f"{'':26}{'images/s':>10}" + "".join(f"{'x ' + title:>16}" for title in references)]
    for name, rounds in speeds.items():
        ratios = (
            statistics.median(own / other for own, other in zip(rounds, speeds[reference], strict=True))
            if reference in speeds
            else math.nan
            for reference in references.values()
        )
        lines.append(f"{name:26}{statistics.median(rounds):10.0f}" + "".join(f"{ratio:16.2f}" for ratio in ratios))
    return "\n".join(lines)


def main() -> None:
    """Prints the table, or with --contender the speed of one contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--seconds", type=float, default=5, help="measured seconds per contender and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", default=sys.executable, help="Python interpreter with torch")
    parser.add_argument("--work", type=Path, help="keep the images here for the next run (default: a temporary folder)")
    parser.add_argument("--contender", choices=CONTENDERS)
    options = parser.parse_args()
    if options.contender:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        print(json.dumps(measure(options.contender, options.work, options.seconds)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if not (work / JPEG / "manifest.json").exists():
            make_images(work, options.images)
        sizes = [path.stat().st_size for path in (work / PNG).rglob("*.tfrecord")]
        total = len(list((work / FILES).rglob("*.png")))
        load = os.getloadavg()[0]
        print(
            f"{total} images of 512 x 512, {sum(sizes) / total / 1000:.0f} KB per record; batches of {BATCH} at {SIZE}"
        )
        speeds = take_turns(work, options.seconds, options.rounds, options.torch_python)
        loads = f"load before {load:.1f}, after {os.getloadavg()[0]:.1f}"
        print(f"{os.cpu_count()} cores; {loads}; medians of {options.rounds} rounds")
        print(table(speeds))


if __name__ == "__main__":
    main()
