"""The command that trains: fit."""

import functools

import click

# flag -> the configuration key it is a short name for
SHORT_NAMES = {
    "task": "data.task",
    "model": "model.architecture",
    "swin": "model.swin",
    "swin_weights": "model.swin_weights",
    "fusion": "model.fusion",
    "backbone": "model.backbone",
    "weights": "model.weights",
    "image_size": "data.image_size",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "select_on": "train.select_on",
    "precision": "train.precision",
    "deterministic": "train.deterministic",
    "tuner": "tune.tuner",
    "trials": "tune.trials",
}


@click.command()
@click.option("--area", required=True, help="An area of the records, or `all` for one after another.")
@click.option(
    "--phase", default="baseline", show_default=True, type=click.Choice(["baseline", "tune", "final", "hybrid"])
)
@click.option("--records", default="tfrecords", show_default=True, type=click.Path(), help="Folder of the records.")
@click.option("--runs", default="runs", show_default=True, type=click.Path(), help="Folder for runs: RUNS/AREA/PHASE.")
@click.option(
    "--task",
    type=click.Choice(["binary", "multiclass", "multilabel"]),
    help="What the model tells; default: as the records. multiclass with --area all: one model of all areas.",
)
@click.option("--recipe", help="A shipped recipe or a TOML file; default: the phase's own.")
@click.option("--model", type=click.Choice(["classifier", "hybrid"]), help="With phase tune: what is searched for.")
@click.option("--backbone", help="densenet121, densenet169, resnet50, densenet_mini, resnet18_small.")
@click.option("--weights", help="imagenet, none, a keras-hub preset, or the path of a preset folder or weights file.")
@click.option("--swin", help="Of the hybrid: swin_tiny, swin_small, swin_base, swin_base_384.")
@click.option("--swin-weights", help="Of the hybrid's transformer, as --weights.")
@click.option("--fusion", help="Of the hybrid: concat, gated, attention.")
@click.option("--image-size", type=int, help="Rows and columns of the model's input.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--seed", type=int)
@click.option("--select-on", type=click.Choice(["val", "test"]), help="Split that chooses the best epoch.")
@click.option("--precision", type=click.Choice(["float32", "mixed_bfloat16", "mixed_float16"]))
@click.option("--deterministic", is_flag=True, default=None, help="The same bits every time.")
@click.option("--tuner", type=click.Choice(["bayesian", "random", "hyperband"]), help="How phase tune searches.")
@click.option("--trials", type=int, help="How many settings phase tune tries.")
@click.option(
    "--cam-every",
    type=int,
    metavar="EPOCHS",
    help="Draw maps of a few images of test every so often; default: of a hybrid only, 5, then 2.",
)
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
def fit(area, phase, records, runs, recipe, resume, settings, then_evaluate, cam_every, **flags):
    """Train a classifier for an area of the records.

    Phase `baseline` is one plain training; `tune` searches the values of `final`; `final` trains in two phases with
    MixUp, CutMix and CAM-erasing, with the values that `tune` found, or those published for MURA's areas; `hybrid`
    trains a DenseNet with a Swin transformer at its side, the DenseNet frozen at first.
    """
    if cam_every is not None and (cam_every < 1 or phase == "tune"):
        raise click.UsageError("--cam-every takes a number of epochs, 1 or more, and goes with one run, not a search")

    if phase != "tune" and (flags["tuner"] or flags["trials"]):
        raise click.UsageError("--tuner and --trials go with --phase tune")

    from kmura.config import parse_setting

    given = {SHORT_NAMES[flag]: value for flag, value in flags.items() if value is not None}
    options = {"runs": runs, "recipe": recipe, "settings": given | dict(map(parse_setting, settings))}

    from kmura.classification.phases import phase_config

    phase_config(
        phase, area, runs, recipe, options["settings"], not resume
    )  # what is wrong with them is said before any wait

    from kmura.classification.fit import fit_areas
    from kmura.classification.search import tune_areas
    from kmura.cli.display import show_evaluation, training_progress
    from kmura.evaluation.evaluate import evaluate
    from kmura.explain.overlays import overlays_of
    from kmura.runs.run import read_run

    with training_progress() as progress:
        options |= {"fresh": not resume, "callbacks": [progress]}
        if phase == "tune":
            finished = tune_areas(records, area=area, **options)
        else:
            overlays = functools.partial(overlays_of, every=cam_every)
            finished = fit_areas(records, area=area, phase=phase, callbacks_for=overlays, **options)
        for run in finished:
            if run is None:
                click.echo("no trials are left; the chief writes the result", err=True)
                continue
            train = read_run(run.folder).config.train
            best = f"{train.monitor} {run.best[train.monitor]:.4f} on {train.select_on}"
            click.echo(f"{run.folder}: best epoch {run.best['epoch']:.0f}, {best}", err=True)
            if train.select_on == "test":
                click.echo("the best epoch was chosen on test: scores on test are optimistic", err=True)
            if then_evaluate:
                show_evaluation(evaluate(run.folder, records=records))


COMMANDS = (fit,)
