"""Imports follow the layers of the package, and `import kmura` is fast."""

import ast
import collections
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = ("errors", "files", "workers", "typed", "config", "metrics", "cam", "tasks", "kinds", "itk")
KINDS = {"classification", "pretraining", "segmentation"}  # packages that do not import each other
# a layer imports only from itself and from the layers listed above it
LAYERS = (
    *({leaf} for leaf in LEAVES),
    {"records"},
    {"phantoms"},
    {"data"},
    {"models"},
    {"runs"},
    {"training"},
    KINDS,
    {"evaluation"},
    {"explain"},
    {"report"},
    {"serving"},
    {"export"},
    {"prediction"},
    {"server"},
    {"cli"},
)
DEPTH = {package: depth for depth, layer in enumerate(LAYERS) for package in layer}
MODULES = sorted(path for folder in ("kmura", "cli") for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """Returns the dotted name of a source file; for `__init__`, the name of its package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("kmura", *parts) if parts[0] == "cli" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES_BY_NAME = {module_of(path): path for path in MODULES}


def imports_of(path: Path) -> set[str]:
    """Returns the dotted names that a source file imports, at module level or within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES_BY_NAME.keys() or {node.module}
    return names


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_import_only_from_their_own_layer_and_layers_above(path):
    module, imported = module_of(path), imports_of(path)
    assert "cli" not in {name.split(".")[0] for name in imported}, "nothing imports cli by its folder's name"
    package = package_of(module)
    if package not in DEPTH:  # kmura itself and its registration in Keras
        return
    for other in {package_of(name) for name in imported if name.startswith("kmura.")} & DEPTH.keys():
        assert other == package or DEPTH[other] < DEPTH[package], f"{module} imports {other}"


def test_there_are_no_circular_imports():
    modules = MODULES_BY_NAME
    graph = {name: sorted(imports_of(path) & modules.keys() - {name}) for name, path in modules.items()}
    state: dict[str, int] = collections.defaultdict(int)  # 1: in progress, 2: done

    def walk(name, way):
        assert state[name] != 1, f"circle: {' -> '.join([*way[way.index(name) :], name])}"
        if state[name] == 2:
            return
        state[name] = 1
        for other in graph[name]:
            walk(other, [*way, name])
        state[name] = 2

    for name in modules:
        walk(name, [])


def test_files_of_different_packages_have_different_names():
    paths = collections.defaultdict(list)
    for path in MODULES:
        if path.name != "__init__.py":
            paths[path.name].append(path.relative_to(ROOT).as_posix())
    paths.pop("base.py")  # the same concept: common parts of the modules of a package
    assert {name: places for name, places in paths.items() if len(places) > 1} == {}


def test_the_names_of_tasks_are_compared_in_one_place():
    literals = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Constant) and part.value in ("binary", "multiclass", "multilabel")
                for part in (node.left, *node.comparators))
    ]  # fmt: skip
    assert literals == []


def test_only_records_and_data_read_manifests():
    reading = {package_of(module_of(path)) for path in MODULES if "read_manifest(" in path.read_text()}
    assert reading == {"records", "data"}


def test_reading_a_run_folder_does_not_import_training():
    packages = {
        package_of(module_of(path))
        for path in MODULES
        if any(name.startswith("kmura.training") for name in imports_of(path))
    }
    assert packages <= {"training", *KINDS, "cli"}


def test_importing_kmura_does_not_import_tensorflow():
    code = "import sys, kmura; dir(kmura); assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_resolved():
    import kmura

    for name in kmura.__all__:
        assert callable(getattr(kmura, name))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        kmura.nonsense  # noqa: B018
