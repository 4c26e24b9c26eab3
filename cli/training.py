"""The command that trains: fit."""

import click

# flag -> the configuration key it is a short name for
SHORT_NAMES = {
    "backbone": "model.backbone",
    "weights": "model.weights",
    "image_size": "data.image_size",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "select_on": "train.select_on",
    "precision": "train.precision",
    "deterministic": "train.deterministic",
}


@click.command()
@click.option("--area", required=True, help="An area of the records, or `all` for one after another.")
@click.option("--phase", default="baseline", show_default=True, type=click.Choice(["baseline"]))
@click.option("--records", default="tfrecords", show_default=True, type=click.Path(), help="Folder of the records.")
@click.option("--runs", default="runs", show_default=True, type=click.Path(), help="Folder for runs: RUNS/AREA/PHASE.")
@click.option("--recipe", help="A shipped recipe or a TOML file; default: the phase's own.")
@click.option("--backbone", help="densenet121, densenet169, resnet50, densenet_mini, resnet18_small.")
@click.option("--weights", help="imagenet, none, a keras-hub preset, or the path of a preset folder or weights file.")
@click.option("--image-size", type=int, help="Rows and columns of the model's input.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--seed", type=int)
@click.option("--select-on", type=click.Choice(["tune", "valid"]), help="Split that chooses the best epoch.")
@click.option("--precision", type=click.Choice(["float32", "mixed_bfloat16", "mixed_float16"]))
@click.option("--deterministic", is_flag=True, default=None, help="The same bits every time.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Go on with the run there is, or begin anew.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other key, as train.learning_rate=3e-5."
)
@click.option(
    "--evaluate/--no-evaluate",
    "then_evaluate",
    default=True,
    show_default=True,
    help="Evaluate each run when it is finished.",
)
def fit(area, phase, records, runs, recipe, resume, settings, then_evaluate, **flags):
    """Train a classifier for an area of the records."""
    from kmura.config import load_config, parse_setting

    given = {SHORT_NAMES[flag]: value for flag, value in flags.items() if value is not None}
    config = load_config(recipe or phase, given | dict(map(parse_setting, settings)))

    from kmura.cli.display import show_evaluation, training_progress
    from kmura.evaluation.classification import evaluate
    from kmura.training.fit import fit_areas

    if config.train.select_on == "valid":
        click.echo("the best epoch is chosen on valid: scores on valid will be optimistic", err=True)
    with training_progress() as progress:
        finished = fit_areas(
            records, area=area, phase=phase, runs=runs, config=config, fresh=not resume, callbacks=[progress]
        )
        for run in finished:
            best = f"{config.train.monitor} {run.best[config.train.monitor]:.4f} on {config.train.select_on}"
            click.echo(f"{run.folder}: best epoch {run.best['epoch']:.0f}, {best}", err=True)
            if then_evaluate:
                show_evaluation(evaluate(run.folder, records=records))


COMMANDS = (fit,)
