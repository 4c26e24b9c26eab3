"""Regions of CT heads, leave-one-out: Dice and IoU of each plane, each answer to left and right, and each fusion.

    python benchmarks/segmentation.py --heads HEADS --out ct.jsonl [--work FOLDER] [--folds 3] [--only FOLD]
        [--recipe ct-mini] [--sides direct coordinate merged all-merged] [--epochs 24]

`--heads` is a folder as `kmura segment build` expects it. Of N heads, the networks of a fold are trained on N - 2,
choose their epoch on one and are scored on one. `--sides` has the answers of the sagittal network, which is fused with
axial and coronal networks that tell the sides by themselves; with `all-merged` all three have merged classes. Scores
are means over the classes of all voxels of the held-out volumes of the folds together. Each finished run is appended to
`--out`; the same command continues. `--only` runs one fold and prints nothing, so that folds can run at the same time;
a last command without it prints the tables.
"""

import argparse
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from ledger import Ledger

KEYS = ("fold", "run")
WAYS = ("direct", "coordinate", "merged", "all-merged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", type=Path, required=True, help="folder of scans, transforms and label maps")
    parser.add_argument("--out", type=Path, required=True, help="file with one line of JSON per finished run")
    parser.add_argument("--work", type=Path, help="folder for records and runs, kept; default: a temporary one")
    parser.add_argument("--folds", type=int, default=3, help="folds that are run, of as many as there are heads")
    parser.add_argument("--only", type=int, metavar="FOLD", help="run this fold alone, counted from 0")
    parser.add_argument("--recipe", default="ct-mini")
    parser.add_argument("--sides", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--epochs", type=int, help="default: those of the recipe")
    arguments = parser.parse_args()
    done = Ledger(arguments.out, KEYS)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for fold in range(arguments.folds) if arguments.only is None else [arguments.only]:
            run_fold(fold, arguments, work, done)
    if arguments.only is not None:
        return
    print(f"{arguments.folds} folds, recipe {arguments.recipe}, {platform.platform()}\n")
    print(table(done, arguments))
    print()
    print(class_table(done, arguments))


def run_fold(fold: int, arguments: argparse.Namespace, work: Path, done: Ledger) -> None:
    """Trains and scores the planes and fusions of one fold that are not finished."""
    import kmura
    from kmura.data.volume_dataset import VolumeDataset
    from kmura.segmentation.fit_planes import fit_planes
    from kmura.segmentation.fuse import fuse_planes
    from kmura.segmentation.volume_records import build_volumes

    records = work / "records"
    build_volumes(arguments.heads, records)
    heads = len(VolumeDataset(records, "CT_HEAD").split_of)
    settings = {} if arguments.epochs is None else {"train.epochs": arguments.epochs}
    folders = {}
    for plane, sides in dict.fromkeys(job for way in arguments.sides for job in jobs_of(way)):
        name, runs = name_of(plane, sides), work / f"{plane}-{sides}"
        began = time.time()
        (result,) = fit_planes(
            records, plane=plane, folds=heads, fold=fold, runs=runs, recipe=arguments.recipe,
            settings=settings | {"data.sides": sides},
        )  # fmt: skip
        folders[plane, sides] = result.folder
        if (fold, name) not in done:
            seconds = time.time() - began
            evaluation = kmura.evaluate(result.folder)
            done.add(line(fold, name, evaluation.confusion("test"), seconds))
    for way in arguments.sides:
        together = work / f"fused-{way}" / f"fold{fold}"
        for plane, sides in jobs_of(way):
            shutil.copytree(folders[plane, sides], together / plane, dirs_exist_ok=True)
        if (fold, f"weighted, {way}") in done:
            continue
        began = time.time()
        evaluation = kmura.evaluate(fuse_planes(together, records=records))
        for fusion in evaluation.fusions:
            matrix = evaluation.confusion("test", fusion)
            done.add(line(fold, f"{fusion}, {way}", matrix, time.time() - began))


def jobs_of(way: str) -> list[tuple[str, str]]:
    """Returns plane and `data.sides` of the three networks of an answer to left and right."""
    if way == "all-merged":
        return [(plane, "merged") for plane in ("axial", "coronal", "sagittal")]
    return [("axial", "direct"), ("coronal", "direct"), ("sagittal", way)]


def name_of(plane: str, sides: str) -> str:
    return plane if plane != "sagittal" and sides == "direct" else f"{plane}, {sides}"


def line(fold: int, run: str, confusion: np.ndarray, seconds: float) -> dict:
    return {"fold": fold, "run": run, "seconds": round(seconds), "confusion": confusion.tolist()}


def total(done: Ledger, run: str, arguments: argparse.Namespace) -> np.ndarray:
    """Returns the confusion matrix of all folds."""
    return sum(np.array(done[fold, run]["confusion"]) for fold in range(arguments.folds))


def names(done: Ledger, arguments: argparse.Namespace) -> list[str]:
    """Returns the runs in the order of the first fold."""
    return [run for fold, run in done.runs if fold == 0]


def table(done: Ledger, arguments: argparse.Namespace) -> str:
    """Returns one row per plane and fusion."""
    from kmura.metrics import overlap
    from kmura.segmentation.regions import REGIONS
    from kmura.segmentation.targets import pairs

    rows = ["prediction | Dice | IoU | IoU of each fold | wrong side, % | s/fold", " | ".join(["---"] * 6)]
    for run in names(done, arguments):
        matrix = total(done, run, arguments)
        folds = [np.nanmean(overlap.iou(np.array(done[fold, run]["confusion"]))[1:]) for fold in range(arguments.folds)]
        columns = (
            run,
            f"{np.nanmean(overlap.dice(matrix)[1:]):.3f}",
            f"{np.nanmean(overlap.iou(matrix)[1:]):.3f}",
            " ".join(f"{value:.3f}" for value in folds),
            f"{100 * overlap.side_errors(matrix, pairs(REGIONS)):.3f}",
            f"{np.mean([done[fold, run]['seconds'] for fold in range(arguments.folds)]):.0f}",
        )
        rows.append(" | ".join(columns))
    return "\n".join(rows)


def class_table(done: Ledger, arguments: argparse.Namespace) -> str:
    """Returns the IoU of each class, one column per plane and fusion."""
    from kmura.metrics import overlap
    from kmura.segmentation.regions import REGIONS

    runs = names(done, arguments)
    scores = [overlap.iou(total(done, run, arguments))[1:] for run in runs]
    rows = [" | ".join(["IoU", *runs]), " | ".join(["---"] * (len(runs) + 1))]
    for place, name in enumerate(REGIONS):
        rows.append(" | ".join([name, *(f"{values[place]:.2f}" for values in scores)]))
    return "\n".join(rows)


if __name__ == "__main__":
    main()
