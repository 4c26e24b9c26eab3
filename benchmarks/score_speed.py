"""Seconds and peak memory of `kmura score` on tables of simulated predictions, or on a given file.

    python benchmarks/score_speed.py [--rows 6163 200000] [--resamples 2000] [--by sex,side,device] [--pages]

A simulated table has the shape of a public set of wrist radiographs: two views per study, 1.8 studies per patient, two
thirds of the rows in the split valid and one third in test, a third of the probabilities exactly 0. Each measurement is
a process of its own, whose import time counts.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd


def simulated(rows: int, seed: int = 0) -> pd.DataFrame:
    """Returns a table of predictions."""
    rng = np.random.default_rng(seed)
    study = np.arange(rows) // 2
    patient = (study / 1.8).astype(int)
    severity = rng.normal(0.7, 1.5, study[-1] + 1)[study]
    label = (severity + rng.normal(0, 0.3, rows) > 0).astype(int)
    probability = 1 / (1 + np.exp(-(severity + rng.normal(0, 0.8, rows))))
    number = patient[-1] + 1
    return pd.DataFrame(
        {
            "image": [f"image-{row:08d}" for row in range(rows)],
            "patient_id": patient,
            "study_number": study,
            "split": np.where(patient < 2 * number / 3, "valid", "test"),
            "sex": np.array(["F", "M"])[rng.integers(0, 2, number)][patient],
            "side": np.array(["L", "R"])[rng.integers(0, 2, study[-1] + 1)][study],
            "device": np.array(["A", "A", "A", "B"])[rng.integers(0, 4, number)][patient],
            "fracture": label,
            "probability": np.where(probability < 0.3, 0, probability).round(6),
        }
    )


def measured(file: Path, by: str, resamples: int, pages: bool) -> dict:
    """Returns seconds, CPU seconds and peak memory of one process that scores a file, and what it printed."""
    options = f"resamples={resamples}, mixed_studies='any-positive'"
    code = (
        "import json, resource, sys, time, kmura\n"
        "from kmura.evaluation.scoring import ScoreOptions\n"
        f"found = kmura.score({str(file)!r}, label_column='fracture', by={by.split(',') if by else []!r}, "
        f"out={str(file.with_suffix('.scores')) if pages else None!r}, options=ScoreOptions({options}))\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "aucs = {split: str(levels['image'].scores['auc']) for split, levels in found.files[0].scores.splits.items()}\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "print(json.dumps({'auc': aucs, 'cpu': usage.ru_utime + usage.ru_stime, 'peak': usage.ru_maxrss / 1024}))\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[6163, 200_000])
    parser.add_argument("--file", type=Path, help="a file of predictions, with a column fracture, to score as well")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--by", default="", help="subgroups, such as sex,side,device")
    parser.add_argument("--pages", action="store_true", help="also write the page and its figures")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        files = {str(arguments.file): arguments.file} if arguments.file else {}
        for rows in arguments.rows:
            files[f"{rows:,} simulated rows"] = Path(folder) / f"{rows}.csv"
            simulated(rows).to_csv(Path(folder) / f"{rows}.csv", index=False)
        for name, file in files.items():
            found = measured(file, arguments.by, arguments.resamples, arguments.pages)
            print(
                f"{name}, {arguments.resamples} resamples, subgroups {arguments.by or 'none'}: "
                f"{found['seconds']:.1f} s ({found['cpu']:.1f} s of CPU time), peak {found['peak']:.0f} MB; "
                f"AUC of images {found['auc']}"
            )


if __name__ == "__main__":
    main()
