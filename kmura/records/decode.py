"""Decodes the bytes of any supported file to a picture; the content decides what the file is, not its name."""

from pathlib import PurePath

from PIL import Image

from kmura.records import dicom, images
from kmura.records.images import UnreadableImage


def decoded(
    data: bytes,
    channels: int = 1,
    name: str = "",
    frame: int | None = None,
    max_pixels: int = images.MAX_PIXELS,
) -> Image.Image:
    """The picture of an image or DICOM file: 8 bits, mode L (1 channel) or RGB (3 channels).

    Args:
        data: bytes of the file.
        channels: 1 or 3.
        name: of the file; its suffix only matters for bytes that look like neither.
        frame: of DICOM, see `decode_dicom`.
        max_pixels: images that declare more are refused before they are decoded.

    Raises:
        UnreadableImage: as `decode_image` and `decode_dicom`.
    """
    if dicom.is_dicom(data):
        return dicom.decode_dicom(data, channels, frame, max_pixels)
    try:
        return images.decode_image(data, channels, max_pixels)
    except UnreadableImage as error:
        named = PurePath(name).suffix.lower() in dicom.SUFFIXES
        if data and str(error) == images.NO_IMAGE and (named or dicom.may_be_dicom(data)):
            return dicom.decode_dicom(data, channels, frame, max_pixels)
        raise
