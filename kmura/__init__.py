"""Build, train, evaluate, explain and serve models of medical images.

`import kmura` is fast: the names below import their modules (and TensorFlow) on first use.
"""

import importlib
import os

from kmura.registration import register_with_keras, use_tensorflow

# TensorFlow reads it once, on import: it enables oneDNN kernels also on processors without AVX-512. 0 disables them.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"

# public name -> the module that defines it
_HOMES = {
    "build_records": "kmura.records.writer",
    "Dataset": "kmura.data.dataset",
    "build_model": "kmura.models.build",
    "fit": "kmura.classification.fit",
    "tune": "kmura.classification.search",
    "pretrain": "kmura.pretraining.pretrain",
    "probe": "kmura.pretraining.probe",
    "evaluate": "kmura.evaluation.evaluate",
    "compare": "kmura.evaluation.compare",
    "explain": "kmura.explain.gallery",
    "export": "kmura.export.bundle",
    "predict": "kmura.prediction.predict",
    "score": "kmura.report.score",
}

__all__ = [
    "Dataset",
    "build_model",
    "build_records",
    "compare",
    "evaluate",
    "explain",
    "export",
    "fit",
    "predict",
    "pretrain",
    "probe",
    "score",
    "tune",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kmura' has no attribute {name!r}")


def __dir__():
    return [*__all__, "__version__"]


use_tensorflow()
register_with_keras()
