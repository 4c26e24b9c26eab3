"""DICOM files as bytes."""

import io
import struct

import numpy as np
import pytest

RAMP = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (16, 1))


def dicom(pixels=RAMP, kind="MONOCHROME2", *, implicit=False, preamble=True, syntax=True, **tags) -> bytes:
    """Returns a DICOM file.

    Args:
        pixels: [H, W], [H, W, 3] (kind RGB) or [frames, H, W], integers.
        kind: photometric interpretation.
        implicit: whether the transfer syntax is implicit VR little endian, else explicit.
        preamble: whether the file has a preamble and meta information.
        syntax: whether the meta information states the transfer syntax.
        **tags: further attributes; None removes one.
    """
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    uid = pydicom.uid
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    bits = 8 * pixels.dtype.itemsize
    frames, sides = (pixels.shape[0], pixels.shape[1:]) if pixels.ndim == 3 and kind != "RGB" else (None, pixels.shape)
    dataset.Rows, dataset.Columns = sides[:2]
    dataset.SamplesPerPixel = 3 if kind == "RGB" else 1
    dataset.PhotometricInterpretation = kind
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if kind == "RGB":
        dataset.PlanarConfiguration = 0
    if frames:
        dataset.NumberOfFrames = frames
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in tags.items():
        setattr(dataset, name, value)
    return _saved(dataset, preamble, syntax)


def other_object(sop_class: str) -> bytes:
    """Returns a DICOM file of another SOP class, without pixels."""
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    return _saved(dataset)


def lut(values, first: int, bits: int, entries=None):
    """Returns the item of a look-up table sequence."""
    pydicom = pytest.importorskip("pydicom")
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(values) if entries is None else entries, first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = [int(value) for value in values]
    item["LUTData"].VR = "US"
    return pydicom.Sequence([item])


def _saved(dataset, preamble=True, syntax=True) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue()
    length = struct.unpack("<I", data[140:144])[0]  # of the meta information, the value of its first element
    meta, body = data[144 : 144 + length], data[144 + length :]
    if not preamble:
        return body
    if not syntax:
        at = meta.index(b"\x02\0\x10\0")
        meta = meta[:at] + meta[at + 8 + struct.unpack("<H", meta[at + 6 : at + 8])[0] :]
    return data[:140] + struct.pack("<I", len(meta)) + meta + body
