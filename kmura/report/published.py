"""Published values of Cohen's kappa for abnormal or normal on the studies of MURA's test set, which is not public."""

import dataclasses
from collections.abc import Mapping

from kmura.tasks import ALL

SOURCE = "the hidden one of 207 studies (Rajpurkar et al. 2018, and the leaderboard of MURA)"


@dataclasses.dataclass(frozen=True)
class Published:
    """The source of published values, and area (`ALL`: the seven areas of MURA) -> kappa."""

    name: str
    kappas: Mapping[str, float]


MURA_AREAS = ("XR_ELBOW", "XR_FINGER", "XR_FOREARM", "XR_HAND", "XR_HUMERUS", "XR_SHOULDER", "XR_WRIST")

PUBLISHED = (Published("best radiologist", {ALL: 0.778}), Published("top of the leaderboard", {ALL: 0.843}))

# of an earlier system of this project, over the 14 classes (area and abnormality), image level
EARLIER_CLASS_KAPPA = 0.612
