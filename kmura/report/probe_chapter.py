"""The chapter of a probe without a model: scores, errors and probabilities, but no training curves and no maps."""

import dataclasses
from pathlib import Path

from kmura.report import classification_chapter
from kmura.report.chapter import Chapter
from kmura.runs.run import Run

_OF_MODELS = ("How did the training go?", "Do the maps show what the model uses?")


def chapter(run: Run, number: int, eda: Path | None = None) -> Chapter:
    """Returns the chapter of a probe; arguments and errors as of `kmura.report.classification_chapter.chapter`."""
    whole = classification_chapter.chapter(run, number, eda)
    return dataclasses.replace(whole, sections=tuple(part for part in whole.sections if part.heading not in _OF_MODELS))
