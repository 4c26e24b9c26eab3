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
from kmura.data.resize import axis_weights, resized
from kmura.errors import InputError, reason
from kmura.files import replacing
from kmura.records.manifest import read_manifest

FOLDER = ".decoded"  # inside the records folder
_VERSION = 1  # raise it when decoding or resizing gives other pixels, so that files of older versions are left alone
_BLOCK = 32  # images decoded at a time

_log = logging.getLogger(__name__)

# arrays that some data set still holds, so that a second one over the same images does not decode them again
_held: weakref.WeakValueDictionary[str, np.ndarray] = weakref.WeakValueDictionary()


def image_source(index: Index, data: DataConfig) -> tuple[Callable[[tf.Tensor], tf.Tensor], list[np.ndarray]]:
    """A function for use inside `Dataset.map`: rows of the index, int64 [B] -> uint8 [B, S, S, C], S = image_size.

    `data.cache` decides what stands behind it. `memory` and `disk` decode all images here and now, `disk` into a file
    in the records folder that later runs find. `auto` is `memory` where the images fit into half of the memory that is
    available, otherwise `off`: filling a disk unasked would be rude. All give the same pixels.

    Returns:
        The function, and the arrays that it reads, which the data set has to keep alive.

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
        return _decoder(index, data)
    if cache == "disk":
        pixels = _on_disk(index, data, shape, key)
    elif (pixels := _held.get(key)) is None:
        pixels = _held[key] = _in_memory(index, data, shape)
    images = _shared(pixels)
    return lambda rows: tf.gather(images, rows), [pixels]


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


def _decoder(index: Index, data: DataConfig) -> tuple[Callable[[tf.Tensor], tf.Tensor], list[np.ndarray]]:
    """As `image_source`: rows [B] -> uint8 [B, S, S, C], read from the mapped shards, decoded and resized in a graph.

    No Python runs in the graph: a data set that is let go while a batch is being made waits for that batch, holding
    Python's lock, and a Python function in it would wait for the lock for ever.
    """
    size, channels = data.image_size, index.manifest.channels
    pairs, places, weights = map(tf.constant, axis_weights(index.height, index.width, size, data.resize))
    sides = tf.constant(np.stack([index.height, index.width], 1).astype(np.int32))
    shard, offset, length = map(tf.constant, (index.shard.astype(np.int32), index.offset, index.size))
    files = [_mapped_shard(index, path) for path in index.shards]
    contents = [_shared(file) for file in files]

    def encoded(row):
        begin, end = offset[row], offset[row] + length[row]
        # TensorFlow has no operation from bytes to a text; a serialised tensor ends with its bytes
        cuts = [lambda content=content: tf.io.serialize_tensor(content[begin:end]) for content in contents]
        return tf.strings.substr(tf.switch_case(shard[row], cuts), -length[row], length[row])

    def one(row):
        image = tf.io.decode_png(encoded(row), channels)  # reads JPEG as well
        tf.debugging.assert_equal(tf.shape(image)[:2], sides[row], "image of another size than its record says")
        return resized(image, tf.gather(places, pairs[row]), tf.gather(weights, pairs[row]))

    spec = tf.TensorSpec([size, size, channels], tf.uint8)
    return lambda rows: tf.map_fn(one, rows, fn_output_signature=spec, parallel_iterations=4), files


def _shared(array: np.ndarray) -> tf.Tensor:
    """A tensor over the memory of an array, not a copy; the array must start at a multiple of 64 bytes."""
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """A new uint8 array that starts at a multiple of 64 bytes, as TensorFlow's kernels expect."""
    memory = np.empty(int(np.prod(shape)) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + int(np.prod(shape))].reshape(shape)


def _mapped_shard(index: Index, path: Path) -> np.ndarray:
    try:
        return np.asarray(np.memmap(path, np.uint8, "c"))  # copy on write: never written to
    except (OSError, ValueError) as error:
        text = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"shard {path} cannot be read: {text}; build the records again") from error


def _decode_all(index: Index, data: DataConfig) -> Iterator[np.ndarray]:
    """All images of the index in order, in blocks."""
    total = len(index)
    images_of, files = _decoder(index, data)

    def block(start):
        return images_of(tf.range(start, tf.minimum(start + _BLOCK, total)))

    blocks = tf.data.Dataset.range(0, total, _BLOCK).map(block, num_parallel_calls=tf.data.AUTOTUNE)
    with readable_errors(index.records, index.area, index.split):
        yield from blocks.prefetch(2).as_numpy_iterator()
    del files  # kept until here


def _in_memory(index: Index, data: DataConfig, shape: tuple[int, ...]) -> np.ndarray:
    _log.log(
        _level(index),
        "decoding %d images of %s %s into memory (%.0f MB)",
        len(index),
        index.area,
        index.split,
        _megabytes(shape),
    )
    pixels = _aligned(shape)
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
        _log.log(
            _level(index),
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
        pixels = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return np.asarray(pixels) if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _level(index: Index) -> int:
    """Worth a line to the user where it takes more than a few seconds."""
    return logging.INFO if len(index) > 2000 else logging.DEBUG


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
