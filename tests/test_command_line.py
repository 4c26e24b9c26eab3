"""The `kmura` command: fast help, quiet output, and one line with exit code 2 for every error that a user can fix."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import kmura_main
from conftest import make_mura_tree, textured

KMURA = [sys.executable, "-c", "from kmura.cli.main import main; main()"]


def run(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*KMURA, *map(str, arguments)], capture_output=True, text=True, **options)


def refused(*arguments, **options) -> str:
    """Returns the one-line message with which a command rejects its input."""
    done = run(*arguments, **options)
    progress = ("images: ", "skipped ", "epoch ")
    lines = [line for line in done.stderr.splitlines() if not line.startswith(progress) and "going on" not in line]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and lines[0].startswith("kmura"), done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture
def refused_here(monkeypatch, capsys):
    """Like `refused`, but in this process, which has already imported TensorFlow."""

    def last_line(*arguments) -> str:
        code, _, err = kmura_main(monkeypatch, capsys, *arguments)
        assert code == 2
        return err.splitlines()[-1]

    return last_line


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_and_version_do_not_import_tensorflow():
    for flag in ("--help", "--version"):
        code = f"import sys; sys.argv = ['kmura', '{flag}']\nfrom kmura.cli.main import main\n"
        code += "try: main()\nfinally: assert not {'tensorflow', 'keras', 'numpy', 'pandas', 'PIL'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "command",
    ["demo-data", "build-tfrecords", "inspect", "fit", "evaluate", "compare", "explain", "report", "eda"]
    + ["export", "predict"],
)
def test_every_command_has_help(command):
    assert run(command, "--help").stdout.startswith(f"Usage: kmura {command}")


def test_an_unknown_flag_suggests_the_closest_one():
    assert "No such option '--epoch'" in refused("fit", "--epoch", 3) and "--epochs" in refused("fit", "--epoch", 3)


def test_an_unknown_command_is_rejected():
    assert "No such command 'fitt'" in refused("fitt")


def test_a_missing_root_is_rejected(tmp_path):
    assert "does not exist" in refused("build-tfrecords", tmp_path / "nowhere", "--out", tmp_path / "out")


def test_a_root_without_the_expected_layout_is_rejected(tmp_path):
    (tmp_path / "pictures").mkdir()
    textured(0).save(tmp_path / "pictures" / "a.png")
    line = refused("build-tfrecords", tmp_path / "pictures", "--out", tmp_path / "out")
    assert "no images of the MURA layout" in line and not (tmp_path / "out").exists()


def test_an_unknown_area_lists_the_available_areas(mura_root, records, refused_here, tmp_path):
    line = refused("build-tfrecords", mura_root, "--areas", "XR_KNEE", "--out", tmp_path / "out")
    assert "XR_ELBOW, XR_WRIST" in line
    line = refused_here("fit", "--area", "XR_KNEE", "--records", records, "--runs", tmp_path / "runs")
    assert "XR_ELBOW, XR_WRIST" in line and not (tmp_path / "runs").exists()


def test_an_area_without_positives_is_rejected(tmp_path):
    root = make_mura_tree(tmp_path / "tree", areas=("XR_HAND",))
    for study in list(root.rglob("study*_positive")):
        shutil.rmtree(study)
    assert "no abnormal training images" in refused("build-tfrecords", root, "--out", tmp_path / "out")


def declared_huge() -> bytes:
    from test_images import declares

    return declares(30_000, 30_000)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: b"", "empty file"),
        (lambda: b"this is a text\n" * 50, "not an image file"),
        (lambda: Path(__file__).read_bytes(), "not an image file"),
        ("truncated", "damaged or cut off"),
        ("tiny", "1 x 1 pixels"),
        (declared_huge, "pixels"),
    ],
)
def test_an_unreadable_image_is_listed_or_rejected_with_strict(tmp_path, content, reason):
    from PIL import Image

    root = make_mura_tree(tmp_path / "tree", areas=("XR_HAND",), train_patients=8)
    image = sorted((root / "train").rglob("*.png"))[0]
    if content == "truncated":
        image.write_bytes(image.read_bytes()[:-100])
    elif content == "tiny":
        Image.new("L", (1, 1)).save(image)
    else:
        image.write_bytes(content())
    name = image.relative_to(root).as_posix()
    line = refused("build-tfrecords", root, "--out", tmp_path / "out", "--strict", "--workers", 1)
    assert name in line and reason in line
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = run("build-tfrecords", root, "--out", tmp_path / "out", "--workers", 1)
    assert done.returncode == 0 and any(name in text and reason in text for text in done.stderr.splitlines())


def test_a_truncated_shard_is_rejected(records, tmp_path):
    copy = shutil.copytree(records, tmp_path / "copy")
    shard = next(copy.glob("XR_WRIST/train-*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    done = run("inspect", copy)
    assert done.returncode == 2
    assert f"error: XR_WRIST/{shard.name}: record" in done.stdout
    line = refused("fit", "--area", "XR_WRIST", "--records", copy, "--runs", tmp_path / "runs", *SMALL)
    assert shard.name in line and "kmura inspect" in line


def test_a_manifest_of_another_version_is_rejected(records, refused_here, tmp_path):
    copy = shutil.copytree(records, tmp_path / "copy")
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    for command in (("inspect", copy), ("fit", "--area", "all", "--records", copy)):
        assert "schema version 99, this kmura reads versions 1 and 2; build" in refused_here(*command)


SMALL = ("--backbone", "densenet_mini", "--weights", "none", "--image-size", 32, "--epochs", 1)


def test_an_unknown_configuration_key_is_rejected(records, tmp_path):
    line = refused("fit", "--area", "XR_WRIST", "--records", records, "--set", "train.learning_rat=1", *SMALL)
    assert "did you mean train.learning_rate?" in line


@pytest.mark.parametrize("command", ["demo-data", "build-tfrecords"])
def test_an_output_that_cannot_be_written_is_rejected(mura_root, tmp_path, command):
    (tmp_path / "file").write_text("keep me")
    out = tmp_path / "file" / "out"
    arguments = (
        (out, "--train-studies", 2, "--test-studies", 2) if command == "demo-data" else (mura_root, "--out", out)
    )
    assert str(tmp_path / "file") in refused(command, *arguments)
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_damages_no_records_and_the_build_resumes_once_space_is_freed(
    mura_root, records, small_disk, tmp_path
):
    (small_disk / "other").write_bytes(b"x" * 150_000)
    line = refused("build-tfrecords", mura_root, "--out", small_disk / "out", "--workers", 1)
    assert "No space left on device" in line
    assert (small_disk / "other").read_bytes() == b"x" * 150_000
    assert not (small_disk / "out" / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=5m", small_disk], check=True)
    assert run("build-tfrecords", mura_root, "--out", small_disk / "out", "--workers", 1).returncode == 0
    assert run("inspect", small_disk / "out").returncode == 0


@pytest.mark.slow
def test_a_full_disk_during_training_keeps_the_last_finished_epoch(records, small_disk):
    subprocess.run(["mount", "-o", "remount,size=30m", small_disk], check=True)
    command = ("fit", "--area", "XR_WRIST", "--records", records, "--runs", small_disk / "runs", *SMALL)
    assert run(*command, "--no-evaluate").returncode == 0
    before = contents(small_disk / "runs")
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_bsize - 40_000))
    line = refused(*command, "--epochs", 2, "--no-evaluate")
    assert "No space left on device" in line
    after = contents(small_disk / "runs")
    for name in before:
        if name.endswith((".keras", ".npz", "state.json", "history.csv")):
            assert after[name] == before[name]
    (small_disk / "filler").unlink()
    assert run(*command, "--epochs", 2, "--no-evaluate").returncode == 0


def test_a_run_folder_of_another_configuration_is_rejected(records, refused_here, monkeypatch, capsys, tmp_path):
    command = ("fit", "--area", "XR_WRIST", "--records", records, "--runs", tmp_path, "--no-evaluate", *SMALL)
    assert kmura_main(monkeypatch, capsys, *command)[0] == 0
    before = contents(tmp_path)
    line = refused_here(*command, "--seed", 5)
    assert "train.seed: 0 -> 5" in line and "--fresh" in line
    assert contents(tmp_path) == before


def test_a_complete_run_prints_only_its_own_lines(records, tmp_path):
    arguments = ("--area", "XR_WRIST", "--records", records, "--runs", tmp_path / "runs", *SMALL)
    done = run("fit", *arguments)
    assert done.returncode == 0, done.stderr
    epoch, best = done.stderr.splitlines()
    assert epoch.startswith("epoch 1/1  loss ") and best.startswith(str(tmp_path / "runs" / "XR_WRIST" / "baseline"))
    assert "test, 95 % intervals" in done.stdout and "auc" in done.stdout
    folder = tmp_path / "runs" / "XR_WRIST" / "baseline"
    for command in (
        ("evaluate", folder, "--pooling", "max"),
        ("explain", folder, "--sample", 4, "--cases", 2, "--towards", "all"),
    ):
        done = run(*command)
        assert (done.returncode, done.stderr) == (0, ""), command
    done = run("report", folder, "--out", tmp_path / "page.html")
    assert (done.returncode, done.stdout) == (0, "") and done.stderr == f"written: {tmp_path / 'page.html'}\n"
    assert "Galleries" in (tmp_path / "page.html").read_text()


def test_a_path_that_is_not_a_run_folder_is_rejected(refused_here, tmp_path):
    for command in ("evaluate", "explain", "report"):
        assert "is no run folder" in refused_here(command, tmp_path)
    assert "is no run folder" in refused_here("compare", tmp_path, tmp_path)


def test_invalid_options_of_evaluate_are_rejected_before_any_work(tmp_path):
    assert "threshold rule 'best'" in refused("evaluate", tmp_path, "--threshold", "best")


def test_square_brackets_in_names_are_printed_unchanged(capsys):
    from kmura.cli.display import console

    console().print("hand[left] a[/b]")
    assert capsys.readouterr().out == "hand[left] a[/b]\n"
