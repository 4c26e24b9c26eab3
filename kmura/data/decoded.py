"""The images of a split, decoded and at the model's size: made when asked for, or kept in memory or on disk."""

import contextlib
import gc
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from kmura.config import DataConfig
from kmura.data.index import ALL, Index, read_index
from kmura.data.resize import axis_weights, resized, taps_needed
from kmura.errors import InputError
from kmura.files import replacing
from kmura.records.manifest import read_manifest

FOLDER = ".decoded"  # inside the records folder
_VERSION = 1  # raise it when decoding or resizing gives other pixels, so that files of older versions are left alone
_BLOCK = 32  # images decoded at a time

_log = logging.getLogger(__name__)

# arrays that some data set still holds, so that a second one over the same images does not decode them again
_held: weakref.WeakValueDictionary[str, np.ndarray] = weakref.WeakValueDictionary()


def image_source(index: Index, data: DataConfig) -> tuple[Callable[[tf.Tensor], tf.Tensor], np.ndarray | None]:
    """A function for use inside `Dataset.map`: rows of the index, int64 [B] -> uint8 [B, S, S, C], S = image_size.

    `data.cache` decides what stands behind it. `memory` and `disk` decode all images here and now, `disk` into a file
    in the records folder that later runs find. `auto` is `memory` where the images fit into half of the memory that is
    available, otherwise `off`: filling a disk unasked would be rude. All give the same pixels.

    Returns:
        The function, and the array it looks into (None without a cache), which the caller has to keep alive: TensorFlow
        never lets go of a Python function that a graph calls, so this one must not own the array.

    Raises:
        InputError: an image that cannot be decoded; the disk is full or the folder not writable.
    """
    shape = (len(index), data.image_size, data.image_size, index.manifest.channels)
    key = f"{index.fingerprint[:16]}-{data.image_size}-{data.resize}-v{_VERSION}"
    if _held:
        gc.collect()  # data sets that nobody uses may still stand in reference cycles
    cache = data.cache
    if cache == "auto":
        cache = "memory" if key in _held or np.prod(shape) <= available_memory() / 2 else "off"
    if cache == "off":
        return lambda rows: _decode(index, data, rows), None
    if cache == "disk":
        pixels = _on_disk(index, data, shape, key)
    elif (pixels := _held.get(key)) is None:
        pixels = _held[key] = _in_memory(index, data, shape)
    reference = weakref.ref(pixels)

    def look_up(rows):
        images = tf.numpy_function(lambda rows: np.take(reference(), rows, axis=0), [rows], tf.uint8, stateful=False)
        return tf.ensure_shape(images, [None, *shape[1:]])

    return look_up, pixels


@contextlib.contextmanager
def readable_errors(records: str | os.PathLike, area: str = ALL, split: str | None = None) -> Iterator[None]:
    """A block in which damage met while iterating a data set of these records becomes a readable InputError.

    For an image that does not decode, TensorFlow says neither which nor where; then the images are decoded once more,
    one by one, to name it. `area` and `split` narrow that search (default: all).

    Raises:
        InputError: names the shard and the record. Other errors of the block pass unchanged.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        message = error.message or ""
        if told := re.search(r"InputError: (.*)", message):
            raise InputError(told[1]) from error
        if re.search("decode|png|jpeg|image", message, re.IGNORECASE) and (
            damage := _first_undecodable(records, area, split)
        ):
            raise InputError(damage) from error
        raise


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has available, or its control group, if that is less.

    0 where the system does not say.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        try:  # macOS has no count of available pages; half of all is a cautious guess
            machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (AttributeError, ValueError, OSError):
            return 0
    return min([machine, *_left_in_control_groups()])


def _left_in_control_groups() -> Iterator[int]:
    """Limit minus use of every control group (version 2) around this process that has a limit; none, where none has.

    Containers and batch systems limit memory this way, and /proc/meminfo does not know.
    """
    with contextlib.suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
        group = Path("/sys/fs/cgroup") / own
        for folder in (group, *group.parents[: len(Path(own).parts)]):
            with contextlib.suppress(OSError, ValueError):
                limit = int((folder / "memory.max").read_text())
                used = int((folder / "memory.current").read_text())
                files = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
                yield max(0, limit - used + (int(files[1]) if files else 0))  # cached files make room when asked


def _decode(index: Index, data: DataConfig, rows: tf.Tensor) -> tf.Tensor:
    """uint8 [B, S, S, C], read from the shards, decoded and resized inside a graph."""
    size, how, channels = data.image_size, data.resize, index.manifest.channels
    taps = taps_needed(index.height, index.width, size, how)

    def read(rows):
        height, width = index.height[rows], index.width[rows]
        sides = np.stack([height, width], 1).astype(np.int32)
        return np.array(index.encoded(rows), object), sides, *axis_weights(height, width, size, how, taps)

    def one(inputs):
        encoded, sides, places, weights = inputs
        image = tf.io.decode_png(encoded, channels)  # reads JPEG as well
        tf.debugging.assert_equal(tf.shape(image)[:2], sides, "image of another size than its record says")
        return resized(image, places, weights)

    types = [tf.string, tf.int32, tf.int32, tf.float32]
    encoded, sides, places, weights = tf.numpy_function(read, [rows], types, stateful=False)
    inputs = (
        tf.ensure_shape(encoded, [None]),
        tf.ensure_shape(sides, [None, 2]),
        tf.ensure_shape(places, [None, 2, taps, size]),
        tf.ensure_shape(weights, [None, 2, taps, size]),
    )
    spec = tf.TensorSpec([size, size, channels], tf.uint8)
    return tf.map_fn(one, inputs, fn_output_signature=spec, parallel_iterations=4)


def _decode_all(index: Index, data: DataConfig) -> Iterator[np.ndarray]:
    """All images of the index in order, in blocks."""
    total = len(index)

    def block(start):
        return _decode(index, data, tf.range(start, tf.minimum(start + _BLOCK, total)))

    blocks = tf.data.Dataset.range(0, total, _BLOCK).map(block, num_parallel_calls=tf.data.AUTOTUNE)
    with readable_errors(index.records, index.area, index.split):
        yield from blocks.prefetch(2).as_numpy_iterator()


def _in_memory(index: Index, data: DataConfig, shape: tuple[int, ...]) -> np.ndarray:
    _log.info(
        "decoding %d images of %s %s into memory (%.0f MB)", len(index), index.area, index.split, _megabytes(shape)
    )
    pixels = np.empty(shape, np.uint8)
    at = 0
    for block in _decode_all(index, data):
        pixels[at : at + len(block)] = block
        at += len(block)
    return pixels


def _on_disk(index: Index, data: DataConfig, shape: tuple[int, ...], key: str) -> np.ndarray:
    """The array in its file, mapped into memory; made first, unless it is there whole."""
    stem = f"{index.area}-{index.split}-{data.image_size}-{data.resize}"
    path = index.records / FOLDER / f"{stem}-{key}.npy"
    if (pixels := _mapped(path, shape)) is None:
        _log.info(
            "decoding %d images of %s %s into %s (%.0f MB)",
            len(index),
            index.area,
            index.split,
            path,
            _megabytes(shape),
        )
        with replacing(path, "wb") as file:  # in order, not through a mapping: a full disk would kill the process there
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for block in _decode_all(index, data):
                file.write(block)
        for other in set(path.parent.glob(f"{stem}-*.npy")) - {path}:
            other.unlink(missing_ok=True)  # of records or a version that are no more
        pixels = _mapped(path, shape)
    return pixels


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        pixels = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return np.asarray(pixels) if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _megabytes(shape: tuple[int, ...]) -> float:
    return float(np.prod(shape)) / 1e6


def _first_undecodable(records: str | os.PathLike, area: str, split: str | None) -> str | None:
    """What is wrong with the first image that does not decode to its size, naming its shard and its number there."""
    for found_area, splits in read_manifest(records).areas.items():
        for found_split in splits:
            if area not in (ALL, found_area) or split not in (None, found_split):
                continue
            index = read_index(records, found_area, found_split)
            for row in range(len(index)):
                try:
                    image = tf.io.decode_png(index.encoded([row])[0], index.manifest.channels)
                    if image.shape[:2] == (index.height[row], index.width[row]):
                        continue
                    wrong = f"has {image.shape[0]} x {image.shape[1]} pixels, not the size its record says"
                except tf.errors.InvalidArgumentError:
                    wrong = "cannot be decoded"
                number = row - int(np.argmax(index.shard == index.shard[row]))
                return (
                    f"shard {index.shards[index.shard[row]]}: the image of record {number} ({index.keys.image[row]}) "
                    f"{wrong}; kmura inspect {records} lists the damage, building the records again mends it"
                )
    return None
