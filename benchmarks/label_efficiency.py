"""Training with few labels: a classifier from a pretrained encoder against one from random weights, as a table.

    python benchmarks/label_efficiency.py --data pneumoniamnist.npz --encoder RUNS/AREA/NAME/encoder --out labels.jsonl
        [--shares 0.01 0.1 1] [--seeds 3] [--rates 1e-3]

For each share of the training images (drawn at random within each class, the same for both starts) and each seed, all
layers are trained with the recipe `pneumoniamnist`, for the epochs of EPOCHS. The best epoch, and the learning rate if
several are given, are selected on val, which keeps all its labels. The AUC is of the test images; each finished run is
appended to `--out`, and the same command continues where it was interrupted.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from ledger import Ledger

EPOCHS = {0.01: 60, 0.1: 30, 1.0: 12}  # by share; others take the epochs of the next larger one
STARTS = ("encoder", "scratch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="pneumoniamnist.npz of MedMNIST")
    parser.add_argument("--encoder", type=Path, required=True, help="encoder folder of a pretraining run")
    parser.add_argument("--out", type=Path, required=True, help="file with one line of JSON per finished run")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="learning rates")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    done = Ledger(arguments.out, ("share", "start", "rate", "seed"))
    for share in arguments.shares:
        for seed in range(arguments.seeds):
            for rate in arguments.rates:
                for start in STARTS:
                    if (share, start, rate, seed) not in done:
                        done.add(trained(share, start, rate, seed, arguments))
    print(f"{arguments.seeds} seeds, {platform.platform()}\n")
    print(table(done, arguments))


def trained(share: float, start: str, rate: float, seed: int, arguments: argparse.Namespace) -> dict:
    """Trains and evaluates one run; returns its line of the file."""
    import kmura
    from kmura.evaluation.scoring import ScoreOptions

    with tempfile.TemporaryDirectory() as folder:
        images = cut(arguments.data, share, seed, Path(folder) / "pneumoniamnist.npz")
        records = Path(folder) / "records"
        kmura.build_records(
            Path(folder) / "pneumoniamnist.npz", records, layout="medmnist", classes=("normal", "pneumonia")
        )
        settings = {
            "model.backbone": "resnet18_small",
            "model.weights": str(arguments.encoder) if start == "encoder" else "none",
            "train.epochs": next(epochs for limit, epochs in EPOCHS.items() if share <= limit),
            "train.batch_size": min(64, max(16, images // 4)),
            "train.learning_rate": rate,
            "train.precision": "auto",
            "train.seed": seed,
        }
        started = time.time()
        run = kmura.fit(
            records, area="pneumoniamnist", runs=Path(folder) / "runs", recipe="pneumoniamnist", settings=settings
        )
        seconds = time.time() - started
        scores = kmura.evaluate(run.folder, options=ScoreOptions(resamples=10)).scores.splits
    auc = {split: scores[split]["image"].scores["auc"].value for split in ("val", "test")}
    line = {"share": share, "start": start, "rate": rate, "seed": seed, "images": images, "seconds": round(seconds)}
    return line | auc


def cut(source: Path, share: float, seed: int, target: Path) -> int:
    """Writes a copy of a MedMNIST file with a share of each class of its training images; returns their number."""
    with np.load(source) as file:
        arrays = dict(file)
    label = arrays["train_labels"].ravel()
    rng = np.random.default_rng(seed)
    rows = []
    for number in np.unique(label):
        members = rng.permutation(np.flatnonzero(label == number))
        rows.append(members[: max(1, round(share * len(members)))])
    rows = np.sort(np.concatenate(rows))
    for name in ("train_images", "train_labels"):
        arrays[name] = arrays[name][rows]
    np.savez(target, **arrays)
    return len(rows)


def table(done: Ledger, arguments: argparse.Namespace) -> str:
    """Returns one row per share and start: the learning rate with the best mean AUC on val, its AUC on test."""
    rows = ["labels | images | start | learning rate | test AUC | of each seed | s/run", " | ".join(["---"] * 7)]
    for share in arguments.shares:
        for start in STARTS:
            by_rate = {
                rate: [done[share, start, rate, seed] for seed in range(arguments.seeds)] for rate in arguments.rates
            }
            rate = max(by_rate, key=lambda rate: np.mean([run["val"] for run in by_rate[rate]]))
            runs = by_rate[rate]
            values = [run["test"] for run in runs]
            spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
            seeds = " ".join(f"{value:.3f}" for value in values)
            columns = (
                f"{100 * share:g} %",
                runs[0]["images"],
                start,
                f"{rate:g}",
                f"{np.mean(values):.3f} +- {spread:.3f}",
            )
            rows.append(" | ".join(map(str, (*columns, seeds, f"{np.mean([run['seconds'] for run in runs]):.0f}"))))
    return "\n".join(rows)


if __name__ == "__main__":
    main()
