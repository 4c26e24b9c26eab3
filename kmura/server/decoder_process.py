"""A process that decodes uploaded images, `python -m kmura.server.decoder_process`; see `kmura.server.decoders`.

Files that strangers send are parsed here and nowhere else. The process has a limit of memory, writes no core files, and
returns pixels and kmura's own words: no text of a file leaves it. It ends when its input is closed.
"""

import contextlib
import json
import re
import struct
import sys
from typing import Any, BinaryIO

HEAD = struct.Struct(">IQ")  # lengths of the JSON and the bytes that follow
DEFLATED = b"1.2.840.10008.1.2.1.99"  # transfer syntax whose data set is inflated as a whole, whatever its size
_PER_PIXEL, _BASE = 80, 1 << 30  # bytes of memory; gray values of DICOM pass through several arrays of float64
_OTHER_DICOM = "DICOM that cannot be decoded"
# reasons of `kmura.records.dicom` and `images` that contain no text of the file
_KNOWN_DICOM = re.compile(
    r"DICOM without pixels|DICOM of \d+ frames; .*|DICOM, which needs pydicom; .*|DICOM with values that are not finite"
    r"|DICOM with a deflated data set.*|declares \d+ x \d+ pixels, more than [\d,]+"
    r"|\d+ x \d+ pixels, smaller than \d+ on a side"
    r"|DICOM compressed as (?:JPEG|RLE|HTJ2K|MPEG|HEVC|High|Deflated)[\w :.,/()\[\]-]*, which [\w '.;\[\]-]*"
)


def send(stream: BinaryIO, head: dict[str, Any], data: bytes | memoryview = b"") -> None:
    """Writes one message: lengths, JSON, bytes."""
    text = json.dumps(head).encode()
    stream.write(HEAD.pack(len(text), len(data)))
    stream.write(text)
    stream.write(data)
    stream.flush()


def received(stream: BinaryIO, most: int) -> tuple[dict[str, Any], bytes]:
    """Reads one message whose bytes are at most `most`.

    Raises:
        EOFError: The stream has ended.
        ValueError: The message is longer than allowed or not JSON.
    """
    text, size = HEAD.unpack(_exactly(stream, HEAD.size))
    if text > 1 << 16 or size > most:
        raise ValueError(f"a message of {text} and {size} bytes")
    return json.loads(_exactly(stream, text)), _exactly(stream, size)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def shareable_reason(text: str, *, is_dicom: bool) -> str:
    """Returns the reason why an image cannot be decoded without texts that come from a DICOM file."""
    if is_dicom and not _KNOWN_DICOM.fullmatch(text):
        return _OTHER_DICOM
    return "".join(letter if letter.isprintable() else " " for letter in text)[:200]


def _limit_resources(pixels: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold an upload
        most = _BASE + _PER_PIXEL * pixels
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Answers requests on stdin until it is closed."""
    import logging

    import numpy as np

    from kmura.records import dicom
    from kmura.records.decode import decoded
    from kmura.records.images import UnreadableImage, reduced
    from kmura.records.remarks import remarks_on

    logging.disable()  # pydicom's messages contain values of the file
    with contextlib.suppress(ImportError):
        import pydicom.pixels  # noqa: F401
    ask, answer = sys.stdin.buffer, sys.stdout.buffer
    sys.stdin = sys.stdout = None  # nothing but answers is written there
    limited = False
    send(answer, {})
    while True:
        try:
            head, data = received(ask, sys.maxsize)
        except EOFError:
            return
        if not limited:
            _limit_resources(head["pixels"])
            limited = True
        suspected = dicom.may_be_dicom(data) or head["suffix"] in dicom.SUFFIXES
        try:
            if suspected and DEFLATED in data:
                raise UnreadableImage("DICOM with a deflated data set; send it with another transfer syntax")
            picture = decoded(data, head["channels"], f"upload{head['suffix']}", max_pixels=head["pixels"])
            image = reduced(picture, head["max_side"])
            reply = {
                "shape": [image.height, image.width, head["channels"]],
                "size": [picture.width, picture.height],
                "remarks": list(remarks_on(picture)),
            }
            pixels = np.ascontiguousarray(np.asarray(image)).tobytes()
        except UnreadableImage as error:
            reply, pixels = {"error": shareable_reason(str(error), is_dicom=suspected)}, b""
        except MemoryError:
            reply, pixels = {"error": "needs more memory than one image may use"}, b""
        except Exception:  # a bug; its text could contain values of the file
            reply, pixels = {"error": "cannot be decoded"}, b""
        del data
        send(answer, reply, pixels)


if __name__ == "__main__":
    main()
