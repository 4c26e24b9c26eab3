"""The evaluation of a pretrained encoder: how much its features tell images apart, without training a classifier.

`kmura probe` trains one. This evaluation needs no labels; where there are some, it also states how often the nearest
neighbour of an image has the same label.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from kmura.errors import InputError, unreadable
from kmura.files import replacing, sha256_of, write_json
from kmura.pretraining.collapse import Spread, effective_rank, spread
from kmura.pretraining.methods import METHODS
from kmura.runs.run import Run
from kmura.typed import FieldError, from_json, other_version, read_json

FEATURES = "features.npz"  # in the run folder
VERSION = 1
MOST_IMAGES = 2000  # more are sampled
TSNE_IMAGES = 1000
QUERIES, NEIGHBOURS = 6, 5
THUMBNAIL = 96  # pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderEvaluation:
    """What `evaluate` found about an encoder, as stored in `metrics.json`.

    Attributes:
        pretraining_version: of the file.
        run: folder of the run, as it was given to `evaluate`.
        area, phase: of the run.
        split: of the images.
        images: number of images.
        labelled: number of those with a known label.
        embeddings: spread of the projections on which the loss is computed.
        feature_std: mean over the dimensions of the standard deviation of a feature.
        feature_rank: effective rank of the features.
        dead_features: share of the features that are the same for all images.
        same_label: share of the labelled images whose nearest other image (cosine similarity of the features) has the
            same label; None without labels.
        expected_same_label: the share for neighbours drawn at random; None without labels.
        model_sha256: of the `best.keras` that was evaluated.
    """

    pretraining_version: int = VERSION
    run: str
    area: str
    phase: str
    split: str
    images: int
    labelled: int
    embeddings: Spread
    feature_std: float
    feature_rank: float
    dead_features: float
    same_label: float | None
    expected_same_label: float | None
    model_sha256: str

    @property
    def facts(self) -> dict[str, str]:
        """The values as texts, for people."""
        facts = {
            "images": f"{self.images} of {self.split}, {self.labelled} with a known label",
            "embeddings": ("collapsed: " if self.embeddings.has_collapsed else "") + self.embeddings.text,
            "features": f"standard deviation {self.feature_std:.3g}, effective rank {self.feature_rank:.1f}, "
            f"{self.dead_features:.1%} of them constant",
        }
        if self.same_label is not None:
            facts["nearest neighbour"] = (
                f"has the same label for {self.same_label:.1%} of the images (by chance {self.expected_same_label:.1%})"
            )
        return facts


@dataclasses.dataclass(frozen=True)
class EncoderFeatures:
    """The arrays of an evaluation, as stored in `features.npz`.

    Attributes:
        features: float32 [N, F].
        label: int64 [N, L], -1 where unknown; see `kmura.data.dataset.Dataset.ids`.
        path: paths of the images [N].
        pca: float32 [N, 2], the first two principal components; `pca_share` [2] their shares of the variance.
        tsne: float32 [n, 2] of the first n = min(N, TSNE_IMAGES) images, empty if there are fewer than 10.
        queries: int64 [Q], rows of the images whose neighbours are shown.
        neighbours: int64 [Q, K], rows of the nearest other images, nearest first; `similarity` [Q, K] their cosines.
        thumbnails: uint8 [Q, 1 + K, h, w], the query and its neighbours.
    """

    features: np.ndarray
    label: np.ndarray
    path: np.ndarray
    pca: np.ndarray
    pca_share: np.ndarray
    tsne: np.ndarray
    queries: np.ndarray
    neighbours: np.ndarray
    similarity: np.ndarray
    thumbnails: np.ndarray


def evaluate_run(
    run: Run, *, records: str | os.PathLike | None = None, split: str = "val", seed: int = 0, **_
) -> EncoderEvaluation:
    """Evaluates the encoder of a run; also writes `metrics.json` and `features.npz` to the run folder.

    Args:
        run: a run of the kind pretraining.
        records: folder of the records, if they have moved since the training.
        split: the images.
        seed: of the sample of images, the images whose neighbours are shown, and t-SNE.
        **_: options of other kinds, which have no meaning here.

    Raises:
        InputError: the run has no finished epoch, or the records are missing or differ from those of the run.
    """
    dataset, network = run.dataset(records), run.model()
    rng = np.random.default_rng(seed)
    count = len(dataset.index(split))
    rows = np.arange(count) if count <= MOST_IMAGES else np.sort(rng.choice(count, MOST_IMAGES, replace=False))
    images = dataset.images(split, rows)
    outputs = network.predict(images, verbose=0)
    features, label = outputs["features"], dataset.ids(split)[rows]
    similarity = _cosines(features)
    nearest = np.argsort(-similarity, axis=1, kind="stable")
    known = (label >= 0).all(axis=1)
    same, by_chance = _same_label(label, similarity, known)
    queries = np.sort(rng.choice(len(rows), min(QUERIES, len(rows)), replace=False))
    neighbours = nearest[queries, : min(NEIGHBOURS, len(rows) - 1)]
    pca, share = _principal_components(features)
    arrays = EncoderFeatures(
        features=features,
        label=label,
        path=dataset.index(split).keys["image"].to_numpy(str)[rows],
        pca=pca,
        pca_share=share,
        tsne=_tsne(features[:TSNE_IMAGES], seed),
        queries=queries,
        neighbours=neighbours,
        similarity=np.take_along_axis(similarity[queries], neighbours, axis=1),
        thumbnails=_thumbnails(images[np.column_stack([queries, neighbours])]),
    )
    evaluation = EncoderEvaluation(
        run=str(run),
        area=run.area,
        phase=run.phase,
        split=split,
        images=len(rows),
        labelled=int(known.sum()),
        embeddings=spread(outputs["embedding"], normalised=METHODS[run.config.method.method].normalised),
        feature_std=float(features.std(axis=0).mean()),
        feature_rank=effective_rank(features.astype(np.float64)),
        dead_features=float((np.ptp(features, axis=0) == 0).mean()),
        same_label=same,
        expected_same_label=by_chance,
        model_sha256=run.model_sha256(),
    )
    with replacing(run.path / FEATURES, "wb") as file:
        np.savez_compressed(file, **dataclasses.asdict(arrays))
    write_json(run.folder.metrics, dataclasses.asdict(evaluation))
    return evaluation


def read_evaluation(run: str | os.PathLike | Run) -> tuple[EncoderEvaluation, EncoderFeatures]:
    """Returns the evaluation of a pretraining run, and its arrays.

    Raises:
        InputError: the run is not evaluated, a file is damaged, or the model has changed since.
    """
    run = run if isinstance(run, Run) else Run(run)
    command = f"kmura evaluate {run}"
    value = read_json(run.folder.metrics, command)
    try:
        evaluation = from_json(EncoderEvaluation, value)
        if evaluation.pretraining_version != VERSION:
            raise FieldError("pretraining_version", f"is {evaluation.pretraining_version}, this kmura reads {VERSION}")
    except FieldError as error:
        raise other_version(run.folder.metrics, error, command) from error
    if run.folder.best.exists() and evaluation.model_sha256 != sha256_of(run.folder.best):
        raise InputError(f"{run.folder.best} has changed since the run was evaluated; evaluate it again: {command}")
    return evaluation, _read_features(run.path / FEATURES, command)


def _read_features(path: Path, command: str) -> EncoderFeatures:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return EncoderFeatures(**{field.name: arrays[field.name] for field in dataclasses.fields(EncoderFeatures)})
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with: {command}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged archive can raise any error of zipfile and numpy
        raise InputError(f"{path} is damaged; make it again with: {command}") from error


def _cosines(features: np.ndarray) -> np.ndarray:
    """Cosine similarities [N, N] with -2, less than any, on the diagonal; 0 for features without length."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, lengths, out=np.zeros_like(features), where=lengths > 0)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2.0)
    return similarity


def _same_label(label: np.ndarray, similarity: np.ndarray, known: np.ndarray) -> tuple[Any, Any]:
    """Shares of labelled images with the label of their nearest and of a random other labelled image; or None."""
    count = int(known.sum())
    if count < 2:
        return None, None
    nearest = similarity[np.ix_(known, known)].argmax(axis=1)
    names, place = np.unique(label[known], axis=0, return_inverse=True)
    place = place.ravel()
    sizes = np.bincount(place, minlength=len(names))
    by_chance = (sizes * (sizes - 1)).sum() / (count * (count - 1))
    return float((place[nearest] == place).mean()), float(by_chance)


def _principal_components(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components float32 [N, 2] and their shares of the variance [2]."""
    from sklearn.decomposition import PCA

    if min(features.shape) < 2 or not np.ptp(features, axis=0).any():
        return np.zeros((len(features), 2), np.float32), np.zeros(2)
    pca = PCA(2, svd_solver="full")
    return pca.fit_transform(features).astype(np.float32), pca.explained_variance_ratio_


def _tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of features, float32 [N, 2]; empty if there are fewer than 10 images or all features are equal."""
    from sklearn.manifold import TSNE

    if len(features) < 10 or not np.ptp(features, axis=0).any():
        return np.zeros((0, 2), np.float32)
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(features).astype(np.float32)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Small gray pictures uint8 [..., h, w] of images [..., S, S, C] in 0..255, by leaving out rows and columns."""
    step = -(-images.shape[-2] // THUMBNAIL)
    return images[..., ::step, ::step, :].mean(axis=-1).round().astype(np.uint8)
