"""Transfer to chest radiographs: COVID-19 against other findings, from different initial weights, as a table.

    python benchmarks/transfer.py --data covid-chestxray-dataset --out transfer.jsonl [--folds 5] [--image-size 224]
        [--starts none imagenet vicreg imagenet-vicreg] [--epochs 20] [--pretrain-epochs 30] [--work FOLDER]

`--data` is a folder with `metadata.csv` of Cohen et al. 2020 (arXiv 2006.11988) and a folder of its images. Only X-rays
are used. The positive class is COVID-19, alone or with another finding; rows of unknown finding ("todo", "Unknown")
have no label. The folds are stratified and share no patient (patients with an identical image count as one); the
validation part of a fold, also by patient, selects the epoch. EfficientNet-Lite0 is trained from:

- `none`: random weights;
- `imagenet`: ImageNet weights (extra `pretrained`);
- `vicreg`: random weights, then VICReg on the training images of the fold and the images without a label;
- `imagenet-vicreg`: the same from the ImageNet weights.

The AUC is the mean over the folds, of the images of the patients held out, with an interval by patient. Each finished
fold is appended to `--out`; the same command continues where it was interrupted.
"""

import argparse
import hashlib
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from ledger import Ledger
from PIL import Image

AREA = "XR_CHEST"
BACKBONE = "efficientnet_lite0"
STARTS = ("none", "imagenet", "vicreg", "imagenet-vicreg")
UNKNOWN = ("todo", "Unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with metadata.csv and a folder of images")
    parser.add_argument("--out", type=Path, required=True, help="file with one line of JSON per finished fold")
    parser.add_argument("--work", type=Path, help="folder for records and runs, kept; default: a temporary one")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS[:3])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=5e-4, help="largest learning rate of the classifier")
    parser.add_argument("--pretrain-epochs", type=int, default=30)
    arguments = parser.parse_args()
    images = table_of(arguments.data)
    known = images[images["label"] >= 0]
    print(
        f"{len(known)} X-rays of {known['patient'].nunique()} patients, {int(known['label'].sum())} with COVID-19; "
        f"{len(images) - len(known)} without a label"
    )
    done = Ledger(arguments.out, ("start", "fold", "epochs", "pretrain_epochs"))
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for fold in range(arguments.folds):
            for start in arguments.starts:
                if (start, fold, arguments.epochs, arguments.pretrain_epochs) not in done:
                    done.add(trained(images, start, fold, arguments, work))
    print(f"{arguments.folds} folds, {arguments.image_size} px, {arguments.epochs} epochs, {platform.platform()}\n")
    print(result_table(done, arguments))


def table_of(data: Path) -> pd.DataFrame:
    """Returns the X-rays whose file exists: patient, label (-1: unknown), path."""
    rows = pd.read_csv(data / "metadata.csv", dtype=str)
    files = {path.stem: path for path in data.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
    rows = rows[(rows["modality"] == "X-ray") & rows["filename"].map(lambda name: Path(name).stem in files)]
    label = rows["finding"].str.contains("COVID-19").astype(int).where(~rows["finding"].isin(UNKNOWN), -1)
    paths = rows["filename"].map(lambda name: files[Path(name).stem])
    table = pd.DataFrame({"patient": rows["patientid"], "label": label, "path": paths})
    table["patient"] = same_patients(table)
    return table.sort_values(["patient", "path"], ignore_index=True)


def same_patients(table: pd.DataFrame) -> pd.Series:
    """Returns the patients, with one name for patients who share an image: they are one patient, named twice."""
    name = {patient: patient for patient in table["patient"]}
    first: dict[bytes, str] = {}
    for patient, path in zip(table["patient"], table["path"], strict=True):
        with Image.open(path) as image:
            pixels = hashlib.sha256(image.convert("L").tobytes()).digest()
        old, new = name[patient], name[first.setdefault(pixels, patient)]
        name = {key: new if value == old else value for key, value in name.items()}
    return table["patient"].map(name)


def folds_of(images: pd.DataFrame, folds: int) -> np.ndarray:
    """Returns the fold of each image; images without a label are in fold -1 unless their patient has a labelled one."""
    from sklearn.model_selection import StratifiedGroupKFold

    known = images[images["label"] >= 0]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    fold_of = {}
    for fold, (_, test) in enumerate(splitter.split(known, known["label"], known["patient"])):
        fold_of |= dict.fromkeys(known["patient"].iloc[test], fold)
    return images["patient"].map(lambda patient: fold_of.get(patient, -1)).to_numpy()


def tree(images: pd.DataFrame, root: Path) -> None:
    """Writes links to images in the layout of MURA, every image as a study of its own; `split` is train or valid."""
    numbers = {patient: number for number, patient in enumerate(sorted(images["patient"].unique()))}
    for row in images.itertuples():
        outcome = "positive" if row.label == 1 else "negative"
        folder = root / row.split / AREA / f"patient{numbers[row.patient]:05}" / f"study{row.Index}_{outcome}"
        folder.mkdir(parents=True)
        (folder / f"image1{row.path.suffix}").symlink_to(row.path.resolve())


def records_of(images: pd.DataFrame, fold: int, folds: int, work: Path) -> tuple[Path, Path]:
    """Returns the records of a fold, and those of its training images and the unlabelled ones without labels."""
    import kmura
    from kmura.config import RecordsConfig

    labelled, unlabelled = work / f"fold{fold}" / "records", work / f"fold{fold}" / "unlabelled"
    if not unlabelled.exists():
        part = folds_of(images, folds)
        split = np.where(part == fold, "valid", "train")
        options = RecordsConfig(val_fraction=0.15)
        known = (images["label"] >= 0).to_numpy()
        tree(images.assign(split=split)[known], work / f"fold{fold}" / "tree")
        kmura.build_records(work / f"fold{fold}" / "tree", labelled, options=options)
        rest = images[part != fold]
        for row in rest.itertuples():
            target = work / f"fold{fold}" / "images" / f"{row.patient}" / f"{row.Index}{row.path.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(row.path.resolve())
        kmura.build_records(work / f"fold{fold}" / "images", unlabelled, layout="unlabelled", name="chest")
    return labelled, unlabelled


def trained(images: pd.DataFrame, start: str, fold: int, arguments: argparse.Namespace, work: Path) -> dict:
    """Trains and evaluates one fold; returns its line of the file."""
    import kmura
    from kmura.evaluation.scoring import ScoreOptions

    labelled, unlabelled = records_of(images, fold, arguments.folds, work)
    runs, name = work / f"fold{fold}" / "runs", f"{start}-{arguments.epochs}-{arguments.pretrain_epochs}"
    began = time.time()
    weights = {"none": "none", "imagenet": "imagenet"}.get(start)
    if weights is None:
        settings = {
            "data.image_size": arguments.image_size,
            "encoder.backbone": BACKBONE,
            "encoder.weights": "imagenet" if start == "imagenet-vicreg" else "none",
            "method.projector": [1024, 1024],
            "train.batch_size": 32,
            "train.epochs": arguments.pretrain_epochs,
            "train.optimizer": "adamw",
            "train.base_rate": 4e-3,
            "train.warmup_epochs": min(3, arguments.pretrain_epochs),
            "train.seed": fold,
        }
        run = kmura.pretrain(unlabelled, area="chest", name=name, runs=runs, recipe="sft", settings=settings)
        weights = str(run.folder / "encoder")
    pretraining = time.time() - began
    settings = {
        "data.image_size": arguments.image_size,
        "model.backbone": BACKBONE,
        "model.weights": weights,
        "train.epochs": arguments.epochs,
        "train.batch_size": 16,
        "train.learning_rate": arguments.rate,
        "train.schedule": "cosine",
        "train.warmup_epochs": 1,
        "train.monitor": "val_auc_img",
        "train.precision": "float32",
        "train.seed": fold,
    }
    began = time.time()
    run = kmura.fit(labelled, area=AREA, phase="baseline", runs=runs / name, settings=settings, fresh=True)
    seconds = time.time() - began
    kmura.evaluate(run.folder, options=ScoreOptions(resamples=10))
    table = pd.read_csv(run.folder / "predictions.csv")
    table = table[table["split"] == "test"]
    return {
        "start": start,
        "fold": fold,
        "epochs": arguments.epochs,
        "pretrain_epochs": arguments.pretrain_epochs,
        "best_epoch": int(run.best["epoch"]),
        "pretraining_seconds": round(pretraining),
        "seconds": round(seconds),
        "patient": [f"{fold}-{patient}" for patient in table["patient"]],  # numbered within a fold's tree
        "label": table["label"].tolist(),
        "logit": table["logit"].tolist(),
    }


def result_table(done: Ledger, arguments: argparse.Namespace) -> str:
    """Returns one row per start: the mean AUC of the folds with its interval by patient, and the AUC of each fold."""
    from kmura.metrics import clustered_auc, mean_auc_interval

    heads = ("start", "test AUC (95 % interval)", "of each fold", "s/fold", "pretraining, s/fold")
    rows = [" | ".join(heads), " | ".join(["---"] * len(heads))]
    for start in arguments.starts:
        lines = [done[start, fold, arguments.epochs, arguments.pretrain_epochs] for fold in range(arguments.folds)]
        patients = pd.factorize(np.concatenate([line["patient"] for line in lines]))[0]
        places = np.split(patients, np.cumsum([len(line["label"]) for line in lines])[:-1])
        folds = [
            clustered_auc(np.array(line["label"]), np.array(line["logit"]), place, patients.max() + 1)
            for line, place in zip(lines, places, strict=True)
        ]
        mean = mean_auc_interval(folds, np.full(len(folds), 1 / len(folds)))
        columns = (
            start,
            f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})",
            " ".join(f"{fold.value:.3f}" for fold in folds),
            f"{np.mean([line['seconds'] for line in lines]):.0f}",
            f"{np.mean([line['pretraining_seconds'] for line in lines]):.0f}",
        )
        rows.append(" | ".join(columns))
    return "\n".join(rows)


if __name__ == "__main__":
    main()
