"""Seconds from the start of the process to the end of the first training step: `kmura fit`, DenseNet-121, 224 pixels.

This includes imports, reading and decoding the records, and building and tracing the model.

    python benchmarks/first_step.py [--precision float32] [--rounds 3] [--records FOLDER]

With `--records` (as `open_records.py --records FOLDER` builds them) one joint model of all areas of that folder is
trained without a cache, since decoding all images of a large data set into memory would dominate.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time

CHILD = """
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
started, records, runs, precision, area = float(sys.argv[1]), *sys.argv[2:]
from kmura.config import load_config
from kmura.classification.fit import fit
import keras

class FirstStep(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        print(f"{time.time() - started:.1f}", end=" ", flush=True)
    def on_train_batch_end(self, batch, logs=None):
        print(f"{time.time() - started:.1f}", flush=True)
        os._exit(0)

joint = {"data.task": "multiclass", "data.cache": "off"} if area == "all" else {}
config = load_config("baseline", {"model.weights": "none", "train.precision": precision} | joint)
fit(records, area=area, runs=runs, config=config, callbacks=[FirstStep()])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", help="train on this folder; default: 60 studies of synthetic radiographs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from kmura.phantoms.radiographs import write_phantoms
        from kmura.records.writer import build_records

        records, area = arguments.records, "all"
        if records is None:
            records, area = f"{folder}/records", "XR_WRIST"
            write_phantoms(f"{folder}/images", areas=(area,), train_studies=60, test_studies=10, side=256)
            build_records(f"{folder}/images", records, workers=1)
        seconds = []
        for number in range(arguments.rounds):
            inputs = [str(time.time()), records, f"{folder}/runs{number}", arguments.precision, area]
            done = subprocess.run([sys.executable, "-c", CHILD, *inputs], capture_output=True, text=True)
            if not done.stdout.strip():
                sys.exit(done.stderr)
            before, after = map(float, done.stdout.split())
            seconds.append(after)
            print(f"{arguments.precision}: model and data ready after {before} s, first step done after {after} s")
        print(f"median {statistics.median(seconds)} s, {platform.platform()}")


if __name__ == "__main__":
    main()
