"""Scores of multiclass and multilabel predictions, and the binary questions answered by one model over all areas."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as reference
from scipy.special import softmax

from kmura import metrics
from kmura.data.index import ALL
from kmura.evaluation.class_scores import class_units_of, questions_of, score_classes
from kmura.evaluation.scoring import ScoreOptions
from kmura.tasks import Multiclass, Multilabel, joint_areas_of, task_of

FEW = ScoreOptions(resamples=100)
AREAS = ("XR_ELBOW", "XR_HAND", "XR_WRIST")
JOINT = ("Abnormal-ELBOW", "Abnormal-HAND", "Abnormal-WRIST", "Normal-ELBOW", "Normal-HAND", "Normal-WRIST")
JOINT_TASK = Multiclass(JOINT, AREAS * 2)


def class_table(classes=JOINT, task="multiclass", studies=120, seed=0, areas=AREAS, noise=1.5):
    """Returns predictions of studies with 1 to 3 views, half val, half test; in joint tables areas match classes."""
    rng = np.random.default_rng(seed)
    study = np.repeat(np.arange(studies), rng.integers(1, 4, studies))
    several = task == "multilabel"
    truth = rng.integers(0, 2, (studies, len(classes))) if several else rng.integers(0, len(classes), (studies, 1))
    target = truth if several else np.arange(len(classes)) == truth
    logit = (3 * target - 1.5 + rng.normal(0, noise, target.shape))[study] + rng.normal(
        0, 0.5, (len(study), len(classes))
    )
    model = task_of(task, classes)
    area = np.array(areas)[(truth[:, 0] if not several else np.zeros(studies, int)) % len(areas)][study]
    keys = {
        "split": np.where(study < studies / 2, "val", "test"),
        "area": area,
        "patient": [f"p{number // 2}" for number in study],
        "study": [f"p{number // 2}/s{number}" for number in study],
        "image": [f"{where}/{number}.png" for number, where in enumerate(area)],
    }
    return pd.concat(
        [
            pd.DataFrame(keys),
            pd.DataFrame(truth[study], columns=model.label_columns),
            pd.DataFrame(logit, columns=model.logit_columns),
            pd.DataFrame(model.probabilities(logit), columns=model.probability_columns),
        ],
        axis=1,
    )


def test_all_areas_pooled_are_scored_as_one_binary_table():
    table = class_table()
    found = score_classes(table, ALL, JOINT_TASK, FEW)
    held_out = table[table["split"] == "test"]
    by_study = held_out.groupby("study")
    probability = by_study[[f"probability_{name}" for name in JOINT[:3]]].mean().sum(axis=1)
    abnormal = by_study["label"].first() < 3
    ours = found.pooled.splits["test"]["study"]
    assert ours.scores["kappa"].value == pytest.approx(reference.cohen_kappa_score(abnormal, probability >= 0.5))
    assert ours.scores["auc"].value == pytest.approx(reference.roc_auc_score(abnormal, probability))
    assert ours.scores["kappa"].low < ours.scores["kappa"].value < ours.scores["kappa"].high
    parts = [scores.splits["test"]["study"] for scores in found.questions.values()]
    assert list(found.questions) == list(AREAS)
    for cell, count in ours.confusion.items():
        assert count == sum(part.confusion[cell] for part in parts)


def test_the_probability_of_an_area_is_the_sum_over_its_classes():
    table = class_table()
    found = score_classes(table, ALL, JOINT_TASK, FEW)
    held_out = table[table["split"] == "test"]
    probability = held_out[[f"probability_{name}" for name in JOINT]].to_numpy()
    predicted = (probability[:, :3] + probability[:, 3:]).argmax(1)
    expected = reference.confusion_matrix(held_out["label"] % 3, predicted)
    ours = found.areas["test"]["image"]
    np.testing.assert_array_equal(ours.confusion, expected)
    assert [each.name for each in ours.classes] == ["ELBOW", "HAND", "WRIST"]
    assert ours.scores["accuracy"].value > found.splits["test"]["image"].scores["accuracy"].value


@pytest.mark.parametrize(
    ("area", "task", "classes"),
    [
        ("XR_WRIST", "multiclass", JOINT),
        (ALL, "multilabel", JOINT),
        (ALL, "multiclass", ("no", "yes")),
        (ALL, "multiclass", tuple("abcd")),
    ],
)
def test_only_models_over_all_areas_have_area_scores(area, task, classes):
    assert joint_areas_of(area, task, classes) == ()
    found = score_classes(class_table(classes, task), area, task_of(task, classes), FEW)
    assert found.pooled is None and found.areas == {}


def test_questions_are_scored_with_uncalibrated_probabilities():
    found = score_classes(class_table(), ALL, JOINT_TASK, FEW)
    for scores in (*found.questions.values(), found.pooled):
        assert scores.calibrator is None and not any(scores.calibrated.values())
    assert not [note for note in found.notes if "calibrat" in note]


def test_error_free_proportions_of_labels_have_an_interval():
    names = ("a", "b")
    table = class_table(names, "multilabel", noise=0)
    table[["probability_a", "probability_b"]] = table[["label_a", "label_b"]]
    table[["logit_a", "logit_b"]] = 80.0 * table[["label_a", "label_b"]] - 40
    scores = score_classes(table, "chest", Multilabel(names), FEW).splits["test"]["study"].scores
    for name in ("accuracy", "recall", "specificity", "precision"):
        assert scores[name].value == scores[name].high == 1 and 0.8 < scores[name].low < 1, name


def test_error_free_proportions_have_an_interval():
    table = class_table(noise=0.0)
    logit = np.where(np.arange(6) == table[["label"]].to_numpy(), 4.0, 0.0)
    table[[f"logit_{name}" for name in JOINT]] = logit
    table[[f"probability_{name}" for name in JOINT]] = softmax(logit, axis=1)
    found = score_classes(table, ALL, JOINT_TASK, FEW).splits["test"]["study"]
    patients = table[(table["split"] == "test")]["patient"].nunique()
    accuracy = found.scores["accuracy"]
    assert (accuracy.value, accuracy.high) == (1, 1)
    assert accuracy.low == pytest.approx(float(metrics.wilson(1.0, patients)[0]))
    for each in found.classes:
        assert each.scores["recall"].value == 1 and each.scores["recall"].low < accuracy.low
        assert each.scores["precision"].low == pytest.approx(each.scores["recall"].low)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_split_without_known_labels_does_not_crash(task):
    classes = JOINT if task == "multiclass" else ("a", "b")
    table = class_table(classes, task, studies=40)
    model = JOINT_TASK if task == "multiclass" else Multilabel(classes)
    table.loc[table["split"] == "test", model.label_columns] = -1
    found = score_classes(table, ALL if task == "multiclass" else "XR_WRIST", model, FEW)
    assert found.splits["test"]["study"].studies == 0 and found.splits["val"]["study"].studies == 20
    assert np.isnan(found.splits["test"]["study"].scores["auc"].value)


@pytest.mark.parametrize("pooling", metrics.POOLINGS)
def test_scores_are_computed_on_pooled_units(pooling):
    table = class_table()
    units = class_units_of(table[table["split"] == "test"], "study", JOINT_TASK, pooling=pooling)
    found = score_classes(table, ALL, JOINT_TASK, dataclasses.replace(FEW, pooling=pooling))
    assert found.splits["test"]["study"].scores["accuracy"].value == pytest.approx(
        (units.predicted & (units.target == 1)).sum() / len(units.label)
    )
    assert units.probability.sum(1) == pytest.approx(1) and (units.predicted.sum(1) == 1).all()


def test_unknown_labels_are_excluded_from_the_scores():
    classes = ("a", "b")
    table = class_table(classes, "multilabel", studies=80)
    table.loc[table.index % 5 == 0, "label_a"] = -1
    found = score_classes(table, "XR_WRIST", Multilabel(classes), FEW).splits["test"]["image"]
    known = table[(table["split"] == "test") & (table["label_a"] >= 0)]
    assert found.classes[0].units == (known["label_a"] == 1).sum()
    assert found.classes[0].scores["precision"].value == pytest.approx(
        reference.precision_score(known["label_a"], known["probability_a"] >= 0.5)
    )
    questions = questions_of(table, "XR_WRIST", Multilabel(classes))
    assert list(questions) == ["a", "b"] and (questions["a"]["label"] == table["label_a"]).all()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("kind", ["perfect", "constant"])
def test_no_score_over_classes_has_an_interval_of_zero_width(task, kind):
    names = ("a", "b", "c")
    table, model = class_table(names, task, studies=60), task_of(task, names)
    label = table[model.label_columns].to_numpy()
    target = label if task == "multilabel" else np.arange(3) == label
    logit = np.where(target, 4.0, -4.0) if kind == "perfect" else np.zeros(target.shape)
    table[model.logit_columns], table[model.probability_columns] = logit, model.probabilities(logit)
    found = score_classes(table, "chest", model, FEW).splits["test"]
    for level in found.values():
        for scores in (level.scores, *(each.scores for each in level.classes)):
            for name, score in scores.items():
                assert np.isnan(score.low) or score.high - score.low > 0.01, name
                assert name == "log_loss" or np.isnan(score.value) or not np.isnan(score.low), name


def test_the_mean_auc_has_an_interval_by_patient():
    table = class_table()
    found = score_classes(table, ALL, JOINT_TASK, FEW).splits["test"]
    for level in found.values():
        auc = level.scores["auc"]
        assert auc.method == "logit" and auc.low < auc.value < auc.high
        assert auc.value == pytest.approx(np.mean([each.scores["auc"].value for each in level.classes]))
        widths = [each.scores["auc"].high - each.scores["auc"].low for each in level.classes]
        assert auc.high - auc.low < np.mean(widths)
    studies, images = (found[name].scores["auc"] for name in ("study", "image"))
    assert images.high - images.low > 0.7 * (studies.high - studies.low)  # more images of a patient are little news


def test_a_study_id_of_two_patients_is_two_studies_of_several_classes():
    table = class_table(studies=80).drop_duplicates("patient").assign(study="study1")
    found = score_classes(table, ALL, JOINT_TASK, FEW).splits["test"]["study"]
    assert found.studies == found.images == found.patients == (table["split"] == "test").sum()
