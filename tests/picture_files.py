"""Image files that Pillow cannot write: PNGs and TIFFs of any depth, kind and content, as bytes."""

import struct
import zlib

import numpy as np


def png(pixels: np.ndarray, before=(), after=()) -> bytes:
    """Returns a PNG of uint8 or uint16 pixels [H, W] or [H, W, 2 to 4], with further chunks (kind, body)."""
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    deep = pixels.dtype == np.uint16
    rows = pixels.astype(">u2" if deep else "u1")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16 if deep else 8, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", data), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def tiff(
    pixels: np.ndarray, photometric: int, *, order="<", deflate=False, planar=False, extra=None, orientation=1
) -> bytes:
    """Returns a TIFF of one strip (planar: one per band) of pixels [H, W] or [H, W, C].

    Args:
        pixels: uint8, uint16, int16 or float32.
        photometric: 0 (white is zero), 1 (black is zero) or 2 (RGB).
        order: of the bytes, `<` or `>`.
        deflate: whether to compress.
        planar: whether to store the bands one after the other.
        orientation: as in EXIF.
        extra: value of ExtraSamples, 1 (premultiplied alpha) or 2 (alpha).
    """
    height, width = pixels.shape[:2]
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    parts = [pixels[..., band] for band in range(bands)] if planar else [pixels]
    strips = [np.ascontiguousarray(part.astype(pixels.dtype.newbyteorder(order))).tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    bits = 8 * pixels.dtype.itemsize
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    shorts, longs = "H", "I"
    tags = [
        (256, longs, [width]), (257, longs, [height]),
        (258, shorts, [bits] * bands), (259, shorts, [8 if deflate else 1]),
        (262, shorts, [photometric]), (273, longs, [0] * len(strips)), (274, shorts, [orientation]),
        (277, shorts, [bands]), (278, longs, [height]),
        (279, longs, [len(strip) for strip in strips]), (284, shorts, [2 if planar else 1]),
        *([(338, shorts, [extra])] if extra else []), (339, shorts, [kind] * bands),
    ]  # fmt: skip
    at = 8 + 2 + 12 * len(tags) + 4
    outside = {}
    for number, form, values in tags:
        if len(values) * struct.calcsize(form) > 4:
            outside[number], at = at, at + len(values) * struct.calcsize(form)
    places = []
    for strip in strips:
        places.append(at)
        at += len(strip)
    head, tail = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags)), b""
    for number, form, values in tags:
        values = places if number == 273 else values
        data = struct.pack(f"{order}{len(values)}{form}", *values)
        head += struct.pack(order + "HHI", number, 3 if form == shorts else 4, len(values))
        if number in outside:
            head, tail = head + struct.pack(order + "I", outside[number]), tail + data
        else:
            head += data.ljust(4, b"\0")
    return head + struct.pack(order + "I", 0) + tail + b"".join(strips)
