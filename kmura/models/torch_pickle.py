"""Reads the tensors of a torch checkpoint (`.pth`, `.pt`, `.bin`) without torch and without executing its code.

`torch.save` writes a pickle whose tensors refer to storages: raw arrays beside the pickle in a zip archive (since torch
1.6), or after it in the same file (before). A pickle may name any function to be called while it is read. This reader
only knows the names that plain tensors need, and replaces them by functions of its own; any other name is refused.
"""

import collections
import dataclasses
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from kmura.errors import InputError

MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the older format
PROTOCOL = 1001  # its second pickle
# name of a storage class -> dtype of its elements
STORAGES = {
    "FloatStorage": np.dtype("float32"),
    "DoubleStorage": np.dtype("float64"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}


class _Refused(ValueError):
    """The content of a file that this reader does not read; the message completes `because it ...`."""


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype


@dataclasses.dataclass
class _Storage:
    """A raw array; in the older format its data are read after the pickle."""

    dtype: np.dtype
    size: int
    data: bytes | None = None


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset, shape and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Returns a copy of the elements.

        Raises:
            _Refused: the view reaches beyond its storage.
        """
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(type(number) is int and number >= 0 for number in numbers):
            raise _Refused("has a tensor whose shape is damaged")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        elements = np.frombuffer(self.storage.data or b"", self.storage.dtype)
        if 0 in self.shape:
            return np.empty(self.shape, self.storage.dtype)
        if last >= len(elements):
            raise _Refused("has a tensor that is larger than its data")
        steps = [stride * elements.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(elements[self.offset :], self.shape, steps).copy()


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict by key, or those of its entry `state_dict` or `model`.

    Args:
        path: a file of `torch.save` in the zip format or in the older one. Entries of a state dict that are not
            tensors are left out.

    Raises:
        InputError: the file is damaged, is not a state dict, or holds anything but plain tensors, containers, texts
            and numbers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            loaded = _read_zip(file) if zipfile.is_zipfile(file) else _read_older(file)
            for name in ("state_dict", "model"):
                if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
                    loaded = loaded[name]
            if not isinstance(loaded, Mapping):
                raise _Refused("is not a dictionary of tensors")
            arrays = {str(key): value.array() for key, value in loaded.items() if isinstance(value, _Tensor)}
        if not arrays:
            raise _Refused("has no tensors")
        return arrays
    except FileNotFoundError as error:
        raise InputError(f"weights {path}: this file or folder does not exist; check the path") from error
    except _Refused as error:
        raise InputError(
            f"weights {path} cannot be read without executing code, because the file {error}; save the state dict as "
            "safetensors"
        ) from error
    except Exception as error:  # a damaged pickle raises almost any error
        raise InputError(
            f"weights {path} are damaged or not a file of torch.save ({type(error).__name__}: {error}); save them again"
        ) from error


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        (description,) = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        folder = description.removesuffix("data.pkl")
        if folder + "byteorder" in archive.namelist() and archive.read(folder + "byteorder") != b"little":
            raise _Refused("was written on a big-endian machine")
        storages: dict[str, _Storage] = {}

        def storage(dtype: np.dtype, key: str, size: int) -> _Storage:
            if key not in storages:
                storages[key] = _Storage(dtype, size, archive.read(f"{folder}data/{key}"))
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(description)), storage).load()


def _read_older(file: BinaryIO) -> Any:
    """Reads the format before torch 1.6: magic number, protocol, machine, state dict, names of storages, storages."""
    file.seek(0)
    storages: dict[str, _Storage] = {}

    def storage(dtype: np.dtype, key: str, size: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, size))

    if _Unpickler(file, storage).load() != MAGIC or _Unpickler(file, storage).load() != PROTOCOL:
        raise ValueError("it does not begin with torch's magic number")
    if not _Unpickler(file, storage).load()["little_endian"]:
        raise _Refused("was written on a big-endian machine")
    loaded = _Unpickler(file, storage).load()
    for key in _Unpickler(file, storage).load():
        found = storages[key]
        (size,) = struct.unpack("<q", file.read(8))
        found.data = file.read(size * found.dtype.itemsize)
        if size != found.size or len(found.data) != size * found.dtype.itemsize:
            raise EOFError("its data end early")
    return loaded


class _Unpickler(pickle.Unpickler):
    """An unpickler that calls nothing but the stand-ins of `find_class`."""

    def __init__(self, file: BinaryIO, storage: Callable[[np.dtype, str, int], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            return _rebuilt_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuilt_parameter
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(STORAGES[name])
        if (module, name) == ("torch", "Size"):
            return tuple
        raise _Refused(f"names {module}.{name}")

    def persistent_load(self, pid):
        kind, storage_type, key, _, size, *_ = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise _Refused("refers to something that is not the data of a tensor")
        return self._storage(storage_type.dtype, str(key), size)


def _rebuilt_tensor(storage, offset, shape, strides, *_) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise _Refused("has a tensor without data")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuilt_parameter(tensor, *_) -> _Tensor:
    return tensor
