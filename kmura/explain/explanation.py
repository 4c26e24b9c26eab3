"""The explanation of a run, as stored in `explain.json`."""

import dataclasses

from kmura import metrics

PICTURES = ("image", "cam", "saliency", "smoothgrad")
# name of a class activation map (`kmura.cam.METHODS`) -> name for people
TITLES = {
    "cam": "CAM",
    "grad_cam": "Grad-CAM",
    "grad_cam_pp": "Grad-CAM++",
    "grad_cam_pp_summed": "Grad-CAM++ (summed over the map)",
    "layer_cam": "LayerCAM",
}


@dataclasses.dataclass(frozen=True)
class Look:
    """A map of one image.

    Attributes:
        tap: name of the feature map, with the target class if the map does not explain the predicted class; or of an
            attention map.
        empty: whether the map has no positive evidence; the overlay then shows the unchanged image.
        box: left, top, right, bottom in pixels of the overlay, of the region above half of the map's maximum; None for
            an empty map.
        file: name of the overlay's file in the folder.
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
        image, study: path of the image relative to the root of the data, and name of its study.
        label, probability, caption: `truth`, `probability` and `caption` of `kmura.explain.outcomes.Reading`.
        empty, box: for the map of the explanation's `tap`, see Look.
        files: picture (one of PICTURES) -> file name in the folder.
        beside: additional maps: of the explanation's other taps; for the true class of a misclassified image; for
            requested classes; attention maps.
        borderline: whether it is one of the least confident images of its outcome instead of the most confident.
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
    borderline: bool = False


@dataclasses.dataclass(frozen=True)
class MeanCurves:
    """Deletion and insertion curves, averaged over the sample.

    An empty map is replaced by a random map.

    Attributes:
        share: [S] fraction of the pixels that are removed (deletion) or shown (insertion), 0 to 1.
        deletion, insertion: [S] mean confidence in the prediction, with pixels ordered by the model's maps.
        random_deletion, random_insertion: [S] the same, with pixels ordered by random maps.
        means: name -> mean over the sample with its 95 % patient-bootstrap interval: the areas under the four curves,
            `deletion_gain` and `insertion_gain` over random maps, and `drop` and `random_drop` of the confidence when
            the top 1 - cam.erase_q of the map is set to black.
    """

    share: list[float]
    deletion: list[float]
    insertion: list[float]
    random_deletion: list[float]
    random_insertion: list[float]
    means: dict[str, metrics.Interval]


@dataclasses.dataclass(frozen=True)
class Localization:
    """Agreement of the maps for `abnormal` with bounding boxes.

    Attributes:
        images: number of abnormal images with a box.
        pointing: fraction of them whose map has its maximum in a box, with its 95 % patient-bootstrap interval.
        chance: expected value of `pointing` for random maps: the mean fraction of the image covered by the boxes.
        overlap: mean intersection over union of the map's box with the best matching box of the image.
    """

    images: int
    pointing: metrics.Interval
    chance: float
    overlap: metrics.Interval


@dataclasses.dataclass(frozen=True)
class Worth:
    """The faithfulness of the maps of one feature map.

    Attributes:
        tap: name of the feature map.
        empty_share: fraction of the sample with an empty map, 0 to 1.
        curves: deletion and insertion curves.
        localization: agreement with boxes; None without boxes.
    """

    tap: str
    empty_share: float
    curves: MeanCurves
    localization: Localization | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The explanation of a run, as stored in `explain.json`.

    Attributes:
        run, area, phase: folder of the run as passed to `explain`, its area and its phase.
        model_sha256: SHA-256 of the explained `best.keras`.
        split: split of the images.
        cases: the galleries; within each outcome, the most confident cases come first and borderline cases last.
        counts: outcome -> number of images of the split.
        sample: number of images used for the curves.
        tap, empty_share, curves, localization: faithfulness of the first feature map, see Worth.
        beside: faithfulness of the feature maps of the other branches, if those are shown too.
        method: name of the class activation map in `kmura.cam.METHODS`.
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
    method: str = "grad_cam_pp"

    @property
    def method_title(self) -> str:
        """The class activation map for people: `Grad-CAM++`."""
        return TITLES[self.method]

    @property
    def worths(self) -> list[Worth]:
        """Faithfulness of all explained feature maps; the one of the explanation's `tap` comes first."""
        return [Worth(self.tap, self.empty_share, self.curves, self.localization), *self.beside]
