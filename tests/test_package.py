"""The wheel contains only the package, including its command line."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import kmura

ROOT = Path(__file__).parents[1]


def test_the_wheel_contains_the_command_line_and_the_recipes(tmp_path):
    source = tmp_path / "source"  # an in-place build leaves a build folder that later wheels would include
    for name in ("kmura", "cli"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
        source,
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "kmura/cli/main.py" in names and "kmura/recipes/baseline.toml" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"kmura", f"kmura-{kmura.__version__}.dist-info"}
    for path in (ROOT / "kmura").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names, "setup.cfg's packages lists every room"


def test_model_modules_can_be_imported_first_and_register_their_classes():
    code = (
        "import kmura.models.backbones, keras; assert keras.saving.get_registered_object('kmura>RadiographClassifier')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
