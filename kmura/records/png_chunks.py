"""Chunks of PNG files: removal of those that hold texts and profiles, whose size decoders limit."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP, EXIF_TEXT = b"XML:com.adobe.xmp", b"Raw profile type exif"  # keywords of texts that may hold an orientation
MOST_TEXT = 1 << 20  # bytes of a text that is searched for an orientation
MOST_COMPRESSED = 1 << 16  # bytes of a compressed one
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def without_text(data: bytes) -> bytes:
    """The bytes of a PNG without colour profile and texts, other than short ones that may state the orientation.

    Pillow refuses texts and profiles of more than 1 MB, which annotation programs write. Other data are unchanged.
    """
    if not data.startswith(SIGNATURE):
        return data
    kept, at, start = [], len(SIGNATURE), 0
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind == b"IEND":
            break
        if kind == b"iCCP" or kind in _TEXTS and not _states_orientation(kind, data[at + 8 : end - 4]):
            kept.append(data[start:at])
            start = end
        at = end
    return b"".join([*kept, data[start:]]) if kept else data


def _states_orientation(kind: bytes, body: bytes) -> bool:
    """Whether a text chunk may state an orientation: XMP that is not compressed, or EXIF as ImageMagick wrote it."""
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iTXt":
        return keyword == XMP and rest[:1] == b"\0" and len(body) <= MOST_TEXT
    if keyword != EXIF_TEXT:
        return False
    if kind == b"tEXt":
        return len(body) <= MOST_TEXT
    if len(body) > MOST_COMPRESSED:
        return False
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(rest[1:], MOST_TEXT)
    except zlib.error:
        return False
    return not inflate.unconsumed_tail
