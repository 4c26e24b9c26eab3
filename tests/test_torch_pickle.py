"""Files of torch.save are read without torch and without executing their code."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from kmura.errors import InputError
from kmura.models.torch_pickle import MAGIC, PROTOCOL, read_tensors

STORAGE_OF = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "bool": "BoolStorage"}


@pytest.fixture
def torch(monkeypatch):
    """Modules with the names that a file of torch.save refers to, so that it can be written without torch."""
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils", "torch.nn")}
    for name in STORAGE_OF.values():
        setattr(modules["torch"], name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*_):
        raise AssertionError("only its name is written")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    modules["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
    modules["torch.nn"].Module = type("Module", (), {"__module__": "torch.nn"})
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


class View:
    """A tensor: a view of an array as torch stores it."""

    def __init__(self, base, offset, shape, strides):
        self.base, self.offset, self.shape, self.strides = base, offset, shape, strides


def whole(array):
    array = np.ascontiguousarray(array)
    return View(array.reshape(-1), 0, array.shape, tuple(step // array.itemsize for step in array.strides))


def encoded(value, torch, storages: list, views: bool):
    """Returns the pickle of a value and appends the storages of its tensors to `storages`."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, np.ndarray):
                places = [place for place, known in enumerate(storages) if known is item]
                if not places:
                    storages.append(item)
                key = str(places[0] if places else len(storages) - 1)
                kind = getattr(torch["torch"], STORAGE_OF[item.dtype.name])
                return ("storage", kind, key, "cpu", item.size, *([None] if views else []))
            return None

        def reducer_override(self, item):
            if isinstance(item, View):
                arguments = (item.base, item.offset, item.shape, item.strides, False, collections.OrderedDict())
                return torch["torch._utils"]._rebuild_tensor_v2, arguments
            return NotImplemented

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def write_zip(path, value, torch):
    storages = []
    data = encoded(value, torch, storages, views=False)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, storage in enumerate(storages):
            archive.writestr(f"archive/data/{key}", storage.tobytes())


def write_older(path, value, torch):
    storages = []
    data = encoded(value, torch, storages, views=True)
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(part, protocol=2) for part in (MAGIC, PROTOCOL, system)] + [data]
    parts.append(pickle.dumps([str(key) for key in range(len(storages))], protocol=2))
    parts += [struct.pack("<q", storage.size) + storage.tobytes() for storage in storages]
    path.write_bytes(b"".join(parts))


each_format = pytest.mark.parametrize("write", [write_zip, write_older])


@each_format
def test_tensors_of_both_formats_are_read(write, torch, tmp_path):
    base = np.arange(12, dtype=np.float32)
    expected = {
        "whole": base.reshape(3, 4),
        "transposed": base.reshape(3, 4).T,
        "part": base[2:8:2],
        "half": np.float16([1.5, -2]),
        "count": np.array(7, np.int64),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    tensors = {name: whole(array) for name, array in expected.items()}
    tensors["whole"] = View(base, 0, (3, 4), (4, 1))  # three views of one storage
    tensors["transposed"] = View(base, 0, (4, 3), (1, 4))
    tensors["part"] = View(base, 2, (3,), (2,))
    write(tmp_path / "a.pth", {"epoch": 3, "state_dict": collections.OrderedDict(tensors), "note": "x"}, torch)
    found = read_tensors(tmp_path / "a.pth")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@each_format
def test_code_in_a_file_is_refused_and_not_run(write, torch, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    for value, named in (
        (Evil(), "names __builtin__.getattr"),
        (torch["torch.nn"].Module(), "names torch.nn.Module"),
    ):
        write(tmp_path / "evil.pth", {"state_dict": {"x": value}}, torch)
        with pytest.raises(InputError, match=f"cannot be read without executing code, because the file ({named})"):
            read_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@each_format
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": View(np.zeros(4, np.float32), 0, (5,), (1,))}, "has a tensor that is larger than its data"),
        ({"a": View(np.zeros(4, np.float32), -1, (2,), (1,))}, "has a tensor whose shape is damaged"),
        ({"epoch": 3}, "has no tensors"),
        ([1, 2], "is not a dictionary of tensors"),
    ],
)
def test_what_is_no_state_dict_is_refused(write, value, message, torch, tmp_path):
    write(tmp_path / "a.pth", value, torch)
    with pytest.raises(InputError, match=message):
        read_tensors(tmp_path / "a.pth")


@each_format
def test_a_file_that_ends_early_is_damaged(write, torch, tmp_path):
    write(tmp_path / "a.pth", {"a": whole(np.arange(1000, dtype=np.float32))}, torch)
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-500])
    with pytest.raises(InputError, match="damaged or not a file of torch.save"):
        read_tensors(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="damaged or not a file of torch.save"):
        read_tensors(tmp_path / "b.pth")
    with pytest.raises(InputError, match="does not exist"):
        read_tensors(tmp_path / "none.pth")
