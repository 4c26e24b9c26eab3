"""Images per second of `kmura build-tfrecords` and of bare Pillow (verify, decode, encode) on the same files.

Both use two processes and the same files, in one run, in alternating order. Bare Pillow is measured with its default
PNG settings and with its fastest (compress_level=1); the builder also hashes, checks, frames and writes to disk.

    python benchmarks/build_speed.py [--images 600] [--rounds 3]
"""

import argparse
import functools
import io
import multiprocessing
import platform
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

from kmura.config import RecordsConfig
from kmura.phantoms.radiographs import write_phantoms
from kmura.records.writer import build_records


def bare(path: str, compress_level: int) -> int:
    """The minimum work: verify, decode to gray, encode."""
    data = Path(path).read_bytes()
    Image.open(io.BytesIO(data)).verify()
    image = Image.open(io.BytesIO(data)).convert("L")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=compress_level)
    return buffer.tell()


def bare_rate(files: list[str], compress_level: int) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        list(pool.map(bare, files[:2], [6, 6]))  # starts the processes before the measurement
        started = time.perf_counter()
        list(pool.map(functools.partial(bare, compress_level=compress_level), files, chunksize=32))
        return len(files) / (time.perf_counter() - started)


def build_rate(root: Path, files: list[str]) -> float:
    """Returns images per second, including process start, listing, hashing and the manifest."""
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        build_records(root, Path(out) / "records", options=RecordsConfig(records_per_shard=64), workers=2)
        return len(files) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        studies = arguments.images // 5
        write_phantoms(
            folder / "images", areas=("XR_WRIST",), train_studies=studies, test_studies=studies // 5, workers=2
        )
        files = sorted(map(str, (folder / "images").rglob("*.png")))
        rates = {"bare Pillow, default PNG": [], "bare Pillow, compress_level=1": [], "kmura build": []}
        for _ in range(arguments.rounds):
            rates["bare Pillow, default PNG"].append(bare_rate(files, 6))
            rates["bare Pillow, compress_level=1"].append(bare_rate(files, 1))
            rates["kmura build"].append(build_rate(folder / "images", files))
        size = sum(Path(file).stat().st_size for file in files) / len(files) / 1000
        print(
            f"{len(files)} gray PNGs of up to 512 pixels, {size:.0f} KB on average, 2 processes, {platform.platform()}"
        )
        base = statistics.median(rates["bare Pillow, default PNG"])
        print("| contender | images/s (median of rounds) | relative to bare Pillow |\n| --- | --- | --- |")
        for name, rounds in rates.items():
            print(f"| {name} | {statistics.median(rounds):.0f} | {statistics.median(rounds) / base:.2f} x |")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
