"""A description of the images of records, as stored in `eda.json`. Does not import TensorFlow."""

import dataclasses

BINS = 32  # of the histograms of gray values 0..255


@dataclasses.dataclass(frozen=True)
class Intensity:
    """Gray values (0..255) of the images of a class, reduced to thumbnails: means over images.

    Attributes:
        images, studies: numbers of images and studies.
        mean, deviation: of an image's pixels, averaged over images.
        between: standard deviation of the images' means.
        black, white: share of pixels at 5 or below, and at 250 or above, 0 to 1.
        histogram: share of the pixels in BINS bins of equal width, in order; empty in files of earlier versions.
    """

    images: int
    studies: int
    mean: float
    deviation: float
    between: float
    black: float
    white: float
    histogram: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Outlier:
    """An image whose mean gray value is far from those of its area: z is the modified z-score 0.6745 (x - median) / MAD
    of Iglewicz & Hoaglin (1993)."""

    image: str
    split: str
    mean: float
    z: float


@dataclasses.dataclass(frozen=True)
class NearDouble:
    """A pair of near-duplicate images.

    Attributes:
        one, other: paths of the images.
        splits: splits of the two images.
        correlation: Pearson correlation of their thumbnails.
        crosses: whether they are in different splits.
    """

    one: str
    other: str
    splits: tuple[str, str]
    correlation: float
    crosses: bool


@dataclasses.dataclass(frozen=True)
class PrincipalParts:
    """How many principal components of the thumbnails explain a share of their variance.

    Attributes:
        images: number of images, a random sample.
        pca, incremental: share -> number of components by scikit-learn's PCA (full SVD) and IncrementalPCA; None if
            `kmura.evaluation.eda.MOST_COMPONENTS` are not enough.
        cumulative: share of the variance that the first 1, 2, ... components of the PCA explain, at most 50 entries.
    """

    images: int
    pca: dict[str, int | None]
    incremental: dict[str, int | None]
    cumulative: list[float]


@dataclasses.dataclass(frozen=True)
class AreaData:
    """The images of one area.

    Attributes:
        classes: name of a class -> gray values of its images.
        height, width: smallest, median and largest of the stored images, in pixels.
        outliers, near_doubles, principal: of all images of the area.
        splits: split -> name of a class (or `unknown`) -> number of its images; empty in files of earlier versions.
    """

    classes: dict[str, Intensity]
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    outliers: list[Outlier]
    near_doubles: list[NearDouble]
    principal: PrincipalParts
    splits: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Eda:
    """A description of the images of records.

    Attributes:
        records: folder of the records, as it was given.
        inputs: the fingerprint of the records, as in their manifest.
        areas: area -> its images.
    """

    records: str
    inputs: str
    areas: dict[str, AreaData]
