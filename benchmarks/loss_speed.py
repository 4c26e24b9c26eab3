"""Time of the losses of pretraining, NT-Xent and VICReg, and of their gradients: kmura and lightly.

    python benchmarks/loss_speed.py [--pairs 128] [--rounds 5] [--torch-python /path/to/python]

A call computes the loss of embeddings [B, D] of both views and the gradient of the embeddings, in float32. Each
contender runs in a process of its own, in turn; the time is the median over the calls of a round, and the best round is
reported. lightly needs torch: `pip install torch==2.13.0 && pip install --no-deps lightly==1.6.0` in this environment,
or in another one whose Python interpreter is given by `--torch-python` (`make parity` creates .venv-parity).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from training_speed import machine

ROOT = Path(__file__).resolve().parents[1]
DIMENSIONS = {"nt_xent": 128, "vicreg": 2048}
WARM_UP, CALLS = 5, 40
TEMPERATURE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", default=sys.executable, help="Python interpreter with torch and lightly")
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)  # framework, loss, pairs
    arguments = parser.parse_args()
    if arguments.contender:
        framework, loss, pairs = arguments.contender
        print(json.dumps({"kmura": kmura_call, "lightly": lightly_call}[framework](loss, int(pairs))))
        return
    print(machine(), "\n")
    print(f"{'loss':10}{'pairs':>7}{'dimensions':>12}{'kmura, ms':>12}{'lightly, ms':>13}{'ratio':>8}")
    for loss, dimensions in DIMENSIONS.items():
        for pairs in arguments.pairs:
            best = {"kmura": float("inf"), "lightly": float("inf")}
            for _ in range(arguments.rounds):
                for framework in best:
                    best[framework] = min(best[framework], in_own_process(framework, loss, pairs, arguments))
            ratio = best["kmura"] / best["lightly"]
            ours, theirs = (1000 * best[framework] for framework in ("kmura", "lightly"))
            print(f"{loss:10}{pairs:7}{dimensions:12}{ours:12.2f}{theirs:13.2f}{ratio:8.2f}", flush=True)


def in_own_process(framework: str, loss: str, pairs: int, arguments: argparse.Namespace) -> float:
    """Returns the median time of a call in a separate process, seconds."""
    python = arguments.torch_python if framework == "lightly" else sys.executable
    paths = [str(ROOT), str(ROOT / "tests" / "parity"), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [python, __file__, "--contender", framework, loss, str(pairs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{framework} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def kmura_call(loss: str, pairs: int) -> float:
    import tensorflow as tf

    from kmura.config import MethodConfig
    from kmura.pretraining.embedding_losses import nt_xent
    from kmura.pretraining.vicreg import VICReg

    class Terms:  # the method's own combination of its terms, without a network
        weights_of_terms = {name: getattr(MethodConfig(), name) for name in VICReg.term_names}

    def value(first, second):
        if loss == "nt_xent":
            return nt_xent(first, second, TEMPERATURE)
        return tf.add_n(list(VICReg.terms(Terms(), first, second, None).values()))

    @tf.function
    def call(first, second):
        with tf.GradientTape() as tape:
            tape.watch((first, second))
            result = value(first, second)
        return result, tape.gradient(result, (first, second))

    views = [tf.random.stateless_normal((pairs, DIMENSIONS[loss]), (seed, 0)) for seed in (0, 1)]
    return median_time(lambda: float(call(*views)[0]))


def lightly_call(loss: str, pairs: int) -> float:
    import torch
    from lightly_losses import losses

    nt_xent, vicreg = losses()
    criterion = nt_xent(temperature=TEMPERATURE) if loss == "nt_xent" else vicreg()
    views = [torch.randn(pairs, DIMENSIONS[loss], requires_grad=True) for _ in range(2)]

    def call() -> float:
        for view in views:
            view.grad = None
        result = criterion(*views)
        result.backward()
        return result.item()

    return median_time(call)


def median_time(call) -> float:
    """Returns the median time of a call, seconds."""
    walls = []
    for _ in range(WARM_UP + CALLS):
        started = time.perf_counter()
        call()
        walls.append(time.perf_counter() - started)
    return statistics.median(walls[WARM_UP:])


if __name__ == "__main__":
    main()
