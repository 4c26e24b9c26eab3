"""Seconds from the start of the process to the end of the first training step: `kmura fit`, DenseNet-121, 224 pixels.

This includes imports, reading and decoding the records, and building and tracing the model.

    python benchmarks/first_step.py [--precision float32] [--rounds 3]
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
started, records, runs, precision = float(sys.argv[1]), *sys.argv[2:]
from kmura.config import load_config
from kmura.classification.fit import fit
import keras

class FirstStep(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        print(f"{time.time() - started:.1f}", end=" ", flush=True)
    def on_train_batch_end(self, batch, logs=None):
        print(f"{time.time() - started:.1f}", flush=True)
        os._exit(0)

config = load_config("baseline", {"model.weights": "none", "train.precision": precision})
fit(records, area="XR_WRIST", runs=runs, config=config, callbacks=[FirstStep()])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from kmura.phantoms.radiographs import write_phantoms
        from kmura.records.writer import build_records

        write_phantoms(Path(folder) / "images", areas=("XR_WRIST",), train_studies=60, test_studies=10, side=256)
        build_records(Path(folder) / "images", Path(folder) / "records", workers=1)
        seconds = []
        for number in range(arguments.rounds):
            inputs = [str(time.time()), f"{folder}/records", f"{folder}/runs{number}", arguments.precision]
            done = subprocess.run([sys.executable, "-c", CHILD, *inputs], capture_output=True, text=True)
            if not done.stdout.strip():
                sys.exit(done.stderr)
            before, after = map(float, done.stdout.split())
            seconds.append(after)
            print(f"{arguments.precision}: model and data ready after {before} s, first step done after {after} s")
        print(f"median {statistics.median(seconds)} s, {platform.platform()}")


if __name__ == "__main__":
    main()
