"""The `kmura` command: help, usage errors, and one line with exit code 2 for every error that a user can fix."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import kmura_main
from conftest import make_mura_tree, textured

from kmura.records.schema import SCHEMA_VERSION

KMURA = [sys.executable, "-c", "from kmura.cli.main import main; main()"]
COMMANDS = ["demo-data", "build-tfrecords", "inspect", "eda", "fit", "evaluate", "compare", "explain", "report"]
COMMANDS += ["export", "predict", "weights", "weights port"]
PROGRESS = ("images: ", "skipped ", "note: ", "epoch ")  # beginnings of lines that are no errors


def run(*arguments, **options) -> subprocess.CompletedProcess:
    """`kmura ARGUMENTS` in a process of its own."""
    return subprocess.run([*KMURA, *map(str, arguments)], capture_output=True, text=True, **options)


def the_error(code: int, err: str) -> str:
    """The one line with which a command refuses its input."""
    lines = [line for line in err.splitlines() if not line.startswith(PROGRESS) and "continuing after" not in line]
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith("kmura"), err
    return lines[0]


@pytest.fixture
def kmura(monkeypatch, capsys):
    """Runs `kmura ARGUMENTS` in this process; gives its exit code, stdout and stderr."""
    return lambda *arguments: kmura_main(monkeypatch, capsys, *arguments)


@pytest.fixture
def refused(kmura):
    """Runs `kmura ARGUMENTS` in this process; gives the one line with which it is refused."""

    def line(*arguments) -> str:
        code, _, err = kmura(*arguments)
        return the_error(code, err)

    return line


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# help


def test_help_and_version_import_no_tensorflow():
    for arguments in (["--help"], ["--version"], ["fit", "--help"], ["weights", "port", "--help"]):
        code = f"import sys; sys.argv = ['kmura', *{arguments}]\nfrom kmura.cli.main import main\n"
        code += "try: main()\nfinally: assert not {'tensorflow', 'keras', 'numpy', 'pandas', 'PIL'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_help_lists_all_commands_in_the_order_of_work_under_headings(kmura, monkeypatch):
    from kmura.cli.main import HEADINGS, cli

    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = kmura("--help")
    assert code == 0
    places = [out.index(f"\n{heading}:\n") for heading in HEADINGS]
    assert places == sorted(places)
    lines = out[places[0] :].splitlines()
    listed = {name: next(line for line in lines if line.startswith(f"  {name} ")) for name in COMMANDS[:-2]}
    assert [lines.index(line) for line in listed.values()] == sorted(lines.index(line) for line in listed.values())
    assert all(line.endswith(".") and len(line) <= 80 for line in listed.values()), "each fits its line"
    named = {name.split()[0] for names in HEADINGS.values() for name in names}
    assert set(cli.commands) <= named, "every command has a heading"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_sentence_defaults_and_examples_within_80_columns(command, kmura, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = kmura(*command.split(), "--help")
    usage, _, text = out.partition("\n\n")
    assert code == 0 and usage.startswith(f"Usage: kmura {command}")
    assert text.partition("\n\n")[0].rstrip().endswith("."), "one sentence first"
    assert text.partition("\n\n")[0].count(". ") == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    if command != "weights":
        assert f"kmura {command} " in text and "Example" in text
        assert "[default: " in text or command == "inspect"


def test_defaults_in_the_help_are_those_of_the_library(kmura):
    from kmura.evaluation.scoring import RULES, ScoreOptions

    _, out, _ = kmura("evaluate", "--help")
    out = "".join(out.split())
    assert f"[default:({','.join(RULES)})]" in out
    assert f"[default:{ScoreOptions().calibration}]" in out and f"[default:{ScoreOptions().resamples}" in out


@pytest.mark.parametrize(
    ("command", "option", "module", "names"),
    [
        ("evaluate", "pooling", "kmura.metrics", "POOLINGS"),
        ("compare", "pooling", "kmura.metrics", "POOLINGS"),
        ("evaluate", "calibrate_at", "kmura.evaluation.scoring", "LEVELS"),
        ("export", "format", "kmura.export.bundle", "FORMATS"),
        ("fit", "phase", "kmura.classification.phases", "PHASES"),
        ("fit", "backbone", "kmura.models.backbones", "BACKBONES"),
        ("fit", "swin", "kmura.models.swin", "SWINS"),
        ("fit", "fusion", "kmura.models.fusion", "FUSIONS"),
        ("fit", "head", "kmura.models.heads", "HEADS"),
    ],
)
def test_choices_are_the_names_that_the_library_knows(command, option, module, names):
    from kmura.cli.main import cli

    (parameter,) = (each for each in cli.commands[command].params if each.name == option)
    assert set(parameter.type.choices) == set(getattr(importlib.import_module(module), names))


def test_choices_of_configuration_keys_come_from_their_types():
    from kmura.cli.main import cli

    choices = {each.name: tuple(getattr(each.type, "choices", ())) for each in cli.commands["fit"].params}
    assert choices["precision"] == ("auto", "float32", "mixed_bfloat16", "mixed_float16")
    assert choices["task"] == ("auto", "binary", "multiclass", "multilabel")
    assert choices["select_on"] == ("val", "test") and choices["tuner"] == ("bayesian", "random", "hyperband")


def test_completion_offers_commands_recipes_and_members_of_lists(monkeypatch):
    def completed(words: str) -> str:
        variables = {"_KMURA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return run(env={**os.environ, **variables}).stdout

    assert "plain,fit" in completed("kmura fi")
    assert completed("kmura fit --recipe fin").split() == ["plain,final", "plain,final-plus"]
    assert completed("kmura compare --level study,i").strip() == "plain,study,image"


# usage errors


def test_an_unknown_flag_or_command_names_the_nearest(refused):
    line = refused("fit", "--epoch", 3)
    assert "No such option '--epoch'" in line and "--epochs" in line
    line = refused("fitt")
    assert "No such command 'fitt'" in line and "'fit'" in line


def test_an_unknown_name_is_refused_with_the_choices_and_the_nearest(refused):
    line = refused("fit", "--area", "all", "--backbone", "densnet121")
    assert "'densenet169'" in line and "did you mean densenet121?" in line
    line = refused("fit", "--area", "all", "--recipe", "finall")
    assert "neither a file nor a shipped recipe" in line and "baseline, demo" in line and "did you mean final?" in line
    line = refused("compare", "a", "b", "--score", "auk")
    assert "score 'auk' is unknown" in line and "balanced_accuracy" in line and "did you mean auc?" in line
    for name in ("tune", "valid"):
        assert "the split tune is now val, and valid is now test" in refused("explain", "run", "--split", name)


def test_a_usage_error_is_one_line_with_exit_code_2_and_no_traceback():
    for arguments in (("fit",), ("fit", "--area"), ("fit", "--epochs", "x"), ("predict", "model"), ("nonsense",)):
        done = run(*arguments)
        assert the_error(done.returncode, done.stderr) and done.stdout == ""


@pytest.mark.parametrize("place", ["before", "behind"])
def test_debug_is_accepted_before_and_behind_every_command_and_shows_the_traceback(place, kmura, tmp_path):
    arguments = ("inspect", tmp_path / "nowhere")
    code, _, err = kmura(*(("--debug", *arguments) if place == "before" else (*arguments, "--debug")))
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("kmura: no records folder")
    assert "Traceback" not in kmura(*arguments)[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_debug_option(command, kmura):
    assert "--debug" in kmura(*command.split(), "--help")[1]


def test_an_interruption_is_one_line_with_exit_code_130(kmura, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("kmura.records.verify.inspect_records", interrupted)
    code, out, err = kmura("inspect", tmp_path)
    assert (code, out) == (130, "")
    assert err.strip() == "kmura: interrupted; run the same command again to continue from what is finished"


def test_a_bug_is_one_line_with_exit_code_1_that_says_how_to_see_the_traceback(monkeypatch, capsys, tmp_path):
    def broken(*arguments, **options):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("kmura.records.verify.inspect_records", broken)
    with pytest.raises(AssertionError, match=r"unexpected RuntimeError: two lines \(--debug shows the traceback\)"):
        kmura_main(monkeypatch, capsys, "inspect", tmp_path)
    with pytest.raises(RuntimeError):
        kmura_main(monkeypatch, capsys, "inspect", tmp_path, "--debug")


# lists


def listed(*values, choices=()) -> tuple[str, ...]:
    import click

    from kmura.cli.options import names_option

    received = []

    @click.command()
    @names_option("--name", "names", choices=choices, help="Names.")
    def command(names):
        received.append(names)

    command.main([word for value in values for word in ("--name", value)], standalone_mode=False)
    return received[0]


def test_a_list_is_comma_separated_repeated_or_both():
    assert listed("a,b") == listed("a", "b") == listed(" a , b ") == listed("a,,b,") == ("a", "b")
    assert listed("a,b", "c") == ("a", "b", "c")
    assert listed() == ()
    assert listed("max_f1,sensitivity>=0.95", "0.5") == ("max_f1", "sensitivity>=0.95", "0.5")


def test_a_name_with_a_comma_stands_in_double_quotes():
    assert listed('"left, lower",right') == ("left, lower", "right")
    assert listed('right, "left, lower"') == ("right", "left, lower")


@pytest.mark.parametrize(
    ("value", "message"),
    [("", "is empty"), (" , ", "is empty"), ('"left', "double quote"), ("c", "'c' is not one of 'a', 'bb'"),
     ("b", "did you mean bb")],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused(value, message):
    import click

    with pytest.raises(click.BadParameter, match=message):
        listed(value, choices=("a", "bb"))


@pytest.mark.parametrize(
    ("command", "option"),
    [("demo-data", "areas"), ("build-tfrecords", "areas"), ("build-tfrecords", "classes"), ("evaluate", "rules"),
     ("compare", "scores"), ("compare", "levels"), ("explain", "towards")],
)  # fmt: skip
def test_every_list_is_given_in_the_same_way(command, option):
    import click

    from kmura.cli.main import cli
    from kmura.cli.options import LIST_HELP

    context = click.Context(cli)
    (parameter,) = (each for each in cli.commands[command].get_params(context) if each.name == option)
    assert parameter.multiple and LIST_HELP in parameter.help
    assert parameter.process_value(context, ("study,image", "study")) == ("study", "image", "study")


def test_class_names_of_a_build_are_a_list(kmura, medmnist_file, tmp_path):
    from kmura.records.manifest import read_manifest

    names = ("--classes", '"normal, or nearly so"', "--classes", "abnormal")
    build = ("build-tfrecords", medmnist_file, "--layout", "medmnist", *names, "--workers", 1)
    assert kmura(*build, "--out", tmp_path / "out")[0] == 0
    assert read_manifest(tmp_path / "out").classes == ("normal, or nearly so", "abnormal")


# errors that the user can fix


def test_a_missing_root(refused, tmp_path):
    assert "does not exist" in refused("build-tfrecords", tmp_path / "nowhere", "--out", tmp_path / "out")


def test_a_root_without_the_layout(refused, tmp_path):
    (tmp_path / "pictures").mkdir()
    textured(0).save(tmp_path / "pictures" / "a.png")
    line = refused("build-tfrecords", tmp_path / "pictures", "--out", tmp_path / "out")
    assert "no images of the MURA layout" in line and not (tmp_path / "out").exists()


def test_an_unknown_area_lists_those_there_are(mura_root, records, refused, tmp_path):
    line = refused("build-tfrecords", mura_root, "--areas", "XR_KNEE", "--out", tmp_path / "out")
    assert "XR_ELBOW, XR_WRIST" in line
    line = refused("fit", "--area", "XR_KNEE", "--records", records, "--runs", tmp_path / "runs")
    assert "XR_ELBOW, XR_WRIST" in line and not (tmp_path / "runs").exists()


def test_an_area_without_positives(refused, tmp_path):
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
def test_an_unreadable_image_is_listed_or_with_strict_refused(kmura, refused, tmp_path, content, reason):
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
    code, _, err = kmura("build-tfrecords", root, "--out", tmp_path / "out", "--workers", 1)
    assert code == 0 and any(name in text and reason in text for text in err.splitlines())


def test_a_shard_cut_in_half(records, kmura, refused, tmp_path):
    copy = shutil.copytree(records, tmp_path / "copy")
    shard = next(copy.glob("XR_WRIST/train-*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    code, out, _ = kmura("inspect", copy)
    assert code == 2
    assert f"error: XR_WRIST/{shard.name}: record" in out
    line = refused("fit", "--area", "XR_WRIST", "--records", copy, "--runs", tmp_path / "runs", *SMALL)
    assert shard.name in line and "kmura inspect" in line


def test_a_manifest_of_another_version(records, refused, tmp_path):
    copy = shutil.copytree(records, tmp_path / "copy")
    manifest = copy / "manifest.json"
    changed = manifest.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99')
    manifest.write_text(changed)
    for command in (("inspect", copy), ("fit", "--area", "all", "--records", copy)):
        assert "schema version 99, this kmura reads versions 1 and 2; use the version" in refused(*command)


SMALL = ("--backbone", "densenet_mini", "--weights", "none", "--image-size", 32, "--epochs", 1)


def test_an_unknown_configuration_key(records, refused):
    line = refused("fit", "--area", "XR_WRIST", "--records", records, "--set", "train.learning_rat=1", *SMALL)
    assert "did you mean train.learning_rate?" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cam-every", 0), "--cam-every needs a number of epochs"),
        (("--trials", 3), "--tuner and --trials need --phase tune"),
        (("--phase", "tune", "--tensorboard"), "--tensorboard and --mlflow need a phase other than tune"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(records, refused, flags, message):
    assert message in refused("fit", "--area", "XR_WRIST", "--records", records, *flags)


@pytest.mark.parametrize("command", ["demo-data", "build-tfrecords"])
def test_an_output_that_cannot_be_written(mura_root, refused, tmp_path, command):
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


def test_a_full_disk_damages_nothing_and_the_build_goes_on_after_it_is_freed(
    mura_root, kmura, refused, small_disk, tmp_path
):
    (small_disk / "other").write_bytes(b"x" * 150_000)
    line = refused("build-tfrecords", mura_root, "--out", small_disk / "out", "--workers", 1)
    assert "No space left on device" in line
    assert (small_disk / "other").read_bytes() == b"x" * 150_000
    assert not (small_disk / "out" / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=5m", small_disk], check=True)
    assert kmura("build-tfrecords", mura_root, "--out", small_disk / "out", "--workers", 1)[0] == 0
    assert kmura("inspect", small_disk / "out")[0] == 0


@pytest.mark.slow
def test_a_full_disk_during_training_keeps_the_finished_epoch(records, kmura, refused, small_disk):
    subprocess.run(["mount", "-o", "remount,size=30m", small_disk], check=True)
    command = ("fit", "--area", "XR_WRIST", "--records", records, "--runs", small_disk / "runs", *SMALL)
    assert kmura(*command, "--no-evaluate")[0] == 0
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
    assert kmura(*command, "--epochs", 2, "--no-evaluate")[0] == 0


@pytest.mark.slow
def test_a_run_folder_of_another_configuration(records, kmura, refused, tmp_path):
    command = ("fit", "--area", "XR_WRIST", "--records", records, "--runs", tmp_path, "--no-evaluate", *SMALL)
    assert kmura(*command)[0] == 0
    before = contents(tmp_path)
    line = refused(*command, "--seed", 5)
    assert "train.seed: 0 -> 5" in line and "--fresh" in line
    assert contents(tmp_path) == before


@pytest.mark.slow
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


def test_what_is_no_run_folder_is_refused(refused, tmp_path):
    for command in ("evaluate", "explain", "report"):
        assert "is not a run folder" in refused(command, tmp_path)
    assert "is not a run folder" in refused("compare", tmp_path, tmp_path)


def test_an_option_of_evaluate_without_sense_is_refused_before_any_work(refused, tmp_path):
    assert "threshold rule 'best'" in refused("evaluate", tmp_path, "--threshold", "max_f1,best")


def test_names_are_printed_without_markup(capsys):
    from kmura.cli.display import console

    console().print("hand[left] a[/b]")
    assert capsys.readouterr().out == "hand[left] a[/b]\n"


def test_an_ascii_terminal_shows_other_characters_as_escapes(tmp_path):
    for number in range(20):
        path = tmp_path / "set" / ("krank é" if number % 2 else "gesund") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        textured(number).save(path)
    arguments = ("build-tfrecords", tmp_path / "set", "--out", tmp_path / "out", "--layout", "folders", "--workers", 1)
    done = run(*arguments, "--positive-class", "krank é", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "krank \\xe9" in done.stdout, done.stderr


def test_matplotlib_does_not_report_its_cache(kmura, tmp_path):
    import logging

    kmura("inspect", tmp_path)
    assert not logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.WARNING)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 2.0, 3.0])
def test_an_interrupted_build_prints_one_line_and_can_be_resumed(mura_root, records, tmp_path, seconds):
    import signal
    import time

    command = [*KMURA, "build-tfrecords", mura_root, "--out", tmp_path / "out", "--workers", "2"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    lines = [line for line in err.splitlines() if line and not line.startswith("images: ")]
    assert process.returncode in (0, 130)
    assert [line.partition(";")[0] for line in lines] == ["kmura: interrupted"] * (process.returncode == 130), err
    assert run("build-tfrecords", mura_root, "--out", tmp_path / "out", "--workers", 1).returncode == 0


def test_a_path_too_long_for_the_system_is_no_bug(refused):
    name = "a" * 300
    assert refused("predict", name, "b.png").endswith(
        f"{name} cannot be used: File name too long; choose a shorter name"
    )
