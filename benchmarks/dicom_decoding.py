"""Every DICOM file of pydicom and pydicom-data: what kmura makes of it, beside independent decoders.

The gray values of a file are computed once more from the pixels that SimpleITK reads (ITK with its own GDCM, which also
parses the file and applies slope and intercept) and from the window or table that pydicom applies. Compressed pixels
are also compared bit by bit between all decoders that are installed: the plug-ins of pydicom, and imagecodecs
(libjpeg-turbo, CharLS, OpenJPEG, and its own decoder of JPEG lossless) if it is there.

    pip install '.[dicom,ct]' pydicom-data pyjpegls pylibjpeg-rle imagecodecs
    python benchmarks/dicom_decoding.py [--all]
"""

import argparse
import collections
import dataclasses
import importlib.util
import io
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, get_decoder

from kmura.records.decode import decoded
from kmura.records.dicom_tags import read_tags
from kmura.records.images import UnreadableImage
from kmura.records.jpeg_extended import decode_extended, is_extended

PACKAGES = {"pydicom": "data", "data_store": "data"}  # module -> folder of its files
# the same image in an uncompressed file of little endian and RGB
SAME = {
    "SC_rgb_rle_16bit.dcm": "SC_rgb_16bit.dcm",
    "SC_rgb_rle_16bit_2frame.dcm": "SC_rgb_16bit_2frame.dcm",
    "rtdose_expb.dcm": "rtdose.dcm",
}
OTHER = {".py", ".pyc", ".json", ".txt", ".md", ".hash", ".icc", ".dump", ".gz"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One file.

    Attributes:
        file: its path inside the package.
        syntax: name of the transfer syntax, photometric interpretation, bits stored.
        answer: `image`, or why there is none.
        difference: largest difference of the 8-bit picture from the independent one, in gray levels; None if there is
            no picture or nothing to compare it with.
        beside: what it was compared with.
        decoders: decoders of the compressed pixels that agree bit by bit.
        disagree: those that do not.
    """

    file: str
    syntax: str
    answer: str
    difference: float | None = None
    beside: str = ""
    decoders: tuple[str, ...] = ()
    disagree: tuple[str, ...] = ()


def files() -> list[tuple[Path, str]]:
    """The files of the packages that are installed, each with its name in the table."""
    places = []
    for module, folder in PACKAGES.items():
        spec = importlib.util.find_spec(module)
        if spec:
            root = Path(spec.origin).parent / folder
            places += [(path, f"{module}/{path.relative_to(root).as_posix()}") for path in sorted(root.rglob("*"))]
    return [
        (path, name) for path, name in places if path.is_file() and path.suffix not in OTHER and path.name != "README"
    ]


def row_of(path: Path, name: str) -> Row:
    """The comparison of one file; of several frames, the middle one is taken."""
    data = path.read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    syntax = pydicom.uid.UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    kind = f"{syntax.name or 'no transfer syntax'}, {dataset.get('PhotometricInterpretation', '-')}"
    kind += f", {dataset.BitsStored} bits" if "BitsStored" in dataset else ""
    try:
        frames = read_tags(path).frames or 1
        frame = frames // 2 if frames > 1 else 0
        kind += f", frame {frame + 1} of {frames}" if frames > 1 else ""
        gray = str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME")
        picture = decoded(data, 1 if gray else 3, path.name, frame)
    except UnreadableImage as error:
        return Row(name, kind, str(error))
    other, beside = _independent(path, dataset, frame, gray)
    difference = None if other is None else float(np.abs(np.asarray(picture).astype(float) - other).max())
    agreeing, others = _decoders(dataset, frame)
    return Row(name, kind, "image", difference, beside, agreeing, others)


def _independent(path: Path, dataset, frame: int, gray: bool) -> tuple[np.ndarray | None, str]:
    """The 8-bit picture [H, W] or [H, W, 3] by other means, and their names."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    if path.name in SAME:  # ITK reads wrong values of these
        other = next(place for place, _ in files() if place.name == SAME[path.name])
        picture = decoded(other.read_bytes(), 1 if gray else 3, frame=frame)
        return np.asarray(picture).astype(float), other.name
    try:
        volume = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        values, beside = volume.reshape(-1, *volume.shape[1 if volume.ndim > 2 else 0 :])[frame], "SimpleITK"
    except (RuntimeError, IndexError):
        values, beside = None, ""
    if not gray:
        if values is None or not str(dataset.PhotometricInterpretation).startswith(("RGB", "YBR")):
            return None, ""
        if values.dtype == np.uint16:
            values = values >> max(0, int(values.max()).bit_length() - 8)
        if str(dataset.PhotometricInterpretation).startswith("YBR_FULL") and "JPEG" in _syntax(dataset):
            values, beside = _pillow(dataset, frame), "libjpeg"
        return values.astype(float), beside
    if values is None or "ModalityLUTSequence" in dataset or dataset.get("PixelRepresentation") is None:
        stored = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, index=frame)[0]
        values, beside = apply_modality_lut(stored, dataset), "pydicom"
    elif dataset.PhotometricInterpretation == "MONOCHROME1":  # ITK inverts the stored values
        slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
        values = (2**dataset.BitsStored - 1 - (values - intercept) / slope) * slope + intercept
    return _shown(np.asarray(values), dataset), beside


def _shown(values: np.ndarray, dataset) -> np.ndarray:
    """Gray levels by pydicom's windows and tables; pydicom has the range of the window's output in `ends`."""
    padding = dataset.get("PixelPaddingValue")
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    inside = np.ones(values.shape, bool)
    if padding is not None:
        limit = dataset.get("PixelPaddingRangeLimit", padding)
        low, high = sorted((padding * slope + intercept, limit * slope + intercept))
        inside = ~((values >= low) & (values <= high))
        inside |= not inside.any()
    if "VOILUTSequence" in dataset:
        whole = values.astype(np.int64)
        shades = apply_voi(whole, dataset).astype(float)
        low, high = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        shades = apply_windowing(values.astype(float), dataset).astype(float)
        low, high = apply_windowing(np.array([-1e12, 1e12]), dataset)
    else:
        shades, low, high = values.astype(float), float(values[inside].min()), float(values[inside].max())
    levels = 255 * np.clip((shades - low) / ((high - low) or 1), 0, 1)
    levels = 255 - levels if dataset.PhotometricInterpretation == "MONOCHROME1" else levels
    return np.where(inside, levels, 0)


def _syntax(dataset) -> str:
    return pydicom.uid.UID(dataset.file_meta.TransferSyntaxUID).name


def _pillow(dataset, frame: int) -> np.ndarray:
    from PIL import Image

    stream = get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    return np.asarray(Image.open(io.BytesIO(stream)).convert("RGB"))


def _decoders(dataset, frame: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The decoders of compressed pixels that agree with most, and those that do not."""
    syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    if not syntax or not pydicom.uid.UID(syntax).is_encapsulated:
        return (), ()
    arrays: dict[str, np.ndarray] = {}
    if is_extended(dataset):
        arrays["gdcm"] = decode_extended(dataset, frame)
    else:
        decoder = get_decoder(syntax)
        for plugin in decoder.available_plugins:
            try:
                arrays[plugin] = decoder.as_array(dataset, index=frame, raw=True, decoding_plugin=plugin)[0]
            except Exception as error:  # a decoder that refuses a file is no disagreement
                logging.getLogger(__name__).debug("%s: %s", plugin, error)
    if (other := _imagecodecs(dataset, frame)) is not None:
        arrays["imagecodecs"] = other
    keys = {name: array.astype(np.int64).tobytes() for name, array in arrays.items()}
    most = collections.Counter(keys.values()).most_common(1)[0][0] if keys else b""
    return tuple(name for name in keys if keys[name] == most), tuple(name for name in keys if keys[name] != most)


def _imagecodecs(dataset, frame: int) -> np.ndarray | None:
    """The pixels by imagecodecs; None where it is not installed, or has no decoder that leaves colours as stored."""
    if not importlib.util.find_spec("imagecodecs") or int(dataset.get("SamplesPerPixel") or 1) != 1:
        return None
    import imagecodecs

    decoders = {
        "50": imagecodecs.jpeg8_decode,
        "51": imagecodecs.jpeg8_decode,
        "57": imagecodecs.ljpeg_decode,
        "70": imagecodecs.ljpeg_decode,
        "80": imagecodecs.jpegls_decode,
        "81": imagecodecs.jpegls_decode,
        "90": imagecodecs.jpeg2k_decode,
        "91": imagecodecs.jpeg2k_decode,
    }
    decode = decoders.get(str(dataset.file_meta.TransferSyntaxUID).removeprefix("1.2.840.10008.1.2.4."))
    try:
        stream = get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
        values = decode(stream) if decode else None
    except Exception:  # codecs raise their own errors for streams that they do not support
        return None
    if values is None:
        return None
    if dataset.PixelRepresentation == 1 and values.dtype.kind == "u":  # JPEG has no sign
        bits = int(dataset.BitsStored)
        values = (values.astype(np.int64) ^ (1 << (bits - 1))) - (1 << (bits - 1))
    return values


def rows() -> list[Row]:
    """The comparison of every file, in silence."""
    logging.getLogger("pydicom").addFilter(lambda record: False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [row_of(path, name) for path, name in files()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also list files without pixels")
    options = parser.parse_args()
    table = rows()
    for row in table:
        if row.answer == "image":
            agree = f"; equal in {', '.join(row.decoders)}" if row.decoders else ""
            differ = f"; DIFFERENT in {', '.join(row.disagree)}" if row.disagree else ""
            beside = "nothing to compare with" if row.difference is None else f"{row.difference:.1f} from {row.beside}"
            print(f"{row.file} | {row.syntax} | image, {beside}{agree}{differ}")
        elif options.all or "without pixels" not in row.answer:
            print(f"{row.file} | {row.syntax} | {row.answer}")
    images = [row for row in table if row.answer == "image"]
    compared = [row for row in images if row.difference is not None]
    print(f"{len(table)} files: {len(images)} images, {len(table) - len(images)} with a reason")
    print(f"{len(compared)} images compared: {sum(row.difference <= 1 for row in compared)} within one gray level")
    compressed = [row for row in images if row.decoders or row.disagree]
    several = [row for row in compressed if len(row.decoders) > 1]
    print(f"{len(compressed)} compressed: {len(several)} with two or more decoders that agree bit by bit, "
          f"{sum(bool(row.disagree) for row in compressed)} with one that does not")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
