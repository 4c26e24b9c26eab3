"""The commands that score and explain runs: evaluate, compare, explain, report."""

import click

_POOLING = click.option(
    "--pooling",
    type=click.Choice(["mean", "max", "noisy-or", "top-k"]),
    default="mean",
    show_default=True,
    help="From the images of a study to its probability.",
)
_TOP_K = click.option("--top-k", type=click.IntRange(1), default=2, show_default=True, help="Of --pooling top-k.")
_RECORDS = click.option("--records", type=click.Path(), help="Folder of the records, if they have moved since the run.")


@click.command()
@click.argument("run", type=click.Path())
@_RECORDS
@_POOLING
@_TOP_K
@click.option(
    "--calibration",
    type=click.Choice(["platt", "temperature", "isotonic", "none"]),
    default="platt",
    show_default=True,
    help="Fitted on val; scores are given before and after.",
)
@click.option(
    "--calibrate-at",
    type=click.Choice(["image", "study"]),
    default="study",
    show_default=True,
    help="Whose probabilities are calibrated.",
)
@click.option(
    "--threshold",
    "rules",
    multiple=True,
    metavar="RULE",
    help="Chosen on val: a number, max_f1, youden, sensitivity>=X or specificity>=X; may be repeated.",
)
@click.option(
    "--resamples", type=click.IntRange(1), default=2000, show_default=True, help="Bootstrap resamples of patients."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
def evaluate(run, records, rules, **options):
    """Score the best model of RUN (runs/AREA/PHASE) at image and study level, calibrate it, choose thresholds."""
    from kmura.evaluation.scoring import ScoreOptions

    options = ScoreOptions(**options, **({"rules": rules} if rules else {}))
    options.check()  # before the wait for TensorFlow

    from kmura.cli.display import show_evaluation
    from kmura.evaluation.classification import evaluate

    show_evaluation(evaluate(run, records=records, options=options))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--split", type=click.Choice(["test", "val"]), default="test", show_default=True)
@click.option(
    "--level",
    "levels",
    type=click.Choice(["study", "image"]),
    multiple=True,
    default=["study"],
    show_default=True,
    help="May be repeated.",
)
@click.option(
    "--score",
    "scores",
    multiple=True,
    default=["auc", "f1", "kappa"],
    show_default=True,
    help="A score to show, as kmura evaluate names it; may be repeated.",
)
@_POOLING
@_TOP_K
@click.option("--resamples", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
@click.option("--out", type=click.Path(), help="Write all scores and differences, also those not shown, as JSON here.")
def compare(runs, levels, scores, out, **options):
    """Set evaluated RUNS (runs/AREA/PHASE) side by side: who is best where, and whether chance explains it."""
    from kmura.cli.display import show_comparison
    from kmura.evaluation.compare import compare, write_comparison

    found = compare(runs, **options)
    if out:
        write_comparison(found, out)
    show_comparison(found, levels, scores)


@click.command()
@click.argument("run", type=click.Path())
@_RECORDS
@click.option("--split", type=click.Choice(["test", "val"]), default="test", show_default=True)
@click.option("--cases", type=click.IntRange(1), default=8, show_default=True, help="Images of each gallery.")
@click.option("--sample", type=click.IntRange(2), default=64, show_default=True, help="Images behind the curves.")
@click.option(
    "--tap",
    help="The feature map: P5, P4, P3, or S4 of a hybrid's transformer; default: cam.tap, of a hybrid P5 and S4.",
)
@click.option(
    "--towards", multiple=True, metavar="CLASS", help="Also maps towards this class, or all; may be repeated."
)
@click.option("--boxes", type=click.Path(), help="A CSV like lesions.csv: image, x0, y0, x1, y1 in pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def explain(run, **options):
    """Show where the best model of an evaluated RUN looks, and what its maps are worth: RUN/explain/."""
    from kmura.cli.display import show_explanation
    from kmura.explain.gallery import explain

    show_explanation(explain(run, **options))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--out", type=click.Path(), default="report.html", show_default=True, help="The page to write.")
@click.option("--eda", type=click.Path(), help="What kmura eda wrote; default: eda.json among each run's records.")
@click.option("--resamples", type=click.IntRange(1), default=2000, show_default=True, help="Of the comparison.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the comparison's bootstrap.")
def report(runs, out, **options):
    """Write one self-contained HTML page about evaluated RUNS (runs/AREA/PHASE)."""
    from kmura.report.report import report

    click.echo(f"written: {report(runs, out, **options)}", err=True)


@click.command()
@click.argument("records", default="tfrecords", type=click.Path())
@click.option("--area", default="all", show_default=True)
@click.option(
    "--out",
    type=click.Path(),
    help="Where everything is written as JSON; default RECORDS/eda.json, where report looks.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sample for the components.")
def eda(records, **options):
    """Look at the images of RECORDS: gray values by class, sizes, exposure outliers, near doubles, components."""
    from kmura.cli.display import show_eda
    from kmura.evaluation.eda import explore

    show_eda(explore(records, **options))


COMMANDS = (evaluate, compare, explain, report, eda)
