"""The command that probes frozen encoders: probe."""

import click

from kmura.cli.options import Choice, examples, seed_option
from kmura.config.names import BACKBONE_NAMES


@click.command(
    short_help="Measure what a frozen encoder's features tell.",
    epilog=examples(
        "kmura probe runs/chest/simclr --area chest --method linear",
        "kmura probe imagenet --backbone efficientnet_lite0 --area XR_WRIST --image-size 224",
        "kmura probe runs/chest/vicreg --area chest --method knn --labels 0.01",
    ),
)
@click.argument("source", metavar="RUN|WEIGHTS")
@click.option("--records", default="tfrecords", type=click.Path(), help="Folder of the records.")
@click.option("--area", required=True, metavar="AREA", help="An area of the records, or all for a joint model.")
@click.option(
    "--method",
    type=Choice(["linear", "layer", "knn"]),
    default="linear",
    help="Logistic regression, a linear layer trained for 30 epochs, or nearest neighbours.",
)
@click.option(
    "--backbone",
    type=Choice(BACKBONE_NAMES),
    metavar="BACKBONE",
    show_default="that of the source",
    help="The encoder's architecture, if the source does not say it.",
)
@click.option(
    "--image-size",
    type=int,
    metavar="PIXELS",
    show_default="that of the source, else 224",
    help="Rows and columns of the images.",
)
@click.option(
    "--labels",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    metavar="SHARE",
    help="Share of the patients whose training labels are used; stratified.",
)
@seed_option("Seed of the choice of labels and of the training of the layer.")
@click.option("--runs", default="runs", type=click.Path(), help="Folder for the runs: RUNS/AREA/NAME.")
@click.option("--name", metavar="NAME", show_default="SOURCE-METHOD", help="Name of the run folder.")
@click.option("--fresh", is_flag=True, help="Delete an existing probe of this name, and the floor, and start again.")
def probe(source, **options):
    """Measure how much the features of a frozen encoder tell about the labels.

    The encoder is that of a run (runs/AREA/PHASE), or weights as fit --weights takes them. The scores stand beside the
    floor, a logistic regression on raw pixels (RUNS/AREA/pixels). Features are computed once and kept in
    RUNS/AREA/.features. C, k and the epoch are chosen on val.
    """
    from kmura.cli.display import show_probe
    from kmura.pretraining.probe import probe

    show_probe(probe(source, **options))


COMMANDS = (probe,)
