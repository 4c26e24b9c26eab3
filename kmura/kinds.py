"""The registry of kinds of learning: which function or class does each part of the work.

A kind is added by one entry here and one package. Parts are named `module:attribute` and imported when they are used,
so that reading a run folder imports no TensorFlow. Commands look the kind of a run up; they do not compare its name.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from kmura.errors import InputError, check_choice

CLASSIFICATION = "classification"  # what runs of version 1, which do not name their kind, are of


@dataclasses.dataclass(frozen=True)
class Kind:
    """The parts of a kind of learning; each is `module:attribute`, or the object itself.

    Attributes:
        config: the configuration bundle, a frozen dataclass of stages; it has the stages `data` and `train`.
        learner: (Dataset, config, load_weights=...) -> `kmura.training.loop.Learner`.
        evaluate: (Run, **options) -> the scores of the run, also written into its folder.
        evaluation: (Run) -> (what `evaluate` wrote, the table of predictions), read back and checked.
        chapter: (Run, number, eda) -> `kmura.report.chapter.Chapter`, the run's part of a report.
        contract: (Run, records=..., threshold=...) -> `kmura.serving.contract.Contract`, what the model's answers mean.
            None for a kind that is neither exported nor served.
    """

    config: str | type
    learner: str | Callable
    evaluate: str | Callable
    evaluation: str | Callable
    chapter: str | Callable
    contract: str | Callable | None = None


KINDS: dict[str, Kind] = {
    CLASSIFICATION: Kind(
        config="kmura.config:ClassificationConfig",
        learner="kmura.classification.learner:ClassificationLearner",
        evaluate="kmura.evaluation.classification:evaluate_run",
        evaluation="kmura.evaluation.evaluation:read_evaluation",
        chapter="kmura.report.classification_chapter:chapter",
        contract="kmura.serving.contract:classification_contract",
    ),
}


def part(kind: str, name: str) -> Any:
    """The part `name` (a field of Kind) of a kind.

    Raises:
        InputError: there is no such kind, or it has no such part.
    """
    check_choice("kind of run", kind, KINDS)
    value = getattr(KINDS[kind], name)
    if value is None:
        raise InputError(f"runs of kind {kind} have no {name}; choose a run of another kind")
    if not isinstance(value, str):
        return value
    module, _, attribute = value.partition(":")
    return getattr(importlib.import_module(module), attribute)
