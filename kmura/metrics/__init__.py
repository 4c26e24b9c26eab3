"""Metrics of predictions at image and study level: functions of arrays without dependencies on the rest of kmura."""

# ruff: noqa: F401 (the public names)

from kmura.metrics.binary import (
    FROM_CONFUSION,
    FROM_PROBABILITY,
    FROM_RANKS,
    POOLINGS,
    SCORES,
    Studies,
    auc,
    average_precision,
    brier,
    confusion,
    log_loss,
    pool_studies,
    scores,
)
from kmura.metrics.calibration_error import (
    Bins,
    CalibrationError,
    bin_edges,
    brier_decomposition,
    calibration_errors,
    reliability_bins,
)
from kmura.metrics.multiclass import (
    FROM_MATRIX,
    MULTICLASS_SCORES,
    by_class,
    confusion_matrix,
    multiclass_scores,
    multilabel_scores,
    one_vs_rest,
    pool_classes,
    probabilities,
)
from kmura.metrics.resampling import (
    DeLong,
    Interval,
    averages,
    bootstrap_weights,
    cluster_weights,
    delong,
    differences,
    intervals,
    wilson,
)
