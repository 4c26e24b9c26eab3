"""Training speed of DenseNet-121 in images per second: unmodified Keras, kmura, and PyTorch.

    python benchmarks/training_speed.py [--only kmura torch_channels_last] [--steps 12] [--rounds 1]
        [--image-size 224] [--batch-size 16] [--torch-python /path/to/python]

Prints one table. Each contender runs in a separate process, so that their thread pools do not interfere, and trains on
one batch that stays in memory. This measures the training step as `fit` runs it (forward pass, backward pass, Adam,
metrics) without reading data. The time of a step is the median over `--steps` steps after a few warm-up steps. On a
machine with other load (see the column "others' CPU") use `--rounds 3`: the contenders run that many rounds in turn,
and the best round of each is reported.

PyTorch is needed only for its own contenders: `pip install torch==2.13.0` in this environment, or in another one whose
Python interpreter is given by `--torch-python`. torchvision is not needed, since DenseNet-121 is defined below.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

WARM_UP = 4  # steps; the first traces and optimises the graph
# numbers of parameters as in torchvision, with 1000 classes and with one logit
PARAMETERS_1000, PARAMETERS_1 = 7_978_856, 6_954_881

# name -> (framework, precision, description)
CONTENDERS = {
    "keras": ("keras", "float32", "Keras (keras-hub backbone, Keras' batch normalisation)"),
    "kmura": ("keras", "float32", "kmura (fused batch normalisation)"),
    "torch": ("torch", "float32", "PyTorch"),
    "torch_channels_last": ("torch", "float32", "PyTorch, channels_last"),
    "keras_bf16": ("keras", "bfloat16", "Keras, mixed_bfloat16"),
    "kmura_bf16": ("keras", "bfloat16", "kmura, mixed_bfloat16"),
    "torch_channels_last_bf16": ("torch", "bfloat16", "PyTorch, channels_last, bf16 autocast"),
}


def main() -> None:
    arguments = parsed_arguments()
    if arguments.contender:
        print(json.dumps(measured(arguments)))
        return
    names = arguments.only or list(CONTENDERS)
    where = machine()
    results: dict[str, dict] = {}
    for _ in range(arguments.rounds):
        for name in names:
            result = in_own_process(name, arguments)
            if name not in results or result["step_seconds"] < results[name]["step_seconds"]:
                results[name] = result
    print(where)
    print(f"DenseNet-121, {arguments.image_size} px, batch {arguments.batch_size}, {arguments.steps} steps a round\n")
    print(table(results, arguments.batch_size))


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS))
    parser.add_argument("--steps", type=int, default=12, help="timed steps of a round")
    parser.add_argument(
        "--rounds", type=int, default=1, help="runs of each contender, in turn; the best run is reported"
    )
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--torch-python", default=sys.executable, help="Python interpreter with torch")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)  # set in the process of a contender
    return parser.parse_args()


def in_own_process(name: str, arguments: argparse.Namespace) -> dict:
    """Returns the result of `measured` in a separate process."""
    framework, _, _ = CONTENDERS[name]
    python = arguments.torch_python if framework == "torch" else sys.executable
    command = [python, __file__, "--contender", name, "--steps", str(arguments.steps)]
    command += ["--image-size", str(arguments.image_size), "--batch-size", str(arguments.batch_size)]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "BENCHMARK_STARTED": repr(time.time()), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        hint = "\npip install torch==2.13.0, or give --torch-python" if "No module named 'torch'" in done.stderr else ""
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}{hint}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(arguments: argparse.Namespace) -> dict:
    """Returns step time (median), CPU time, time to the first step (seconds), and the CPU share of other processes."""
    framework, precision, _ = CONTENDERS[arguments.contender]
    run = {"keras": run_keras, "torch": run_torch}[framework]
    clock = Clock()
    version = run(arguments, precision, clock)
    timed = clock.ends[WARM_UP - 1 :]
    walls = [after[0] - before[0] for before, after in zip(timed, timed[1:], strict=False)]
    own, everyone = (timed[-1][column] - timed[0][column] for column in (1, 2))
    available = sum(walls) * len(os.sched_getaffinity(0))
    return {
        "version": version,
        "step_seconds": statistics.median(walls),
        "cpu_seconds": own / len(walls),
        "others_share": max(0.0, everyone - own) / available,
        "first_step": clock.ends[0][0] - float(os.environ["BENCHMARK_STARTED"]),
    }


class Clock:
    """Wall time, CPU time of the process and of the whole machine at the end of each step, seconds."""

    def __init__(self):
        self.ends: list[tuple[float, float, float]] = []

    def step_ended(self) -> None:
        self.ends.append((time.time(), time.process_time(), machine_cpu_seconds()))


def run_keras(arguments: argparse.Namespace, precision: str, clock: Clock) -> str:
    """Trains with `fit`; returns the version of TensorFlow."""
    import keras
    import numpy as np
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    size, batch = arguments.image_size, arguments.batch_size
    of_kmura = arguments.contender.startswith("kmura")
    if of_kmura:
        from kmura.models.build import build_model
        from kmura.training.optimizers import AdamL2

        model = build_model(backbone="densenet121", weights="none", image_size=size)
        optimizer = AdamL2(1e-4)
        optimizer.build(model.trainable_variables)
        images = np.random.default_rng(0).uniform(0, 255, (batch, size, size, 1))
    else:
        from keras_hub.models import DenseNetBackbone

        backbone = DenseNetBackbone(stackwise_num_repeats=[6, 12, 24, 16], image_shape=(size, size, 3))
        pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
        model = keras.Model(backbone.input, keras.layers.Dense(1, dtype="float32")(pooled))
        optimizer = keras.optimizers.Adam(1e-4)
        images = np.random.default_rng(0).normal(size=(batch, size, size, 3))
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == PARAMETERS_1
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))

    class StepEnds(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock.step_ended()

    labels = np.arange(batch)[:, None] % 2
    data = tf.data.Dataset.from_tensors((images.astype("float32"), labels.astype("float32"))).repeat()
    model.fit(data, steps_per_epoch=WARM_UP + arguments.steps, verbose=0, callbacks=[StepEnds()])
    return f"TensorFlow {tf.__version__}, Keras {keras.__version__}"


def run_torch(arguments: argparse.Namespace, precision: str, clock: Clock) -> str:
    """Trains with the usual loop of PyTorch; returns its version."""
    import torch

    torch.manual_seed(0)
    assert sum(parameter.numel() for parameter in torch_densenet121(1000).parameters()) == PARAMETERS_1000
    model = torch_densenet121(1).train()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS_1
    images = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    labels = (torch.arange(arguments.batch_size) % 2).float()[:, None]
    if "channels_last" in arguments.contender:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    for _ in range(WARM_UP + arguments.steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        clock.step_ended()
    return f"PyTorch {torch.__version__}"


def torch_densenet121(num_classes: int):
    """Returns DenseNet-121 (Huang et al. 2017, Table 1) as in torchvision: [B, 3, H, W] to logits [B, num_classes]."""
    import torch
    from torch import nn

    class DenseLayer(nn.Module):
        def __init__(self, channels: int, growth_rate: int = 32):
            super().__init__()
            self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth_rate, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(4 * growth_rate)
            self.conv2 = nn.Conv2d(4 * growth_rate, growth_rate, 3, padding=1, bias=False)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return torch.cat([x, self.conv2(self.relu(self.norm2(self.conv1(self.relu(self.norm1(x))))))], 1)

    channels = 64
    layers = [nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(channels)]
    layers += [nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)]
    for stack, repeats in enumerate([6, 12, 24, 16]):
        if stack > 0:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(repeats):
            layers.append(DenseLayer(channels))
            channels += 32
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, num_classes))


def machine_cpu_seconds() -> float:
    """Returns the CPU time of all processes since the machine was started, seconds; 0 without /proc/stat."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").open().readline().split()[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Returns processor, cores, load and versions of the machine, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores ({', '.join(extensions)}), load {os.getloadavg()[0]:.1f}, {platform.platform()}"


def table(results: dict[str, dict], batch_size: int) -> str:
    """Returns one line per contender; the ratio is to the fastest PyTorch contender of the same precision."""
    best: dict[str, float] = {}
    for name, result in results.items():
        framework, precision, _ = CONTENDERS[name]
        if framework == "torch":
            best[precision] = min(best.get(precision, float("inf")), result["step_seconds"])
    rows = [("", "precision", "images/s", "s/step", "CPU s/step", "others' CPU", "first step ends", "x PyTorch's best")]
    for name, result in results.items():
        _, precision, text = CONTENDERS[name]
        seconds = result["step_seconds"]
        ratio = f"{best[precision] / seconds:.2f}" if precision in best else "-"
        rows.append(
            (
                text,
                precision,
                f"{batch_size / seconds:.1f}",
                f"{seconds:.2f}",
                f"{result['cpu_seconds']:.2f}",
                f"{result['others_share']:.0%}",
                f"after {result['first_step']:.0f} s",
                ratio,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join([*lines, "", *sorted({result["version"] for result in results.values()})])


if __name__ == "__main__":
    main()
