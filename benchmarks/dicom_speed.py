"""Files per second of `kmura build-tfrecords --layout dicom`, of `predict`'s decoding, and of a bare loop of pydicom.

All read the same synthetic radiographs (12 bits, one process, alternating rounds). The bare loop reads a file and
takes its pixel_array. The builder also searches the folder, reads the tags of every file first, makes pseudonyms, joins
the labels, applies the window, reduces to 512 pixels, encodes as PNG, and writes shards; its parts are timed as well.

    python benchmarks/dicom_speed.py [--files 500] [--side 1024] [--rounds 3] [--syntax explicit|rle|jpeg2000|jpegls]
"""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from kmura.phantoms.radiographs import write_phantoms
from kmura.records.decode import decoded
from kmura.records.layouts import layout_named, listing_of
from kmura.records.writer import build_records

PHANTOMS = 20  # studies; files of the same one differ by noise
SYNTAXES = {"explicit": None, "rle": "RLELossless", "jpeg2000": "JPEG2000Lossless", "jpegls": "JPEGLSLossless"}


def write_dicom(image: Path, file: Path, number: int, syntax: str | None) -> None:
    """One radiograph of 12 bits with a window, from a gray image; a patient has two studies of two views."""
    gray = np.asarray(Image.open(image).convert("L")).astype(np.uint16) * 16
    gray += np.random.default_rng(number).integers(0, 16, gray.shape).astype(np.uint16)  # the lower bits are noise
    uid = pydicom.uid
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = uid.generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientID, dataset.StudyInstanceUID = f"P{number // 4:05}", f"1.2.3.{number // 2}"
    dataset.SeriesInstanceUID, dataset.Modality, dataset.BodyPartExamined = f"1.2.4.{number}", "DX", "WRIST"
    dataset.Rows, dataset.Columns = gray.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = gray.tobytes()
    if syntax:
        dataset["PixelData"].VR = "OW"
        dataset.compress(getattr(uid, syntax), generate_instance_uid=False)
    dataset.save_as(file, enforce_file_format=True)


def bare(files: list[Path]) -> None:
    """Pixels by pydicom alone."""
    for file in files:
        pydicom.dcmread(file).pixel_array  # noqa: B018 (the attribute decodes)


def pictures(files: list[Path]) -> None:
    """Pictures of 8 bits, as `kmura predict` decodes them."""
    for file in files:
        decoded(file.read_bytes(), 1, file.name)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """The time of one call: wall clock and CPU, which other work on the machine disturbs less."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--syntax", choices=SYNTAXES, default="explicit")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kmura-dicom-"))
    try:
        write_phantoms(folder / "png", areas=("XR_WRIST",), train_studies=PHANTOMS, test_studies=1,
                       side=options.side)  # fmt: skip
        images = sorted((folder / "png").rglob("*.png"))
        (folder / "dicom").mkdir()
        files = [folder / "dicom" / f"IM{number:05}" for number in range(options.files)]
        for number, file in enumerate(files):
            write_dicom(images[number % len(images)], file, number, SYNTAXES[options.syntax])
        lines = [f"P{number:05},{number % 2}" for number in range(-(-options.files // 4))]
        (folder / "labels.csv").write_text("\n".join(["PatientID,finding", *lines]))
        given = {"csv": str(folder / "labels.csv"), "label_column": "finding", "key_file": str(folder / "key")}

        def build() -> None:
            build_records(folder / "dicom", folder / "out", layout="dicom", workers=1, **given)
            shutil.rmtree(folder / "out")

        parts = {
            "bare pydicom": lambda: bare(files),
            "decoding to 8 bits (predict)": lambda: pictures(files),
            "listing (tags, labels)": lambda: listing_of(layout_named("dicom"), folder / "dicom", given),
            "build-tfrecords": build,
        }
        bare(files)  # the files are in memory for all
        times = {name: [] for name in parts}
        for _ in range(options.rounds):
            for name, work in parts.items():
                times[name].append(seconds(work))
        size = sum(file.stat().st_size for file in files) / len(files) / 1e6
        print(f"{platform.processor() or platform.machine()}, {len(files)} files of {size:.2f} MB, {options.syntax}")
        base = statistics.median(cpu for _, cpu in times["bare pydicom"])
        for name, values in times.items():
            wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
            print(f"{name:30} {len(files) / wall:5.0f} files/s; {len(files) / cpu:5.0f} files per second of CPU, "
                  f"{cpu / base:.2f} x the CPU time of pydicom")  # fmt: skip
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
