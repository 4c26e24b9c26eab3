"""Decoded and resized images of a split: decoded when they are drawn, or cached in memory or on disk."""

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
from kmura.data.index import ALL, JOIN, Index, how_to_fix, read_index, read_shard
from kmura.data.resize import axis_weights, resized, taps_needed
from kmura.errors import InputError
from kmura.files import replacing
from kmura.records.manifest import read_manifest
from kmura.records.schema import SPLITS, parse_spec

FOLDER = ".decoded"  # inside the records folder
_VERSION = 1  # increase it when decoding or resizing changes pixels, so that cache files of older versions are not used
_BLOCK = 32  # images decoded at a time
_ALIGNMENT = 64  # bytes; TensorFlow requires it of memory that it did not allocate

_log = logging.getLogger(__name__)

# images in memory that a data set still references, so that a second data set of the same images reuses them
_held: weakref.WeakValueDictionary[str, tf.Tensor] = weakref.WeakValueDictionary()


def image_source(index: Index, data: DataConfig) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function for `Dataset.map`: rows of the index, int64 [B] -> uint8 [B, S, S, C], S = image_size.

    `data.cache` selects the source of the pixels. `memory` and `disk` decode all images immediately; `disk` writes them
    to a file in the records folder that later runs reuse. `off` reads and decodes each image when it is drawn. `auto`
    is `memory` if the images fit into half of the available memory, otherwise `off`; it never writes to disk. All
    options give the same pixels.

    The function contains no Python code (`tf.py_function`). A data set that is deleted while a batch is in progress
    waits for that batch while it holds Python's global interpreter lock, so Python code in the batch would deadlock.

    Raises:
        InputError: an image cannot be decoded, the disk is full, or the folder is not writable.
    """
    if index.base is not None:  # its parts share one cache
        of_base, rows_of_base = image_source(index.base, data), tf.constant(index.rows)
        return lambda rows: of_base(tf.gather(rows_of_base, rows))
    shape = (len(index), data.image_size, data.image_size, index.manifest.channels)
    key = f"{index.fingerprint[:16]}-{data.image_size}-{data.resize}-v{_VERSION}"
    if _held:
        gc.collect()  # unused data sets may still be referenced by cycles
    cache = data.cache
    if cache == "auto":
        cache = "memory" if key in _held or np.prod(shape) <= available_memory() / 2 else "off"
    if cache == "off":
        return _decoder(index, data)
    if cache == "disk":
        pixels = _on_disk(index, data, shape, key)
    elif (pixels := _held.get(key)) is None:
        pixels = _held[key] = _in_memory(index, data, shape)

    def look_up(rows):
        return tf.gather(pixels, rows)

    return look_up


@contextlib.contextmanager
def readable_errors(records: str | os.PathLike, area: str = ALL, split: str | None = None) -> Iterator[None]:
    """A context manager that turns TensorFlow's errors about damaged records into a readable InputError.

    TensorFlow's errors do not name the image, so the records are read again, one by one, to find it. `area` and `split`
    restrict that search (default: all).

    Raises:
        InputError: a record is damaged; names the shard and the record. All other errors pass unchanged.
    """
    try:
        yield
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.DataLossError,
        tf.errors.NotFoundError,
        tf.errors.FailedPreconditionError,
    ) as error:
        # programming errors are caught here too; search only if the message may be about records
        if re.search("decode|png|jpeg|image|record|expected to contain", error.message or "", re.IGNORECASE):
            try:
                _check_images(records, area, split)
            except InputError as damage:
                raise damage from error
        raise


def available_memory() -> int:
    """Returns the memory that this process can still allocate, bytes; 0 if it is unknown.

    It is the minimum of the available memory of the machine and of the control groups of the process.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        try:  # macOS does not report available pages; half of all pages is a conservative estimate
            machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (AttributeError, ValueError, OSError):
            return 0
    return min([machine, *_left_in_control_groups()])


def _left_in_control_groups() -> Iterator[int]:
    """Yields limit minus usage, bytes, of every control group (version 2) of this process that has a limit.

    Containers and batch systems limit memory this way, and /proc/meminfo does not reflect these limits.
    """
    with contextlib.suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
        group = Path("/sys/fs/cgroup") / own
        for folder in (group, *group.parents[: len(Path(own).parts)]):
            with contextlib.suppress(OSError, ValueError):
                limit = int((folder / "memory.max").read_text())
                used = int((folder / "memory.current").read_text())
                files = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
                yield max(0, limit - used + (int(files[1]) if files else 0))  # the page cache is reclaimable


def _decoder(index: Index, data: DataConfig) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function as `image_source` does, which reads the shards: rows [B] -> uint8 [B, S, S, C]."""
    size, how, channels = data.image_size, data.resize, index.manifest.channels
    taps = taps_needed(index.sides, size, how)
    with tf.device("CPU"):
        shards = tf.constant([str(path) for path in index.shards])
        shard, start = tf.constant(index.shard), tf.constant(index.start)
        paths, labels = tf.constant(index.keys["image"].tolist()), tf.constant(index.labels)

    def read(row):
        unbuffered = tf.constant(0, tf.int64)  # reads one record only, not the records after it
        from_here = tf.raw_ops.TFRecordDatasetV2(
            filenames=[shards[shard[row]]], compression_type="", buffer_size=unbuffered, byte_offsets=[start[row]]
        )
        return tf.data.experimental.from_variant(from_here, tf.TensorSpec([], tf.string)).take(1)

    def decode(inputs):
        encoded, sides, places, weights = inputs
        image = tf.io.decode_png(encoded, channels)  # reads JPEG as well
        tf.debugging.assert_equal(tf.shape(image)[:2], sides, "image size differs from its record")
        return resized(image, places, weights)

    def images(rows):
        records = tf.data.Dataset.from_tensor_slices(rows).flat_map(read)
        records = records.batch(tf.size(rows, tf.int64)).get_single_element()
        with tf.control_dependencies([tf.debugging.assert_equal(tf.size(records), tf.size(rows), "record missing")]):
            records = tf.identity(records)
        record = tf.io.parse_example(records, parse_spec(("image", "height", "width", "path", "label")))
        tf.debugging.assert_equal(record["path"], tf.gather(paths, rows), "record not at its indexed position")
        tf.debugging.assert_equal(
            record["label"], tf.gather(labels, rows), "label of the record differs from the index"
        )
        sides = tf.stack([record["height"], record["width"]], axis=1)
        inputs = (record["image"], tf.cast(sides, tf.int32), *axis_weights(sides, size, how, taps))
        spec = tf.TensorSpec([size, size, channels], tf.uint8)
        return tf.map_fn(decode, inputs, fn_output_signature=spec, parallel_iterations=1)

    return images


def _decode_all(index: Index, data: DataConfig) -> Iterator[np.ndarray]:
    """Yields all images of the index in order, in blocks uint8 [n, S, S, C]."""
    blocks = tf.data.Dataset.range(len(index)).batch(_BLOCK).map(_decoder(index, data), tf.data.AUTOTUNE)
    with readable_errors(index.records, index.area, index.split):
        yield from blocks.prefetch(2).as_numpy_iterator()


def _in_memory(index: Index, data: DataConfig, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns all images as one tensor in memory."""
    _announce(index, shape, "memory")
    count = int(np.prod(shape))
    memory = np.empty(count + _ALIGNMENT, np.uint8)
    pixels = memory[-memory.ctypes.data % _ALIGNMENT :][:count].reshape(shape)
    at = 0
    for block in _decode_all(index, data):
        pixels[at : at + len(block)] = block
        at += len(block)
    return _shared(pixels)


def _on_disk(index: Index, data: DataConfig, shape: tuple[int, ...], key: str) -> tf.Tensor:
    """Returns all images as one tensor mapped from its file; creates the file unless it exists and is complete."""
    stem = f"{index.area}-{index.split}-{data.image_size}-{data.resize}"
    path = index.records / FOLDER / f"{stem}-{key}.npy"
    if (pixels := _mapped(path, shape)) is None:
        _announce(index, shape, path)
        with replacing(path, "wb") as file:  # not mapped: a full disk would kill the process
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for block in _decode_all(index, data):
                file.write(block)
        for other in set(path.parent.glob(f"{stem}-*.npy")) - {path}:
            other.unlink(missing_ok=True)  # outdated: of other records or another version
        pixels = _mapped(path, shape)
    return _shared(pixels)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns the array in a file, mapped into memory; None if the file is missing or incomplete."""
    try:
        pixels = np.load(path, mmap_mode="c")  # copy-on-write, because DLPack cannot export read-only arrays
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _shared(pixels: np.ndarray) -> tf.Tensor:
    """Returns a tensor that shares the memory of `pixels`, without a copy, and keeps it alive."""
    return tf.experimental.dlpack.from_dlpack(pixels.__dlpack__())


def _announce(index: Index, shape: tuple[int, ...], place: str | Path) -> None:
    level = logging.INFO if len(index) > 2000 else logging.DEBUG  # visible if it takes more than a few seconds
    size = np.prod(shape) / 1e6
    _log.log(level, "decoding %d images of %s %s into %s (%.0f MB)", len(index), index.area, index.split, place, size)


def _check_images(records: str | os.PathLike, area: str, split: str | None) -> None:
    """Reads shards and decodes their images one by one to find the damage that TensorFlow reported.

    Raises:
        InputError: a shard is damaged or differs from its index, or an image does not decode to the size stated in its
            record; names the shard and the record.
    """
    manifest = read_manifest(records)
    names = [(name, part) for name, splits in manifest.areas.items() for part in splits]
    wanted = SPLITS if split is None else split.split(JOIN)
    for index in (read_index(records, *key) for key in names if area in (ALL, key[0]) and key[1] in wanted):
        columns = (index.shard.tolist(), index.start.tolist(), index.keys["image"], map(tuple, index.labels.tolist()))
        indexed = list(zip(*columns, strict=True))
        row = 0
        for shard, path in enumerate(index.shards):
            for number, (start, record) in enumerate(read_shard(Path(records), path)):
                if indexed[row : row + 1] != [(shard, start, record.path, tuple(record.label))]:
                    raise InputError(
                        f"shard {path}: record {number} ({record.path}) differs from the index of the shard; "
                        f"{how_to_fix(records)}"
                    )
                row += 1
                try:
                    sides = tuple(tf.io.decode_png(record.image, manifest.channels).shape[:2])
                    wrong = f"has {sides[0]} x {sides[1]} pixels, not the size stated in its record"
                except tf.errors.InvalidArgumentError:
                    sides, wrong = None, "cannot be decoded"
                if sides != (record.height, record.width):
                    image = f"the image of record {number} ({record.path})"
                    raise InputError(f"shard {path}: {image} {wrong}; {how_to_fix(records)}")
