"""`train.precision = "auto"` chooses a fast dtype policy for the machine and keeps it when a run resumes."""

import logging
from types import SimpleNamespace

import pytest

from kmura.config import ClassificationConfig, PretrainingConfig, load_config
from kmura.data.dataset import Dataset
from kmura.training import precision
from kmura.training.claim import describe

SETTINGS = {
    "model.backbone": "densenet_mini",
    "model.weights": "none",
    "data.image_size": 32,
    "train.epochs": 1,
    "train.precision": "auto",
}


@pytest.fixture
def machine(monkeypatch):
    """Sets the flags of the processor and the compute capabilities of the GPUs that kmura sees."""

    def set_machine(flags=(), gpus=()):
        precision.has_bfloat16.cache_clear()
        precision.warn_if_slow.cache_clear()
        monkeypatch.setattr(precision.cpuinfo, "get_cpu_info", lambda: {"flags": list(flags)})
        monkeypatch.setattr(precision, "gpu_capabilities", lambda: list(gpus))

    yield set_machine
    precision.has_bfloat16.cache_clear()
    precision.warn_if_slow.cache_clear()


@pytest.mark.parametrize(
    ("flags", "gpus", "policy"),
    [
        (["avx2", "fma"], [], "float32"),
        (["avx2", "avx512f", "avx512_vnni"], [], "float32"),
        (["avx512f", "avx512_bf16"], [], "mixed_bfloat16"),
        (["asimd", "bf16"], [], "mixed_bfloat16"),
        (["avx2"], [(8, 0)], "mixed_bfloat16"),
        (["avx512_bf16"], [(7, 5)], "float32"),
        (["avx2"], [(9, 0), (7, 0)], "float32"),
        (["avx2"], [(0, 0)], "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_machine_has_its_instructions(machine, flags, gpus, policy):
    machine(flags, gpus)
    assert precision.resolved("auto") == policy
    assert precision.slow_reason(policy) is None
    assert precision.resolved("mixed_float16") == "mixed_float16"


def test_auto_is_float32_for_depthwise_convolutions_on_a_processor(machine):
    machine(["avx512_bf16"])
    assert precision.resolved("auto", "efficientnet_lite0") == "float32"
    assert precision.resolved("auto", "densenet121") == "mixed_bfloat16"
    assert precision.resolved("mixed_bfloat16", "efficientnet_lite0") == "mixed_bfloat16"
    machine(gpus=[(8, 0)])
    assert precision.resolved("auto", "efficientnet_lite0") == "mixed_bfloat16"


@pytest.mark.parametrize(
    ("config", "part"), [(ClassificationConfig, "model"), (PretrainingConfig, "encoder")], ids=["fit", "pretrain"]
)
def test_a_run_asks_for_the_policy_of_its_backbone(machine, records, config, part):
    machine(["avx512_bf16"])
    for backbone, policy in (("efficientnet_lite0", "float32"), ("densenet_mini", "mixed_bfloat16")):
        settings = {f"{part}.backbone": backbone, "train.precision": "auto", "data.image_size": 32}
        wanted = load_config(None, settings, config)
        description = describe(Dataset(records, "XR_WRIST", wanted.data), "run", wanted, kind="classification")
        assert description.precision == policy


def test_auto_is_float32_where_the_flags_cannot_be_read(machine, monkeypatch):
    machine()

    def broken():
        raise OSError("no lscpu")

    monkeypatch.setattr(precision.cpuinfo, "get_cpu_info", broken)
    assert precision.resolved("auto") == "float32"


def test_a_gpu_of_unknown_capability_is_listed(monkeypatch):
    config = precision.tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: ["a", "b"])
    details = {"a": {"compute_capability": (8, 6)}, "b": {"device_name": "other"}}
    monkeypatch.setattr(config, "experimental", SimpleNamespace(get_device_details=details.get))
    assert precision.gpu_capabilities() == [(8, 6), (0, 0)]


def test_a_slow_policy_is_reported_once(machine, caplog):
    machine(["avx2"])
    with caplog.at_level(logging.WARNING, "kmura"):
        for _ in range(2):
            precision.warn_if_slow("mixed_bfloat16")
            precision.warn_if_slow("mixed_float16")
            precision.warn_if_slow("float32")
    assert caplog.messages == [
        "mixed_bfloat16 is much slower than float32 on a CPU without bfloat16 instructions; set train.precision to "
        "float32 or auto",
        "mixed_float16 is much slower than float32 on a CPU; set train.precision to float32 or auto",
    ]
    machine(["avx2", "avx512_bf16"])
    assert precision.slow_reason("mixed_bfloat16") is None
    assert "on a CPU; set" in precision.slow_reason("mixed_float16")


@pytest.mark.slow
def test_a_resumed_run_keeps_the_policy_of_its_first_epoch(machine, records, tmp_path):
    import keras

    from kmura.classification.fit import fit
    from kmura.classification.fit_plan import plan_areas
    from kmura.report.run_files import facts_of
    from kmura.runs.run import RunFolder, read_run

    machine(["avx2"])
    done = fit(records, area="XR_WRIST", runs=tmp_path, config=load_config("baseline", SETTINGS))
    assert read_run(done.folder).policy == "float32"
    machine(["avx2", "avx512_bf16"])
    longer = SETTINGS | {"train.epochs": 2}
    (plan,) = plan_areas(records, area="XR_WRIST", runs=tmp_path, settings=longer)
    assert plan.continues and plan.precision == "float32"
    done = fit(records, area="XR_WRIST", runs=tmp_path, config=load_config("baseline", longer))
    description = read_run(done.folder)
    assert len(done.history) == 2 and description.policy == "float32" and description.config.train.precision == "auto"
    assert "float32" in facts_of(description, RunFolder(done.folder))["training"]
    assert keras.saving.load_model(done.folder / "best.keras").compute_dtype == "float32"
    (plan,) = plan_areas(records, area="XR_WRIST", runs=tmp_path / "other", settings=longer)
    assert plan.precision == "mixed_bfloat16"


def test_the_plan_says_that_a_policy_is_slow(machine, records, tmp_path):
    from kmura.classification.fit_plan import plan_areas

    machine(["avx2"])
    settings = SETTINGS | {"train.precision": "mixed_bfloat16"}
    (plan,) = plan_areas(records, area="XR_WRIST", runs=tmp_path, settings=settings)
    assert any(note.startswith("mixed_bfloat16 is much slower") for note in plan.notes)
