"""What an explanation of a run says: what `explain.json` holds."""

import dataclasses

from kmura import metrics

PICTURES = ("image", "cam", "saliency", "smoothgrad")


@dataclasses.dataclass(frozen=True)
class Look:
    """A map of one image.

    Attributes:
        tap: the feature map; with the class where the map is not towards the predicted one; or an attention map.
        empty: no positive evidence; the picture then shows the image as it is.
        box: left, top, right, bottom of the region above half of the map's maximum, pixels of the picture; or None.
        file: name of the picture in the folder.
    """

    tap: str
    empty: bool
    box: tuple[int, int, int, int] | None
    file: str


@dataclasses.dataclass(frozen=True)
class Case:
    """One image of the galleries.

    Attributes:
        outcome: of `kmura.explain.outcomes.OUTCOMES` or CLASS_OUTCOMES.
        label, probability, caption: `truth`, `probability` and `caption` of `kmura.explain.outcomes.Reading`.
        empty, box: of the map of the explanation's `tap`, see Look.
        files: picture (of PICTURES) -> file name in the folder.
        beside: the maps of the explanation's other taps; of an image taken for another class the map towards its own;
            those towards classes that were asked for; attention maps.
    """

    outcome: str
    image: str
    study: str
    label: int
    probability: float
    caption: str
    empty: bool
    box: tuple[int, int, int, int] | None
    files: dict[str, str]
    beside: list[Look]


@dataclasses.dataclass(frozen=True)
class Localization:
    """Maps towards `abnormal` against boxes.

    Attributes:
        images: abnormal images with a box that were looked at.
        pointing: share of them whose hottest pixel lies in a box, with its 95 % patient-bootstrap interval.
        chance: what pointing blindly would hit, the mean share of the image that the boxes cover.
        overlap: mean intersection over union of the map's box with the best of the image's.
    """

    images: int
    pointing: metrics.Interval
    chance: float
    overlap: metrics.Interval


@dataclasses.dataclass(frozen=True)
class Worth:
    """What the maps of a feature map are worth.

    Attributes:
        tap: the feature map.
        empty_share: share of the sample whose map is empty.
        curves: deletion and insertion over `share`, and under `means` (over the sample, with intervals by patient
            bootstrap) the areas under them, their gain over maps of chance, and the drop of confidence when the top
            1 - cam.erase_q of the map is black. An image with an empty map counts in the curves as by chance.
        localization: None without boxes.
    """

    tap: str
    empty_share: float
    curves: dict
    localization: Localization | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain.json` holds.

    Attributes:
        model_sha256: of the `best.keras` that is explained.
        split: whose images.
        cases: the galleries, per outcome the most confident first.
        counts: outcome -> images of the split.
        sample: images behind the curves.
        tap, empty_share, curves, localization: of the maps that are explained, see Worth.
        beside: the same of the other branches' maps, where those are shown too.
    """

    run: str
    area: str
    phase: str
    model_sha256: str
    split: str
    tap: str
    cases: list[Case]
    counts: dict[str, int]
    empty_share: float
    sample: int
    curves: dict
    localization: Localization | None
    beside: list[Worth]
