"""`kmura config` and docs/configuration.md match the dataclasses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import kmura_main

from kmura import config
from kmura.config import keys, reference

ROOT = Path(__file__).parents[1]
ALL_KEYS = [key.full_name for key in keys.bundle_keys(config.ClassificationConfig)]


@pytest.fixture
def shown(monkeypatch, capsys):
    """Returns the stdout of `kmura config ARGUMENTS`."""

    def run(*arguments) -> str:
        code, out, err = kmura_main(monkeypatch, capsys, "config", *arguments)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def refused(monkeypatch, capsys):
    """Returns the message with which `kmura config ARGUMENTS` rejects its input."""

    def run(*arguments) -> str:
        code, out, err = kmura_main(monkeypatch, capsys, "config", *arguments)
        assert (code, out) == (2, "")
        return err.splitlines()[-1]

    return run


def row(text: str, key: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{key} "))
    return line


def test_every_key_is_listed_in_one_line_with_type_default_range_and_meaning(shown):
    text = shown()
    heading, *lines = text.splitlines()
    assert heading.split() == ["key", "type", "value", "default", "allowed", "meaning"]
    assert [line.split()[0] for line in lines] == ALL_KEYS
    assert row(text, "train.batch_size").split()[1:7] == ["int", "16", "16", "1", "or", "more"]
    assert row(text, "train.batch_size").endswith("Images per step; the last batch of an epoch may be smaller.")
    assert " * " not in text, "nothing differs from the default"


def test_values_that_differ_from_the_default_are_marked(shown):
    text = shown("final", "--set", "train.epochs=7", "--set", "train.seed=0")
    assert row(text, "train.epochs").split()[2:5] == ["7", "*", "5"]
    assert row(text, "cam.from_epoch").split()[1:6] == ["int", "or", "none", "3", "*"]
    assert "*" not in row(text, "train.seed")


def test_only_selects_the_keys_with_a_prefix(shown, refused):
    assert len(shown("--only", "mix").splitlines()) == 1 + 7
    lines = shown("--only", "train.focal").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["train.focal_gamma", "train.focal_factor", "train.focal_alpha"]
    assert "no key begins with 'train.lr'; did you mean train.learning_rate?" in refused("--only", "train.lr")
    assert "stages: data, augment" in refused("--only", "zzz")


@pytest.mark.parametrize("name", config.recipe_names())
def test_every_recipe_is_unchanged_after_printing_it_as_toml(name, shown, tmp_path):
    (tmp_path / "printed.toml").write_text(shown(name, "--format", "toml"))
    assert config.load_config(str(tmp_path / "printed.toml")) == config.load_config(name)


def test_strings_and_missing_values_are_preserved_in_toml(shown, tmp_path):
    settings = [
        'model.weights=C:\\weights "ü"#1',
        "cam.from_epoch=none",
        "model.head_widths=[8, 4]",
        "model.head=dense",
    ]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    text = shown(*arguments, "--format", "toml")
    (tmp_path / "printed.toml").write_text(text, encoding="utf-8")
    assert config.load_config(str(tmp_path / "printed.toml")) == config.load_config(None, settings)
    assert 'from_epoch = "none"' in text and "# First epoch with CAM-erasing" in text


def test_a_phase_uses_its_own_recipe(shown):
    assert row(shown("--phase", "tune"), "mix.until_epoch").split()[2] == "1000"
    hybrid = shown("--phase", "tune", "--set", "model.architecture=hybrid", "--only", "train.frozen_until_epoch")
    assert "  2 *  " in hybrid, "the recipe tune_hybrid"
    assert row(shown("--phase", "final"), "cam.erase_q").split()[2] == "0.8"
    assert row(shown("demo", "--phase", "final"), "data.image_size").split()[2] == "96", "RECIPE wins"


def test_an_area_uses_its_tuned_values(monkeypatch, capsys, tmp_path):
    arguments = ("--phase", "final", "--area", "XR_WRIST", "--runs", tmp_path, "--only", "cam.erase_q")
    code, out, err = kmura_main(monkeypatch, capsys, "config", *arguments)
    assert code == 0 and row(out, "cam.erase_q").split()[2] == "0.700714"
    assert err == "tuned values published for XR_WRIST of MURA\n"


def test_incompatible_options_are_rejected(refused):
    assert "--area requires --phase" in refused("--area", "XR_WRIST")
    assert "--format markdown is the page of all keys" in refused("final", "--format", "markdown")
    assert "did you mean final?" in refused("finale")
    assert "did you mean train.learning_rate?" in refused("--set", "train.lr=1")


def test_help_shows_examples_that_work(shown):
    text = shown("--help")
    examples = [line.split()[2:] for line in text.splitlines() if line.strip().startswith("kmura config")]
    assert text.startswith("Usage: kmura config") and len(examples) == 3
    for example in examples:
        assert shown(*example[: example.index(">")] if ">" in example else example)


def test_a_terminal_shows_one_table_per_stage(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys.stdout.__class__, "isatty", lambda stream: True)
    code, out, _ = kmura_main(monkeypatch, capsys, "config", "baseline", "--set", "train.epochs=9")
    assert code == 0
    for stage in keys.hints(config.ClassificationConfig):
        assert any(re.sub(r"\x1b\[\d*m", "", line).strip() == stage for line in out.splitlines())
    for name in ALL_KEYS:
        assert name.partition(".")[2] in out
    assert "9 *" in out and "float; 0 to 1; default 0.5" in out


def test_the_configuration_page_is_up_to_date(shown):
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == shown("--format", "markdown"), "run: kmura config --format markdown > docs/configuration.md"
    for name in ALL_KEYS:
        assert f"| `{name}` |" in page
    for key in keys.stage_keys("", config.RecordsConfig):
        assert f"| `{key.name}` |" in page
    for name in config.recipe_names():
        assert f"| `{name}` | {config.recipe_summary(name)} |" in page


def test_every_row_of_the_configuration_tables_has_five_columns():
    rows = [line for line in reference.as_markdown().splitlines() if line.startswith("| `") and ". |" in line]
    counts = {line.count("|") for line in rows}
    assert counts == {3, 6}, "recipes have two columns, keys five"


def test_the_config_command_does_not_import_tensorflow():
    code = "import sys; sys.argv = ['kmura', 'config', 'final']\nfrom kmura.cli.main import main\n"
    code += "try: main()\nfinally: assert not {'tensorflow', 'keras', 'numpy', 'pandas', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    code = "import sys, kmura.classification.phases; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
