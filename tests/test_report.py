"""The report page: complete, self-contained and safe, for one run, several runs, and damaged runs."""

import dataclasses
import html.parser
import json
import re
import subprocess
import sys

import jinja2
import numpy as np
import pandas as pd
import pytest
from test_compare import blurred, write_run_of
from test_run_versions import of_version_2
from test_scoring import FEW, simulated, single_views

from kmura import kinds
from kmura.errors import InputError
from kmura.evaluation.evaluation import Evaluation, read_evaluation
from kmura.evaluation.scoring import headline_split, score_table
from kmura.explain.explanation import Case, Explanation, Localization, MeanCurves
from kmura.export.card import model_card
from kmura.files import sha256_of, write_json
from kmura.metrics import Interval
from kmura.report import figures, render
from kmura.report.chapter import Chapter, Section, Table, Text
from kmura.report.report import report
from kmura.runs.predictions import read_predictions
from kmura.runs.run import RunFolder, epochs_trained, read_run, write_run
from kmura.serving.contract import contract_of_run
from kmura.typed import from_json

EVIL = '<script>alert("x")</script>$\\frac'


def evaluated(folder, table, phase="baseline", options=FEW):
    """Writes a run folder as `evaluate` does, with a history, without a model."""
    write_run_of(folder, table, phase)
    found = Evaluation(
        run=str(folder),
        area=table["area"].iloc[0],
        phase=phase,
        select_on="val",
        selected_epoch_by="val_auc_study",
        has_patients=True,
        model_sha256="of no model",
        predictions_sha256=sha256_of(folder / "predictions.csv"),
        scores=score_table(read_predictions(folder / "predictions.csv"), options),
        localization_faithfulness=None,
    )
    write_json(folder / "metrics.json", dataclasses.asdict(found))
    (folder / "history.csv").write_text(
        "epoch,loss,val_loss_img,val_auc_img,val_auc_study,best\n1,0.7,0.7,0.6,0.6,True\n2,0.6,0.6,0.7,0.7,True\n"
    )
    return folder


class Page(html.parser.HTMLParser):
    """Collects tags, ids and links of a page and checks that all tags are closed."""

    VOID = {"meta", "br", "img", "input", "link", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.text = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[name] for name in ("href", "src", "xlink:href") if name in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)


def words(page):
    return " ".join(" ".join(page.text).split())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    table = simulated(120)
    runs = [
        evaluated(folder / "XR_WRIST" / "baseline", blurred(table, 3.0)),
        evaluated(folder / "XR_WRIST" / "final", table, "final"),
    ]
    out = report(runs, folder / "page.html", resamples=100)
    return runs, out, Page(out.read_text())


def test_the_page_is_complete_and_self_contained(two):
    _, out, page = two
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:image/png")) for link in page.links), page.links
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons|matplotlib)", out.read_text())


def test_the_page_shows_the_results(two):
    runs, _, page = two
    text = words(page)
    found = score_table(read_predictions(runs[1] / "predictions.csv"), FEW).splits["test"]["study"]
    auc = found.scores["auc"]
    assert f"study AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f}) on 60 held-out studies" in text
    assert "final is better than baseline by" in text
    assert "chosen on val" in text and "not corrected for" in text
    assert sum(tag == "svg" for tag, _ in page.tags) == 28  # 13 figures per run, 2 of the comparison
    assert {path.suffix for path in (runs[0].parents[1] / "page-figures").iterdir()} == {".svg", ".png"}


def test_tables_and_figures_are_accessible(two):
    page = two[2]
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_names_that_contain_html_are_escaped(tmp_path):
    table = simulated(80, area=EVIL)
    table["study"] = EVIL + table["study"]
    out = report([evaluated(tmp_path / "run" / "x", table)], tmp_path / "page.html")
    page = Page(out.read_text())
    assert page.open == [] and not [tag for tag, _ in page.tags if tag == "script"]
    assert EVIL in "".join(page.text)


def test_only_epochs_that_were_trained_are_counted(tmp_path, sketched):
    run = evaluated(tmp_path / "run" / "x", simulated(60))
    most = read_run(run).config.train.epochs
    assert epochs_trained(RunFolder(run), read_run(run).config) == f"2 of at most {most} epochs"
    assert f"2 of at most {most} epochs, batches of" in report([run], tmp_path / "page.html").read_text()
    (run / "history.csv").write_text("epoch,loss\n" + "".join(f"{epoch + 1},0.5\n" for epoch in range(most)))
    assert epochs_trained(RunFolder(run), read_run(run).config) == f"{most} epochs"
    (run / "history.csv").unlink()
    assert epochs_trained(RunFolder(run), read_run(run).config) == f"at most {most} epochs"


def test_classes_are_shown_with_their_names(tmp_path):
    run = evaluated(tmp_path / "run" / "x", simulated(80))
    write_run(RunFolder(run), dataclasses.replace(read_run(run), classes=("healthy", EVIL)))
    text = "".join(Page(report([run], tmp_path / "page.html").read_text()).text)
    assert "abnormal" not in text.rpartition("How to read")[0]
    for said in (f" {EVIL}, ", f"share of {EVIL}", f"probability of {EVIL}", "healthy (n = "):
        assert said in text, said


def test_a_single_class_is_reported_as_a_gap(tmp_path):
    table = simulated(60)
    table = table[(table["split"] == "val") | (table["label"] == 1)]
    text = report([evaluated(tmp_path / "x" / "baseline", table)], tmp_path / "page.html").read_text()
    assert "AUC is undefined, since all labels are of one class" in text and "undefined: one class" in text
    assert not re.search(r"\bnan\b", " ".join(Page(text).text).lower())


def test_files_beside_the_page_are_left_alone(two, sketched):
    runs, out, _ = two
    mine = out.with_name("page-figures") / "mine.txt"
    mine.write_text("mine")
    report(runs, out, resamples=20)
    assert mine.read_text() == "mine"
    mine.unlink()


def test_the_comparison_pools_studies_as_the_evaluation_did(tmp_path, sketched):
    pooled = dataclasses.replace(FEW, pooling="max")
    table = simulated(120)
    runs = [
        evaluated(tmp_path / "XR_WRIST" / phase, blurred(table, noise), phase, pooled)
        for phase, noise in (("baseline", 3.0), ("final", 0.0))
    ]
    value = score_table(table, pooled).splits["test"]["study"].scores["auc"].value
    text = report(runs, tmp_path / "page.html", resamples=20).read_text()
    assert text.count(f"{value:.3f} (") >= 3  # headline, comparison, scores
    other = evaluated(tmp_path / "b" / "XR_WRIST" / "other", table, "tune")
    assert "different poolings" in report([runs[0], other], tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_missing_labels_are_reported_as_a_gap(tmp_path):
    table = simulated(40)
    table.loc[table["split"] == "test", "label"] = -1
    text = report([evaluated(tmp_path / "x" / "baseline", table)], tmp_path / "page.html").read_text()
    assert "AUC is undefined" in text and not re.search(r"\bnan\b", " ".join(Page(text).text).lower())


def test_the_area_under_the_plotted_precision_recall_curve_matches_its_legend(monkeypatch):
    from matplotlib.axes import Axes

    from kmura import metrics
    from kmura.evaluation.scoring import units_of

    drawn = []
    monkeypatch.setattr(Axes, "step", lambda self, x, y, **options: drawn.append((x, y, options["where"])))
    units = units_of(simulated(60), "study")
    figures.roc_pr("x", "x", units)
    x, y, where = drawn[0]
    assert where == "pre" and x[0] == 0
    assert np.sum(np.diff(x) * y[1:]) == pytest.approx(metrics.average_precision(units.label, units.probability)[0])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("localization_faithfulness", "localization_faithfulness is missing"),
        ("scores.splits", "scores.splits is empty"),
        ("scores.options", "scores.options is missing"),
        ("brier_parts", "scores.splits.test.study.brier_parts is missing"),
        ("auc", "scores.splits.test.study.scores.auc is missing"),
        ("metrics_version", "metrics_version is 4, this kmura reads versions 1 to 3"),
    ],
)
def test_metrics_of_another_version_are_one_clear_error(tmp_path, damage, problem):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    value = json.loads((run / "metrics.json").read_text())
    if damage == "brier_parts":
        del value["scores"]["splits"]["test"]["study"]["brier_parts"]
    elif damage == "auc":
        del value["scores"]["splits"]["test"]["study"]["scores"]["auc"]
    elif damage == "scores.splits":
        value["scores"]["splits"] = {}
    elif damage == "scores.options":
        del value["scores"]["options"]
    elif damage == "metrics_version":
        value[damage] = 4
    else:
        del value[damage]
    (run / "metrics.json").write_text(json.dumps(value))
    expected = f"metrics.json: {problem}; it is damaged or of another version; make it again with: kmura evaluate {run}"
    with pytest.raises(InputError, match=f"{re.escape(expected)}$"):
        report([run], tmp_path / "page.html")


@pytest.mark.parametrize(
    ("history", "problem"),
    [
        ("epoch,loss\n1,0.5\n", "history.csv has no column best; repeat the kmura fit"),
        ("loss,best\n0.5,True\n", "history.csv has no column epoch; repeat the kmura fit"),
        ("epoch,loss,best\n1,low,True\n", "history.csv, column loss, has an entry that is not a number; repeat"),
        ("", "history.csv cannot be read"),
    ],
)
def test_a_damaged_history_is_named(tmp_path, history, problem):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    (run / "history.csv").write_text(history)
    with pytest.raises(InputError, match=problem):
        report([run], tmp_path / "page.html")


def explained(run):
    """A run of `evaluated` with an explanation, whose pictures are a few bytes."""
    names, interval = ("image", "cam", "saliency", "smoothgrad"), Interval(0.5, 0.4, 0.6)
    means = {name: interval for name in ("deletion", "insertion", "drop")}
    means |= {f"random_{name}": interval for name in means}
    explanation = Explanation(
        run=str(run),
        area="XR_WRIST",
        phase="baseline",
        model_sha256="of no model",
        split="test",
        tap="P5",
        cases=[Case("TP", "a.png", "s", 1, 0.75, "p = 0.75", False, None, {name: f"{name}.png" for name in names}, [])],
        counts={"TP": 1},
        empty_share=0.25,
        sample=7,
        curves=MeanCurves([0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.5], [0.0, 0.5], means),
        localization=Localization(3, interval, 0.25, interval),
    )
    write_json(run / "explain" / "explain.json", dataclasses.asdict(explanation))
    for name in names:
        (run / "explain" / f"{name}.png").write_bytes(name.encode())
    return run


def test_an_explanation_brings_its_gallery_and_the_scores_of_its_maps(tmp_path):
    run = explained(evaluated(tmp_path / "x" / "baseline", simulated(60)))
    page = Page(report([run], tmp_path / "page.html").read_text())
    text = words(page)
    assert "Grad-CAM++ of P5, 7 images of test; 25 % of the maps are without positive evidence" in text
    assert "Boxes: Grad-CAM++ of P5, 3 images of test with the finding" in text
    assert "pointing game 0.500 (0.400 to 0.600) 0.250" in text
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert images == ["data:image/png;base64,aW1hZ2U=", "data:image/png;base64,Y2Ft"]  # "image" and "cam"
    assert (tmp_path / "page-figures" / "run0-perturbation-P5.svg").is_file()


def test_a_damaged_explanation_is_named(tmp_path):
    run = explained(evaluated(tmp_path / "x" / "baseline", simulated(60)))
    (run / "explain" / "saliency.png").unlink()
    with pytest.raises(InputError, match="saliency.png cannot be read: No such file .* kmura explain"):
        report([run], tmp_path / "page.html")
    value = json.loads((run / "explain" / "explain.json").read_text())
    del value["curves"]["means"]
    write_json(run / "explain" / "explain.json", value)
    with pytest.raises(InputError, match="explain.json: curves.means is missing; .*: kmura explain .*baseline$"):
        report([run], tmp_path / "page.html")


@pytest.mark.parametrize("error", [KeyError("a bug"), TypeError("a bug"), ValueError("a bug"), IndexError("a bug")])
def test_a_bug_in_a_figure_is_not_called_damage(tmp_path, monkeypatch, sketched, error):
    def broken(*_):
        raise error

    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    monkeypatch.setattr(figures, "histogram", broken)
    with pytest.raises(type(error), match="a bug") as caught:
        report([run], tmp_path / "page.html")
    assert caught.value is error


def test_a_bug_in_a_template_is_not_called_damage(tmp_path, monkeypatch, sketched):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    monkeypatch.delitem(render.FILTERS, "number")
    with pytest.raises(jinja2.TemplateError, match="number"):
        report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def toy_chapter(run, number, eda):
    """The chapter of a run of a kind that is registered by a test."""
    picture = figures.drawn("run1-errors", "Errors", lambda axes: axes.plot([0, 1], [1, 0]))
    return Chapter(
        id=f"run{number}",
        title=f"Toy {EVIL}",
        area="toys",
        path=str(run),
        headline=(Text("mean error 0.250, "), Text("small", strong=True), Text(".")),
        tables=(Table("Errors", ("split", "error"), (("val", 0.25), (EVIL, "unknown"))),),
        notes=("a note",),
        warnings=("a warning",),
        sections=(Section("Does it err?", pictures={"Errors by epoch": {"errors": picture}}), Section("Nothing here")),
        facts={"network": "none"},
    )


def test_a_kind_of_run_brings_its_own_chapter(tmp_path, monkeypatch):
    run, toy = evaluated(tmp_path / "x" / "baseline", simulated(60)), tmp_path / "toy"
    kind = dataclasses.replace(kinds.KINDS[kinds.CLASSIFICATION], chapter=f"{__name__}:toy_chapter")
    monkeypatch.setitem(kinds.KINDS, "toy", kind)
    write_run(RunFolder(toy), dataclasses.replace(read_run(run), kind="toy"))
    page = Page(report([toy], tmp_path / "alone.html").read_text())
    text = words(page)
    assert page.open == [] and not [tag for tag, _ in page.tags if tag == "script"] and "Not compared" not in text
    for part in (
        "mean error 0.250, small .",
        f"{EVIL} unknown",
        "a note",
        "a warning",
        "Errors by epoch",
        "network none",
    ):
        assert part in text, part
    assert "AUC" not in text and "kappa" not in text.lower() and "study" not in text and "How to read" not in text
    both = words(Page(report([run, toy], tmp_path / "both.html").read_text()))
    assert "study AUC" in both and "mean error 0.250" in both and "Not compared" not in both
    assert {"run0-histogram.svg", "run1-errors.png"} <= {path.name for path in (tmp_path / "both-figures").iterdir()}
    monkeypatch.delitem(kinds.KINDS, "toy")
    with pytest.raises(InputError, match="kind of run 'toy' is unknown; choose one of classification"):
        report([toy], tmp_path / "page.html")


def of_version_1(run):
    """Turns a run into one on records of schema version 1: splits `tune` and `valid`, no metrics_version."""
    names = {"val": "tune", "test": "valid"}
    table = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)
    table.assign(split=table["split"].replace(names)).to_csv(run / "predictions.csv", index=False)
    for path in (run / "metrics.json", run / "explain" / "explain.json"):
        if path.exists():
            path.write_text(re.sub(r"\b(val|test)\b", lambda name: names[name[0]], path.read_text()))
    value = of_version_2(json.loads((run / "metrics.json").read_text()))
    value |= {"predictions_sha256": sha256_of(run / "predictions.csv")}
    del value["metrics_version"]
    write_json(run / "metrics.json", value)
    assert {"tune", "valid"} <= value["scores"]["splits"].keys() and value["select_on"] == "tune"


def test_a_run_of_version_1_is_read_with_todays_names_of_the_splits(tmp_path, sketched):
    table = simulated(120)
    rare = table[(table["split"] == "val") | (table["label"] == 0) | (table.index % 20 == 0)]  # leaves a note
    run = explained(evaluated(tmp_path / "XR_WRIST" / "baseline", rare))
    other = evaluated(tmp_path / "XR_WRIST" / "final", blurred(rare, 1.0), "final")
    new, (evaluation, predictions) = report([run, other], tmp_path / "new.html", resamples=20), read_evaluation(run)
    assert any("test" in note for note in evaluation.scores.notes)
    expected = Evaluation.from_json(of_version_2(json.loads((run / "metrics.json").read_text())))
    of_version_1(run)
    old, (read, read_predictions) = report([run, other], tmp_path / "old.html", resamples=20), read_evaluation(run)
    assert read == dataclasses.replace(expected, predictions_sha256=sha256_of(run / "predictions.csv"))
    errors = [scores.splits["test"]["study"].calibration for scores in (read.scores, evaluation.scores)]
    assert errors[0]["rmsce_debiased"] == errors[1]["rmsce_debiased"] and "ece_debiased" not in errors[0]
    intervals = [scores.splits["test"]["study"].scores["auc"] for scores in (read.scores, evaluation.scores)]
    assert [interval.method for interval in intervals] == ["", "logit"] and intervals[0].low == intervals[1].low
    pd.testing.assert_frame_equal(read_predictions, predictions)
    pages = [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", page.read_text()) for page in (new, old)]
    added = r'<tr><th scope="row">ece_debiased .*?</tr>\n'  # the error that version 3 added
    pages[0] = re.sub(added, "", pages[0])
    assert pages[0] == re.sub(added, "", pages[1])
    contract = contract_of_run(run, threshold="max_f1")
    assert contract.calibrator == evaluation.scores.calibrator
    assert contract.threshold == evaluation.scores.operating_points["test"][1].threshold
    card = model_card(read_run(run), read, contract, trained="2 epochs", made="today", records="none")
    assert "calibrated on val" in card and "### test, study level" in card
    assert not re.search(r"\b(tune|valid)\b", pages[1] + card)


def test_scores_of_another_task_are_refused(tmp_path):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    write_run(RunFolder(run), dataclasses.replace(read_run(run), task="multiclass"))
    with pytest.raises(InputError, match="metrics.json is not of a multiclass run; make it again with: kmura evaluate"):
        report([run], tmp_path / "page.html")


def test_a_report_needs_no_tensorflow():
    code = "import sys, kmura.report.classification_chapter, kmura.report.report; assert 'keras' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_runs_that_cannot_be_compared_are_reported_side_by_side(tmp_path, two, sketched):
    other = evaluated(tmp_path / "b" / "XR_WRIST" / "final", simulated(50, 7), "final")
    text = report([two[0][0], other], tmp_path / "page.html").read_text()
    assert "Not compared: " in text and "different images" in text


def test_what_is_missing_or_damaged_is_named_and_the_old_page_stays(tmp_path, sketched):
    run, out = evaluated(tmp_path / "x" / "baseline", simulated(60)), tmp_path / "page.html"
    report([run], out)
    before = out.read_bytes()
    (run / "metrics.json").write_text('{"splits": {}}')
    with pytest.raises(InputError, match="of another version; make it again with: kmura evaluate"):
        report([run], out)
    (run / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        report([run], out)
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match="does not exist; make it with: kmura evaluate"):
        report([run], out)
    with pytest.raises(InputError, match="needs a run"):
        report([], out)
    assert out.read_bytes() == before


def test_intervals_are_formatted_as_text():
    def written(value, low, high):
        return str(from_json(Interval, {"value": value, "low": low, "high": high}))

    assert written(0.5, 0.25, 1) == "0.500 (0.250 to 1.000)"
    assert written(0.5, None, None) == "0.500 (no interval)"
    assert written(None, None, None) == "undefined"
    assert written(np.nan, 0, 1) == "undefined"


def test_scores_predictions_and_galleries_of_different_models_are_not_mixed(tmp_path, sketched):
    run, out = evaluated(tmp_path / "x" / "baseline", simulated(60)), tmp_path / "page.html"
    write_json(run / "explain" / "explain.json", {"model_sha256": "of an earlier model"})
    assert "The galleries are left out, since they show an earlier model" in report([run], out).read_text()
    predictions = (run / "predictions.csv").read_text()
    (run / "predictions.csv").write_text(predictions.replace("val", "VAL"))
    with pytest.raises(InputError, match="predictions.csv has changed since .* kmura evaluate"):
        report([run], out)
    (run / "predictions.csv").write_text(predictions)
    (run / "best.keras").write_bytes(b"a later model")
    with pytest.raises(InputError, match="best.keras has changed since"):
        report([run], out)


def test_the_figures_folder_cannot_be_a_file(tmp_path):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    (tmp_path / "page-figures").write_text("mine")
    with pytest.raises(InputError, match="page-figures, the folder for the figures, is a file"):
        report([run], tmp_path / "page.html")
    assert (tmp_path / "page-figures").read_text() == "mine"


def test_the_data_card_contains_the_results_of_eda(tmp_path):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    intensity = {"images": 61, "studies": 20, "mean": 99.5, "deviation": 1, "between": 2, "black": 0.1, "white": 0.02}
    area = {
        "classes": {"normal": intensity},
        "height": [100, 200, 300],
        "width": [101, 201, 301],
        "outliers": [{"image": EVIL, "split": "train", "mean": 240.0, "z": 5.0}],
        "near_doubles": [],
        "principal": {"images": 61, "pca": {"0.9": 7, "0.99": None}, "incremental": {"0.9": 8}, "cumulative": [0.5, 1]},
    }
    found = {"records": "r", "inputs": read_run(run).inputs, "areas": {"XR_WRIST": area}}
    write_json(tmp_path / "eda.json", found)
    page = Page(report([run], tmp_path / "page.html", eda=tmp_path / "eda.json").read_text())
    text = "".join(page.text)
    assert "99.5" in text and "height 100 to 300 pixels (median 200)" in text and EVIL in text
    assert "7, more than 200" in text and not page.open
    assert (tmp_path / "page-figures" / "run0-variance.svg").is_file()
    write_json(tmp_path / "eda.json", found | {"inputs": "others"})
    with pytest.raises(InputError, match="of other records"):
        report([run], tmp_path / "page.html", eda=tmp_path / "eda.json")


def test_single_views_have_one_column_and_a_bootstrap_over_images(tmp_path, sketched):
    tables = single_views(120), blurred(single_views(120), 3.0)
    runs = [
        evaluated(tmp_path / "folders" / phase, table, phase)
        for phase, table in zip(("baseline", "final"), tables, strict=True)
    ]
    for run in runs:
        value = json.loads((run / "metrics.json").read_text())
        write_json(run / "metrics.json", value | {"has_patients": False})
    text = words(Page(report(runs, tmp_path / "page.html", resamples=20).read_text()))
    body = text.partition("How to read this A study")[0]
    assert re.search(r"AUC 0\.\d+ \(0\.\d+ to 0\.\d+\) on 60 held-out images \(\d+ abnormal\); kappa", body)
    assert "bootstrap over images" in body and "patient bootstrap" not in body and "over patients" not in body
    assert "studies" not in body and "study level" not in body and "image level" not in body
    assert len(re.findall(r"images, n = 60 \(", body)) == 4  # two splits of two runs, one column each
    evaluation = read_evaluation(runs[0])[0]
    card = model_card(read_run(runs[0]), evaluation, contract_of_run(runs[0]), trained="2", made="today", records="no")
    scores = card.partition("## Scores")[2]
    assert "bootstrap over images" in scores and "The records do not identify patients." in scores
    assert scores.count("### test") == 1 and "studies" not in scores and "study level" not in scores


def test_the_printed_tables_of_single_views_have_one_column_of_images(capsys, tmp_path):
    from kmura.cli.display import show_evaluation

    for table, views in ((single_views(120), "images"), (simulated(120), "studies")):
        run = evaluated(tmp_path / views / "baseline", table)
        show_evaluation(dataclasses.replace(read_evaluation(run)[0], has_patients=views == "studies"))
        text = capsys.readouterr().out
        assert (f"bootstrap over {'images' if views == 'images' else 'patients'}") in text
        assert ("studies" in text) == (views == "studies") and "patient bootstrap" not in text
        assert "images" in text and "rmsce_debiased" in text


@pytest.mark.parametrize(
    ("splits", "chosen", "first"),
    [
        (["val", "test"], ["val", "val"], "test"),
        (["val", "clinic"], ["val", "val"], "clinic"),
        (["train", "val", "clinic"], ["val", "val"], "clinic"),
        (["val", "test", "clinic"], ["test", "val"], "clinic"),
        (["val", "test"], ["test", "val"], "test"),
        (["val"], ["val", "val"], "val"),
    ],
)
def test_the_headline_is_of_the_held_out_split_whatever_its_name(splits, chosen, first):
    assert headline_split(splits, *chosen) == first


def test_a_held_out_split_of_another_name_is_in_the_headline(tmp_path, sketched):
    table = simulated(120)
    run = evaluated(tmp_path / "run" / "x", table.assign(split=table["split"].replace("test", "clinic")))
    text = words(Page(report([run], tmp_path / "page.html").read_text()))
    assert "on 60 held-out studies" in text and "Scores on clinic" in text and "optimistic." not in text
