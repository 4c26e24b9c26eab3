"""JPEG of 12 bits with losses ("extended", ISO/IEC 10918-1, process 4), which pydicom's plug-in for GDCM refuses."""

import numpy as np

from kmura.records.images import UnreadableImage


def is_extended(dataset) -> bool:
    """Whether the pixels of a pydicom data set are JPEG of more than 8 bits with losses."""
    from pydicom import uid

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    return syntax == uid.JPEGExtended12Bit and int(dataset.get("BitsAllocated") or 0) > 8


def decode_extended(dataset, frame: int) -> np.ndarray:
    """The gray values of a frame, uint16 [H, W].

    Args:
        dataset: a pydicom data set that `is_extended`.
        frame: number of the frame, from 0.

    Raises:
        UnreadableImage: python-gdcm is missing, the pixels are coloured, or GDCM cannot decode them.
    """
    from pydicom.encaps import get_frame

    name = dataset.file_meta.TransferSyntaxUID.name
    try:
        import gdcm
    except ImportError as error:
        raise UnreadableImage(
            f"DICOM compressed as {name}, which needs python-gdcm; run pip install '.[dicom]' in a clone of kmura"
        ) from error
    rows, columns, samples = (int(dataset.get(tag) or 1) for tag in ("Rows", "Columns", "SamplesPerPixel"))
    if samples != 1:
        raise UnreadableImage(f"DICOM of colours compressed as {name} with more than 8 bits, which is not supported")
    stream = get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    monochrome = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")  # inverting is left to the caller
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(monochrome))
    image.SetTransferSyntax(
        gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(dataset.file_meta.TransferSyntaxUID)))
    )
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    try:
        data = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM returns bytes as text
    except Exception as error:  # GDCM returns nothing for a damaged stream
        raise UnreadableImage(f"DICOM compressed as {name} that cannot be decoded (damaged stream)") from error
    if len(data) != 2 * rows * columns:
        raise UnreadableImage(f"DICOM compressed as {name} that cannot be decoded (its size is not that of the tags)")
    return np.frombuffer(data, "<u2").reshape(rows, columns)
