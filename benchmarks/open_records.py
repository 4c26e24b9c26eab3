"""Seconds to open the records of a data set of MURA's size: the index of all images of every split.

Records of small noise images are built first, with MURA's numbers of images per area: 36,808 for training (of which
10 % become val) and 3,197 for test. Each round opens them in a new process; imports are not included.

    python benchmarks/open_records.py [--side 16] [--rounds 5] [--records FOLDER]
"""

import argparse
import hashlib
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from kmura.records.layouts import LAYOUTS
from kmura.records.layouts.base import Layout, Listing, Source
from kmura.records.manifest import MANIFEST, read_manifest
from kmura.records.writer import build_records

# area -> images in MURA's folders train and valid
IMAGES = {
    "XR_ELBOW": (4931, 465),
    "XR_FINGER": (5106, 461),
    "XR_FOREARM": (1825, 301),
    "XR_HAND": (5543, 460),
    "XR_HUMERUS": (1272, 288),
    "XR_SHOULDER": (8379, 563),
    "XR_WRIST": (9752, 659),
}
IMAGES_PER_STUDY = 3

CHILD = """
import sys, time
import numpy, pandas
from kmura.data.index import read_index
records, *splits = sys.argv[1:]
started = time.perf_counter()
images = [len(read_index(records, "all", split)) for split in splits]
print(time.perf_counter() - started, *images)
"""


class Noise(Layout):
    """Square noise images with the names, studies and numbers of MURA; the root folder is named after the side."""

    name = "noise"
    help = "an empty folder whose name is the side of the images, pixels"

    def listing(self, root):
        sources = []
        for area, numbers in IMAGES.items():
            for folder, split, images in zip(("train", "valid"), ("train", "test"), numbers, strict=True):
                for image in range(images):
                    study, view = divmod(image, IMAGES_PER_STUDY)
                    patient = f"patient{int(split == 'test')}{list(IMAGES).index(area)}{study:05}"
                    positive = study % 5 < 2
                    name = f"{patient}/study1_{'positive' if positive else 'negative'}"
                    path = f"{folder}/{area}/{name}/image{view + 1}.png"
                    sources.append(Source(path, area, patient, name, (int(positive),), split, None))
        return Listing(("normal", "abnormal"), "binary", tuple(sources), ("train", "test"), has_patients=True)

    def read(self, root, source, channels):
        seed = hashlib.sha256(source.path.encode()).digest()
        pixels = np.random.default_rng(list(seed[:8])).integers(0, 256, (int(root.name),) * 2).astype(np.uint8)
        return Image.fromarray(pixels), seed.hex()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=16, help="side of the images, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=Path, help="open this folder instead of building one; builds it if missing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records = arguments.records or Path(folder) / "records"
        if not (records / MANIFEST).exists():
            root = Path(folder) / str(arguments.side)
            root.mkdir()
            LAYOUTS[Noise.name] = Noise()
            build_records(root, records, layout=Noise.name)
        manifest = read_manifest(records)
        splits = sorted({split for counts in manifest.areas.values() for split in counts})
        size = sum(shard.bytes for shard in manifest.shards()) / 1e6
        seconds = []
        for _ in range(arguments.rounds):
            command = [sys.executable, "-c", CHILD, str(records), *splits]
            time, *images = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            seconds.append(float(time))
        counts = ", ".join(f"{number} {split}" for number, split in zip(images, splits, strict=True))
        print(f"{sum(map(int, images))} records ({counts}), {len(manifest.shards())} shards of {size:.0f} MB")
        print(f"median {statistics.median(seconds):.3f} s, fastest {min(seconds):.3f} s, {platform.platform()}")


if __name__ == "__main__":
    main()
