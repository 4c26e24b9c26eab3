"""Caches of decoded images in memory or on disk: sharing, reuse, release, and renewal after a rebuild."""

import errno
import gc
import os

import pytest
from record_files import AREA, UNCHANGED, assert_same_batches, batches, eval_dataset, train_dataset, write_records

from kmura.config import DataConfig
from kmura.data import decoded
from kmura.errors import InputError


@pytest.fixture
def decoding(monkeypatch):
    """Counts how often all images of a split were decoded for a cache."""
    calls = []
    original = decoded._decode_all

    def counted(index, data):
        calls.append((index.split, data.image_size))
        return original(index, data)

    monkeypatch.setattr(decoded, "_decode_all", counted)
    return calls


def test_datasets_of_the_same_images_share_memory(tmp_path, decoding):
    write_records(tmp_path, [1, 0, 0])
    data = DataConfig(image_size=16, cache="memory")
    one = train_dataset(tmp_path, AREA, data=data)
    other = train_dataset(tmp_path, AREA, data=data, seed=1)
    evaluated = eval_dataset(tmp_path, AREA, "train", data=data)
    assert len(decoding) == 1
    larger = eval_dataset(tmp_path, AREA, "train", data=DataConfig(image_size=17, cache="memory"))
    assert len(decoding) == 2
    assert [len(batches(dataset)) for dataset in (one, other, evaluated, larger)] == [1, 1, 1, 1]


def test_memory_is_released_with_the_last_dataset(tmp_path):
    write_records(tmp_path, [0, 0, 1])  # images used by no other test
    before = set(decoded._held)
    data = DataConfig(image_size=16, cache="memory")
    iterator = iter(train_dataset(tmp_path, AREA, data=data, batch_size=1, augment=UNCHANGED))
    next(iterator)
    (key,) = set(decoded._held) - before
    gc.collect()
    assert key in decoded._held, "the iterator still draws from it"
    del iterator
    gc.collect()
    assert key not in decoded._held


@pytest.mark.parametrize(("available", "decodes"), [(2 * 3 * 256, 1), (2 * 3 * 256 - 1, 0)])
def test_auto_uses_at_most_half_of_the_available_memory(tmp_path, decoding, monkeypatch, available, decodes):
    write_records(tmp_path, [1, 1, 0])  # images used by no other test
    monkeypatch.setattr(decoded, "available_memory", lambda: available)
    dataset = train_dataset(tmp_path, AREA, data=DataConfig(image_size=16))
    assert len(decoding) == decodes and len(batches(dataset)) == 1


def test_available_memory_does_not_exceed_that_of_the_machine():
    assert 0 < decoded.available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_second_run_reuses_the_decoded_images_on_disk(tmp_path, decoding):
    write_records(tmp_path, [0, 1, 0])
    data = DataConfig(image_size=16, cache="disk")
    first = batches(train_dataset(tmp_path, AREA, data=data))
    assert_same_batches(batches(train_dataset(tmp_path, AREA, data=data)), first)
    assert len(decoding) == 1
    eval_dataset(tmp_path, AREA, "train", data=DataConfig(image_size=17, cache="disk"))
    eval_dataset(tmp_path, AREA, "train", data=DataConfig(image_size=16, resize="pad", cache="disk"))
    assert len(decoding) == 3
    assert len(list((tmp_path / decoded.FOLDER).iterdir())) == 3
    eval_dataset(tmp_path, AREA, "train", data=data)
    assert len(decoding) == 3, "another size threw the first file away"


def test_rebuilt_records_replace_the_decoded_images(tmp_path, decoding):
    data = DataConfig(image_size=16, cache="disk")
    write_records(tmp_path, [0, 1, 0])
    batches(train_dataset(tmp_path, AREA, data=data))
    write_records(tmp_path, [0, 1, 0, 1])
    whole = batches(eval_dataset(tmp_path, AREA, "train", data=data))[0]
    assert len(whole["image"]) == 4 and len(decoding) == 2
    assert len(list((tmp_path / decoded.FOLDER).iterdir())) == 1


def test_a_truncated_file_of_decoded_images_is_recreated(tmp_path, decoding):
    data = DataConfig(image_size=16, cache="disk")
    write_records(tmp_path, [0, 1, 0])
    first = batches(train_dataset(tmp_path, AREA, data=data))
    (file,) = (tmp_path / decoded.FOLDER).iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert_same_batches(batches(train_dataset(tmp_path, AREA, data=data)), first)
    assert len(decoding) == 2


def test_an_unwritable_folder_and_a_full_disk_are_one_line_errors(tmp_path, monkeypatch):
    data = DataConfig(image_size=16, cache="disk")
    write_records(tmp_path, [0, 1, 0])
    (tmp_path / decoded.FOLDER).write_text("in the way")
    with pytest.raises(InputError, match=r"^cannot write .*\.npy: .*$"):
        train_dataset(tmp_path, AREA, data=data)
    (tmp_path / decoded.FOLDER).unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decoded, "_decode_all", full)
    with pytest.raises(InputError, match=r"^cannot write .*\.npy: No space left on device.*$"):
        train_dataset(tmp_path, AREA, data=data)
    assert not list((tmp_path / decoded.FOLDER).iterdir()), "a part of the file stayed behind"
