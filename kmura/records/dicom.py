"""Decodes one DICOM file to the image that a viewer shows. Needs pydicom (`pip install '.[dicom]'`)."""

import contextlib
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from kmura.records.dicom_tags import without_identifiers
from kmura.records.eight_bits import eight_bits
from kmura.records.images import MAX_PIXELS, UnreadableImage, check_size
from kmura.records.jpeg_extended import decode_extended, is_extended
from kmura.records.pydicom_messages import silenced
from kmura.records.remarks import with_remarks

SUFFIXES = frozenset({".dcm", ".dicom"})
PREAMBLE = 132  # bytes at the start of a file, the last four are DICM
_INSTALL = "run pip install '.[dicom]' in a clone of kmura"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_LUT_BITS_TO_SPARE = 3  # a table that uses an eighth of the range it declares would give a nearly black picture
# part of the name of a SOP class -> the kind of object, in words
_KINDS = {
    "Directory": "DICOM directories (DICOMDIR)",
    "Presentation State": "DICOM presentation states",
    " SR ": "DICOM reports",
    "Report": "DICOM reports",
    "Key Object": "DICOM reports",
    "Encapsulated": "documents in DICOM",
}


def is_dicom(data: bytes) -> bool:
    """Whether the bytes start like a DICOM file (PS3.10, section 7.1)."""
    return data[PREAMBLE - 4 : PREAMBLE] == b"DICM"


def may_be_dicom(data: bytes) -> bool:
    """Whether the bytes start like a DICOM file, or like a data set without preamble, as older archives store them."""
    if is_dicom(data):
        return True
    explicit = data[4:6] in (b"UI", b"UL", b"OB", b"CS", b"DA", b"TM", b"SH", b"LO")
    length = int.from_bytes(data[4:8], "little")
    return data[:2] in (b"\x02\0", b"\x08\0") and data[3:4] == b"\0" and (explicit or 0 < length < 256)


def kind_without_pixels(path: Path) -> str:
    """The kind of a DICOM object that holds no picture, in words (a directory, a report); empty for all others.

    Files that cannot be read count as pictures, so that decoding them reports the damage.
    """
    try:
        import pydicom
    except ImportError:
        return ""
    with contextlib.suppress(Exception), silenced():  # pydicom raises many kinds of errors
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["SOPClassUID", "Rows"])
        sop = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        if not sop or "Rows" in dataset:
            return ""
        name = pydicom.uid.UID(sop).name
        if "Image Storage" in name:
            return ""
        return next((kind for part, kind in _KINDS.items() if part in name), "other DICOM objects without pixels")
    return ""


def decode_dicom(data: bytes, channels: int = 1, frame: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in the bytes of a DICOM file: 8 bits, mode L (1 channel) or RGB (3 channels).

    Gray values are rescaled (slope and intercept, or the modality table), then mapped by the VOI table or the first
    valid window, or stretched from minimum to maximum if the file has neither; MONOCHROME1 is inverted. Padding is
    black. Tables and windows that the standard forbids (a width of 0) are ignored with a remark, see `remarks_on`. A
    file that states no transfer syntax is read as the default one. Messages contain no identifiers of the patient.

    Args:
        data: bytes of the file.
        channels: 1 or 3.
        frame: which frame of several is decoded, from 0, with a remark; None refuses files of several frames, because
            they do not say which frame is the radiograph.
        max_pixels: images that declare more are refused before they are decoded.

    Raises:
        UnreadableImage: pydicom is missing, not a DICOM file, no pixels, several frames, a frame that does not exist, a
            transfer syntax that no installed package decodes, colours other than RGB and YBR, too many pixels (refused
            before decoding).
    """
    try:
        import pydicom
    except ImportError as error:
        raise UnreadableImage(f"DICOM, which needs pydicom; {_INSTALL}") from error
    remarks: list[str] = []
    dataset = pydicom.Dataset()
    try:
        with silenced():
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            if not any(name in dataset for name in _PIXELS):
                raise UnreadableImage("DICOM without pixels")
            number = _frame_number(dataset, frame, remarks)
            if not dataset.get("Rows") or not dataset.get("Columns"):
                raise UnreadableImage("DICOM without Rows and Columns, the size of the image")
            check_size((int(dataset.Columns), int(dataset.Rows)), max_pixels)
            _check_syntax(dataset)
            image = _image(dataset, number, remarks)
    except UnreadableImage:
        raise
    except Exception as error:  # pydicom raises many kinds of errors for damaged files
        with silenced():
            text = without_identifiers(" ".join(str(error).split()) or type(error).__name__, dataset)
            raise UnreadableImage(_undecodable(dataset, text)) from error
    return with_remarks(image.convert("L" if channels == 1 else "RGB"), remarks)


def _frame_number(dataset, frame: int | None, remarks: list[str]) -> int:
    """The position of the frame to decode, from 0.

    Raises:
        UnreadableImage: several frames and none is chosen, or the chosen one does not exist.
    """
    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
    except ValueError as error:
        raise UnreadableImage("DICOM whose number of frames is not a number") from error
    if frame is None:
        if frames != 1:
            raise UnreadableImage(f"DICOM of {frames} frames; save the radiograph as a file of one frame")
        return 0
    if not 0 <= frame < frames:
        raise UnreadableImage(f"DICOM of {frames} frames, which has no frame {frame + 1}")
    if frames > 1:
        remarks.append(f"frame {frame + 1} of {frames}")
    return frame


def _undecodable(dataset, text: str) -> str:
    """Why pixels cannot be decoded, with the name of a compressed transfer syntax."""
    from pydicom import uid

    syntax = dataset.file_meta.get("TransferSyntaxUID", "") if hasattr(dataset, "file_meta") else ""
    with contextlib.suppress(ValueError):  # not a transfer syntax
        if syntax and uid.UID(syntax).is_compressed:
            return f"DICOM compressed as {uid.UID(syntax).name} that cannot be decoded ({text})"
    return f"DICOM that cannot be decoded ({text})"


def _check_syntax(dataset) -> None:
    """Completes a missing transfer syntax and checks that its decoder is installed.

    Raises:
        UnreadableImage: no decoder is installed.
    """
    from pydicom import uid
    from pydicom.pixels import get_decoder

    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        # the default of PS3.5, section 10.1, unless the data set itself is of another encoding
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    syntax = uid.UID(dataset.file_meta.TransferSyntaxUID)
    if not syntax.is_compressed or syntax == uid.DeflatedExplicitVRLittleEndian:
        return
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError as error:
        raise UnreadableImage(
            f"DICOM compressed as {syntax.name}, which pydicom cannot decode; export it again without compression"
        ) from error
    if not available:
        raise UnreadableImage(f"DICOM compressed as {syntax.name}, which needs a decoder; {_INSTALL}")


def _image(dataset, frame: int, remarks: list[str]) -> Image.Image:
    from pydicom.pixels import convert_color_space, get_decoder

    # the decoder says which colours it returns: those of JPEG 2000 (YBR_RCT, YBR_ICT) become RGB while it decodes
    if is_extended(dataset):
        pixels, kind = decode_extended(dataset, frame), str(dataset.PhotometricInterpretation)
    else:
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        pixels, properties = decoder.as_array(dataset, index=frame, raw=True)
        kind = str(properties["photometric_interpretation"])
    if pixels.ndim == 3:
        if kind.startswith("YBR"):
            pixels = convert_color_space(pixels, kind, "RGB")
        if not (kind.startswith("YBR") or kind == "RGB") or pixels.dtype.kind != "u":
            raise UnreadableImage(f"DICOM of {kind} in {pixels.dtype}; of colours, only RGB and YBR are supported")
        return eight_bits(pixels)
    if not kind.startswith("MONOCHROME"):
        raise UnreadableImage(f"DICOM of {kind}; only MONOCHROME1, MONOCHROME2, RGB and YBR are supported")
    outside = _padding(pixels, dataset)
    if pixels.dtype.kind in "iu" and pixels.itemsize <= 2 and not dataset.get("ModalityLUTSequence"):
        # the gray level depends on the value alone: a table of all values is several times faster than all pixels
        low, inside = int(pixels.min()), pixels[~outside] if outside.any() else pixels
        values = np.arange(low, int(pixels.max()) + 1)
        hidden = (values < inside.min()) | (values > inside.max())
        hidden |= _is_padding(values, dataset) & outside.any()
        table = _levels(values[None], hidden[None], dataset, kind, remarks)[0]
        levels = table[pixels.astype(np.int32) - low]
    else:
        levels = _levels(pixels, outside, dataset, kind, remarks)
    return Image.fromarray(np.where(outside, np.uint8(0), levels) if outside.any() else levels)


def _levels(values: np.ndarray, outside: np.ndarray, dataset, kind: str, remarks: list[str]) -> np.ndarray:
    """The gray levels, uint8 [H, W], of stored values [H, W], of which those `outside` do not count for the range."""
    rescaled = _rescaled(values, dataset, remarks)
    if not np.isfinite(rescaled).all():
        raise UnreadableImage("DICOM with values that are not finite")
    shades, limits = _shown(rescaled, outside, dataset, remarks)
    return np.asarray(eight_bits(shades, inverted=kind == "MONOCHROME1", limits=limits))


def _padding(pixels: np.ndarray, dataset) -> np.ndarray:
    """Which pixels [H, W] are padding; none, if the image has no other pixels."""
    outside = _is_padding(pixels, dataset)
    return outside & ~outside.all() if outside.any() else outside


def _is_padding(values: np.ndarray, dataset) -> np.ndarray:
    """Which stored values are padding (PS3.3, section C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(values.shape, bool)
    other = dataset.get("PixelPaddingRangeLimit")
    other = value if other is None else other
    return (values >= min(value, other)) & (values <= max(value, other))


def _rescaled(pixels: np.ndarray, dataset, remarks: list[str]) -> np.ndarray:
    """Values [H, W] after the modality table, or slope and intercept (PS3.3, section C.11.1); invalid ones ignored."""
    from pydicom.pixels import apply_modality_lut

    if dataset.get("ModalityLUTSequence"):
        try:
            return np.asarray(apply_modality_lut(pixels, dataset), float)
        except Exception:  # tables with wrong descriptors raise many kinds of errors
            remarks.append("damaged modality table ignored")
            return pixels.astype(float)
    slopes, intercepts = _numbers(dataset, "RescaleSlope"), _numbers(dataset, "RescaleIntercept")
    slope, intercept = (slopes or [1.0])[0], (intercepts or [0.0])[0]
    if not math.isfinite(slope) or slope == 0 or not math.isfinite(intercept):
        remarks.append(f"rescale slope {slope:g} with intercept {intercept:g} ignored")
        slope, intercept = 1.0, 0.0
    return pixels * slope + intercept


def _shown(
    values: np.ndarray, outside: np.ndarray, dataset, remarks: list[str]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Values [H, W] mapped by the VOI table or the first valid window, and the limits that are black and white.

    Without both, the limits are the minimum and maximum outside of the padding (PS3.3, section C.11.2.1).
    """
    if dataset.get("VOILUTSequence"):
        try:
            return _by_table(values, dataset)
        except Exception:  # tables with wrong descriptors raise many kinds of errors
            remarks.append("damaged VOI table ignored")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    centres, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    for centre, width in zip(centres, widths, strict=False):
        least = 0 if function in ("SIGMOID", "LINEAR_EXACT") else 1  # PS3.3, sections C.11.2.1.2 and C.11.2.1.3
        if math.isfinite(centre) and math.isfinite(width) and width >= least and width > 0:
            return _windowed(values, centre, width, function)
    if centres or widths:
        declared = f"width {', '.join(f'{width:g}' for width in widths)}" if centres and widths else "only one number"
        remarks.append(f"window of {declared} ignored")
    inside = values[~outside]
    return values, (float(inside.min()), float(inside.max()))


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> tuple[np.ndarray, tuple[float, float]]:
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60))), (0.0, 1.0)
    if function != "LINEAR_EXACT":  # LINEAR counts the borders of the window as pixels
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(float), (0.0, 1.0)
    return values, (centre - width / 2, centre + width / 2)


def _by_table(values: np.ndarray, dataset) -> tuple[np.ndarray, tuple[float, float]]:
    from pydicom.pixels import apply_voi

    item = dataset.VOILUTSequence[0]
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    if first >= 2**15 and values.min() < 0:  # a negative number that was stored without sign
        first -= 2**16
        item.LUTDescriptor = [entries, first, bits]
    entries = entries or 2**16
    table = apply_voi(np.arange(first, first + entries), dataset)
    used = int(table.max()).bit_length()
    if used > bits or used + _LUT_BITS_TO_SPARE <= bits:
        bits = max(1, used)
    places = np.clip(np.round(values).astype(np.int64) - first, 0, entries - 1)
    return table[places].astype(float), (0.0, float(2**bits - 1))


def _numbers(dataset, name: str) -> list[float]:
    """The values of an attribute; NaN for one that is no number, [] if it is absent or empty."""
    try:
        value = dataset.get(name)
        if value is None or value == "":
            return []
        return [float(item) for item in (value if not isinstance(value, int | float | str) else [value])]
    except (ValueError, TypeError, OverflowError):
        return [math.nan]
