"""Published values of Cohen's kappa (abnormal or normal) on MURA, for studies of a test set that is not public."""

import dataclasses
from collections.abc import Mapping

from kmura.tasks import ALL

SOURCE = "the hidden one of 207 studies (Rajpurkar et al. 2018, and the leaderboard of MURA)"


@dataclasses.dataclass(frozen=True)
class Published:
    """Published values of one reader or model.

    Attributes:
        name: of the reader or model.
        kappas: area -> kappa; ALL stands for the studies of the seven areas of MURA.
    """

    name: str
    kappas: Mapping[str, float]


MURA_AREAS = ("XR_ELBOW", "XR_FINGER", "XR_FOREARM", "XR_HAND", "XR_HUMERUS", "XR_SHOULDER", "XR_WRIST")

PUBLISHED = (Published("best radiologist", {ALL: 0.778}), Published("top of the leaderboard", {ALL: 0.843}))

# Of an earlier system of this project, a model of 14 classes (area and abnormality together). Its source does not state
# what the value is of; its accuracy of 0.79 implies a kappa near 0.77 for the 14 classes, so that 0.612 can only be the
# kappa of abnormal or normal. The level (image or study) is not known; the system otherwise reports images.
EARLIER_KAPPA = 0.612

# Of an earlier system of this project, twenty regions on CT: volume 1 of seven, trained on the others with slices split
# at random. Prediction, IoU, mean misclassification rate, FP / FN (mean and variance over the classes).
CT_FIGURES = (
    ("axial", "0.51", "1.47e-3", "1.09 (1.49)"),
    ("coronal", "0.43", "1.61e-3", "0.73 (0.29)"),
    ("sagittal, before a manual repair", "0.13", "2.62e-3", "0.89 (1.21)"),
    ("majority of the three", "0.46", "1.31e-3", "0.37 (0.09)"),
)
