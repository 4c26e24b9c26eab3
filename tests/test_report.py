"""The page about runs: whole, without network or script from data, for one run, several, and damaged ones."""

import dataclasses
import html.parser
import re

import numpy as np
import pytest
from test_compare import blurred, write_run_of
from test_scoring import FEW, simulated

from kmura.errors import InputError
from kmura.evaluation.evaluation import Evaluation
from kmura.evaluation.scoring import score_table
from kmura.files import sha256_of, write_json
from kmura.metrics import Interval
from kmura.report.report import report
from kmura.runs.predictions import read_predictions
from kmura.runs.run import RunFolder, epochs_trained, read_run, write_run
from kmura.typed import from_json

EVIL = '<script>alert("x")</script>$\\frac'


def evaluated(folder, table, phase="baseline", options=FEW):
    """A run folder as evaluate leaves it, with a history, without a model."""
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
    """Tags, ids and links of a page; checks that tags are closed."""

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


def test_the_page_is_whole_and_alone(two):
    _, out, page = two
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:image/png")) for link in page.links), page.links
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons|matplotlib)", out.read_text())


def test_it_says_what_was_found(two):
    runs, _, page = two
    text = " ".join(" ".join(page.text).split())
    found = score_table(read_predictions(runs[1] / "predictions.csv"), FEW).splits["test"]["study"]
    auc = found.scores["auc"]
    assert f"study AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f}) on 60 held-out studies" in text
    assert "final is better than baseline by" in text
    assert "chosen on val" in text and "not corrected for" in text
    assert sum(tag == "svg" for tag, _ in page.tags) == 16  # eight figures a run
    assert {path.suffix for path in (runs[0].parents[1] / "page-figures").iterdir()} == {".svg", ".png"}


def test_tables_and_figures_can_be_read_without_eyes(two):
    page = two[2]
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_names_that_contain_html_stay_text(tmp_path):
    table = simulated(80, area=EVIL)
    table["study"] = EVIL + table["study"]
    out = report([evaluated(tmp_path / "run" / "x", table)], tmp_path / "page.html")
    page = Page(out.read_text())
    assert page.open == [] and not [tag for tag, _ in page.tags if tag == "script"]
    assert EVIL in "".join(page.text)


def test_only_epochs_that_were_trained_are_counted(tmp_path):
    run = evaluated(tmp_path / "run" / "x", simulated(60))
    most = read_run(run).config.train.epochs
    assert epochs_trained(RunFolder(run), read_run(run).config) == f"2 of at most {most} epochs"
    assert f"2 of at most {most} epochs, batches of" in report([run], tmp_path / "page.html").read_text()
    (run / "history.csv").write_text("epoch,loss\n" + "".join(f"{epoch + 1},0.5\n" for epoch in range(most)))
    assert epochs_trained(RunFolder(run), read_run(run).config) == f"{most} epochs"
    (run / "history.csv").unlink()
    assert epochs_trained(RunFolder(run), read_run(run).config) == f"at most {most} epochs"


def test_classes_are_called_by_their_names(tmp_path):
    run = evaluated(tmp_path / "run" / "x", simulated(80))
    write_run(RunFolder(run), dataclasses.replace(read_run(run), classes=("healthy", EVIL)))
    text = "".join(Page(report([run], tmp_path / "page.html").read_text()).text)
    assert "abnormal" not in text.rpartition("How to read")[0]
    for said in (f" {EVIL}, ", f"share of {EVIL}", f"probability of {EVIL}", "healthy (n = "):
        assert said in text, said


def test_one_class_leaves_a_stated_gap(tmp_path):
    table = simulated(60)
    table = table[(table["split"] == "val") | (table["label"] == 1)]
    text = report([evaluated(tmp_path / "x" / "baseline", table)], tmp_path / "page.html").read_text()
    assert "AUC is undefined, since all labels are of one class" in text and "undefined: one class" in text
    assert not re.search(r"\bnan\b", " ".join(Page(text).text).lower())


def test_files_beside_the_page_are_left_alone(two):
    runs, out, _ = two
    mine = out.with_name("page-figures") / "mine.txt"
    mine.write_text("mine")
    report(runs, out, resamples=20)
    assert mine.read_text() == "mine"
    mine.unlink()


def test_the_comparison_pools_studies_as_the_evaluation_did(tmp_path):
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


def test_no_known_label_is_a_stated_gap(tmp_path):
    table = simulated(40)
    table.loc[table["split"] == "test", "label"] = -1
    text = report([evaluated(tmp_path / "x" / "baseline", table)], tmp_path / "page.html").read_text()
    assert "AUC is undefined" in text and not re.search(r"\bnan\b", " ".join(Page(text).text).lower())


def test_the_drawn_precision_recall_curve_has_the_area_of_its_legend(monkeypatch):
    from matplotlib.axes import Axes

    from kmura import metrics
    from kmura.evaluation.scoring import units_of
    from kmura.report import figures

    drawn = []
    monkeypatch.setattr(Axes, "step", lambda self, x, y, **options: drawn.append((x, y, options["where"])))
    units = units_of(simulated(60), "study")
    figures.roc_pr("x", "x", units)
    x, y, where = drawn[0]
    assert where == "pre" and x[0] == 0
    assert np.sum(np.diff(x) * y[1:]) == pytest.approx(metrics.average_precision(units.label, units.probability)[0])


@pytest.mark.parametrize("damage", ["localization_faithfulness", "scores.splits", "scores.options", "brier_parts"])
def test_metrics_of_another_version_are_one_clear_error(tmp_path, damage):
    import json

    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    found = json.loads((run / "metrics.json").read_text())
    if damage == "brier_parts":
        del found["scores"]["splits"]["test"]["study"]["brier_parts"]
    elif damage == "scores.splits":
        found["scores"]["splits"] = {}
    elif damage == "scores.options":
        del found["scores"]["options"]
    else:
        del found[damage]
    (run / "metrics.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="another version"):
        report([run], tmp_path / "page.html")


def test_runs_that_cannot_be_compared_are_reported_side_by_side(tmp_path, two):
    other = evaluated(tmp_path / "b" / "XR_WRIST" / "final", simulated(50, 7), "final")
    text = report([two[0][0], other], tmp_path / "page.html").read_text()
    assert "Not compared: " in text and "different images" in text


def test_what_is_missing_or_damaged_is_named_and_the_old_page_stays(tmp_path):
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


def test_intervals_are_written_as_read():
    def written(value, low, high):
        return str(from_json(Interval, {"value": value, "low": low, "high": high}))

    assert written(0.5, 0.25, 1) == "0.500 (0.250 to 1.000)"
    assert written(0.5, None, None) == "0.500"
    assert written(None, None, None) == "undefined"
    assert written(np.nan, 0, 1) == "undefined"


def test_scores_predictions_and_galleries_of_different_models_are_not_mixed(tmp_path):
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


def test_figures_do_not_go_into_a_file(tmp_path):
    run = evaluated(tmp_path / "x" / "baseline", simulated(60))
    (tmp_path / "page-figures").write_text("mine")
    with pytest.raises(InputError, match="page-figures, the folder for the figures, is a file"):
        report([run], tmp_path / "page.html")
    assert (tmp_path / "page-figures").read_text() == "mine"


def test_what_eda_found_is_in_the_data_card(tmp_path):
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
