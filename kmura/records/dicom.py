"""Decodes one DICOM file to the image that a viewer shows. Needs pydicom (`pip install '.[dicom]'`)."""

import io
import warnings

import numpy as np
from PIL import Image

from kmura.errors import in_brief
from kmura.records.images import UnreadableImage, check_size

SUFFIXES = frozenset({".dcm", ".dicom"})
PREAMBLE = 132  # bytes at the start of a file, the last four are DICM


def is_dicom(data: bytes) -> bool:
    """Whether the bytes start like a DICOM file (PS3.10, section 7.1)."""
    return data[PREAMBLE - 4 : PREAMBLE] == b"DICM"


def decode_dicom(data: bytes, channels: int = 1) -> Image.Image:
    """The image in the bytes of a DICOM file: 8 bits, mode L (1 channel) or RGB (3 channels).

    Gray values are rescaled (slope and intercept, or the modality table), then mapped by the VOI table or the first
    window, or stretched from minimum to maximum if the file has neither; MONOCHROME1 is inverted. Padding is black.
    Files of several frames are refused, because they do not say which frame is the radiograph.

    Raises:
        UnreadableImage: pydicom is missing, not a DICOM file, no pixels, several frames, a transfer syntax that the
            installed pydicom cannot decode, colours other than 8-bit RGB, too many pixels (refused before decoding).
    """
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi, convert_color_space
    except ImportError as error:
        raise UnreadableImage("DICOM, which needs pydicom; run pip install '.[dicom]' in a clone of kmura") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        if "PixelData" not in dataset:
            raise UnreadableImage("DICOM without pixels")
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames != 1:
            raise UnreadableImage(f"DICOM of {frames} frames; save the radiograph as a file of one frame")
        check_size((int(dataset.Columns), int(dataset.Rows)))
        pixels, kind = dataset.pixel_array, dataset.PhotometricInterpretation
        if pixels.ndim == 3:
            if pixels.dtype != np.uint8:
                raise UnreadableImage(f"DICOM of {pixels.dtype} colours; only 8 bits are supported")
            if kind.startswith("YBR"):
                pixels = convert_color_space(pixels, kind, "RGB")
            return Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
        if not kind.startswith("MONOCHROME"):
            raise UnreadableImage(f"DICOM of {kind}; only MONOCHROME1, MONOCHROME2, RGB and YBR are supported")
        values = np.asarray(apply_modality_lut(pixels, dataset), float)
        outside = _padding(pixels, dataset)
        share = _window(values, outside, dataset, apply_voi)
    except UnreadableImage:
        raise
    except Exception as error:  # pydicom raises many kinds of errors for damaged files
        text = in_brief(error) or type(error).__name__
        raise UnreadableImage(f"DICOM that cannot be decoded ({text})") from error
    if kind == "MONOCHROME1":
        share = 1 - share
    share = np.where(outside, 0, share)
    image = Image.fromarray(np.round(255 * share).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def _padding(pixels: np.ndarray, dataset) -> np.ndarray:
    """Which pixels [H, W] are padding (PS3.3, section C.7.5.1.1.2); none, if the image has no other pixels."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, bool)
    other = dataset.get("PixelPaddingRangeLimit", value)
    outside = (pixels >= min(value, other)) & (pixels <= max(value, other))
    return outside & ~outside.all()


def _window(values: np.ndarray, outside: np.ndarray, dataset, apply_voi) -> np.ndarray:
    """Gray values [H, W] in 0..1 (PS3.3, section C.11.2.1).

    They are mapped by the VOI table, by the first window, or from the minimum to the maximum outside of the padding.
    """
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.clip(apply_voi(np.round(values).astype(np.int64), dataset) / (2**bits - 1), 0, 1)
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        low, high = values[~outside].min(), values[~outside].max()
        return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    centre, width = (_first(dataset[name].value) for name in ("WindowCenter", "WindowWidth"))
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))
    if function == "LINEAR":  # this function counts the borders of the window as pixels
        centre, width = centre - 0.5, width - 1
    return np.clip((values - centre) / width + 0.5, 0, 1) if width > 0 else (values > centre).astype(float)


def _first(value) -> float:
    return float(value if isinstance(value, int | float | str) else value[0])
