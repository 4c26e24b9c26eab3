"""Time to compute scores of simulated tables of MURA's size (7 areas, 3197 images of 1199 studies per split).

    python benchmarks/evaluation_speed.py [--resamples 2000]

Measures everything that kmura evaluate computes from the predictions of each area (both levels, before and after
calibration, thresholds, intervals of every score), and kmura compare of two models over the areas.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from kmura.config import ClassificationConfig, config_json
from kmura.evaluation.compare import compare
from kmura.evaluation.scoring import ScoreOptions, score_table

AREAS = ("ELBOW", "FINGER", "FOREARM", "HAND", "HUMERUS", "SHOULDER", "WRIST")
IMAGES, STUDIES = 3197, 1199


def simulated(area: str, images: int, studies: int, seed: int) -> pd.DataFrame:
    """Returns predictions of both splits of one area: one image per study, the others are assigned at random."""
    rng = np.random.default_rng(seed)
    tables = []
    for split in ("val", "test"):
        study = np.sort(np.r_[np.arange(studies), rng.integers(0, studies, images - studies)])
        truth = rng.normal(0, 2, studies)
        label = (rng.random(studies) < 1 / (1 + np.exp(-truth))).astype(int)
        logit = truth[study] + rng.normal(0, 1, images)
        names = [f"{split}-p{number}" for number in study]
        tables.append(
            pd.DataFrame(
                {
                    "split": split,
                    "area": f"XR_{area}",
                    "patient": names,
                    "study": names,
                    "image": [f"{split}/{number}.png" for number in range(images)],
                    "label": label[study],
                    "logit": logit,
                    "probability": 1 / (1 + np.exp(-logit)),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--resamples", type=int, default=2000)
    arguments = parser.parse_args()
    images = [IMAGES // 7 + (number < IMAGES % 7) for number in range(7)]
    studies = [STUDIES // 7 + (number < STUDIES % 7) for number in range(7)]
    tables = [simulated(area, *counts) for area, *counts in zip(AREAS, images, studies, range(7), strict=True)]
    start = time.perf_counter()
    for table in tables:
        score_table(table, ScoreOptions(resamples=arguments.resamples))
    scored = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for table in tables:
            for phase in ("baseline", "final"):
                run = Path(folder) / table["area"][0] / phase
                run.mkdir(parents=True)
                description = {
                    "area": table["area"][0], "phase": phase, "records": "", "inputs": "", "task": "binary",
                    "classes": ["normal", "abnormal"], "channels": 1, "config": config_json(ClassificationConfig()),
                    "versions": {}, "command": "", "run_version": 1,
                }  # fmt: skip
                (run / "run.json").write_text(json.dumps(description))
                table.to_csv(run / "predictions.csv", index=False)
                runs.append(run)
        start = time.perf_counter()
        compare(runs, resamples=arguments.resamples)
        compared = time.perf_counter() - start
    print(f"{sum(images)} images, {sum(studies)} studies, {arguments.resamples} resamples, {platform.machine()}")
    print(f"scores of 7 areas: {scored:.1f} s; comparison of 2 models over them: {compared:.1f} s")


if __name__ == "__main__":
    main()
