"""The documentation agrees with the code: links, commands, flags, configuration keys, modules and examples."""

import dataclasses
import re
import shlex
from pathlib import Path

import click
import pytest

from kmura.cli.main import cli
from kmura.config import ClassificationConfig, PretrainingConfig, SegmentationConfig

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("[a-z]*/README.md"))]
NEW_FILES = {"kmura/records/layouts/table.py"}  # created by readers of docs/adding.md

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    """Returns the contents of the code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """Returns the page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(page: Path) -> list[str]:
    """Returns the inline code of a page; for the table of renamed names in the changelog, only the new names."""
    text = re.sub(r"^\|[^|]*\|", "|", prose(page), flags=re.MULTILINE) if page.name == "CHANGELOG.md" else prose(page)
    return re.findall(r"`([^`\n]+)`", text)


def commands(page: Path) -> list[list[str]]:
    """Yields the arguments of each command line in console blocks, without variables, comments and redirections."""
    lines = [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    found = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = list(lexer)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        end = next((place for place, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
        found.append(words[:end])
    return found


def heading_anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub generates from the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """Splits the words after `kmura` into the command and the remaining arguments."""
    command, name = cli, "kmura"
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, words = words[0], words[1:]
        command = command.commands.get(name)
        assert command is not None, f"there is no command {name}"
    return command, words


def test_the_readme_is_short_and_has_two_setup_commands():
    assert len(README.read_text().splitlines()) <= 150
    assert commands(README) == [["make", "demo"], ["make", "test"]]


@every_page
def test_every_relative_link_resolves(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in heading_anchors(path), f"{page.name} links to {target}, which is no heading"


@every_page
def test_every_command_line_can_be_parsed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        for word in words:
            if word.endswith(".toml"):
                Path(word).touch()  # the recipe must exist
        if words[0] == "make":
            assert re.search(rf"^[^\n]*{re.escape(words[1])}[^\n=]*:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words[0] == "kmura" and words[1:] not in (["--version"], ["--help"]):
            command, rest = resolved(words[1:])
            command.make_context(" ".join(words), rest)  # raises for unknown flags, wrong values, missing arguments


@every_page
def test_every_command_and_flag_in_the_text_exists(page):
    for span in spans(page):
        match = re.match(r"(?:\w+=\S+ )*kmura ((?!\.)[a-z-].*)", span)
        if match and "|" not in span:
            command, rest = resolved(re.sub(r"\[.*?\]|\.\.\.", "", match[1]).split())
            flags = {flag for param in command.get_params(click.Context(command)) for flag in param.opts}
            flags |= {"--help", "--version"}
            assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= flags, span


@every_page
def test_every_flag_mentioned_alone_belongs_to_a_command(page):
    leaves = [
        resolved(name.split())[0]
        for name in [*cli.commands, "weights port", "segment build", "segment fit", "segment predict"]
    ]
    contexts = [(leaf, click.Context(leaf)) for leaf in (*leaves, cli)]
    known = {flag for leaf, context in contexts for param in leaf.get_params(context) for flag in param.opts}
    known |= {flag for leaf, context in contexts for param in leaf.get_params(context) for flag in param.secondary_opts}
    scripts = "".join(script.read_text() for script in ROOT.glob("benchmarks/*.py"))
    for span in spans(page):
        if match := re.match(r"--[a-z-]+", span):
            assert match[0] in known | {"--help", "--version"} or f'"{match[0]}"' in scripts, span


@every_page
def test_every_configuration_key_exists(page):
    bundles = (ClassificationConfig, PretrainingConfig, SegmentationConfig)
    stages = [(field.name, dataclasses.fields(field.type)) for cls in bundles for field in dataclasses.fields(cls)]
    keys = {f"{stage}.{field.name}" for stage, fields in stages for field in fields}
    text = "\n".join([*spans(page), *blocks(page, "console")])
    named = set(re.findall(rf"(?<![\w./-])((?:{'|'.join(dict(stages))})\.[a-z_0-9]+)(?![\w.(])", text))
    named -= {"cam.py", "model.safetensors", "train.csv", "data.dataset"}  # files, and a module
    named -= {"train.lr", "train.focal"}  # an example of an invalid key, and a prefix of several keys
    assert named <= keys


@every_page
def test_every_module_and_file_exists(page):
    for span in spans(page):
        if match := re.fullmatch(r"(kmura(?:\.\w+)+)(?:\(.*)?", span):
            assert _has(match[1]), f"{page.name} names {match[1]}"
        if re.fullmatch(r"(kmura|cli|tests|docs|benchmarks)/[\w./-]*", span) and span not in NEW_FILES:
            assert (ROOT / span).exists(), f"{page.name} names {span}"


def _has(dotted: str) -> bool:
    """Returns whether a module, or a name in a module, exists, without importing it."""
    path, (_, *names) = ROOT / "kmura", dotted.split(".")
    if names[0] == "cli":
        path, names = ROOT, ["cli", *names[1:]]
    while names and (path / names[0]).is_dir():
        path, names = path / names[0], names[1:]
    if names and (path / f"{names[0]}.py").is_file():
        module, names = path / f"{names[0]}.py", names[1:]
    else:
        module = path / "__init__.py"
    return module.is_file() and all(re.search(rf"\b{name}\b", module.read_text()) for name in names)


@every_page
def test_python_examples_compile(page):
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name}, Python block {number + 1}", "exec")


def test_the_measurements_list_every_benchmark_and_its_options():
    page = ROOT / "benchmarks" / "README.md"
    names = {script.name for script in ROOT.glob("benchmarks/*.py")}
    assert set(re.findall(r"^\| `(\w+\.py)` \|", page.read_text(), re.MULTILINE)) == names
    for span in spans(page):
        if match := re.match(r"python benchmarks/(\w+\.py)(.*)", span):
            source = (ROOT / "benchmarks" / match[1]).read_text()
            for flag in re.findall(r"--[a-z-]+", match[2]):
                assert f'"{flag}"' in source, span
