"""The tables and figures that the report computes itself: both classes, areas, views, ranges, training, comparison."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import classification_report as reference
from test_compare import blurred
from test_report import Page, evaluated, explained, words
from test_scoring import FEW, simulated

import kmura
from kmura import metrics
from kmura.data.dataset import Dataset
from kmura.errors import InputError
from kmura.evaluation.compare import compare
from kmura.evaluation.exploration import AreaData, Intensity, PrincipalParts
from kmura.evaluation.scoring import ScoreOptions, level_scores, units_of
from kmura.files import write_json
from kmura.metrics import Interval
from kmura.report import comparison_section, eda_figures, figures
from kmura.report.classification_tables import (
    classification_report,
    extremes,
    hardest_table,
    probability_table,
    report_table,
    views_of,
)
from kmura.report.report import report
from kmura.tasks import Binary

TASK = Binary(("normal", "abnormal"))


@pytest.mark.parametrize("seed", range(6))
def test_the_classification_report_matches_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    label, predicted = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    if seed == 4:
        predicted[:] = 0  # no precision of the positive class
    if seed == 5:
        label[:] = 1
    cells = [int(cell[0]) for cell in metrics.confusion(label, predicted)]
    found = classification_report(dict(zip(("tp", "fp", "fn", "tn"), cells, strict=True)))
    expected = reference(label, predicted, labels=[0, 1], output_dict=True, zero_division=np.nan)
    names = {"negative": "0", "positive": "1", "macro": "macro avg", "weighted": "weighted avg"}
    for ours, theirs in names.items():
        scores = {"precision": "precision", "recall": "recall", "f1": "f1-score", "n": "support"}
        for score, other in scores.items():
            want = expected[theirs][other]
            if seed >= 4 and score == "f1" and found[ours][score] != pytest.approx(want, nan_ok=True):
                continue  # scikit-learn calls the F1 of a class without precision or recall 0 or undefined
            assert found[ours][score] == pytest.approx(want, nan_ok=True), (ours, score)


def test_the_page_shows_a_report_of_both_classes_at_both_levels(tmp_path, sketched):
    run = evaluated(tmp_path / "x" / "baseline", simulated(80))
    text = words(Page(report([run], tmp_path / "page.html").read_text()))
    rows = simulated(80)[lambda table: table["split"] == "test"]
    for level in ("study", "image"):
        units = units_of(rows, level)
        expected = reference(units.label, units.probability >= 0.5, output_dict=True)
        for name, row in (("normal", "0"), ("abnormal", "1"), ("mean of both", "macro avg")):
            numbers = " ".join(f"{expected[row][score]:.3f}" for score in ("precision", "recall", "f1-score"))
            assert f"{name} {numbers} {expected[row]['support']:.0f}" in text
    scores = level_scores(rows, "study", resamples=FEW.resamples).scores
    for name in ("npv", "f1_negative"):
        assert re.search(rf"\b{name} [^a-z]+\(\S+ to \S+\) {scores[name].value:.3f} ", text)  # images, then studies


def test_a_metrics_file_without_the_later_scores_is_still_reported(tmp_path, sketched):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))

    def without(value):
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key not in ("npv", "f1_negative")}
        return [without(item) for item in value] if isinstance(value, list) else value

    write_json(run / "metrics.json", without(json.loads((run / "metrics.json").read_text())))
    text = words(Page(report([run], tmp_path / "page.html").read_text()))
    assert "npv" not in text and "mean of both" in text


def test_sections_follow_the_questions_of_the_reader(tmp_path, sketched):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    page = Page(report([run], tmp_path / "page.html").read_text())
    text, places = words(page), []
    for heading in (
        "Does it work?",
        "Where does it fail?",
        "Can the probabilities be trusted?",
        "How did the training",
    ):
        assert text.count(heading) == 2  # in the contents and above the section
        places.append(text.rindex(heading))
    assert places == sorted(places)
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
    assert "What do the images look like?" not in text and "Do the maps show" not in text  # nothing to show


def test_studies_are_counted_by_their_number_of_images():
    table = simulated(200)
    rows = table[table["split"] == "test"]
    sizes = rows.groupby("study", sort=False)["image"].size()
    by_views = {title: counts for title, *counts in views_of(rows, FEW)}
    assert list(by_views) == ["1", "2", "3", "4"]
    for views in range(1, 5):
        chosen = rows[rows["study"].map(sizes) == views]
        units = units_of(chosen, "study")
        studies, tp, fp, fn, tn = by_views[str(views)]
        assert studies == len(units.label) == tp + fp + fn + tn
        assert tp + tn == int(((units.probability >= 0.5) == units.label).sum())


def test_accuracy_by_number_of_images_is_shown_only_if_the_numbers_differ(tmp_path, sketched):
    table = simulated(80)
    text = words(Page(report([evaluated(tmp_path / "x" / "a", table)], tmp_path / "a.html").read_text()))
    assert "Studies of test by number of images" in text
    single = table.drop_duplicates("study")
    text = words(Page(report([evaluated(tmp_path / "x" / "b", single)], tmp_path / "b.html").read_text()))
    assert "by number of images" not in text


def test_probabilities_that_are_not_numbers_are_counted_by_area():
    table = pd.concat([simulated(40), simulated(40, 1, "XR_HAND")], ignore_index=True)
    table.loc[table.index[:3], "probability"] = np.nan
    found = {row[:2]: row for row in probability_table(table, TASK).rows}
    first = found["XR_WRIST", "val"]
    values = table["probability"][(table["area"] == "XR_WRIST") & (table["split"] == "val")]
    assert first[2:] == (len(values), f"{values.min():.4f}", f"{values.max():.4f}", 3)
    assert found["XR_HAND", "test"][-1] == 0 and len(found) == 4


def test_the_most_confident_errors_come_first():
    rows = simulated(200)[lambda table: table["split"] == "test"]
    units = units_of(rows, "study")
    table = hardest_table(rows, FEW, TASK.sides, "test")
    false_positives = [float(row[4]) for row in table.rows if row[2] == "normal"]
    wrong = np.sort(units.probability[(units.label == 0) & (units.probability >= 0.5)])[::-1]
    assert false_positives == pytest.approx(wrong[:5], abs=1e-3)
    perfect = rows.assign(probability=rows["label"].astype(float))
    assert hardest_table(perfect, FEW, TASK.sides, "test") is None


def test_best_and_worst_area_are_named_and_ties_are_not():
    def of(auc, f1):
        return {"auc": Interval(auc, auc, auc), "f1": Interval(f1, f1, f1), "kappa": Interval(np.nan, 0, 0)}

    areas = {"ELBOW": of(0.8, 0.5), "HAND": of(0.9, 0.5), "WRIST": of(0.7, 0.5)}
    found = extremes(areas, {"auc": "AUC", "f1": "F1", "kappa": "kappa"})
    assert [row[0] for row in found] == ["AUC", "F1"]  # kappa is undefined
    assert found[0][1].startswith("HAND: 0.900") and found[0][2].startswith("WRIST: 0.700")
    assert found[1][1:] == ("all equal: 0.500",) * 2
    assert extremes({"HAND": of(0.9, 0.5)}, {"auc": "AUC"}) == []


def test_a_binary_run_over_several_areas_is_shown_by_area(tmp_path, sketched):
    table = pd.concat([simulated(80), simulated(80, 1, "XR_HAND")], ignore_index=True)
    run = evaluated(tmp_path / "all" / "baseline", table)
    text = words(Page(report([run], tmp_path / "page.html").read_text()))
    assert "Best and worst area on test, study level" in text
    for area in ("XR_WRIST", "XR_HAND"):
        rows = table[(table["area"] == area) & (table["split"] == "test")]
        scores = level_scores(rows, "study", resamples=FEW.resamples)
        numbers = " ".join(str(scores.scores[name]) for name in ("auc", "precision", "recall"))
        assert f"{area} {scores.studies} {scores.positives} {numbers}" in text


HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2],
        "loss": [0.7, 0.6],
        "acc": [0.5, 0.6],
        "val_loss_img": [0.7, 0.6],
        "val_acc_img": [0.5, 0.7],
        "val_acc_study": [0.5, 0.8],
        "val_auc_img": [0.5, 0.7],
        "val_auc_study": [0.5, 0.8],
        "val_f1_img": [0.4, 0.6],
        "val_f1_study": [0.4, 0.7],
        "best": [True, True],
    }
)


def curves_of(monkeypatch, history, scores):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **how: drawn.append(list(y)) or plot(self, x, y, **how))
    picture = figures.training("x", "x", history, scores)
    return picture, drawn[: len(drawn) // 2]  # the figure is drawn twice, as SVG and as PNG


def test_accuracy_auc_and_f1_are_drawn_at_both_levels(monkeypatch):
    for scores in figures.TRAINING.values():
        picture, drawn = curves_of(monkeypatch, HISTORY, scores)
        for column, (_, _) in figures.TRAINING_COLUMNS.items():
            if column in [name for score in scores for name in figures._TRAINING_PANELS[score]]:
                assert HISTORY[column].tolist() in drawn, column
    assert "AUC by epoch" in picture.svg and "F1 by epoch" in picture.svg


def test_the_history_of_an_earlier_version_is_drawn_without_what_it_lacks(monkeypatch):
    early = HISTORY[["epoch", "loss", "val_loss_img", "val_auc_study", "best"]]
    picture, drawn = curves_of(monkeypatch, early, ("AUC", "F1"))
    assert drawn == [[0.5, 0.8]] and "F1 by epoch" not in picture.svg
    assert figures.training("x", "x", early[["epoch", "loss", "best"]], ("AUC", "F1")) is None


def test_accuracy_is_drawn_against_the_threshold(monkeypatch):
    from matplotlib.axes import Axes

    drawn = {}
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, **how: drawn.update({how["label"]: (x, y)}) or plot(self, x, y, **how)
    )
    units = units_of(simulated(80), "image")
    figures.thresholds("x", "x", units, [])
    thresholds, accuracy = drawn["accuracy"]
    place = 77
    assert accuracy[place] == pytest.approx(np.mean((units.probability >= thresholds[place]) == units.label))


def test_probabilities_are_drawn_at_both_levels(tmp_path, sketched):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    report([run], tmp_path / "page.html")
    names = {path.stem for path in (tmp_path / "page-figures").iterdir()}
    for figure in ("histogram", "reliability", "thresholds"):
        assert {f"run0-{figure}", f"run0-{figure}-image"} <= names


def test_localization_faithfulness_is_printed_or_its_command_is_given(tmp_path, sketched):
    run = explained(evaluated(tmp_path / "x" / "baseline", simulated(60)))
    text = words(Page(report([run], tmp_path / "page.html").read_text()))
    assert f"Not computed yet: the localization faithfulness of all images: kmura evaluate {run} --faithfulness" in text
    value = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", value | {"localization_faithfulness": {"val": 0.1234, "test": 0.25}})
    text = words(Page(report([run], tmp_path / "page.html").read_text()))
    assert "split mean drop val 0.123 test 0.250" in text and "Not computed yet" not in text


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    tables = {"XR_WRIST": simulated(120), "XR_HAND": simulated(120, 1, "XR_HAND")}
    runs = [
        evaluated(folder / area / phase, blurred(table, noise), phase)
        for area, table in tables.items()
        for phase, noise in (("baseline", 3.0), ("final", 0.0))
    ]
    return runs, compare(runs, resamples=50)


def test_the_best_model_by_each_score_is_the_one_with_the_best_value(comparison):
    _, found = comparison
    table = comparison_section.best_models(found)
    assert table.heads == ("score", "XR_WRIST", "XR_HAND", "mean of areas")
    rows = {row[0]: row[1:] for row in table.rows}
    scores = found.scores["study"]
    for title, name, better in (
        ("AUC", "auc", max),
        ("Brier", "brier", min),
        ("F1 of the negative class", "f1_negative", max),
    ):
        for place, where in enumerate(("XR_WRIST", "XR_HAND", "macro")):
            values = {model: scores[where][model][name].value for model in found.runs}
            model = better(values, key=values.get)
            assert rows[title][place] == f"{model}: {values[model]:.3f}"
    one = dataclasses.replace(found, runs={"final": found.runs["final"]})
    assert comparison_section.best_models(one) is None


def test_the_comparison_is_drawn_as_bars_over_areas(comparison, monkeypatch):
    from matplotlib.axes import Axes

    _, found = comparison
    drawn = {}
    bar = Axes.bar
    monkeypatch.setattr(
        Axes, "bar", lambda self, x, y, *a, **how: drawn.update({how["label"]: y}) or bar(self, x, y, *a, **how)
    )
    picture = comparison_section.bars("x", found, "auc")
    for model in found.runs:
        values = [found.scores["study"][where][model]["auc"].value for where in ("XR_WRIST", "XR_HAND", "macro")]
        np.testing.assert_allclose(drawn[model], values)
    assert "mean of areas" in picture.svg


def test_the_page_compares_models_over_areas(comparison, tmp_path, sketched):
    runs, found = comparison
    page = Page(report(runs, tmp_path / "page.html", resamples=50).read_text())
    text = words(page)
    assert page.open == [] and "The best model by each score on test" in text
    best = max(("XR_WRIST", "XR_HAND"), key=lambda area: found.scores["study"][area]["final"]["auc"].value)
    assert re.search(rf"final AUC {best}: \d", text)
    assert "precision on test, study level, threshold 0.5 area baseline final" in text
    assert (tmp_path / "page-figures" / "comparison-auc.svg").is_file()


def test_gray_values_and_classes_of_the_eda_are_drawn():
    intensity = Intensity(10, 5, 100.0, 10.0, 5.0, 0.1, 0.0, [0.25, 0.5, 0.25])
    area = AreaData(
        {"normal": intensity, "abnormal": dataclasses.replace(intensity, images=30)},
        (1, 2, 3),
        (1, 2, 3),
        [],
        [],
        PrincipalParts(2, {}, {}, [0.5, 1.0]),
        {"train": {"normal": 8, "abnormal": 24}, "test": {"normal": 2, "abnormal": 6}},
    )
    found = eda_figures.pictures("x", "XR_WRIST", area)
    assert list(found) == ["distribution", "intensity", "variance"]
    for text in ("train (n = 32)", "24 (75 %)", "normal", "abnormal"):
        assert text in found["distribution"].svg, text
    assert "normal (n = 10)" in found["intensity"].svg and "abnormal (n = 30)" in found["intensity"].svg
    early = dataclasses.replace(
        area, splits={}, classes={"normal": dataclasses.replace(intensity, histogram=[])}
    )  # a file of an earlier version
    assert list(eda_figures.pictures("x", "XR_WRIST", early)) == ["variance"]


def test_the_classification_report_shows_undefined_scores_as_such():
    rows = simulated(60)[lambda table: table["split"] == "test"].assign(probability=0.1)
    table = report_table(level_scores(rows, "study", resamples=20), TASK.sides, "test")
    rows = {row[0]: row for row in table.rows}
    assert rows["abnormal"][1] == "undefined" and rows["normal"][2] == "1.000"


@pytest.mark.parametrize("target", ["/dev/null", "folder"])
def test_a_target_that_cannot_be_written_leaves_no_figures(evaluated_run, tmp_path, target):
    from kmura.report.report import report

    (tmp_path / "folder").mkdir()
    out = Path(target) if target.startswith("/") else tmp_path / target
    with pytest.raises(InputError, match="is a device or a pipe|cannot write"):
        report([evaluated_run[1]], out)
    assert not out.with_name(f"{out.stem}-figures").exists()


def test_subgroups_of_a_run_are_scored_by_columns_that_the_records_keep(evaluated_run, tmp_path, monkeypatch, sketched):
    run = shutil.copytree(evaluated_run[1], tmp_path / "XR_WRIST" / "baseline")
    before = {file: (run / file).read_bytes() for file in ("predictions.csv", "metrics.json")}
    with pytest.raises(InputError, match=r"has no column 'sex' for --by \(it has none\)"):
        kmura.evaluate(run, by=["sex"])
    assert before == {file: (run / file).read_bytes() for file in before}
    rows = Dataset.rows
    monkeypatch.setattr(Dataset, "rows", lambda *arguments: rows(*arguments).assign(sex=lambda t: t.index % 2))
    found = kmura.evaluate(run, by=["sex"], options=ScoreOptions(resamples=20, pooling="max"))
    assert [group.name for group in found.subgroups["XR_WRIST"].splits["test"]["image"].groups["sex"]] == ["0", "1"]
    page = report([run], tmp_path / "page.html").read_text()
    assert "Does it work alike for all subgroups?" in page and "sex: 1" in page
