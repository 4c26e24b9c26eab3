"""Missing or damaged JSON files raise one-line errors with the fix; locks are released when their process ends."""

import subprocess
import sys

import pytest

from kmura.errors import InputError
from kmura.files import flush_to_disk, locked, reading_json


def first_value(path, **missing):
    with reading_json(path, fix="make it again", **missing) as content:
        return content["values"][0]


def test_the_block_returns_the_value_read_from_the_file(tmp_path):
    (tmp_path / "a.json").write_text('{"values": [3]}')
    assert first_value(tmp_path / "a.json") == 3


@pytest.mark.parametrize("content", ["{", "", "[1]", "{}", '{"values": null}', b"\xff"])
def test_damage_is_reported_with_the_file_and_the_fix(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"a\.json is damaged \(\w+: .*\); make it again$"):
        first_value(path)


def test_a_missing_file_has_its_own_message_or_counts_as_damaged(tmp_path):
    with pytest.raises(InputError, match="^no run here$"):
        first_value(tmp_path / "a.json", missing="no run here")
    with pytest.raises(InputError, match="a.json is damaged"):
        first_value(tmp_path / "a.json")


def test_errors_raised_in_the_block_pass_unchanged(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(InputError, match="^of another version$"):
        with reading_json(tmp_path / "a.json", fix="make it again"):
            raise InputError("of another version")


HOLDER = """
import sys, time
from pathlib import Path
from kmura.files import locked
with locked(Path(sys.argv[1]), "busy"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_excludes_other_processes_and_ends_when_its_process_is_killed(tmp_path):
    path = tmp_path / "new folder" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="^another process writes here$"):
            with locked(path, "another process writes here"):
                pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(path, "another process writes here"):
        pass


def test_a_lock_is_released_after_an_error_in_its_block(tmp_path):
    with pytest.raises(KeyError):
        with locked(tmp_path / "lock", "busy"):
            raise KeyError
    with locked(tmp_path / "lock", "busy"):
        pass


def test_a_lock_in_an_unwritable_folder_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file.*; choose another folder"):
        with locked(tmp_path / "file" / "lock", "busy"):
            pass


def test_files_and_folders_are_flushed_to_disk(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "a").chmod(0o400)
    flush_to_disk(tmp_path / "a")
    flush_to_disk(tmp_path)
