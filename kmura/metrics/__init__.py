"""Metrics of predictions at image and study level: functions of arrays without dependencies on the rest of kmura."""

# ruff: noqa: F401 (the public names)

from kmura.metrics.binary import (
    FROM_CONFUSION,
    FROM_PROBABILITY,
    FROM_RANKS,
    POOLINGS,
    SCORES,
    TINY,
    Scorer,
    Studies,
    auc,
    average_precision,
    brier,
    confusion,
    log_loss,
    log_losses,
    pool_studies,
    scores,
    study_keys,
)
from kmura.metrics.binary_intervals import binary_intervals
from kmura.metrics.calibration_error import (
    CALIBRATION_ERRORS,
    Bins,
    CalibrationError,
    bin_edges,
    brier_decomposition,
    calibration_errors,
    reliability_bins,
)
from kmura.metrics.clustered_auc import (
    ClusteredAuc,
    DeLong,
    auc_interval,
    clustered_auc,
    delong,
    mean_auc_interval,
)
from kmura.metrics.intervals import (
    BOUNDS,
    SIMULTANEOUS,
    WILSON,
    Interval,
    Z,
    combined_halves,
    intervals,
    kappa_bounds,
    mean_bounds,
    score_interval,
    share_of_f1,
    wilson,
    with_width,
)
from kmura.metrics.multiclass import (
    BY_CLASS,
    CLASS,
    FROM_MATRIX,
    MEAN,
    MULTICLASS_SCORES,
    ClassScorer,
    by_class,
    confusion_matrix,
    macro_auc,
    multiclass_scores,
    multilabel_scores,
    one_vs_rest,
    pool_classes,
    probabilities,
)
from kmura.metrics.resampling import (
    PatientBootstrap,
    averages,
    bootstrap_weights,
    cluster_weights,
    differences,
    patient_means,
)
from kmura.metrics.simultaneous import Simultaneous, simultaneous
