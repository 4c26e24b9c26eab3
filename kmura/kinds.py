"""The registry of kinds of learning, with the functions and classes that implement each kind.

To add a kind, add one entry here and one package. Parts are named `module:attribute` and imported on first use, so that
reading a run folder does not import TensorFlow. Commands look up the kind of a run; they do not compare its name.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from kmura.errors import InputError, check_choice

CLASSIFICATION = "classification"  # also the kind of runs of version 1, which do not state it
PRETRAINING = "pretraining"
SEGMENTATION = "segmentation"
FUSION = "fusion"  # of the planes of a segmentation, without a Keras model
PROBE = "probe"  # of an encoder, without a Keras model
FOLDS = "folds"  # held-out predictions of the classifiers of a cross-validation, without a Keras model of its own


@dataclasses.dataclass(frozen=True)
class Kind:
    """The parts of a kind of learning; each is `module:attribute`, or the object itself.

    Attributes:
        config: the configuration bundle, a frozen dataclass of stages that include `data` and `train`.
        learner: (Dataset, config, load_weights=...) -> `kmura.training.loop.Learner`; None for kinds that have no
            training loop.
        evaluate: (Run, **options) -> the scores of the run, which are also written to its folder.
        evaluation: (Run) -> (the scores that `evaluate` wrote, the table of predictions), read and checked.
        chapter: (Run, number, eda) -> `kmura.report.chapter.Chapter`, the chapter of the run in a report.
        contract: (Run, records=..., threshold=...) -> `kmura.serving.contract.Contract`, the meaning of the model's
            outputs; None for kinds whose models cannot be explained, exported and served.
        export: (Run, out, **options) -> what `kmura export` shows; None for kinds that cannot be exported.
        ensemble: (runs, out, **options) -> the same for several runs that are exported as one; None for kinds without.
        questions: (Run) -> the binary predictions of the run by area, which `kmura compare` compares; None for kinds
            without class predictions.
        comparison: (runs, **options) -> what `kmura compare` shows; None for kinds that cannot be compared.
        dataset: (records, area, DataConfig of the kind) -> `kmura.data.dataset.Dataset`.
        volumes: what segments a whole volume, see `kmura.segmentation.segment.segment`; None for other kinds.
        instead: what a user can do with runs of this kind instead of using a part that they do not have.
    """

    config: str | type
    learner: str | Callable | None
    evaluate: str | Callable
    evaluation: str | Callable
    chapter: str | Callable
    contract: str | Callable | None = None
    export: str | Callable | None = None
    ensemble: str | Callable | None = None
    questions: str | Callable | None = None
    comparison: str | Callable | None = None
    dataset: str | Callable = "kmura.data.dataset:Dataset"
    volumes: str | Callable | None = None
    instead: str = "choose a run of another kind"


KINDS: dict[str, Kind] = {
    CLASSIFICATION: Kind(
        config="kmura.config:ClassificationConfig",
        learner="kmura.classification.learner:ClassificationLearner",
        evaluate="kmura.evaluation.classification:evaluate_run",
        evaluation="kmura.evaluation.evaluation:read_evaluation",
        chapter="kmura.report.classification_chapter:chapter",
        contract="kmura.serving.contract:classification_contract",
        export="kmura.export.bundle:export_classifier",
        ensemble="kmura.export.ensemble:export_ensemble",
        questions="kmura.evaluation.class_scores:binary_tables",
        comparison="kmura.evaluation.compare:compare_classifiers",
    ),
    PRETRAINING: Kind(
        config="kmura.config:PretrainingConfig",
        learner="kmura.pretraining.pair_learner:PretrainingLearner",
        evaluate="kmura.evaluation.encoder:evaluate_run",
        evaluation="kmura.evaluation.encoder:read_evaluation",
        chapter="kmura.report.pretraining_chapter:chapter",
        instead="probe the encoder with kmura probe RUN, or train a classifier with kmura fit --weights RUN/encoder",
    ),
    SEGMENTATION: Kind(
        config="kmura.config:SegmentationConfig",
        learner="kmura.segmentation.slice_learner:SegmentationLearner",
        evaluate="kmura.segmentation.volume_scores:evaluate_run",
        evaluation="kmura.segmentation.volume_scores:read_evaluation",
        chapter="kmura.report.segmentation_chapter:chapter",
        comparison="kmura.segmentation.volume_comparison:compare_volumes",
        export="kmura.export.slice_model:export_slices",
        dataset="kmura.data.volume_dataset:VolumeDataset",
        volumes="kmura.segmentation.segment:segment",
        instead="segment a scan with kmura segment predict",
    ),
    FUSION: Kind(
        config="kmura.config:FusionConfig",
        learner=None,
        evaluate="kmura.segmentation.fuse:evaluate_run",
        evaluation="kmura.segmentation.volume_scores:read_evaluation",
        chapter="kmura.report.segmentation_chapter:chapter",
        comparison="kmura.segmentation.volume_comparison:compare_volumes",
        dataset="kmura.data.volume_dataset:VolumeDataset",
        instead="segment a scan with kmura segment predict RUNS/AREA",
    ),
    PROBE: Kind(
        config="kmura.config.probing:ProbeConfig",
        learner=None,
        evaluate="kmura.evaluation.rescoring:rescore_run",
        evaluation="kmura.evaluation.evaluation:read_evaluation",
        chapter="kmura.report.classification_chapter:chapter",
        questions="kmura.evaluation.class_scores:binary_tables",
        comparison="kmura.evaluation.compare:compare_classifiers",
        instead="probe an encoder with --method linear or layer, which give a classifier",
    ),
    FOLDS: Kind(
        config="kmura.config:ClassificationConfig",
        learner=None,
        evaluate="kmura.evaluation.cross_validation:evaluate_run",
        evaluation="kmura.evaluation.cross_validation:read_evaluation",
        chapter="kmura.report.classification_chapter:chapter",
        questions="kmura.evaluation.class_scores:binary_tables",
        comparison="kmura.evaluation.compare:compare_classifiers",
        instead="give the runs of its folds, RUNS/foldN/AREA/PHASE",
    ),
}

WORDS = {
    "contract": "classifier",
    "export": "classifier",
    "ensemble": "ensemble",
    "questions": "class predictions",
    "comparison": "class predictions",
    "volumes": "segmentation of volumes",
}  # what users call the parts that may be missing


def part(kind: str, name: str) -> Any:
    """Returns a part of a kind.

    Args:
        kind: a name of KINDS.
        name: a field of Kind.

    Raises:
        InputError: the kind is unknown, or it does not have this part.
    """
    check_choice("kind of run", kind, KINDS)
    value = getattr(KINDS[kind], name)
    if value is None:
        raise InputError(f"runs of kind {kind} have no {WORDS.get(name, name)}; {KINDS[kind].instead}")
    if not isinstance(value, str):
        return value
    module, _, attribute = value.partition(":")
    return getattr(importlib.import_module(module), attribute)
