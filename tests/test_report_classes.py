"""The report page of multiclass, multilabel and joint runs, alone and next to runs of one area."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from test_class_scores import AREAS, FEW, JOINT, JOINT_TASK, class_table
from test_compare import write_run_of
from test_report import EVIL, Page, evaluated, words

from kmura.data.index import ALL
from kmura.errors import InputError
from kmura.evaluation.class_scores import questions_of, score_classes
from kmura.evaluation.evaluation import Evaluation
from kmura.files import sha256_of, write_json
from kmura.metrics import Interval
from kmura.report import class_figures
from kmura.report.classification_details import kappa_rows
from kmura.report.published import EARLIER_KAPPA, MURA_AREAS
from kmura.report.report import report
from kmura.runs.predictions import read_predictions
from kmura.runs.run import RunFolder, read_run, write_run
from kmura.tasks import joint_areas_of
from kmura.typed import from_json

MURA = list(MURA_AREAS)


def evaluated_classes(folder, table, classes=JOINT, task="multiclass", area=ALL):
    """Writes a run folder as `evaluate` does, without a model."""
    write_run_of(folder, table, "baseline")
    areas = joint_areas_of(area, task, classes)
    description = dataclasses.replace(read_run(folder), area=area, task=task, classes=tuple(classes), areas=areas)
    write_run(RunFolder(folder), description)
    read = read_predictions(folder / "predictions.csv", description.labels)
    found = Evaluation(
        run=str(folder),
        area=area,
        phase="baseline",
        select_on="val",
        selected_epoch_by="val_auc_study",
        has_patients=True,
        model_sha256="of no model",
        predictions_sha256=sha256_of(folder / "predictions.csv"),
        scores=score_classes(read, area, description.labels, FEW),
        task=task,
        classes=tuple(classes),
        localization_faithfulness=None,
    )
    write_json(folder / "metrics.json", dataclasses.asdict(found))
    (folder / "history.csv").write_text("epoch,loss,val_loss_img,val_auc_study,best\n1,0.7,0.7,0.6,True\n")
    return folder


def interval(score):
    return from_json(Interval, score)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    classes = [f"{state}-{area.removeprefix('XR_')}" for state in ("Abnormal", "Normal") for area in MURA]
    run = evaluated_classes(folder / "all" / "baseline", class_table(classes, studies=280, areas=MURA), classes)
    out = report([run], folder / "page.html", resamples=50)
    return run, out, Page(out.read_text())


def test_the_page_is_complete_and_accessible(joint):
    _, out, page = joint
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") for link in page.links), page.links
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert not re.search(r"\bnan\b", words(page).lower())
    names = {path.name for path in out.with_name("page-figures").iterdir()}
    for figure in ("classes-study", "areas-image", "roc-classes-study", "pr-areas-image", "kappas", "reliability"):
        assert f"run0-{figure}.svg" in names and f"run0-{figure}.png" in names


def test_scores_match_the_evaluation(joint):
    run, _, page = joint
    scores, text = json.loads((run / "metrics.json").read_text())["scores"], words(page)
    for level in ("study", "image"):
        found = scores["splits"]["test"][level]
        for each in found["classes"]:
            row = " ".join(str(interval(score)) for score in each["scores"].values())
            assert f"{each['name']} {each['units']} {row}" in text
        for name, each in [*scores["questions"].items(), ("all areas", scores["pooled"])]:
            of = each["splits"]["test"][level]
            row = " ".join(str(interval(of["scores"][score])) for score in ("auc", "ap", "f1", "kappa"))
            assert f"{name} {of['images' if level == 'image' else 'studies']} {of['positives']} {row}" in text
            cells = " ".join(str(of["confusion"][cell]) for cell in ("tp", "fn", "fp", "tn"))
            assert f"{name} {cells} {interval(of['scores']['recall'])}" in text
    area = interval(scores["areas"]["test"]["study"]["scores"]["accuracy"])
    assert re.search(rf"accuracy of the area alone [^a-z]+\(\S+ to \S+\) {re.escape(str(area))}", text)


def test_kappas_are_shown_with_published_kappas_of_another_test_set(joint):
    run, _, page = joint
    scores, text = json.loads((run / "metrics.json").read_text())["scores"], words(page)
    assert "another test set, the hidden one of 207 studies (Rajpurkar et al. 2018" in text
    for area, theirs in (
        ("XR_ELBOW", "- -"),
        ("XR_HAND", "- -"),
        ("all areas", "0.778 0.843"),
    ):
        found = (scores["questions"] | {"all areas": scores["pooled"]})[area]["splits"]["test"]["study"]
        assert f"{area} {found['studies']} {interval(found['scores']['kappa'])} {theirs}" in text


def test_the_earlier_kappa_is_compared_with_abnormal_or_normal_and_not_with_the_14_classes(joint):
    run, _, page = joint
    scores, text = json.loads((run / "metrics.json").read_text())["scores"], words(page)
    binary = interval(scores["pooled"]["splits"]["test"]["image"]["scores"]["kappa"])
    assert f"over all areas, image level: {binary} ; an earlier system of this project had 0.612" in text.replace(
        f"{binary};", f"{binary} ;"
    )
    classes = interval(scores["splits"]["test"]["image"]["scores"]["kappa"])
    assert f"classes (area and abnormality together), image level: {classes}." in text


def test_the_earlier_accuracy_of_14_classes_implies_a_larger_kappa_than_the_earlier_value():
    support = np.array([230, 247, 151, 189, 140, 278, 295, 235, 214, 150, 271, 148, 285, 364]) / 3197
    accuracy = 0.79
    for predicted in (support, np.full(14, 1 / 14)):  # chance agreement hardly depends on what was predicted
        chance = float(support @ predicted)
        assert (accuracy - chance) / (1 - chance) == pytest.approx(0.77, abs=0.01)
    assert EARLIER_KAPPA < 0.7


@pytest.mark.slow
def test_a_joint_model_is_shown_with_models_of_single_areas(tmp_path):
    table = class_table()
    runs = [
        evaluated_classes(tmp_path / "all" / "baseline", table),
        evaluated(tmp_path / "XR_HAND" / "baseline", questions_of(table, ALL, JOINT_TASK)["XR_HAND"]),
    ]
    page = Page(report(runs, tmp_path / "page.html", resamples=50).read_text())
    text = words(page)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert "Not compared" not in text and "baseline of all areas" in text
    assert "All areas, baseline" in text and "XR_HAND, baseline" in text
    shown = re.search(r"auc on test, study level.*?XR_HAND (\d+) (\S+ \(\S+ to \S+\)) (\S+ \(\S+ to \S+\))", text)
    assert shown[2] == shown[3]  # the same predictions
    assert (
        "best radiologist" not in text and "earlier system" not in text
    )  # the published values are for all areas of MURA


def test_areas_without_published_values_show_none():
    table = class_table()
    table["area"] = table["area"].str.replace("XR_", "DX_")
    rows = kappa_rows(score_classes(table, ALL, JOINT_TASK, FEW), "test")
    assert [row.area for row in rows] == ["DX_ELBOW", "DX_HAND", "DX_WRIST", "all areas"]
    assert not any(value is not None for row in rows for value in row.published)


@pytest.mark.parametrize(
    ("classes", "task", "figures"),
    [
        (("a", "b", "c"), "multiclass", 8),  # a matrix and two curves per level, and the training curves
        pytest.param(("no", "yes"), "multiclass", 19, marks=pytest.mark.slow),  # and those of a binary question
        (("a", "b", "c"), "multilabel", 6),
        pytest.param(("a",), "multilabel", 17, marks=pytest.mark.slow),
    ],
)
def test_classes_and_labels_of_one_area_are_reported(tmp_path, classes, task, figures):
    run = evaluated_classes(
        tmp_path / "x" / "baseline", class_table(classes, task, areas=AREAS[:1]), classes, task, "X"
    )
    page = Page(report([run], tmp_path / "page.html").read_text())
    text = words(page)
    assert page.open == [] and sum(tag == "svg" for tag, _ in page.tags) == figures
    assert "Kappa beside" not in text and f"{len(classes)} {'classes' if task == 'multiclass' else 'labels'}" in text
    assert ("yes/no" in text) == (task == "multilabel" or len(classes) == 2)


def test_names_that_contain_html_are_escaped(tmp_path):
    classes = (EVIL, "b", "c")
    table = class_table(classes, areas=AREAS[:1])
    run = evaluated_classes(tmp_path / "x" / "baseline", table, classes, area="XR_ELBOW")
    page = Page(report([run], tmp_path / "page.html").read_text())
    assert page.open == [] and not [tag for tag, _ in page.tags if tag == "script"]
    assert EVIL in "".join(page.text)


def test_missing_classes_and_unknown_labels_are_reported_as_gaps(tmp_path):
    table = class_table(("a", "b", "c"), areas=AREAS[:1])
    table = table[(table["split"] == "val") | (table["label"] != 2)]
    table.loc[table["split"] == "val", "label"] = -1
    run = evaluated_classes(tmp_path / "x" / "baseline", table, ("a", "b", "c"), area="XR_ELBOW")
    text = words(Page(report([run], tmp_path / "page.html").read_text()))
    assert "test: no studies of c; the means exclude it" in text
    assert "undefined" in text and not re.search(r"\bnan\b", text.lower())


def test_incomplete_scores_are_one_clear_error(tmp_path, joint):
    run = shutil.copytree(joint[0], tmp_path / "run")
    found = json.loads((run / "metrics.json").read_text())
    del found["scores"]["areas"]
    write_json(run / "metrics.json", found)
    with pytest.raises(InputError, match="another version"):
        report([run], tmp_path / "page.html")


def test_curves_can_be_distinguished_without_colour(monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, *points, **options: drawn.append(options))
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    label, probability = np.tile([0, 1], 20), np.linspace(0, 1, 40)
    area = Interval(0.5, 0.4, 0.6)
    curves = [class_figures.Curve(f"c{place}", label, probability, area, area) for place in range(14)]
    class_figures.roc_curves("x", "x", curves, 40)
    looks = {(each["marker"], str(each["linestyle"])) for each in drawn if "marker" in each}
    assert len(looks) == 14
    assert all(each["label"].startswith("0.500  c") for each in drawn if "marker" in each)


def test_a_confusion_matrix_shows_row_fractions_and_counts():
    picture = class_figures.confusion_of("x", "x", ["a", "b"], [[3, 1], [0, 6]])
    texts = re.findall(r">([^<>]+)</text>", picture.svg)
    for text in ("75 %", "25 %", "100 %", "3", "1", "6", "a (4)", "b (6)"):
        assert any(text == " ".join(each.split()) for each in texts), (text, texts)
    assert not picture.wide and class_figures.confusion_of("x", "x", JOINT * 2, np.eye(12)).wide
