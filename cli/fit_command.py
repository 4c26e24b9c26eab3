"""The command that trains: fit."""

import contextlib
from collections.abc import Iterator

import click

from kmura.cli.options import Choice, Recipe, examples, given_settings, short_flags
from kmura.config import ClassificationConfig, recipe_names
from kmura.config.names import BACKBONE_NAMES, FUSION_NAMES, HEAD_NAMES, PHASE_NAMES, SWIN_NAMES

# flag -> the configuration key that it sets, the help, and the choices where the key's type does not list them
SHORT_FLAGS = {
    "--task": ("data.task", "What the model predicts; auto: the task of the records. multiclass with --area all trains "
               "one model for all areas.", None),
    "--model": ("model.architecture", "One network, or a hybrid of two.", None),
    "--backbone": ("model.backbone", f"The convolutional network: {', '.join(BACKBONE_NAMES)}.", BACKBONE_NAMES),
    "--weights": ("model.weights", "imagenet, none, a keras-hub preset, or the path of a preset folder or a weights "
                  "file.", None),
    "--head": ("model.head", "The layers between backbone and logits (not for a hybrid).", HEAD_NAMES),
    "--swin": ("model.swin", "The Swin transformer of a hybrid.", SWIN_NAMES),
    "--swin-weights": ("model.swin_weights", "Weights of the Swin transformer; values as for --weights.", None),
    "--fusion": ("model.fusion", "How a hybrid combines the features of its two networks.", FUSION_NAMES),
    "--image-size": ("data.image_size", "Rows and columns of the model's input, pixels.", None),
    "--epochs": ("train.epochs", "Passes over the training images.", None),
    "--batch-size": ("train.batch_size", "Images per step.", None),
    "--seed": ("train.seed", "Seed of the initial weights, the order of the images and the augmentation.", None),
    "--select-on": ("train.select_on", "The split that chooses the best epoch.", None),
    "--precision": ("train.precision", "Keras dtype policy; auto chooses the fastest safe one.", None),
    "--deterministic": ("train.deterministic", "Use only operations that give bit-identical results.", None),
    "--tuner": ("tune.tuner", "Search method of --phase tune.", None),
    "--trials": ("tune.trials", "Number of trials of --phase tune.", None),
}  # fmt: skip


@click.command(
    short_help="Train classifiers, or search for good settings.",
    epilog=examples(
        "kmura fit --area XR_WRIST --epochs 3",
        "kmura fit --area all --phase final --dry-run",
        "kmura fit --area XR_WRIST --recipe my.toml --set train.learning_rate=3e-5",
        "kmura fit --area XR_WRIST --folds 5",
    ),
)
@click.option("--area", required=True, metavar="AREA", help="An area of the records, or all (one after another).")
@click.option("--phase", default="baseline", type=Choice(PHASE_NAMES), help="How to train; see above.")
@click.option("--records", default="tfrecords", type=click.Path(), help="Folder of the records.")
@click.option("--runs", default="runs", type=click.Path(), help="Folder for the runs: RUNS/AREA/PHASE.")
@click.option(
    "--folds",
    type=int,
    default=0,
    metavar="K",
    show_default="no folds",
    help="Cross-validate: train K models, RUNS/foldN/AREA/PHASE, each without the patients of one fold.",
)
@click.option("--fold", type=int, metavar="N", show_default="all", help="Train this fold alone, counted from 0.")
@click.option(
    "--recipe",
    type=Recipe(),
    metavar="RECIPE",
    show_default="the phase's own",
    help=f"A TOML file, or a shipped recipe: {', '.join(recipe_names())}.",
)
@short_flags(
    SHORT_FLAGS,
    ClassificationConfig,
    deterministic={"is_flag": True, "type": None},
    backbone={"metavar": "BACKBONE"},
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any configuration key, such as train.learning_rate=3e-5; may be repeated.",
)
@click.option("--resume/--fresh", default=True, help="Continue an existing run, or delete it and start again.")
@click.option("--evaluate/--no-evaluate", "then_evaluate", default=True, help="Evaluate each run after its training.")
@click.option(
    "--cam-every",
    type=int,
    metavar="EPOCHS",
    show_default="for a hybrid 5, and 2 once its DenseNet is trained too; else never",
    help="Draw the model's maps for a few test images every EPOCHS epochs.",
)
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard logs to RUNS/AREA/PHASE/tensorboard.")
@click.option(
    "--mlflow",
    is_flag=True,
    help="Log to the MLflow server of MLFLOW_TRACKING_URI, else to ./mlruns (requires the extra mlflow).",
)
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; train and write nothing.")
def fit(
    area,
    phase,
    records,
    runs,
    recipe,
    folds,
    fold,
    resume,
    settings,
    then_evaluate,
    cam_every,
    tensorboard,
    mlflow,
    dry_run,
    **flags,
):
    """Train a classifier for one area of the records, or for all areas.

    Phase `baseline` trains without MixUp, CutMix and CAM-erasing, which hides the image region that the model relies
    on most. `tune` searches for good values for `final`. `final` trains with them, in later epochs without MixUp and
    CutMix and at a lower learning rate; it uses the values that `tune` found, or those published for MURA's areas.
    `hybrid` trains a DenseNet and a Swin transformer in parallel; the DenseNet is frozen at first.

    Options with [default: (recipe)] are short names for configuration keys, whose defaults the recipe defines.
    `kmura config` prints all keys with their meaning. The same command continues an interrupted run.

    With --folds, every image outside of `test` is predicted by a model that was trained without its patient; these
    predictions are scored together (runs/folds/AREA/PHASE).
    """
    if cam_every is not None and (cam_every < 1 or phase == "tune"):
        raise click.UsageError("--cam-every needs a number of epochs, 1 or more, and a phase other than tune")
    if phase != "tune" and (flags["tuner"] or flags["trials"]):
        raise click.UsageError("--tuner and --trials need --phase tune")
    if phase == "tune" and (tensorboard or mlflow):
        raise click.UsageError("--tensorboard and --mlflow need a phase other than tune")

    from kmura.config import parse_setting

    given = given_settings(SHORT_FLAGS, flags)
    options = {"runs": runs, "recipe": recipe, "settings": given | dict(map(parse_setting, settings))}

    from kmura.classification.phases import phase_config

    # errors in the settings should appear before the slow imports
    phase_config(phase, area, runs, recipe, options["settings"], not resume)
    options |= {"fresh": not resume, "folds": folds, "fold": fold}
    if mlflow:
        from kmura.training.trackers import check_mlflow

        check_mlflow()
    if dry_run:
        _show_plans(records, area, phase, options)
        return

    from kmura.classification.fit import fit_areas
    from kmura.classification.search import tune_areas
    from kmura.cli.display import show_evaluation
    from kmura.cli.progress import training_progress
    from kmura.evaluation.evaluate import evaluate, evaluate_each
    from kmura.explain.overlays import overlays_of
    from kmura.runs.run import read_run
    from kmura.training.trackers import MlflowTracker, TensorBoardLogs

    trackers, folders = [], []

    def callbacks_for(dataset, folder, config):
        callbacks = overlays_of(dataset, folder, config, every=cam_every)
        if tensorboard:
            callbacks.append(TensorBoardLogs(folder))
        if mlflow:
            trackers[:] = [MlflowTracker(folder, f"{dataset.area}/{phase}", config)]
        return callbacks + trackers

    with training_progress() as progress, _failing(trackers):
        options |= {"callbacks": [progress]}
        if phase == "tune":
            finished = tune_areas(records, area=area, **options)
        else:
            finished = fit_areas(records, area=area, phase=phase, callbacks_for=callbacks_for, **options)
        for run in finished:
            if run is None:
                click.echo("no trials are left; the chief writes the result", err=True)
                continue
            folders.append(run.folder)
            train = read_run(run.folder).config.train
            best = f"{train.monitor} {run.best[train.monitor]:.4f} on {train.select_on}"
            click.echo(f"{run.folder}: best epoch {run.best['epoch']:.0f}, {best}", err=True)
            if train.select_on == "test":
                click.echo("the best epoch was chosen on test: scores on test are optimistic", err=True)
            if then_evaluate:
                show_evaluation(evaluate(run.folder, records=records))
            for tracker in trackers:
                tracker.finish()
        if then_evaluate and folds and fold is None and phase != "tune":
            for evaluation in evaluate_each(folders, records=records):
                show_evaluation(evaluation)


@contextlib.contextmanager
def _failing(trackers) -> Iterator[None]:
    """A block whose errors, an interruption included, mark the run of each tracker as failed."""
    try:
        yield
    except BaseException:
        for tracker in trackers:
            tracker.fail()
        raise


def _show_plans(records, area, phase, options) -> None:
    from kmura.classification.fit_plan import plan_areas
    from kmura.cli.plan_table import show_plans

    show_plans(plan_areas(records, area=area, phase=phase, **options))


COMMANDS = (fit,)
