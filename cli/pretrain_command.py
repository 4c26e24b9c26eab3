"""The command that pretrains an encoder: pretrain."""

import click

from kmura.cli.options import Recipe, examples, given_settings, short_flags
from kmura.config import PretrainingConfig, recipe_names
from kmura.config.names import BACKBONE_NAMES

# flag -> the configuration key that it sets, the help, and the choices where the key's type does not list them
SHORT_FLAGS = {
    "--method": ("method.method", "SimCLR or VICReg.", None),
    "--positives": ("method.positives", "What the two views of a pair have in common.", None),
    "--encoder": ("encoder.backbone", f"The network that is pretrained: {', '.join(BACKBONE_NAMES)}.", BACKBONE_NAMES),
    "--weights": ("encoder.weights", "Where to start: none, imagenet, a keras-hub preset, or the path of a preset "
                  "folder or a weights file.", None),
    "--image-size": ("data.image_size", "Rows and columns of the encoder's input, pixels.", None),
    "--epochs": ("train.epochs", "Passes over the training images.", None),
    "--batch-size": ("train.batch_size", "Pairs per step.", None),
    "--seed": ("train.seed", "Seed of the initial weights, the order of the images and the views.", None),
    "--precision": ("train.precision", "Keras dtype policy; auto chooses the fastest safe one.", None),
    "--deterministic": ("train.deterministic", "Use only operations that give bit-identical results.", None),
}  # fmt: skip


@click.command(
    short_help="Learn an encoder from images without labels.",
    epilog=examples(
        "kmura pretrain --area XR_WRIST --records tfrecords --recipe ssl",
        "kmura pretrain --area XR_WRIST --method simclr --positives study --epochs 100",
        "kmura fit --area XR_WRIST --weights runs/XR_WRIST/vicreg/encoder",
    ),
)
@click.option("--area", required=True, metavar="AREA", help="An area of the records, or all (one encoder for all).")
@click.option("--records", default="tfrecords", type=click.Path(), help="Folder of the records.")
@click.option("--runs", default="runs", type=click.Path(), help="Folder for the runs: RUNS/AREA/NAME.")
@click.option("--name", metavar="NAME", show_default="the method", help="Name of the run.")
@click.option(
    "--recipe",
    type=Recipe(PretrainingConfig),
    metavar="RECIPE",
    help=f"A TOML file, or a shipped recipe: {', '.join(recipe_names(PretrainingConfig))}.",
)
@short_flags(
    SHORT_FLAGS,
    PretrainingConfig,
    deterministic={"is_flag": True, "type": None},
    encoder={"metavar": "BACKBONE"},
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any configuration key, such as train.base_rate=0.2; may be repeated.",
)
@click.option("--resume/--fresh", default=True, help="Continue an existing run, or delete it and start again.")
@click.option("--evaluate/--no-evaluate", "then_evaluate", default=True, help="Evaluate the encoder afterwards.")
def pretrain(area, records, runs, name, recipe, settings, resume, then_evaluate, **flags):
    """Pretrain an encoder for one area of the records, or for all areas together.

    The encoder learns to give two random views of an image similar features (kmura config --kind pretraining). Labels
    are not needed; where there are some, the AUC of a linear probe is shown for every epoch. RUNS/AREA/NAME/encoder is
    the result, from which kmura fit --weights starts.

    Options with [default: (recipe)] are short names for configuration keys. The same command continues an interrupted
    run.
    """
    from kmura.config import load_config, parse_setting

    given = given_settings(SHORT_FLAGS, flags)
    # errors in the settings should appear before the slow imports
    config = load_config(recipe, given | dict(map(parse_setting, settings)), PretrainingConfig)

    from kmura.cli.display import show_evaluation
    from kmura.cli.progress import training_progress
    from kmura.evaluation.evaluate import evaluate
    from kmura.pretraining.pretrain import pretrain
    from kmura.runs.run import RunFolder

    with training_progress() as progress:
        run = pretrain(records, area=area, name=name, runs=runs, config=config, fresh=not resume, callbacks=[progress])
    click.echo(f"{RunFolder(run.folder).encoder}: the encoder of epoch {run.best['epoch']:.0f}", err=True)
    if then_evaluate:
        show_evaluation(evaluate(run.folder, records=records))


COMMANDS = (pretrain,)
