"""Missing or damaged JSON files raise one-line errors with the fix; locks are released when their process ends."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from kmura.errors import InputError, remedy, unreadable
from kmura.files import aside_name, csv_rows, flush_to_disk, locked, name_within_limit, reading_json, replacing
from kmura.typed import read_json


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


def write(path, text="new"):
    with replacing(path) as file:
        file.write(text)


# no test writes to a device of the system: run as root with a fault in `replacing`, it would replace the device


def test_a_terminal_receives_the_content_and_stays_a_device():
    master, slave = os.openpty()
    try:
        path = os.ttyname(slave)  # no other file can be made in its folder
        write(path)
        assert os.read(master, 10) == b"new"
        assert stat.S_ISCHR(os.stat(path).st_mode)
    finally:
        os.close(master)
        os.close(slave)


def test_a_device_outside_of_dev_stays_a_device(tmp_path):
    try:
        os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        write(tmp_path / "null")
    except PermissionError:
        pytest.skip("only root can make devices")
    except InputError as error:
        if "Permission denied" in str(error):
            pytest.skip("devices do not work on this file system")
        raise
    assert stat.S_ISCHR(os.stat(tmp_path / "null").st_mode)


def test_a_fifo_passes_the_content_on(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(tmp_path / "fifo")
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(os.stat(tmp_path / "fifo").st_mode)


@pytest.mark.parametrize("target", ["target", "missing", "folder/target"])
def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path, target):
    (tmp_path / "folder").mkdir()
    (tmp_path / "target").write_text("old")
    (tmp_path / "first").symlink_to(target)
    (tmp_path / "link").symlink_to(tmp_path / "first")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "first").is_symlink()
    assert (tmp_path / target).read_text() == "new"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_a_link_to_the_standard_output_writes_there(tmp_path):
    (tmp_path / "link").symlink_to("/proc/self/fd/1")  # what /dev/stdout leads to
    code = "import sys; from kmura.files import replacing\nwith replacing(sys.argv[1]) as file: file.write('row')"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "link"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("row", "")


def test_a_read_only_file_is_refused_and_stays(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o444)
    with pytest.raises(InputError, match="cannot write .*file: it is read-only; fix the permissions or choose another"):
        write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    write(tmp_path / "file")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_folder_is_refused_as_a_file(tmp_path):
    with pytest.raises(InputError, match="Is a directory; give another file"):
        write(tmp_path)


def test_the_longest_name_of_a_file_can_be_written(tmp_path):
    for letter in ("a", "é"):
        name = letter * (255 // len(letter.encode()))
        write(tmp_path / name)
        assert (tmp_path / name).read_text() == "new"
    assert aside_name(tmp_path / "short.csv").name == f".short.csv.{os.getpid()}.part"


def test_shortened_names_differ_if_the_names_do():
    names = [name_within_limit("é" * 200 + end, ".png") for end in "ab"]
    assert len(set(names)) == 2 and all(len(name.encode()) <= 255 and name.endswith(".png") for name in names)
    assert name_within_limit("a" * 251, ".png") == "a" * 251 + ".png"


def test_characters_that_utf_8_lacks_are_written_as_escapes(tmp_path):
    write(tmp_path / "file", "scan\udce9.png")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "scan\\udce9.png"


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space or choose another folder"),
        (errno.EACCES, "fix the permissions or choose another folder"),
        (errno.EROFS, "choose another folder"),
        (errno.ENOTDIR, "choose another folder"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.EMFILE, "raise the limit of open files (ulimit -n)"),
    ],
)
def test_the_fix_of_a_write_error_fits_its_cause(number, fix):
    assert remedy(OSError(number, os.strerror(number))) == fix


@pytest.mark.parametrize("read", [first_value, lambda path: read_json(path, "kmura make"), csv_rows])
def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch, read):
    path = tmp_path / "a.json"
    path.write_text('{"values": [3]}')

    def denied(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("read_text", "read_bytes"):
        monkeypatch.setattr("pathlib.Path." + name, denied)
    arguments = (path, "make it again") if read is csv_rows else (path,)
    with pytest.raises(InputError, match=r"a\.json cannot be read: Permission denied; fix its permissions$"):
        read(*arguments)


def test_a_failing_disk_is_named_as_such():
    error = unreadable("a.json", OSError(errno.EIO, "Input/output error"))
    assert str(error) == "a.json cannot be read: Input/output error; check the path and the disk"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("image,study\na.png,é\n", "utf-8"),
        ("image,study\r\na.png,é\r\n", "utf-8-sig"),
        ("image\tstudy\r\na.png\té\r\n", "utf-16"),
        ("\nimage,study\n,\na.png,é\n", "utf-16"),
    ],
)
def test_a_csv_of_a_spreadsheet_is_read(tmp_path, content, encoding):
    (tmp_path / "a.csv").write_bytes(content.encode(encoding))
    assert csv_rows(tmp_path / "a.csv", "fix it") == [["image", "study"], ["a.png", "é"]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("é".encode("latin-1"), "byte 0 is not UTF-8"),
        ("image".encode("utf-16-le"), "it contains zero bytes, as UTF-16 without a byte order mark does"),
        (b"\xff\xfea", r"byte \d is not UTF-16"),
    ],
)
def test_a_csv_in_another_encoding_is_refused(tmp_path, content, reason):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.csv cannot be read: {reason}; save it as CSV in UTF-8, or fix it$"):
        csv_rows(tmp_path / "a.csv", "fix it")


def test_a_lock_file_can_be_dropped_at_the_end(tmp_path):
    with locked(tmp_path / "lock", "busy", drop=True):
        assert (tmp_path / "lock").exists()
        with pytest.raises(InputError, match="busy"):
            with locked(tmp_path / "lock", "busy", drop=True):
                pass
    assert not (tmp_path / "lock").exists()
