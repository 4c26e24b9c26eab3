"""Explanations of multiclass models: outcomes, selection of maps, and targets for groups of classes."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmura import cam
from kmura.explain.faithfulness import deletion_insertion, drop, maps_of_chance
from kmura.explain.outcomes import gallery_rows, read_images
from kmura.tasks import Binary, Multiclass, Multilabel

CLASSES = ("Abnormal-HAND", "Abnormal-WRIST", "Normal-HAND", "Normal-WRIST")


def test_the_most_probable_class_determines_right_or_wrong():
    label = np.array([[0], [3], [2], [-1]])
    probability = np.array([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.6, 0.2], [0.25] * 4])
    found = read_images(label, probability, Multiclass(CLASSES, ("XR_HAND", "XR_WRIST") * 2))
    assert found.outcome.tolist() == ["right", "wrong", "right", ""]
    assert found.positive.tolist() == [True, False, False, False]
    assert found.caption[:2] == ["Abnormal-HAND, p = 0.70", "Normal-WRIST, taken for Abnormal-HAND, p = 0.40"]
    assert list(gallery_rows(found, 3)) == [0, 2, 1]


def test_a_quarter_of_the_cases_are_the_least_confident_ones_of_their_outcome():
    probability = np.array([[0.99], [0.51], [0.9], [0.6], [0.8], [0.1], [0.45]])
    found = read_images(np.array([[1], [1], [1], [1], [1], [0], [0]]), probability, Binary(("a", "b")))
    assert list(gallery_rows(found, 3)) == [0, 2, 4, 5, 6] and not any(gallery_rows(found, 3).values())
    assert list(gallery_rows(found, 4)) == [0, 2, 4, 1, 5, 6]  # an image is shown once
    assert [row for row, borderline in gallery_rows(found, 4).items() if borderline] == [1]
    assert list(gallery_rows(found, 8)) == [0, 2, 4, 3, 1, 5, 6]


def test_borderline_cases_of_several_classes_follow_the_surest_of_each_class():
    probability = np.array([[0.9, 0.1], [0.51, 0.49], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
    found = read_images(np.array([[0], [0], [0], [1], [1]]), probability, Multiclass(("a", "b")))
    assert gallery_rows(found, 2) == {0: False, 3: False}
    assert gallery_rows(found, 4) == {0: False, 2: False, 3: False, 4: False, 1: True}


def test_a_multilabel_prediction_is_right_if_all_known_labels_match():
    label = np.array([[1, 0], [1, 1], [0, -1], [0, -1], [-1, -1]])
    probability = np.array([[0.8, 0.4], [0.8, 0.4], [0.1, 0.2], [0.9, 0.2], [0.1, 0.2]])
    found = read_images(label, probability, Multilabel(("mass", "edema")))
    assert found.outcome.tolist() == ["right", "wrong", "right", "wrong", ""] and found.positive is None
    assert found.caption[1] == "mass, edema, taken for mass, p = 0.80"


def test_a_single_logit_has_the_four_binary_outcomes():
    found = read_images(np.array([[1], [0], [1], [0]]), np.array([[0.9], [0.2], [0.4], [0.6]]), Binary(("a", "b")))
    assert found.outcome.tolist() == ["TP", "TN", "FN", "FP"] and found.caption[:2] == ["b, p = 0.90", "a, p = 0.20"]


@pytest.mark.parametrize("positive", [[True, True, False, False], [False, True]])
def test_a_group_of_classes_is_explained_by_the_gradient_of_its_log_odds(positive):
    logits = tf.constant(np.random.default_rng(0).normal(size=(3, len(positive))).astype("float32"))
    mask = tf.constant(positive)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        p = tf.reduce_sum(tf.boolean_mask(tf.nn.softmax(logits), mask, axis=1), axis=1)
        score = tf.math.log(p / (1 - p))
    np.testing.assert_allclose(cam.log_odds(positive)(logits), tape.gradient(score, logits), atol=1e-5)


def test_the_confidence_is_the_probability_of_the_predicted_class():
    """A model with three classes whose logits are the brightness of three columns of the image."""
    images = np.full((1, 8, 9, 1), 20, np.float32)
    images[:, :, 3:6] = 200

    def model(batch, training=False):
        return tf.stack([tf.reduce_mean(batch[:, :, at : at + 3], (1, 2, 3)) for at in (0, 3, 6)], axis=1) / 50

    mask = np.zeros((1, 8, 9), np.float32)
    mask[:, :, 3:6] = 1
    before, after = (tf.nn.softmax(model(batch))[0, 1].numpy() for batch in (images, images * (1 - mask[..., None])))
    assert drop(model, images, mask)[0] == pytest.approx(before - after, abs=1e-6)
    found = deletion_insertion(model, images, mask, maps_of_chance(1, (8, 9), 3))
    assert found.deletion[0] == pytest.approx(before, abs=1e-6)
    assert found.deletion_area[0] < found.random_deletion_area[0]


@pytest.fixture(scope="module")
def attentive_run(records, tmp_path_factory):
    import kmura
    from kmura.classification.fit import fit_areas
    from kmura.evaluation.scoring import ScoreOptions
    from kmura.explain.overlays import overlays_of

    runs = tmp_path_factory.mktemp("attentive")
    settings = {"model.backbone": "densenet_mini", "model.weights": "none", "data.image_size": 32, "train.epochs": 1}
    settings |= {"model.head": "attention", "model.attention_maps": 2, "data.task": "multiclass"}

    def drawn(dataset, folder, config):
        return overlays_of(dataset, folder, config, every=1)

    run = next(iter(fit_areas(records, area="all", runs=runs, settings=settings, callbacks_for=drawn))).folder
    kmura.evaluate(run, options=ScoreOptions(resamples=10))
    return run, kmura.explain(run, cases=4, sample=4)


@pytest.mark.slow
def test_a_multiclass_run_can_be_explained_end_to_end(attentive_run):
    run, found = attentive_run
    assert (run / "cam" / "epoch-00001.png").is_file()
    assert set(found.counts) == {"right", "wrong"} and sum(found.counts.values()) > 4
    wrong = [case for case in found.cases if case.outcome == "wrong"]
    assert wrong
    for case in found.cases:
        shown = [look.tap for look in case.beside]
        own = [] if case.outcome == "right" else [f"P5 towards {case.caption.split(',')[0]}"]
        assert shown == [*own, "attention 1", "attention 2"]
        for look in case.beside:
            assert Image.open(run / "explain" / look.file).size == (32, 32)
