"""The explanation of a run, as `explain.json` holds it."""

import dataclasses

from kmura import metrics

PICTURES = ("image", "cam", "saliency", "smoothgrad")


@dataclasses.dataclass(frozen=True)
class Look:
    """A map of one image.

    Attributes:
        tap: the feature map; with the class, if the map is not towards the predicted one; or an attention map.
        empty: whether there is no positive evidence; the picture then shows the image as it is.
        box: left, top, right, bottom in pixels of the picture, of the region above half of the map's maximum; None for
            an empty map.
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
        outcome: one of `kmura.explain.outcomes.OUTCOMES` or CLASS_OUTCOMES.
        image, study: path of the image relative to the root of the data, and its study.
        label, probability, caption: `truth`, `probability` and `caption` of `kmura.explain.outcomes.Reading`.
        empty, box: of the map of the explanation's `tap`, see Look.
        files: picture (one of PICTURES) -> file name in the folder.
        beside: further maps: of the explanation's other taps; towards the true class of an image that was taken for
            another class; towards classes that were asked for; attention maps.
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
    beside: list[Look] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class MeanCurves:
    """Deletion and insertion, averaged over the sample.

    An image with an empty map counts as if its map were random.

    Attributes:
        share: [S] share of the pixels that are removed (deletion) or shown (insertion), 0 to 1.
        deletion, insertion: [S] mean confidence in the prediction, by the model's maps.
        random_deletion, random_insertion: [S] the same by random maps.
        means: name -> mean over the sample with its 95 % patient-bootstrap interval: the areas under the four curves,
            `deletion_gain` and `insertion_gain` over random maps, and `drop` and `random_drop` of the confidence when
            the top 1 - cam.erase_q of the map is black.
    """

    share: list[float]
    deletion: list[float]
    insertion: list[float]
    random_deletion: list[float]
    random_insertion: list[float]
    means: dict[str, metrics.Interval]


@dataclasses.dataclass(frozen=True)
class Localization:
    """Maps towards `abnormal` against boxes.

    Attributes:
        images: number of abnormal images with a box.
        pointing: share of them whose hottest pixel is in a box, with its 95 % patient-bootstrap interval.
        chance: the share that random pointing would reach: the mean share of the image that the boxes cover.
        overlap: mean intersection over union of the map's box with the best of the image's boxes.
    """

    images: int
    pointing: metrics.Interval
    chance: float
    overlap: metrics.Interval


@dataclasses.dataclass(frozen=True)
class Worth:
    """How faithful the maps of one feature map are.

    Attributes:
        tap: the feature map.
        empty_share: share of the sample whose map is empty, 0 to 1.
        curves: deletion and insertion.
        localization: None without boxes.
    """

    tap: str
    empty_share: float
    curves: MeanCurves
    localization: Localization | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The explanation of a run, as `explain.json` holds it.

    Attributes:
        run, area, phase: folder of the run as it was given, and its names.
        model_sha256: of the `best.keras` that is explained.
        split: of the images.
        cases: the galleries; of each outcome the most confident cases first.
        counts: outcome -> number of images of the split.
        sample: number of images behind the curves.
        tap, empty_share, curves, localization: of the maps that are explained, see Worth.
        beside: the same of the maps of the other branches, if those are shown too.
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
    curves: MeanCurves
    localization: Localization | None
    beside: list[Worth] = dataclasses.field(default_factory=list)

    @property
    def worths(self) -> list[Worth]:
        """Of all feature maps that are explained, the explanation's own first."""
        return [Worth(self.tap, self.empty_share, self.curves, self.localization), *self.beside]
