"""Tables of the scores of given predictions, and of subgroups, for people."""

from rich.table import Table

from kmura.cli.display import console, one_line, show_comparison, show_scores


def show_scored(scored, levels, scores) -> None:
    """Prints `ScoredFiles`: what was assumed about each file, its tables, and the comparison.

    Args:
        scored: the scores.
        levels, scores: to show in the comparison.
    """
    out = console()
    for file in scored.files:
        out.print(one_line(file.source))
        for line in (*file.columns, *file.remarks):
            out.print(f"  {one_line(line)}")
        show_scores(file, f"{file.name}: {file.area}")
        show_subgroups(file.subgroups, file.split)
        if not file.has_patients:
            out.print("the file does not identify patients, so leakage between splits could not be checked by patient")
        for leak in file.leaks:
            out.print(f"WARNING: {one_line(leak)}")
    if scored.comparison:
        show_comparison(scored.comparison, levels, scores)


def show_subgroups(subgroups, split: str) -> None:
    """Prints the subgroups of one split, question -> `Subgroups`; `metrics.json` and the report have all splits."""
    out = console()
    for question, of_question in subgroups.items():
        levels = of_question.splits.get(split, {})
        for level, scored in levels.items():
            where = f"{question}, {split}" if len(levels) == 1 else f"{question}, {split}, {level} level"
            out.print(_subgroups_table(scored, where, len(levels) == 1))
            if scored.differences:
                out.print(_differences_table(scored, where))
        for note in of_question.notes:
            out.print(one_line(note))


def _subgroups_table(scored, where: str, is_single_view: bool) -> Table:
    decision = f"{'calibrated ' if scored.calibrated else ''}probability of {scored.threshold:.4g} or more"
    title = f"subgroups on {where}; positive from a {decision}; 95 % intervals, not corrected"
    table = Table(title=title, title_justify="left")
    units = "images" if is_single_view or scored.level == "image" else "studies"
    shown = ("auc", "recall", "specificity")
    for heading in ("subgroup", units, "patients", "positive", *shown):
        table.add_column(heading, justify="left" if heading == "subgroup" else "right")
    for rule, groups in scored.groups.items():
        for group in groups:
            counts = map(str, (group.units, group.patients, group.positives))
            table.add_row(one_line(group.title(rule)), *counts, *(str(group.scores[name]) for name in shown))
        table.add_section()
    return table


def _differences_table(scored, where: str) -> Table:
    pairs = ", ".join(f"{pairs} in {score}" for score, pairs in {d.score: d.pairs for d in scored.differences}.items())
    title = f"largest differences on {where}; intervals and p corrected for all pairs of subgroups ({pairs})"
    table = Table(title=title, title_justify="left")
    for heading in ("by", "score", "lowest", "highest", "difference", "p"):
        table.add_column(heading, justify="right" if heading in ("difference", "p") else "left")
    for found in scored.differences:
        cells = (found.by, found.score, found.low, found.high, str(found.interval), found.p_text)
        table.add_row(*map(one_line, cells))
    return table
