"""Images per second of `kmura build-tfrecords --layout csv` and of a bare loop of Pillow, and rows per second of a CSV.

Images: as many JPEGs of 256 pixels as rows in the CSV. The bare loop reads, decodes to gray and encodes each (PNG, or
JPEG of quality 95), in one process without writing; the build, in one process, also lists, hashes, joins, checks,
frames and writes. Rates are by the clock and by the processor time, which other work on the machine changes little.
Rows: a CSV of many more rows than images, of which the memory is measured in a process of its own.

    python benchmarks/csv_speed.py [--images 10000] [--rounds 2] [--rows 10000000]
"""

import argparse
import io
import multiprocessing
import platform
import re
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from kmura.config import RecordsConfig
from kmura.records.layouts import LAYOUTS, listing_of
from kmura.records.writer import build_records

OPTIONS = {
    "csv": ["labels.csv"],
    "image_column": "image",
    "label_columns": ["mass", "edema"],
    "patient_column": "patient",
}
FORMATS = {"png": {"format": "PNG"}, "jpeg": {"format": "JPEG", "quality": 95}}


def write_source(root: Path, images: int, rows: int) -> None:
    """Writes JPEGs of smooth noise, and a CSV with `rows` rows whose images exist for the first `images` rows."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    waves = [Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).resize((256, 256), 3) for _ in range(64)]
    grain = rng.integers(-12, 13, (256, 512))
    for number in range(images):
        pixels = np.asarray(waves[number % 64], int) + grain[:, number % 256 : number % 256 + 256]
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(root / "images" / f"{number:08}.jpg", quality=90)
    with open(root / "labels.csv", "w") as file:
        file.write("image,mass,edema,patient,sex,age\n")
        for number in range(rows):
            edema = ("0", "1", "-1", "")[number % 4]
            file.write(f"{number:08}.jpg,{number // 7 % 2},{edema},{number // 3},{'MF'[number % 2]},{number % 90}\n")


def bare_loop(files: list[Path], form: str) -> None:
    for path in files:
        image = Image.open(io.BytesIO(path.read_bytes())).convert("L")
        image.save(io.BytesIO(), **FORMATS[form])


def build(root: Path, form: str) -> None:
    with tempfile.TemporaryDirectory() as out:
        options = RecordsConfig(encoding=form)
        build_records(root, Path(out) / "records", layout="csv", options=options, workers=1, **OPTIONS)


def rates(work, images: int) -> tuple[float, float]:
    """Images per second by the clock, and per second of this process."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return images / (time.perf_counter() - clock), images / (time.process_time() - processor)


def peak_memory() -> float:
    """The peak memory of this process, MB (Linux); that of `resource` would include the process that started it."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1000


def listing(root: Path) -> tuple[float, float, int]:
    """Seconds of processor time to list a source, the growth of peak memory, MB, and the images listed."""
    before = peak_memory()
    started = time.process_time()
    sources = listing_of(LAYOUTS["csv"], root, OPTIONS).sources
    seconds = time.process_time() - started
    return seconds, peak_memory() - before, len(sources)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="0 measures rows only")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the long CSV; 0 leaves it out")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Pillow {Image.__version__}, {arguments.images} images")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "few"
        write_source(root, arguments.images, arguments.images)
        files = sorted((root / "images").iterdir())
        for form in FORMATS if files else ():
            work = {"bare loop": lambda: bare_loop(files, form), "build": lambda: build(root, form)}  # noqa: B023
            measured = {name: [rates(run, len(files)) for _ in range(arguments.rounds)] for name, run in work.items()}
            for name, values in measured.items():
                clock, processor = (statistics.median(rate) for rate in zip(*values, strict=True))
                print(f"{form}, {name}: {clock:.0f} images/s, {processor:.0f} per second of processor time")
        for rows in dict.fromkeys((arguments.rows // 100, arguments.rows)) if arguments.rows else ():
            root = Path(folder) / f"rows{rows}"
            write_source(root, 1000, rows)
            size = (root / "labels.csv").stat().st_size / 1e6
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                seconds, memory, found = pool.submit(listing, root).result()
            place = f"{rows} rows ({size:.0f} MB), {found} images"
            print(f"{place}: {seconds:.1f} s of processor time, {memory:.0f} MB more memory")


if __name__ == "__main__":
    main()
