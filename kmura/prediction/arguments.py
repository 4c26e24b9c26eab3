"""Which of a list of paths are models and which are images. Does not import TensorFlow."""

import os
from collections.abc import Sequence
from pathlib import Path

from kmura.runs.fold_runs import FOLD_RUNS
from kmura.runs.run import RunFolder
from kmura.serving.contract import SIGNATURE


def models_and_images(paths: Sequence[str | os.PathLike]) -> tuple[list[str | os.PathLike], list[str | os.PathLike]]:
    """Returns the models and the images of a list of paths.

    The first path is a model, and so are those after it that look like one, see `looks_like_model`.
    """
    number = 1
    while number < len(paths) and looks_like_model(paths[number]):
        number += 1
    return list(paths[:number]), list(paths[number:])


def looks_like_model(path: str | os.PathLike) -> bool:
    """Returns whether a path is a run, a folder of folds, an export or a `.keras` file, rather than images."""
    path = Path(path)
    if path.suffix == ".keras":
        return True
    if not path.is_dir():
        return False
    if RunFolder(path).description.is_file() or any(path.glob(FOLD_RUNS)):
        return True
    return any((folder / SIGNATURE).is_file() for folder in (path, *path.glob("[0-9]*")))
