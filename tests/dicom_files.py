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


def write_ct_series(
    folder, volume, positions, orientation=(1, 0, 0, 0, 1, 0), *, slope=1, series=None, first=0, **tags
):
    """Writes a CT series, one file per slice, and returns its Series Instance UID.

    Args:
        folder: is created where it is missing.
        volume: Hounsfield units [slices, H, W].
        positions: mm [slices, 3].
        orientation: directions of the columns and the rows, 6 numbers.
        slope: rescale slope; the intercept is -1024.
        series: the Series Instance UID; None: a new one.
        first: number of the first file.
        **tags: further attributes; None removes one.
    """
    pydicom = pytest.importorskip("pydicom")
    uid = pydicom.uid
    series = series or uid.generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    for number, (values, position) in enumerate(zip(volume, positions, strict=True), start=first):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid.CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid.generate_uid()
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = series, "1.2.3", "CT"
        dataset.Rows, dataset.Columns = values.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelSpacing = [2.0, 3.0]  # between rows, between columns
        dataset.ImagePositionPatient = [round(float(value), 6) for value in position]
        dataset.ImageOrientationPatient = [round(float(value), 10) for value in orientation]
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.InstanceNumber = slope, -1024, number + 1
        dataset.PixelData = np.round((values + 1024) / slope).astype(np.uint16).tobytes()
        for name, value in tags.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        (folder / f"{number:03}.dcm").write_bytes(_saved(dataset))
    return series
