"""The tables of a classifier's chapter that are computed from its predictions and its explanation."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from kmura import metrics
from kmura.evaluation.calibrators import calibrated_levels
from kmura.evaluation.cross_validation import FoldsEvaluation
from kmura.evaluation.scoring import Counted, LevelScores, ScoreOptions, Scores, level_scores, units_of
from kmura.explain.explanation import Explanation, Worth
from kmura.metrics import Interval
from kmura.report.chapter import Table, number_text
from kmura.tasks import Task

MOST_VIEWS = 4  # studies with this number of images or more are one group
AREA_SCORES = {"auc": "AUC", "precision": "precision", "recall": "recall", "f1": "F1"}
HARDEST = 5  # confident errors shown of each kind


def plural_of(scores: Counted) -> str:
    """What a level counts: `images`, also where every image is a study of its own, or `studies`."""
    return "images" if scores.is_single_view or scores.level == "image" else "studies"


def classification_report(cells: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Returns precision, recall, F1 and number of units of both classes, and their means, from a confusion matrix.

    A score that is undefined (a precision without predictions of the class) is NaN and left out of the means, as in
    scikit-learn's `classification_report` with `zero_division=nan`.

    Args:
        cells: counts `tp`, `fp`, `fn` and `tn`.

    Returns:
        `negative`, `positive`, `macro` (the mean of both) and `weighted` (by the number of units) -> `precision`,
        `recall`, `f1` -> 0 to 1, and `n` -> the number of units.
    """
    four = [np.array([cells[name]], float) for name in ("tp", "fp", "fn", "tn")]
    counts = [cells["tn"] + cells["fp"], cells["tp"] + cells["fn"]]
    rows: dict[str, dict[str, float]] = {"negative": {}, "positive": {}, "macro": {}, "weighted": {}}
    for score in ("precision", "recall", "f1"):
        function = metrics.FROM_CONFUSION[score]
        both = np.array([function(*four[::-1])[0], function(*four)[0]])  # reversed, the negative class is the positive
        defined = ~np.isnan(both)
        weights = np.array(counts) * defined
        rows["negative"][score], rows["positive"][score] = map(float, both)
        rows["macro"][score] = float(both[defined].mean()) if defined.any() else np.nan
        rows["weighted"][score] = float(np.nansum(both * weights) / weights.sum()) if weights.sum() else np.nan
    for name, count in zip(rows, [*counts, sum(counts), sum(counts)], strict=True):
        rows[name]["n"] = count
    return rows


def report_table(scores: LevelScores, sides: tuple[str, str], split: str) -> Table:
    """The classification report of a yes/no question at one level.

    Args:
        scores: of the level.
        sides: names of the negative and the positive side.
        split: that was scored.
    """
    titles = {"negative": sides[0], "positive": sides[1], "macro": "mean of both", "weighted": "mean weighted by n"}
    rows = [
        (titles[name], *(number_text(row[score]) for score in ("precision", "recall", "f1")), row["n"])
        for name, row in classification_report(scores.confusion).items()
    ]
    place = split if scores.is_single_view else f"{split}, {scores.level} level"
    what = f"Both classes on {place}, threshold 0.5; accuracy {scores.scores['accuracy']}"
    return Table(what, ("class", "precision", "recall", "F1", plural_of(scores)), tuple(rows))


def probability_table(table: pd.DataFrame, task: Task) -> Table:
    """Smallest and largest predicted probability of each area and split, and the number of those that are not a number.

    Args:
        table: predictions of all splits, one row per image.
        task: of the run.
    """
    rows = []
    for (area, split), images in table.groupby(["area", "split"], sort=False):
        values = images[task.probability_columns].to_numpy(float)
        missing = np.isnan(values)
        low, high = (np.nan, np.nan) if missing.all() else (np.nanmin(values), np.nanmax(values))
        rows.append((area, split, len(images), f"{low:.4f}", f"{high:.4f}", int(missing.any(axis=1).sum())))
    heads = ("area", "split", "images", "smallest", "largest", "not a number")
    return Table("Predicted probabilities of images" + ("" if len(rows) == 1 else " by area"), heads, tuple(rows))


def views_of(table: pd.DataFrame, options: ScoreOptions) -> list[tuple[str, int, int, int, int, int]]:
    """Counts of studies by number of images: (images, studies, tp, fp, fn, tn) at threshold 0.5.

    Args:
        table: predictions of a yes/no question on one split.
        options: pooling of the images of a study.
    """
    known = table[table["label"] >= 0]
    if known.empty:
        return []
    units = units_of(table, "study", pooling=options.pooling, top_k=options.top_k)
    _, studies = calibrated_levels(known, None, "study", options.pooling, options.top_k)
    views = np.minimum(studies.images, MOST_VIEWS)
    rows = []
    for count in np.unique(views):
        chosen = views == count
        cells = metrics.confusion(units.label[chosen], units.probability[chosen])
        title = f"{count} or more" if count == MOST_VIEWS and studies.images.max() > MOST_VIEWS else str(count)
        rows.append((title, int(chosen.sum()), *(int(cell[0]) for cell in cells)))
    return rows


def views_table(views: list[tuple[str, int, int, int, int, int]], split: str) -> Table:
    """Accuracy, sensitivity and specificity of studies by their number of images; views: see `views_of`."""
    rows = [
        (title, studies, share(tp + tn, studies), share(tp, tp + fn), share(tn, tn + fp))
        for title, studies, tp, fp, fn, tn in views
    ]
    heads = ("images per study", "studies", "accuracy", "sensitivity", "specificity")
    what = f"Studies of {split} by number of images, threshold 0.5; in brackets Wilson's 95 % interval"
    return Table(what, heads, tuple(rows))


def hardest_table(table: pd.DataFrame, options: ScoreOptions, sides: tuple[str, str], split: str) -> Table | None:
    """The studies whose wrong prediction is most confident, at most HARDEST of each kind; None if none is wrong.

    Args:
        table, options: see `views_of`.
        sides: names of the negative and the positive side.
        split: that was scored.
    """
    known = table[table["label"] >= 0]
    if known.empty:
        return None
    units = units_of(table, "study", pooling=options.pooling, top_k=options.top_k)
    _, studies = calibrated_levels(known, None, "study", options.pooling, options.top_k)
    first, single = known.iloc[studies.first], len(studies.first) == len(known)
    rows = []
    for label, sign in ((0, -1), (1, 1)):
        wrong = np.flatnonzero((units.label == label) & ((units.probability >= 0.5) != (label == 1)))
        for place in wrong[np.argsort(sign * units.probability[wrong], kind="stable")][:HARDEST]:
            study = first.iloc[place]
            rows.append(
                (
                    study["image" if single else "study"],
                    study["area"],
                    sides[label],
                    sides[1 - label],
                    f"{units.probability[place]:.3f}",
                    int(studies.images[place]),
                )
            )
    what, unit = ("images", "image") if single else ("studies", "study")
    heads = (unit, "area", "label", "predicted", f"probability of {sides[1]}", "images")
    return Table(f"Most confident wrong {what} of {split}", heads, tuple(rows)) if rows else None


def area_scores(table: pd.DataFrame, options: ScoreOptions, known: Mapping[str, Scores], split: str):
    """Returns area -> scores of a yes/no question at study level, of the areas that have studies in the split.

    Args:
        table: predictions of the question on the split.
        options: pooling and resamples.
        known: area -> scores, as far as the evaluation has them; the others are computed.
        split: that was scored.
    """
    found = {}
    for area, rows in table[table["label"] >= 0].groupby("area"):
        if area in known and split in known[area].splits:
            found[area] = known[area].splits[split]["study"]
        else:
            found[area] = level_scores(
                rows,
                "study",
                pooling=options.pooling,
                top_k=options.top_k,
                resamples=options.resamples,
                seed=options.seed,
            )
    return found


def area_table(by_area: Mapping[str, LevelScores], sides: tuple[str, str], place: str) -> Table:
    """Scores of a yes/no question by area.

    Args:
        by_area: see `area_scores`.
        sides: names of the negative and the positive side.
        place: split and level, for the caption.
    """
    rows = [
        (area, scores.units, scores.positives, *(str(scores.scores[name]) for name in AREA_SCORES))
        for area, scores in by_area.items()
    ]
    units = {plural_of(scores) for scores in by_area.values()}
    heads = ("area", "studies" if len(units) > 1 else units.pop(), sides[1], *AREA_SCORES.values())
    return Table(f"{sides[1]} or {sides[0]} by area on {place}, threshold 0.5", heads, tuple(rows))


def extremes(by_area: Mapping[str, Mapping[str, Interval]], scores: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Returns the best and the worst area by each score: (score, best area, worst area), each area with its value.

    Scores for which larger is better; areas in which a score is undefined are left out, and so are scores that fewer
    than two areas have.

    Args:
        by_area: area -> score -> value.
        scores: name -> title.
    """
    rows = []
    for score, title in scores.items():
        values = {area: of_area[score] for area, of_area in by_area.items() if not np.isnan(of_area[score].value)}
        if len(values) > 1:
            best = max(values, key=lambda area: values[area].value)
            worst = min(values, key=lambda area: values[area].value)
            equal = values[best].value == values[worst].value
            texts = [f"all equal: {values[best].value:.3f}"] * 2 if equal else []
            rows.append((title, *(texts or (f"{area}: {values[area]}" for area in (best, worst)))))
    return rows


def faithfulness_tables(explanation: Explanation | None, localized: Mapping[str, float] | None) -> list[Table]:
    """How faithful the maps are: localization faithfulness of the evaluation, then the curves of the explanation.

    Args:
        explanation: of the run; None if it was not explained.
        localized: split -> localization faithfulness; None if it was not computed.
    """
    tables = []
    if localized:
        what = "Localization faithfulness: mean drop of the probability without the hottest part of the map, all images"
        tables.append(
            Table(what, ("split", "mean drop"), tuple((name, number_text(v)) for name, v in localized.items()))
        )
    for maps in explanation.worths if explanation else ():
        means = maps.curves.means
        rows = [
            ("area under deletion (lower is better)", means["deletion"], means["random_deletion"]),
            ("area under insertion (higher is better)", means["insertion"], means["random_insertion"]),
            ("drop of the confidence without the hottest part", means["drop"], means["random_drop"]),
        ]
        what = (
            f"{explanation.method_title} of {maps.tap}, {explanation.sample} images of {explanation.split}; "
            f"{100 * maps.empty_share:.0f} % of the maps are without positive evidence"
        )
        tables.append(Table(what, ("", "the model's maps", "random maps"), tuple(rows)))
        if maps.localization:
            tables += box_tables(explanation, maps)
    return tables


def box_tables(explanation: Explanation, maps: Worth) -> list[Table]:
    """How the maps of one feature map agree with boxes, of all classes together and of each class."""
    found = maps.localization
    which = "of all labels" if explanation.boxes_of == "all" else "with the finding"
    heads = ("", "the model's maps", "random maps", "maps of other patients")
    rows = [
        (title, value, *("" if number is None else number_text(number) for number in references))
        for title, value, *references in found.rows
    ]
    what = f"Boxes: {explanation.method_title} of {maps.tap}, {found.images} images of {explanation.split} {which}"
    tables = [Table("; ".join((what, *explanation.notes)), heads, tuple(rows))]
    if found.classes:
        rows = [
            (name or "(no class)", str(of_class.images), title, value, number_text(by_chance))
            for name, of_class in found.classes.items()
            for title, value, by_chance, _ in of_class.rows[:3]
        ]
        heads = ("class", "images", "score", "the model's maps", "random maps")
        tables.append(Table(f"Boxes of each class, {maps.tap}", heads, tuple(rows)))
    return tables


def share(part: int, whole: int) -> str:
    """A share with Wilson's 95 % interval, as text."""
    if not whole:
        return "undefined"
    low, high = metrics.wilson(part / whole, whole)
    return str(Interval(part / whole, float(low), float(high)))


def folds_table(evaluation: FoldsEvaluation) -> Table:
    """AUC of the held-out images of each fold, and the thresholds that its model decides by."""
    rules = list(dict.fromkeys(rule for one in evaluation.folds for rule in one.thresholds if not _is_number(rule)))
    single = all(one.images == one.studies for one in evaluation.folds)
    levels = ("study",) if single else ("study", "image")
    rows = [
        (
            f"fold {one.fold}",
            *(str(number) for number in ((one.images,) if single else (one.studies, one.images))),
            one.patients if evaluation.has_patients else "not known",
            *(one.auc[level] for level in levels),
            *(number_text(one.thresholds[rule]) if rule in one.thresholds else "-" for rule in rules),
        )
        for one in evaluation.folds
    ]
    blank = [""] * (2 if single else 3)
    rows.append(("mean", *blank, *(evaluation.mean_auc[level] for level in levels), *([""] * len(rules))))
    units = ("images",) if single else ("studies", "images")
    aucs = ("AUC",) if single else ("AUC, studies", "AUC, images")
    heads = ("", *units, "patients", *aucs, *(f"threshold {rule}" for rule in rules))
    return Table(f"The {evaluation.number} folds", heads, tuple(rows))


def _is_number(rule: str) -> bool:
    try:
        float(rule)
    except ValueError:
        return False
    return True
