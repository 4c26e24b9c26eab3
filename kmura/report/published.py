"""Cohen's kappa of abnormal or normal that others published on MURA, studies of a test set that is not public."""

import dataclasses
from collections.abc import Mapping

from kmura.data.index import ALL

SOURCE = "the hidden one of 207 studies (Rajpurkar et al. 2018, table 2, and the leaderboard of MURA)"


@dataclasses.dataclass(frozen=True)
class Published:
    """Whose they are, and area (`ALL`: studies of the seven of MURA) -> kappa."""

    name: str
    kappas: Mapping[str, float]


_AREAS = ("XR_ELBOW", "XR_FINGER", "XR_FOREARM", "XR_HAND", "XR_HUMERUS", "XR_SHOULDER", "XR_WRIST", ALL)
_RADIOLOGISTS = (0.850, 0.410, 0.802, 0.927, 0.933, 0.864, 0.931, 0.778)
_MODEL = (0.710, 0.389, 0.737, 0.851, 0.600, 0.729, 0.931, 0.705)

PUBLISHED = (
    Published("best radiologist", dict(zip(_AREAS, _RADIOLOGISTS, strict=True))),
    Published("Rajpurkar's 169-layer model", dict(zip(_AREAS, _MODEL, strict=True))),
    Published("top of the leaderboard", {ALL: 0.843}),
)

# of the 14 classes area by abnormality at image level: the system that this project had before
EARLIER_CLASS_KAPPA = 0.612
