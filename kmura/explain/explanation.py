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

# field of Localization -> name for people
BOX_SCORES = {
    "pointing": "pointing game",
    "energy": "energy inside the boxes",
    "iou": "IoU of the map's region with the boxes",
    "overlap": "IoU of the map's box with the best box",
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
    """Agreement of maps with bounding boxes, see `kmura.explain.boxes.scores.box_scores`.

    Values are means over the images with 95 % patient-bootstrap intervals. An empty map counts 0.

    Attributes:
        images: number of images with a box; with several labels, of pairs of an image and a label.
        pointing: share of the maps whose maximum is in a box; a maximum of several pixels counts by their share.
        chance: mean share of the image that the boxes cover: the expected `pointing` and `energy` of random maps.
        overlap: mean IoU of the map's box with the best box of the image.
        energy: mean share of the map's sum that is in the boxes; None in explanations of kmura 0.2 and older, which
            lack all of the following, too.
        iou: mean IoU of the region above half of the map's maximum with the union of the boxes.
        random: `iou` and `overlap` -> mean of random maps, see `kmura.explain.faithfulness.maps_of_chance`.
        others: score -> mean of the maps of other patients' images against the boxes of this image; without a score if
            there is no other patient.
        empty_share: share of the maps without positive evidence.
        patients: number of patients.
        classes: class of the boxes ("" for boxes without one) -> the same for the boxes of this class alone; empty if
            all boxes are of one class.
    """

    images: int
    pointing: metrics.Interval
    chance: float
    overlap: metrics.Interval
    energy: metrics.Interval | None = None
    iou: metrics.Interval | None = None
    random: dict[str, float] = dataclasses.field(default_factory=dict)
    others: dict[str, float] = dataclasses.field(default_factory=dict)
    empty_share: float | None = None
    patients: int | None = None
    classes: dict[str, "Localization"] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> list[tuple[str, metrics.Interval, float | None, float | None]]:
        """For each score its name for people, its value, that of random maps, and that of maps of other patients."""
        rows = []
        for name, title in BOX_SCORES.items():
            value = getattr(self, name)
            if value is not None:
                by_chance = self.chance if name in ("pointing", "energy") else self.random.get(name)
                rows.append((title, value, by_chance, self.others.get(name)))
        return rows


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
        boxes_of: `positive` or `all`, see `kmura.explain.boxes.placing.BoxOptions`.
        notes: what was read from the file of boxes, sentences.
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
    boxes_of: str = "positive"
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def method_title(self) -> str:
        """The class activation map for people: `Grad-CAM++`."""
        return TITLES[self.method]

    @property
    def worths(self) -> list[Worth]:
        """Faithfulness of all explained feature maps; the one of the explanation's `tap` comes first."""
        return [Worth(self.tap, self.empty_share, self.curves, self.localization), *self.beside]
