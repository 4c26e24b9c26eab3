"""Cohen's kappa of abnormal or normal that others published on MURA, studies of a test set that is not public."""

import dataclasses
from collections.abc import Mapping

from kmura.tasks import ALL

SOURCE = "the hidden one of 207 studies (Rajpurkar et al. 2018, and the leaderboard of MURA)"


@dataclasses.dataclass(frozen=True)
class Published:
    """Whose they are, and area (`ALL`: studies of the seven of MURA) -> kappa."""

    name: str
    kappas: Mapping[str, float]


MURA_AREAS = ("XR_ELBOW", "XR_FINGER", "XR_FOREARM", "XR_HAND", "XR_HUMERUS", "XR_SHOULDER", "XR_WRIST")

PUBLISHED = (Published("best radiologist", {ALL: 0.778}), Published("top of the leaderboard", {ALL: 0.843}))

# of the 14 classes area by abnormality at image level: the system that this project had before
EARLIER_CLASS_KAPPA = 0.612
