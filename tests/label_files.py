"""Small folders of images with a CSV of labels, as public data sets have them."""

from pathlib import Path

from conftest import textured


def write_images(root: Path, *names: str, size=(24, 20)) -> Path:
    """Writes one different noise image per name, in the format of its suffix; returns the folder."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        textured(hash_of(name) + seed, size).save(path)
    return root


def hash_of(name: str) -> int:
    """A number that depends on the name alone, unlike Python's hash."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 2**31


def write_csv(path: Path, *rows: str, separator=",", end="\n", encoding="utf-8") -> Path:
    """Writes rows, whose cells are separated by commas in the arguments; returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(row.replace(",", separator) + end for row in rows)
    path.write_bytes(text.encode(encoding))
    return path
