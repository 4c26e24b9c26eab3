"""The command `score`: predictions of any tool to scores, thresholds and a page."""

import click

from kmura.cli.options import (
    BY,
    POOLING,
    TOP_K,
    Choice,
    calibration_options,
    examples,
    names_option,
    resamples_option,
    seed_option,
)


def _column(role: str, help: str, **options):
    return click.option(f"--{role}-column", metavar="COLUMN", help=help, **options)


def _columns(role: str, help: str):
    return names_option(f"--{role}-column", metavar="COLUMN,...", help=help)


@click.command(
    short_help="Score the predictions of any tool from a CSV file.",
    epilog=examples(
        "kmura score predictions.csv --label-column fracture --out scores",
        "kmura score ours.csv theirs.csv --fit-on valid --held-out test,external",
        'kmura score predictions.csv --by "sex,age>=18,device" --mixed-studies any-positive',
    ),
)
@click.argument("predictions", type=click.Path())
@click.argument("second", required=False, type=click.Path())
@click.option(
    "--out", type=click.Path(), metavar="FOLDER", help="Write metrics.json, report.html and its figures here."
)
@_column("image", "The name of the image.", show_default="guessed from names of columns, like the others")
@_columns("label", "0 or 1, blank if unknown; several columns are several labels.")
@_columns("probability", "The probability of the positive class; several columns are several classes or labels.")
@_columns("logit", "The logit, instead of the probability or beside it.")
@_column("patient", "The patient: intervals are by patient.")
@_columns(
    "study", "The study; several columns together, such as study,side. Patients may use the same name of a study."
)
@_column("split", "The split.")
@_columns("second-probability", "The probability in SECOND, if its column has another name there.")
@_columns("second-logit", "The logit in SECOND, if its column has another name there.")
@click.option(
    "--positive-class", metavar="LABEL", help="The positive label, where labels are texts other than yes and no."
)
@click.option(
    "--fit-on", metavar="SPLIT", show_default="val or valid", help="The split for calibration and thresholds."
)
@names_option(
    "--held-out", metavar="SPLIT,...", show_default="all others except train", help="The other splits to score."
)
@click.option(
    "--mixed-studies",
    type=Choice(["refuse", "any-positive", "drop"]),
    default="refuse",
    help="What to do with studies that have images of both labels: refuse the file, count them as positive, or leave "
    "them out.",
)
@BY
@POOLING
@TOP_K
@calibration_options("the split --fit-on")
@names_option("--level", "levels", choices=("study", "image"), default=("study",), help="Levels of the comparison.")
@names_option(
    "--score", "scores", metavar="SCORE,...", default=("auc", "f1", "kappa"), help="Scores of the comparison."
)
@resamples_option()
@seed_option("Seed of the bootstrap.")
def score(predictions, second, out, rules, levels, scores, **options):
    """Score the PREDICTIONS of any tool: a CSV file with one row per image, which may be gzipped.

    Gives all scores with 95 % intervals by patient at image and study level, calibrates the probabilities and chooses
    thresholds on the split --fit-on. With SECOND, predictions of another tool for the same images, the two are
    compared, paired. Columns that are not named are guessed where their names leave no doubt, which is printed.
    """
    from kmura.cli.display import check_scores

    check_scores(scores)

    from kmura.evaluation.scoring import ScoreOptions

    fields = ("pooling", "top_k", "calibration", "calibrate_at", "resamples", "seed", "mixed_studies")
    how = {name: options.pop(name) for name in fields}
    how = ScoreOptions(**how, **({"rules": rules} if rules else {}))
    how.check()

    from kmura.cli.score_tables import show_scored
    from kmura.report.score import score as scored_files

    scored = scored_files(predictions, second, out=out, options=how, **options)
    show_scored(scored, levels, scores)
    if out:
        click.echo(f"written: {out}/metrics.json, {out}/report.html", err=True)


COMMANDS = (score,)
