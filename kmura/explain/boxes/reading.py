"""Reads a file of boxes, whose format is recognised by its content."""

import gzip
import os
import zlib
from pathlib import Path

from kmura.errors import InputError, unreadable
from kmura.explain.boxes.annotations import BoxFile
from kmura.explain.boxes.coco import coco_boxes
from kmura.explain.boxes.table import table_boxes
from kmura.explain.boxes.yolo import yolo_boxes

FORMATS = "COCO JSON, a folder of YOLO text files or its data.yaml, or a CSV with the columns image,x0,y0,x1,y1"
_TABLES = (".csv", ".tsv")


def read_boxes(path: str | os.PathLike) -> BoxFile:
    """Returns the boxes of a file: COCO JSON (also compressed by gzip), YOLO text files, or a CSV.

    Args:
        path: the file; for YOLO, the folder of the text files, one of them, or `data.yaml`.

    Raises:
        InputError: the file is missing, cannot be read, is of another format or invalid, or has no box.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in (".txt", ".yaml", ".yml"):
        if not path.exists():
            raise InputError(f"boxes {path} is missing; give {FORMATS}")
        boxes = yolo_boxes(path)
    elif path.suffix.lower() in _TABLES:
        boxes = table_boxes(path)
    else:
        data = _content(path)
        if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
            raise InputError(f"boxes {path}: the format is unknown; give {FORMATS}")
        boxes = coco_boxes(path, data)
    if not boxes.annotations:
        raise InputError(f"boxes {path} has no box; give {FORMATS}")
    return boxes


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except FileNotFoundError as error:
        raise InputError(f"boxes {path} is missing; give {FORMATS}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"boxes {path} is a damaged gzip file ({error}); copy it again") from error
    except OSError as error:
        raise unreadable(path, error) from error
