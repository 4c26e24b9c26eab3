"""The section of a classifier's chapter about subgroups, such as sex, age or device."""

from collections.abc import Mapping

import numpy as np

from kmura.evaluation.subgroups import COMPARED, SubgroupLevel, Subgroups
from kmura.report.chapter import Section, Table
from kmura.report.classification_pictures import Names
from kmura.report.figures import BLUE, GRAY, Picture, drawn, labelled

TITLES = {"auc": "AUC", "recall": "sensitivity", "specificity": "specificity", "precision": "precision"}
_TEXT = (
    "Intervals of the subgroups are not corrected. The largest difference between the subgroups of a column or "
    "condition has an interval and a p-value that are corrected for all pairs of subgroups (maxT of bootstrap "
    "resamples of patients, Westfall and Young 1993). With a p-value of 0.05 or more the difference may be chance; it "
    "may also be real."
)


def subgroup_section(names: Names, subgroups: Mapping[str, Subgroups], split: str) -> Section:
    """Returns the section.

    Args:
        names: of the figures of the chapter.
        subgroups: question -> its subgroups; empty gives an empty section.
        split: whose scores are shown first; those of other splits are folded.
    """
    tables, folded, pictures, notes = [], [], {}, []
    for number, (question, of_question) in enumerate(subgroups.items()):
        notes += of_question.notes
        what = f"{question}, " if len(subgroups) > 1 else ""
        for place, levels in of_question.splits.items():
            for level in ("study", "image"):
                if level not in levels:
                    continue
                first = place == split and level == "study"
                where = f"{what}{place}" if len(levels) == 1 else f"{what}{place}, {level} level"
                (tables if first else folded).extend(_tables(levels[level], where, len(levels) == 1))
                if first:
                    name = f"{names.id}-subgroups" + (f"-{number}" if number else "")
                    pictures[name] = forest(name, f"{names.of_run}, {where}", levels[level])
    text = f"{_TEXT} {'. '.join(note[0].upper() + note[1:] for note in notes)}{'.' if notes else ''}" if tables else ""
    heading = "Does it work alike for all subgroups?"
    return Section(heading, text, "", tuple(tables), tuple(folded), {"": pictures} if pictures else {})


def _tables(scored: SubgroupLevel, where: str, is_single_view: bool) -> list[Table]:
    """The scores of all subgroups, and the largest differences."""
    units = "images" if is_single_view or scored.level == "image" else "studies"
    decisions = f"{'calibrated ' if scored.calibrated else ''}probability of {scored.threshold:.4g} or more"
    rows = [
        (group.title(rule), group.units, group.patients, group.positives, *(group.scores[name] for name in TITLES))
        for rule, groups in scored.groups.items()
        for group in groups
    ]
    heads = ("subgroup", units, "patients", "positive", *TITLES.values())
    tables = [Table(f"Subgroups on {where}; positive from a {decisions}", heads, tuple(rows))]
    if scored.differences:
        rows = [
            (f"{found.by}: {TITLES[found.score]}", found.low, found.high, found.interval, found.p_text)
            for found in scored.differences
        ]
        pairs = {TITLES[found.score]: found.pairs for found in scored.differences}
        counts = ", ".join(f"{number} in {score}" for score, number in pairs.items())
        caption = f"Largest differences on {where}, corrected for all pairs of subgroups ({counts})"
        tables.append(Table(caption, ("score", "lowest", "highest", "difference", "p"), tuple(rows)))
    return tables


def forest(name: str, what: str, scored: SubgroupLevel) -> Picture:
    """The AUC, sensitivity and specificity of every subgroup with its interval, one row per subgroup."""
    rows = [(group.title(rule), group) for rule, groups in scored.groups.items() for group in groups]
    ends = np.cumsum([len(groups) for groups in scored.groups.values()])[:-1]

    def draw(panels):
        for axes, score in zip(panels, COMPARED, strict=True):
            shown = [(place, group.scores[score]) for place, (_, group) in enumerate(rows)]
            shown = [(place, value) for place, value in shown if not np.isnan(value.value)]
            values = np.array([value.value for _, value in shown])
            spread = np.array([[value.value - value.low, value.high - value.value] for _, value in shown])
            axes.errorbar(
                values, [place for place, _ in shown], xerr=np.maximum(0, np.nan_to_num(spread)).T if shown else None,
                color=BLUE, fmt="o", markersize=4, capsize=2, linewidth=1.3,
            )  # fmt: skip
            for end in ends:
                axes.axhline(end - 0.5, color=GRAY, linewidth=0.5)
            axes.set(yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6))
            first = axes is panels[0]
            axes.set_yticklabels([f"{title} (n = {group.units})" if first else "" for title, group in rows])
            labelled(axes, TITLES[score], "", f"{TITLES[score]}, 95 %")

    height = 1.1 + 0.24 * max(len(rows), 3)
    return drawn(name, f"Subgroups, {what}", draw, width=3.4, height=height, panels=len(COMPARED), wide=True)
