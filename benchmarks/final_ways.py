"""`final` compared with `final-plus` and with neither mixing nor erasing, on phantoms and PneumoniaMNIST, as a table.

    python benchmarks/final_ways.py --out ways.jsonl [--pneumonia pneumoniamnist.npz] [--seeds 3] [--epochs 12]

Trains `densenet_mini` from random weights with the recipes `final` (the published way of mixing and CAM-erasing) and
`final-plus`, with equal values otherwise, for each data set and seed. The best epoch is selected on val. Each finished
run is appended to `--out` as one line of JSON; the same command continues where it was interrupted. The table shows AUC
and F1 of the held-out studies (phantoms) or images (PneumoniaMNIST), mean and standard deviation over the seeds.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

WAYS = ("final", "final-plus", "neither")
DATA = {"phantoms": ("XR_WRIST", 96, 32), "pneumoniamnist": ("pneumoniamnist", 32, 64)}  # area, pixels, batch size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file with one line of JSON per finished run")
    parser.add_argument("--pneumonia", type=Path, help="pneumoniamnist.npz of MedMNIST; without it only the phantoms")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    chosen = [name for name in DATA if name == "phantoms" or arguments.pneumonia]
    done = finished(arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for data in chosen:
                for way in arguments.ways:
                    if (data, way, seed, arguments.epochs) not in done:
                        records = records_of(data, arguments.pneumonia, Path(folder) / data)
                        with arguments.out.open("a") as file:
                            line = trained(data, way, seed, arguments.epochs, records, Path(folder))
                            file.write(json.dumps(line) + "\n")
    print(f"{arguments.seeds} seeds, {arguments.epochs} epochs, {platform.platform()}\n")
    print(table(finished(arguments.out), chosen, arguments))


def finished(path: Path) -> dict[tuple, dict]:
    """Returns the finished runs by (data, way, seed, epochs)."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["data"], line["way"], line["seed"], line["epochs"]): line for line in lines}


def records_of(data: str, npz: Path | None, folder: Path) -> Path:
    """Returns the records of a data set, built at the first call."""
    import kmura
    from kmura.phantoms.radiographs import write_phantoms

    records = folder / "records"
    if not records.exists():
        if data == "phantoms":
            images = folder / "images"
            write_phantoms(images, areas=(DATA[data][0],), side=256, train_studies=400, test_studies=200)
            kmura.build_records(images, records)
        else:
            kmura.build_records(npz, records, layout="medmnist", classes=("normal", "pneumonia"))
    return records


def trained(data: str, way: str, seed: int, epochs: int, records: Path, folder: Path) -> dict:
    """Trains and evaluates one run; returns its line of the file."""
    import kmura
    from kmura.classification.fit import fit
    from kmura.config import load_config
    from kmura.evaluation.scoring import ScoreOptions

    area, size, batch = DATA[data]
    last_mixed = round(epochs * 2 / 3)
    settings = {
        "model.backbone": "densenet_mini",
        "model.weights": "none",
        "data.image_size": size,
        "train.batch_size": batch,
        "train.learning_rate": 2e-3,
        "train.epochs": epochs,
        "train.seed": seed,
        "train.slow_from_epoch": last_mixed + 1,
        "mix.until_epoch": last_mixed,
        "cam.erase_every": 8,
    }
    if way == "neither":
        settings |= {"mix.until_epoch": 0, "cam.from_epoch": "none"}
    if data == "pneumoniamnist":
        settings["train.monitor"] = "val_auc_img"
    config = load_config("final" if way == "neither" else way, settings)
    started = time.time()
    phase = "baseline" if way == "neither" else "final"
    run = fit(records, area=area, phase=phase, runs=folder / f"{data}-{way}-{seed}", config=config).folder
    seconds = time.time() - started
    level = kmura.evaluate(run, options=ScoreOptions(resamples=10)).scores.splits["test"]
    scores = level["image" if data == "pneumoniamnist" else "study"].scores
    line = {"data": data, "way": way, "seed": seed, "epochs": epochs, "seconds": round(seconds)}
    return line | {"auc": scores["auc"].value, "f1": scores["f1"].value}


def table(done: dict[tuple, dict], chosen: list[str], arguments: argparse.Namespace) -> str:
    """Returns one row per data set and way."""
    import numpy as np

    rows = ["data | way | AUC | F1 | AUC of each seed | s/run", "--- | --- | --- | --- | --- | ---"]
    for data in chosen:
        for way in arguments.ways:
            runs = [done[data, way, seed, arguments.epochs] for seed in range(arguments.seeds)]
            columns = []
            for score in ("auc", "f1"):
                values = [run[score] for run in runs]
                spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                columns.append(f"{np.mean(values):.3f} +- {spread:.3f}")
            seeds = " ".join(f"{run['auc']:.3f}" for run in runs)
            seconds = np.mean([run["seconds"] for run in runs])
            rows.append(" | ".join([data, way, *columns, seeds, f"{seconds:.0f}"]))
    return "\n".join(rows)


if __name__ == "__main__":
    main()
