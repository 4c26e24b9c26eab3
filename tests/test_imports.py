"""Imports run one way through the house, and `import kmura` stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {"config", "metrics", "cam", "errors", "files", "typed"}
STAGES = ["records", "data", "models", "training", "evaluation", "explain", "report", "export"]
MODULES = sorted(path for folder in ("kmura", "cli") for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("kmura.")} | names & {"cli"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_arrow_runs_backwards(path):
    room = path.relative_to(ROOT).with_suffix("").parts[0 if path.is_relative_to(ROOT / "cli") else 1]
    found = imported(path) - LEAVES - {room, "__version__"}
    assert "cli" not in found or room == "cli", "nothing imports cli"
    if room in LEAVES:
        assert not found
    elif room in STAGES:
        assert found <= set(STAGES[: STAGES.index(room)])


def test_importing_kmura_brings_no_tensorflow():
    code = "import sys, kmura; dir(kmura); assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    import kmura

    for name in kmura.__all__:
        assert callable(getattr(kmura, name))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        kmura.nonsense  # noqa: B018
