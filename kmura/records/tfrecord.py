"""Frames of the TFRecord file format, written and read without TensorFlow.

A frame is: length (uint64), masked CRC-32C of those 8 bytes (uint32), the data, masked CRC-32C of the data
(uint32), all little-endian (tensorflow/core/lib/io/record_writer.h).
"""

import os
import struct
from collections.abc import Iterator

import google_crc32c

_LENGTH = struct.Struct("<QI")
_CRC = struct.Struct("<I")
FRAME_BYTES = _LENGTH.size + _CRC.size  # that a frame adds to its data


class CorruptShard(ValueError):
    """A shard that cannot be read to its end; the message says which record is damaged and how."""


def frame(data: bytes) -> bytes:
    """`data` with its TFRecord header and footer."""
    length = struct.pack("<Q", len(data))
    return length + _CRC.pack(_masked_crc(length)) + data + _CRC.pack(_masked_crc(data))


def read_frames(path: str | os.PathLike) -> Iterator[bytes]:
    """The data of each record in a shard, in order.

    Raises:
        CorruptShard: a checksum fails or the file ends inside a record; the record's number counts from 0.
    """
    with open(path, "rb") as file:
        number = 0
        while header := file.read(_LENGTH.size):
            if len(header) < _LENGTH.size:
                raise CorruptShard(f"record {number} is cut off")
            length, length_crc = _LENGTH.unpack(header)
            if _masked_crc(header[:8]) != length_crc:
                raise CorruptShard(f"record {number} has a damaged header")
            data, footer = file.read(length), file.read(_CRC.size)
            if len(data) < length or len(footer) < _CRC.size:
                raise CorruptShard(f"record {number} is cut off")
            if _masked_crc(data) != _CRC.unpack(footer)[0]:
                raise CorruptShard(f"record {number} fails its checksum")
            yield data
            number += 1


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
