"""One self-contained HTML page about runs, from the tables that evaluate and explain saved."""

import base64
import dataclasses
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

import kmura
from kmura import metrics
from kmura.data.index import ALL
from kmura.errors import InputError, reason
from kmura.evaluation.calibrators import Calibrator
from kmura.evaluation.class_scores import read_any_evaluation
from kmura.evaluation.compare import Comparison, compare
from kmura.evaluation.scoring import LEVELS, units_of
from kmura.files import replacing
from kmura.records.manifest import EDA
from kmura.report import figures, published
from kmura.report.class_chapter import Parts, parts_of
from kmura.runs.predictions import read_json
from kmura.runs.run import RunDescription, RunFolder, epochs_trained, read_run

TEMPLATE = "page.html.jinja"
WORTH = ("tap", "empty_share", "curves", "localization")  # of an explanation, for each of its feature maps
SHOWN = ("auc", "f1", "kappa")  # scores of the comparison


def report(
    runs: Sequence[str | os.PathLike],
    out: str | os.PathLike = "report.html",
    *,
    eda: str | os.PathLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Path:
    """The page about evaluated runs, written to `out`; its figures also to the folder `OUT-figures` as SVG and PNG.

    Scores are those of `metrics.json`; curves are drawn from `predictions.csv`. Several runs are compared. A run that
    was explained brings its galleries.

    Args:
        runs: folders of evaluated runs.
        out: the file.
        eda: what `kmura eda` wrote; default: `eda.json` among the records of each run, where it is there.
        resamples, seed: of the comparison's bootstrap.

    Raises:
        InputError: no runs, one without evaluation or with a damaged one, `out` not writable.
    """
    if not runs:
        raise InputError("report needs a run; give its folder, as runs/XR_WRIST/baseline")
    out = Path(out)
    chapters = [chapter(run, number, eda) for number, run in enumerate(runs)]
    comparison, why_not = None, ""
    poolings = {(each["scores"]["options"]["pooling"], each["scores"]["options"]["top_k"]) for each in chapters}
    if len(poolings) > 1:
        why_not = "the runs were evaluated with different poolings; evaluate them alike"
    elif len(runs) > 1:
        try:
            (pooling, top_k), *_ = poolings
            comparison = compare(runs, pooling=pooling, top_k=top_k, resamples=resamples, seed=seed)
        except InputError as error:
            why_not = str(error)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kmura.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "interval": interval,
        "number": number_text,
        "percent": lambda share: f"{100 * share:.0f} %",
    }
    try:
        page = environment.get_template(TEMPLATE).render(
            title="kmura report",
            made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            version=kmura.__version__,
            chapters=chapters,
            comparison=dataclasses.asdict(comparison) if comparison else None,
            shown=SHOWN,
            why_not=why_not,
            sentences=_sentences(comparison),
            outcomes={
                case["outcome"] for each in chapters if each["explanation"] for case in each["explanation"]["cases"]
            },
            published=published,
        )
    except jinja2.UndefinedError as error:
        raise InputError(
            f"a run's metrics.json or explain.json is of another version ({error}); run evaluate and explain again"
        ) from error
    folder = out.with_name(f"{out.stem}-figures")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}, which takes the figures, is a file; move it or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in chapters:
            for pictures in each["groups"].values():
                for picture in pictures.values():
                    picture.save(folder)
        with replacing(out) as file:
            file.write(page)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {reason(error)}; choose another --out") from error
    return out


def chapter(run: str | os.PathLike, number: int, eda: str | os.PathLike | None = None) -> dict[str, Any]:
    """What the page says of one run.

    Raises:
        InputError: not evaluated, or damaged.
    """
    try:
        return _chapter(run, number, eda)
    except (KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"what evaluate and explain left in {run} is damaged or of another version ({type(error).__name__}: "
            f"{error}); run kmura evaluate {run}, and kmura explain {run} if it was explained"
        ) from error


def _chapter(run: str | os.PathLike, number: int, eda: str | os.PathLike | None) -> dict[str, Any]:
    folder, description = RunFolder(Path(run)), read_run(run)
    evaluation, table = read_any_evaluation(run, description)
    scores = evaluation["scores"]
    split = "test" if "test" in scores["splits"] else next(iter(scores["splits"]))
    area = "All areas" if description.area == ALL else description.area
    name, what = f"run{number}", f"{area}, {description.phase}"
    parts = parts_of(table, scores, split, description, name, f"{what}, {split}")
    groups = dict(parts.groups)
    if parts.answers is not None:
        groups[parts.heading] = _pictures(name, f"{what}, {split}", parts, split)
    others = _training(name, f"{what}, {split}", folder)
    explored = _explored(description, eda)
    if explored and explored["principal"]["cumulative"]:
        others["variance"] = figures.explained_variance(
            f"{name}-variance", f"{area}, thumbnails", explored["principal"]
        )
    explanation, stale = _explanation(folder, evaluation["model_sha256"])
    if explanation:
        for maps in explanation["maps"]:
            each, text = f"perturbation-{maps['tap']}", f"{what}, {maps['tap']}"
            others[each] = figures.perturbation(f"{name}-{each}", text, maps["curves"], explanation["sample"])
    heading = parts.heading if description.task == "binary" else "Training"
    groups[heading] = groups.get(heading, {}) | others
    return {
        "id": name,
        "path": str(run),
        "area": area,
        "phase": description.phase,
        "task": description.task,
        "classes": len(description.classes),
        "backbone": description.config.model.backbone,
        "image_size": description.config.data.image_size,
        "weights": description.config.model.weights,
        "select_on": evaluation["select_on"],
        "monitor": evaluation["selected_epoch_by"],
        "has_patients": evaluation["has_patients"],
        "faithfulness": evaluation["localization_faithfulness"],
        "scores": scores,
        "answers": parts.answers,
        "positive": parts.sides[1],
        "kappas": parts.kappas,
        "split": split,
        "data": data_card(parts.question),
        "explored": explored,
        "groups": {heading: pictures for heading, pictures in groups.items() if pictures},
        "explanation": explanation,
        "stale": stale,
        "description": _facts(description, folder),
    }


def data_card(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Counts of each split of a table of predictions."""
    return [
        {
            "split": split,
            "images": len(rows),
            "studies": len(rows[["area", "study"]].drop_duplicates()),
            "patients": rows["patient"].nunique(),
            "positives": int((rows["label"] == 1).sum()),
            "unknown": int((rows["label"] < 0).sum()),
            "positive_studies": len(rows[rows["label"] == 1][["area", "study"]].drop_duplicates()),
        }
        for split, rows in table.groupby("split", sort=False)
    ]


def _pictures(name: str, what: str, parts: Parts, split: str) -> dict[str, figures.Picture]:
    """The figures of a run's yes/no question on a split."""
    table, scores, sides = parts.question, parts.answers, parts.sides
    options = scores["options"]
    calibrator = Calibrator(**scores["calibrator"]) if scores["calibrator"] else None
    pooling = {"pooling": options["pooling"], "top_k": options["top_k"]}
    fitted = {"calibrator": calibrator, "calibrated_at": options["calibrate_at"]}
    rows = table[table["split"] == split]
    study, image = (units_of(rows, level, **pooling) for level in ("study", "image"))
    calibrated = units_of(rows, "study", **pooling, **fitted) if calibrator else None
    points = [(point["rule"], point["threshold"]) for point in scores["operating_points"][split]]
    found = {
        "roc_study": figures.roc_pr(f"{name}-roc-study", f"{what}, studies", study),
        "roc_image": figures.roc_pr(f"{name}-roc-image", f"{what}, images", image),
        "histogram": figures.histogram(f"{name}-histogram", f"{what}, studies", study, sides),
        "reliability": figures.reliability(f"{name}-reliability", f"{what}, studies", study, calibrated, sides),
        "thresholds": figures.thresholds(f"{name}-thresholds", f"{what}, studies", calibrated or study, points),
    }
    for level in LEVELS:
        cells = scores["splits"][split][level]["confusion"]
        place = f"{what}, {level} level"
        found[f"confusion_{level}"] = figures.confusion(f"{name}-confusion-{level}", place, cells, sides)
    return found


def _training(name: str, what: str, folder: RunFolder) -> dict[str, figures.Picture]:
    if not folder.history.is_file():
        return {}
    try:
        history = pd.read_csv(folder.history)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder.history} cannot be read ({error}); fit again to go on") from error
    return {"training": figures.training(f"{name}-training", what, history)}


def _explanation(folder: RunFolder, model_sha256: str) -> tuple[dict[str, Any] | None, bool]:
    """What `kmura explain` found, or None if it has not run, or (True) on an earlier model.

    Of the explanation and of each case `maps` is a list, an entry a feature map; pictures are embedded as `data`.
    """
    if not folder.explanation.is_file():
        return None, False
    found = read_json(folder.explanation, f"kmura explain {folder.path}")
    if found["model_sha256"] != model_sha256:
        return None, True
    try:
        found["maps"] = [{key: found[key] for key in WORTH}, *found.get("beside", [])]
        for case in found["cases"]:
            case["data"] = {name: _embedded(folder.explained / file) for name, file in case["files"].items()}
            first = {"tap": found["tap"], "empty": case["empty"], "file": case["files"]["cam"]}
            case["maps"] = [
                {**look, "data": _embedded(folder.explained / look["file"])}
                for look in (first, *case.get("beside", []))
            ]
        [maps["curves"]["means"] for maps in found["maps"]]  # noqa: B018  what the page needs
    except (KeyError, TypeError, OSError) as error:
        raise InputError(f"{folder.explained} is damaged ({error}); run kmura explain {folder.path} again") from error
    return found, False


def _explored(description: RunDescription, eda: str | os.PathLike | None) -> dict[str, Any] | None:
    """What `kmura eda` found in the area's images; None where it has not looked, or at other records.

    Raises:
        InputError: a file that was asked for and is damaged, or of other records.
    """
    path = Path(eda or Path(description.records) / EDA)
    if eda is None and not path.is_file():
        return None
    found = read_json(path, f"kmura eda {description.records}")
    if found["inputs"] != description.inputs:
        if eda is None:
            return None
        raise InputError(f"{eda} is of other records than {description.records}; run kmura eda on those")
    return found["areas"].get(description.area)


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _facts(description: RunDescription, folder: RunFolder) -> dict[str, str]:
    config = description.config
    return {
        "network": f"{config.model.words}, {config.data.image_size} pixels, {config.data.resize}",
        "training": f"{epochs_trained(folder, config)}, batches of {config.train.batch_size}, Adam at "
        f"{config.train.learning_rate:g}, {config.train.precision}, seed {config.train.seed}",
        "records": description.records,
        "command": description.command,
        "versions": ", ".join(f"{name} {version}" for name, version in description.versions.items()),
    }


def _sentences(found: Comparison | None) -> list[str]:
    if found is None:
        return []
    return [each.text for each in found.differences if each.level == "study" and each.score in SHOWN]


def interval(score: dict[str, float | None]) -> str:
    """`0.941 (0.887 to 0.982)` of a value with its interval as `metrics.json` holds it."""
    return str(metrics.Interval.from_json(score))


def number_text(value: float | None) -> str:
    """Three decimals, or `undefined`."""
    return "undefined" if value is None or np.isnan(value) else f"{value:.3f}"
