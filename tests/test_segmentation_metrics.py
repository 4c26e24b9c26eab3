"""Scores of label maps agree with scikit-learn and with brute force over all pairs of surface voxels."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, spatial
from sklearn import metrics as sklearn

from kmura.errors import InputError
from kmura.metrics import overlap
from kmura.segmentation.surfaces import surface_distances

RNG = np.random.default_rng(21)
K = 6


def maps(shape=(5, 7, 6), classes=(0, 1, 2, 4, 5), seed=0):
    """Truth and prediction, of which about two thirds agree; class 3 is absent."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, shape).astype(np.int16)
    return truth, np.where(rng.random(shape) < 0.6, truth, rng.choice(classes, shape)).astype(np.uint8)


@pytest.mark.parametrize("chunk", [1 << 22, 1, 50])
def test_the_confusion_matrix_is_that_of_scikit_learn(chunk):
    truth, predicted = maps()
    found = overlap.confusion(truth, predicted, K, chunk=chunk)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, sklearn.confusion_matrix(truth.ravel(), predicted.ravel(), labels=range(K)))


def test_unknown_voxels_are_not_counted():
    truth, predicted = maps()
    truth[:2] = -1
    np.testing.assert_array_equal(
        overlap.confusion(truth, predicted, K), overlap.confusion(truth[2:], predicted[2:], K)
    )
    assert overlap.confusion(truth[:2], predicted[:2], K).sum() == 0


def test_class_numbers_out_of_range_are_refused():
    truth, predicted = maps()
    for wrong in ((truth, predicted, 5), (truth - 2, predicted, K), (truth, truth - 1, K), (truth, predicted[1:], K)):
        with pytest.raises(ValueError, match="class numbers are 0 to|has the shape"):
            overlap.confusion(*wrong)


def test_the_scores_of_each_class_are_those_of_scikit_learn():
    truth, predicted = maps()
    scores = overlap.region_scores(overlap.confusion(truth, predicted, K))
    options = {"labels": range(K), "average": None, "zero_division": np.nan}
    truth, predicted = truth.ravel(), predicted.ravel()
    assert scores["dice"] == pytest.approx(sklearn.f1_score(truth, predicted, **options), nan_ok=True)
    assert scores["precision"] == pytest.approx(sklearn.precision_score(truth, predicted, **options), nan_ok=True)
    assert scores["recall"] == pytest.approx(sklearn.recall_score(truth, predicted, **options), nan_ok=True)
    present = [0, 1, 2, 4, 5]
    jaccard = sklearn.jaccard_score(truth, predicted, labels=present, average=None)
    assert scores["iou"][present] == pytest.approx(jaccard)
    for name in ("dice", "iou", "precision", "recall", "misclassification", "fp_fn_ratio"):
        assert np.isnan(scores[name][3]) and np.isfinite(scores[name][present]).all(), name


def test_misclassification_and_fp_fn_ratio_count_voxels():
    truth = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    predicted = np.array([0, 1, 1, 1, 1, 1, 2, 2, 2, 0])
    matrix = overlap.confusion(truth, predicted, 4)
    scores = overlap.region_scores(matrix)
    assert scores["misclassification"][:3] == pytest.approx([3 / 10, 3 / 10, 2 / 10])
    assert scores["fp_fn_ratio"][:3] == pytest.approx([1 / 2, 2 / 1, 1 / 1])
    means = overlap.mean_scores(matrix)
    assert means["misclassification"] == pytest.approx(0.25)
    assert (means["fp_fn_ratio"], means["fp_fn_variance"]) == (pytest.approx(1.5), pytest.approx(0.25))
    total = overlap.total_scores(matrix)
    assert total["misclassification"] == pytest.approx(4 / 10) and total["fp_fn_ratio"] == pytest.approx(3 / 2)
    assert total["iou"] == pytest.approx(5 / (5 + 3 + 2))


def test_an_fp_fn_ratio_without_false_negatives_is_infinite_and_not_part_of_the_mean():
    matrix = overlap.confusion([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0], 4)
    ratios = overlap.fp_fn_ratio(matrix)
    assert ratios[1] == np.inf and ratios[2] == 0 and np.isnan(ratios[3])
    assert overlap.mean_scores(matrix)["fp_fn_ratio"] == 0
    assert overlap.mean_scores(overlap.confusion([1, 1], [1, 1], 2))["dice"] == 1


def test_means_leave_out_the_background_and_absent_classes_and_count_classes_that_only_the_prediction_has():
    matrix = overlap.confusion([0, 0, 0, 0, 1, 1], [0, 0, 0, 3, 1, 0], 5)
    dice = overlap.dice(matrix)
    assert dice[1] == pytest.approx(2 / 3) and dice[3] == 0 and np.isnan(dice[[2, 4]]).all()
    assert overlap.mean_scores(matrix)["dice"] == pytest.approx((2 / 3 + 0) / 2)
    nothing = overlap.mean_scores(overlap.confusion([0, 0], [0, 0], 3))
    assert all(np.isnan(value) for value in nothing.values())


def test_total_scores_are_the_micro_averages_of_scikit_learn():
    truth, predicted = maps()
    total = overlap.total_scores(overlap.confusion(truth, predicted, K))
    options = {"labels": [1, 2, 4, 5], "average": "micro"}
    truth, predicted = truth.ravel(), predicted.ravel()
    assert total["dice"] == pytest.approx(sklearn.f1_score(truth, predicted, **options))
    assert total["iou"] == pytest.approx(sklearn.jaccard_score(truth, predicted, **options))
    assert total["precision"] == pytest.approx(sklearn.precision_score(truth, predicted, **options))
    assert total["recall"] == pytest.approx(sklearn.recall_score(truth, predicted, **options))
    assert total["misclassification"] == pytest.approx(1 - sklearn.accuracy_score(truth, predicted))


def test_side_errors_are_voxels_with_the_right_region_on_the_wrong_side():
    #        left 1, 2; right 3, 4: two of the seven labelled voxels have the other side of their region
    truth = np.array([1, 1, 2, 3, 4, 4, 4, 0, 0])
    predicted = np.array([3, 1, 4, 2, 4, 0, 3, 1, 0])
    matrix = overlap.confusion(truth, predicted, 5)
    assert overlap.side_errors(matrix, [(1, 3), (2, 4)]) == pytest.approx(2 / 7)
    assert overlap.side_errors(matrix, []) == 0
    assert np.isnan(overlap.side_errors(np.zeros((3, 3), int), [(1, 2)]))


def volumes(number):
    return np.stack([overlap.confusion(*maps(seed=seed), K) for seed in range(number)])


def test_averages_over_volumes_are_of_all_voxels_or_of_the_scores_of_the_volumes():
    matrices = volumes(6)
    matrices[0] *= 50  # a large volume
    pooled = overlap.averaged(matrices, overlap.total_scores)
    assert pooled["iou"] == pytest.approx(overlap.total_scores(matrices.sum(axis=0))["iou"])
    apart = overlap.averaged(matrices, overlap.total_scores, "volumes")
    assert apart["iou"] == pytest.approx(np.mean([overlap.total_scores(matrix)["iou"] for matrix in matrices]))
    assert abs(pooled["iou"] - apart["iou"]) > 1e-3
    with pytest.raises(ValueError, match="choose pooled or volumes"):
        overlap.averaged(matrices, overlap.total_scores, "all")


@pytest.mark.parametrize("how", ["pooled", "volumes"])
def test_intervals_resample_whole_volumes(how):
    matrices = volumes(7)
    found = overlap.volume_intervals(matrices, overlap.mean_scores, how, resamples=300, seed=3)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(3000):
        taken = matrices[rng.integers(0, 7, 7)]
        if how == "pooled":
            drawn.append(np.nanmean(overlap.dice(taken.sum(axis=0))[1:]))
        else:
            drawn.append(np.mean([np.nanmean(overlap.dice(matrix)[1:]) for matrix in taken]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    interval = found["dice"]
    assert interval.low < interval.value < interval.high
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    again = overlap.volume_intervals(matrices, overlap.mean_scores, how, resamples=300, seed=3)
    assert again == found, "the same seed gives the same interval"


def test_fewer_than_five_volumes_have_no_interval():
    assert overlap.volume_intervals(volumes(4), overlap.total_scores) is None
    assert overlap.volume_intervals(volumes(5), overlap.total_scores, resamples=20) is not None


def brute_force(truth, predicted, spacing):
    """(95th percentile Hausdorff distance, mean surface distance) from all pairs of surface voxels."""
    points = []
    for region in (truth, predicted):
        inner = ndimage.binary_erosion(region, ndimage.generate_binary_structure(3, 1), border_value=0)
        points.append(np.argwhere(region & ~inner) * np.array(spacing))
    pairs = spatial.distance.cdist(*points)
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.45, 0.6)])
@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_are_those_of_brute_force(spacing, seed):
    pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.normal(size=(8, 20, 18)), 2) for _ in range(2)]
    truth = np.digitize(smooth[0], [-0.02, 0.03])  # three regions that touch the border, in several parts
    predicted = np.digitize(smooth[0] + 0.5 * smooth[1], [-0.02, 0.03])
    found = surface_distances(truth, predicted, [0, 1, 2], spacing)
    for number in range(3):
        hd95, mean = brute_force(truth == number, predicted == number, spacing)
        assert found["hd95"][number] == pytest.approx(hd95, rel=1e-5)
        assert found["mean_surface_distance"][number] == pytest.approx(mean, rel=1e-5)


def test_surface_distances_have_closed_forms():
    pytest.importorskip("SimpleITK")
    truth, predicted = np.zeros((2, 12, 12, 12), int)
    truth[2:5, 3:6, 3:6] = 1
    predicted[4:7, 3:6, 3:6] = 1  # shifted by two voxels of 2.5 mm
    truth[9, 9, 9], predicted[9, 9, 10] = 2, 2
    truth[0, 0, 0] = 3
    predicted[11, 0, 0] = 4
    found = surface_distances(truth, predicted, [1, 2, 3, 4, 5], (2.5, 1.0, 0.7))
    assert found["hd95"][:2] == pytest.approx([5.0, 0.7])
    assert found["mean_surface_distance"][1] == pytest.approx(0.7)
    assert 0 < found["mean_surface_distance"][0] < 5
    assert np.isnan([found[name][2:] for name in found]).all(), "absent from the truth, from the prediction, or both"
    same = surface_distances(truth, truth, [1, 2], (2.5, 1.0, 0.7))
    assert (same["hd95"] == 0).all() and (same["mean_surface_distance"] == 0).all()


def test_surface_distances_refuse_other_shapes_and_say_what_to_install(monkeypatch):
    pytest.importorskip("SimpleITK")
    with pytest.raises(ValueError, match="give \\[Z, Y, X\\]"):
        surface_distances(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), [1], (1, 1, 1))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputError, match="pip install '.\\[ct\\]'"):
        surface_distances(np.zeros((2, 2, 2), int), np.zeros((2, 2, 2), int), [1], (1, 1, 1))


@pytest.mark.real
def test_the_scores_of_expert_and_predicted_masks_of_strokes_are_those_of_scikit_learn():
    """CPAISD: core (red) and penumbra (green) on slices without contrast medium, beside the masks of another tool."""
    root = os.environ.get("KMURA_REAL_DATA")
    if not root:
        pytest.skip("KMURA_REAL_DATA is not set")
    truth, predicted = [], []
    for path in sorted(Path(root, "cpaisd_ncct", "mini_test", "masks").glob("*.png")):
        for slices, file in ((truth, path), (predicted, path.parents[2] / "mini_test_output" / path.name)):
            pixels = np.asarray(Image.open(file).convert("RGB")) > 127
            slices.append(np.where(pixels[..., 0], 1, np.where(pixels[..., 1], 2, 0)))
    truth, predicted = np.array(truth), np.array(predicted)
    assert truth.shape == predicted.shape == (24, 512, 512)
    matrices = np.array([overlap.confusion(*pair, 3) for pair in zip(truth, predicted, strict=True)])
    total = matrices.sum(axis=0)
    for ours, independent in ((overlap.dice, sklearn.f1_score), (overlap.iou, sklearn.jaccard_score)):
        expected = independent(truth.ravel(), predicted.ravel(), labels=[1, 2], average=None)
        np.testing.assert_allclose(ours(total)[1:], expected, rtol=1e-12)
    for number, matrix in enumerate(matrices):
        for label in np.unique(truth[number][truth[number] > 0]):
            expected = 1 - spatial.distance.dice((truth[number] == label).ravel(), (predicted[number] == label).ravel())
            assert overlap.dice(matrix)[label] == pytest.approx(expected, rel=1e-12)
    assert 0.1 < overlap.dice(total)[1:].min() < 1
