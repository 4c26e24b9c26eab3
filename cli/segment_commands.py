"""The commands for volumes: segment demo-data, segment build, segment fit, segment predict."""

import click

from kmura.cli.options import WORKERS, Choice, Recipe, examples, given_settings, names_option, seed_option, short_flags
from kmura.config import SegmentationConfig, recipe_names
from kmura.config.segmentation import PLANES, VOLUME_SPLITS

SHORT_FLAGS = {
    "--slices": ("data.slices", "Neighbouring slices that the network sees.", None),
    "--sides": ("data.sides", "How left and right are distinguished.", None),
    "--epochs": ("train.epochs", "Passes over the slices of the training volumes.", None),
    "--batch-size": ("train.batch_size", "Slices per step.", None),
    "--learning-rate": ("train.learning_rate", "Largest learning rate of Adam.", None),
    "--seed": ("train.seed", "Seed of the initial weights, the order of the slices and the augmentation.", None),
    "--precision": ("train.precision", "Keras dtype policy; auto chooses the fastest safe one.", None),
    "--deterministic": ("train.deterministic", "Use only operations that give bit-identical results.", None),
}  # fmt: skip


@click.group(short_help="Segment volumes such as CT of the head.")
def segment():
    """Segment volumes: build records from scans and label maps, train networks of three planes, segment a scan."""


@segment.command(
    "demo-data",
    short_help="Make a folder of synthetic CT heads with label maps.",
    epilog=examples("kmura segment demo-data heads --heads 6 --spacing 4"),
)
@click.argument("out", type=click.Path())
@click.option("--heads", default=6, metavar="N", help="Number of heads.")
@click.option("--spacing", default=4.0, metavar="MM", help="Size of a voxel, 1 to 8 mm.")
@click.option("--max-angle", default=10.0, metavar="DEGREES", help="Largest tilt of a head about each axis, 0 to 45.")
@seed_option("Seed of the heads.")
def demo_data(out, heads, spacing, max_angle, seed):
    """Make synthetic CT heads in the folder OUT: scans, label maps of twenty regions and transforms.

    The heads are drawn, not of patients. The same options give the same files.
    """
    from kmura.cli.progress import counting
    from kmura.phantoms.ct_heads import write_heads

    with counting("heads") as progress:
        scans = write_heads(out, heads=heads, spacing=spacing, max_angle=max_angle, seed=seed, progress=progress)
    click.echo(f"{out}: {len(scans)} heads; build records with: kmura segment build {out}")


@segment.command(
    short_help="Build records from scans and their label maps.",
    epilog=examples(
        "kmura segment build heads --out ct-records",
        "kmura segment build scans --images '{id}/ct.nii.gz' --labels '{id}/regions.nii.gz' --classes core,penumbra",
    ),
)
@click.argument("root", type=click.Path())
@click.option("--out", default="ct-records", type=click.Path(), help="Folder for the records.")
@click.option("--name", metavar="AREA", show_default="CT_HEAD", help="Name of the area.")
@names_option(
    "--classes", metavar="A,B,C", show_default="the 20 ASPECTS regions", help="Names of the classes 1, 2, ..."
)
@click.option("--images", default="{id}.nii.gz", metavar="PATTERN", help="Pattern of the scans, relative to ROOT.")
@click.option("--labels", default="{id}-seg.nii.gz", metavar="PATTERN", help="Pattern of the label maps.")
@click.option(
    "--transforms",
    default="{id}.txt",
    metavar="PATTERN",
    help="Pattern of the ITK transforms from the space of the labels to that of the scan; a scan may have none.",
)
@click.option(
    "--pairs",
    type=click.Path(exists=True, dir_okay=False),
    metavar="CSV",
    help="Table with the columns id, image, labels and (optional) transform, split, instead of patterns.",
)
@click.option("--low", default=-124.0, metavar="HU", help="Gray value that becomes black.")
@click.option("--high", default=130.0, metavar="HU", help="Gray value that becomes white.")
@click.option(
    "--val-fraction", default=VOLUME_SPLITS.val_fraction, metavar="SHARE", help="Share of the volumes for validation."
)
@click.option(
    "--test-fraction", default=VOLUME_SPLITS.test_fraction, metavar="SHARE", help="Share of the volumes for testing."
)
@click.option("--seed", default=0, metavar="N", help="Seed of the splits.")
@click.option("--overwrite", is_flag=True, help="Replace records of other files or options in OUT.")
@WORKERS
def build(root, out, val_fraction, test_fraction, seed, overwrite, workers, **layout):
    """Build records from the scans in the folder ROOT and their label maps.

    Scans are resampled onto the grid of their labels, turned into canonical orientation and windowed. One record is one
    axial slice; splits are made by volume. The same command resumes an interrupted build.
    """
    from kmura.cli.progress import counting
    from kmura.cli.volume_tables import show_volumes
    from kmura.config import RecordsConfig
    from kmura.segmentation.volume_records import build_volumes

    options = RecordsConfig(val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    with counting("slices") as progress:
        manifest = build_volumes(
            root, out, options=options, overwrite=overwrite, workers=workers, progress=progress, **layout
        )
    show_volumes(manifest)


@segment.command(
    short_help="Train the networks of one or all planes.",
    epilog=examples(
        "kmura segment fit --records ct-records --plane all --recipe ct-mini",
        "kmura segment fit --records ct-records --plane all --recipe ct-mini --folds 8 --fold 0",
    ),
)
@click.option("--records", default="ct-records", type=click.Path(), help="Folder of the records.")
@click.option("--area", metavar="AREA", show_default="the only one", help="An area of the records.")
@click.option("--plane", default="axial", type=Choice([*PLANES, "all"]), help="Anatomical plane of the slices.")
@click.option("--runs", default="runs", type=click.Path(), help="Folder for the runs: RUNS/AREA/PLANE.")
@click.option(
    "--folds",
    default=0,
    metavar="K",
    help="Cross-validate over the volumes in K folds, RUNS/foldN/AREA/PLANE; their number leaves one out.",
)
@click.option("--fold", type=int, metavar="N", show_default="all", help="Train this fold alone, counted from 0.")
@click.option(
    "--recipe",
    type=Recipe(SegmentationConfig),
    metavar="RECIPE",
    help=f"A TOML file, or a shipped recipe: {', '.join(recipe_names(SegmentationConfig))}.",
)
@short_flags(SHORT_FLAGS, SegmentationConfig, deterministic={"is_flag": True, "type": None})
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any configuration key, such as loss.alpha=0.7; may be repeated.",
)
@click.option("--resume/--fresh", default=True, help="Continue existing runs, or delete them and start again.")
def fit(records, area, plane, runs, folds, fold, recipe, settings, resume, **flags):
    """Train one network per plane (kmura config --kind segmentation); the same command continues.

    The best epoch is chosen by the mean Dice of the val volumes.
    """
    from kmura.config import parse_setting
    from kmura.errors import InputError

    given = given_settings(SHORT_FLAGS, flags) | dict(map(parse_setting, settings))
    if folds < 0 or (fold is not None and not 0 <= fold < folds):
        raise InputError(f"--fold {fold} of --folds {folds}: give a fold of 0 to {max(0, folds - 1)}")

    from kmura.cli.progress import training_progress
    from kmura.segmentation.fit_planes import fit_planes

    with training_progress() as progress:
        results = fit_planes(
            records, area=area, plane=plane, folds=folds, fold=fold, runs=runs, recipe=recipe, settings=given,
            fresh=not resume, callbacks_for=lambda run, config: [progress],
        )  # fmt: skip
        for result in results:
            best = result.best
            click.echo(
                f"{result.folder}: best epoch {best['epoch']:.0f}, val_dice {best['val_dice']:.4f} on val", err=True
            )


@segment.command(
    short_help="Segment a scan.",
    epilog=examples(
        "kmura segment predict runs/CT_HEAD scan.nii.gz --out regions.nii.gz --table regions.csv",
        "kmura segment predict runs/CT_HEAD dicom/ --transform aligned.txt --out regions.nii.gz",
    ),
)
@click.argument("model", type=click.Path())
@click.argument("volume", type=click.Path())
@click.option("--transform", type=click.Path(), help="Rigid ITK transform from the aligned space to that of the scan.")
@click.option("--out", type=click.Path(), help="File for the class numbers on the grid of the scan.")
@click.option("--aligned", type=click.Path(), help="File for the class numbers in the aligned space.")
@click.option("--table", type=click.Path(), help="CSV file for volume, HU and asymmetry of the regions.")
@click.option("--probability", type=click.Path(), help="File for the probability of the chosen class, 0 to 1.")
@click.option(
    "--fusion",
    type=Choice(["mean", "majority", "weighted"]),
    default="mean",
    help="How planes are fused: mean probability, agreement of two, or weights fitted on val.",
)
@click.option("--flips", is_flag=True, help="Average with the prediction for the mirrored slices.")
@click.option("--series", metavar="UID", help="Series of a DICOM folder with several.")
@click.option("--orientation", metavar="RAS", help="Orientation of a NIfTI file that does not state it.")
def predict(model, volume, aligned, table, probability, **options):
    """Segment VOLUME (a file, or a folder of a DICOM series) with MODEL.

    MODEL is a run, or a folder RUNS/AREA with the runs axial, coronal and sagittal.
    """
    from kmura.cli.volume_tables import show_regions
    from kmura.errors import InputError

    if not (options["out"] or aligned or table or probability):
        raise InputError(
            "nothing would be written; give --out FILE, --aligned FILE, --table FILE or --probability FILE"
        )

    from kmura.segmentation.segment import segment

    found = segment(model, volume, aligned_out=aligned, table_out=table, probability_out=probability, **options)
    show_regions(found)


COMMANDS = (segment,)
