"""Fusions of the hybrid compared with its DenseNet alone on phantoms, as one table.

    python benchmarks/fusions.py [--area XR_WRIST] [--seeds 3] [--epochs 12] [--only "gated, two levels"]

Trains `densenet_mini` alone and with `swin_mini` in every fusion, at 128 pixels from random weights with the settings
of the recipe demo; both branches are trained from the first step. The best epoch is selected on val by study AUC. The
table shows the AUC of the held-out studies (mean and standard deviation over the seeds) and the number of parameters.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--area", default="XR_WRIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", default="", help="only ways whose name contains this text")
    parser.add_argument("--train-studies", type=int, default=400)
    parser.add_argument("--test-studies", type=int, default=200)
    arguments = parser.parse_args()

    import numpy as np

    from kmura.classification.fit import fit
    from kmura.config import load_config
    from kmura.evaluation.evaluate import evaluate
    from kmura.models.fusion import FUSIONS
    from kmura.phantoms.radiographs import write_phantoms
    from kmura.records.writer import build_records
    from kmura.runs.run import load_model

    hybrid = {"model.architecture": "hybrid", "model.swin": "swin_mini", "model.swin_weights": "none"}
    ways = {"densenet_mini alone": {}}
    for scales in (False, True):
        for fusion in FUSIONS:
            name = f"{fusion}, {'two levels' if scales else 'last level'}"
            ways[name] = hybrid | {"model.fusion": fusion, "model.multi_scale": scales}
    ways = {name: settings for name, settings in ways.items() if arguments.only in name}
    with tempfile.TemporaryDirectory() as folder:
        images, records = Path(folder) / "images", Path(folder) / "records"
        counts = {"train_studies": arguments.train_studies, "test_studies": arguments.test_studies}
        write_phantoms(images, areas=(arguments.area,), side=256, **counts)
        build_records(images, records)
        print(f"{arguments.area}, {arguments.seeds} seeds, {arguments.epochs} epochs, {platform.platform()}")
        print("way | held-out study AUC | seeds | parameters | s/run")
        for number, (name, settings) in enumerate(ways.items()):
            aucs, started = [], time.time()
            for seed in range(arguments.seeds):
                common = {"data.image_size": SIZE, "train.epochs": arguments.epochs, "train.seed": seed}
                config = load_config("demo", common | settings)
                run = fit(records, area=arguments.area, runs=Path(folder) / f"{number}-{seed}", config=config)
                aucs.append(evaluate(run.folder).scores.splits["test"]["study"].scores["auc"].value)
            spread = np.std(aucs, ddof=1) if len(aucs) > 1 else 0.0
            listed = " ".join(f"{auc:.3f}" for auc in aucs)
            size = load_model(run.folder / "best.keras").count_params()
            seconds = (time.time() - started) / arguments.seeds
            print(f"{name} | {np.mean(aucs):.3f} +- {spread:.3f} | {listed} | {size:,} | {seconds:.0f}", flush=True)


if __name__ == "__main__":
    main()
