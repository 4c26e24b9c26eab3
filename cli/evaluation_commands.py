"""The commands that score, compare, explain and report: evaluate, compare, explain, report, and eda of the records."""

import click

from kmura.cli.options import (
    BY,
    POOLING,
    RECORDS_OF_RUN,
    SPLIT,
    TOP_K,
    Choice,
    calibration_options,
    examples,
    literal_values,
    names_option,
    resamples_option,
    seed_option,
)
from kmura.config import CamConfig


@click.command(
    short_help="Score a run, calibrate it and choose thresholds.",
    epilog=examples(
        "kmura evaluate runs/XR_WRIST/baseline",
        'kmura evaluate runs/XR_WRIST/final --threshold "youden,sensitivity>=0.95"',
        "kmura evaluate runs/fold*/XR_WRIST/baseline",
    ),
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path())
@RECORDS_OF_RUN
@POOLING
@TOP_K
@calibration_options("val")
@BY
@resamples_option()
@seed_option("Seed of the bootstrap.")
@click.option(
    "--faithfulness/--no-faithfulness",
    default=None,
    show_default="only for binary runs of the phase final",
    help="Measure how much the output drops without the hottest part of the maps; takes several passes.",
)
def evaluate(runs, records, rules, faithfulness, by, **options):
    """Score the best model of RUN (runs/AREA/PHASE) at image and study level.

    The runs of all folds (runs/fold*/AREA/PHASE), or the folder that contains them, are scored together: every image
    by the model that was trained without it. The result is runs/folds/AREA/PHASE.

    Calibrates the probabilities and chooses thresholds on val, and gives all scores with 95 % intervals by patient (by
    image, where the records have no patients). Writes predictions.csv and metrics.json to RUN. --by takes columns that
    the records keep beside image, patient and study.
    """
    from kmura.evaluation.scoring import ScoreOptions

    options = ScoreOptions(**options, **({"rules": rules} if rules else {}))
    options.check()  # errors in the options should appear before the slow imports

    from kmura.cli.display import show_evaluation
    from kmura.evaluation.evaluate import evaluate_each

    more = {} if faithfulness is None else {"faithfulness": faithfulness}  # only classification has maps
    more |= {"by": by} if by else {}
    for evaluation in evaluate_each(runs, records=records, options=options, **more):
        show_evaluation(evaluation)
        if by:
            from kmura.cli.score_tables import show_subgroups

            show_subgroups(evaluation.subgroups, evaluation.split)


@click.command(
    short_help="Compare evaluated runs: which is better, and by how much.",
    epilog=examples(
        "kmura compare runs/XR_WRIST/baseline runs/XR_WRIST/final",
        "kmura compare runs/*/baseline runs/*/final --score auc,kappa",
    ),
)
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@SPLIT
@names_option("--level", "levels", choices=("study", "image"), default=("study",), help="The levels to show.")
@names_option(
    "--score",
    "scores",
    metavar="SCORE,...",
    default=("auc", "f1", "kappa"),
    help="The scores to show, as kmura evaluate names them.",
)
@POOLING
@TOP_K
@resamples_option()
@seed_option("Seed of the bootstrap.")
@click.option("--out", type=click.Path(), help="Write all scores and differences, also those not shown, as JSON.")
def compare(runs, levels, scores, out, **options):
    """Compare evaluated RUNS (runs/AREA/PHASE) over the same images.

    The runs of all folds count as one.

    Runs of one phase count as one model over several areas. Differences are paired by bootstrap over patients; for AUC
    there is also DeLong's test, with a variance that allows for several studies per patient.
    """
    from kmura.cli.display import check_scores, show_comparison

    check_scores(scores)

    from kmura.evaluation.compare import compare, write_comparison

    comparison = compare(runs, **options)
    if out:
        write_comparison(comparison, out)
    show_comparison(comparison, levels, scores)


@click.command(
    short_help="Show where a model looks and how faithful its maps are.",
    epilog=examples(
        "kmura explain runs/XR_WRIST/baseline",
        "kmura explain runs/all/baseline --towards all --cases 4",
        "kmura explain runs/XR_WRIST/baseline --boxes images/lesions.csv",
        "kmura explain runs/chest/baseline --boxes lungs.json --boxes-of all",
    ),
)
@click.argument("run", type=click.Path())
@RECORDS_OF_RUN
@SPLIT
@click.option(
    "--cases",
    type=click.IntRange(1),
    default=8,
    help="Images per outcome, such as false positives; a quarter are borderline cases.",
)
@click.option("--sample", type=click.IntRange(2), default=64, help="Images for the deletion and insertion curves.")
@click.option(
    "--tap",
    type=Choice(literal_values(CamConfig, "tap")),
    show_default="cam.tap of the run; P5 and S4 for a hybrid",
    help="The feature map to explain; S4 is that of a hybrid's transformer.",
)
@click.option(
    "--method",
    type=Choice(literal_values(CamConfig, "method")),
    show_default="cam.method of the run",
    help="The class activation map, such as grad_cam or layer_cam.",
)
@names_option("--towards", metavar="CLASS,...", help="Also draw maps for these classes; all: for every class.")
@click.option(
    "--boxes",
    type=click.Path(),
    help="Boxes that the maps should hit: COCO JSON, a folder of YOLO text files, or a CSV (image,x0,y0,x1,y1).",
)
@click.option(
    "--boxes-of",
    type=Choice(["positive", "all"]),
    default="positive",
    help="Images whose boxes are used: those with the finding, or all, where the boxes are of anatomy such as lungs.",
)
@names_option(
    "--box-classes",
    metavar="NAME[=CLASS],...",
    help="Use only boxes of these classes; =CLASS gives the name of the model's class if it differs.",
)
@click.option(
    "--box-sizes",
    type=click.Path(),
    help="Original sizes for boxes in pixels: a CSV (image,width,height) or the folder of the source images.",
)
@seed_option("Seed of the SmoothGrad noise and of the random maps.")
def explain(run, **options):
    """Show where the best model of an evaluated RUN (runs/AREA/PHASE) looks.

    Draws galleries of class activation maps and measures how faithful the maps are: by deletion and insertion curves,
    and with --boxes by their agreement with boxes. Writes to RUN/explain.
    """
    from kmura.explain.boxes.placing import box_options

    boxes = box_options(*(options[name] for name in ("boxes", "box_sizes", "boxes_of", "box_classes")))
    if boxes:
        boxes.read()  # errors in the file should appear before the slow imports

    from kmura.cli.explanation_tables import show_explanation
    from kmura.explain.gallery import explain

    show_explanation(explain(run, **options))


@click.command(
    short_help="Write an HTML page about evaluated runs.",
    epilog=examples(
        "kmura report runs/XR_WRIST/baseline --out wrist.html",
        "kmura report runs/*/baseline runs/*/final",
    ),
)
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--out", type=click.Path(), default="report.html", help="The page to write.")
@click.option(
    "--eda",
    type=click.Path(),
    show_default="eda.json in the records of each run",
    help="The file that kmura eda wrote.",
)
@resamples_option("Bootstrap resamples of the comparison.")
@seed_option("Seed of the bootstrap.")
def report(runs, out, **options):
    """Write one self-contained HTML page about evaluated RUNS (runs/AREA/PHASE, of folds runs/folds/AREA/PHASE).

    The page holds curves, tables and, where `kmura explain` has run, galleries; several runs are also compared. The
    figures are also written to OUT-figures as SVG and PNG.
    """
    from kmura.report.report import report

    click.echo(f"written: {report(runs, out, **options)}", err=True)


@click.command(
    short_help="Describe the images: gray values, sizes, near-duplicates.",
    epilog=examples("kmura eda tfrecords", "kmura eda tfrecords --area XR_WRIST --out wrist.json"),
)
@click.argument("records", default="tfrecords", type=click.Path())
@click.option("--area", default="all", metavar="AREA", help="An area of the records, or all.")
@click.option(
    "--out",
    type=click.Path(),
    show_default="RECORDS/eda.json, where report looks",
    help="Write everything to this file as JSON.",
)
@seed_option("Seed of the sample of images for the principal components.")
def eda(records, **options):
    """Describe the images of RECORDS.

    Reports gray values by class, image sizes, exposure outliers, near-duplicates and principal components.
    """
    from kmura.cli.display import show_eda
    from kmura.evaluation.eda import explore

    show_eda(explore(records, **options))


COMMANDS = (evaluate, compare, explain, report, eda)
