"""The dtype policy of training: the meaning of `train.precision = "auto"`, and a warning where a policy is slow."""

import functools
import logging

import cpuinfo
import tensorflow as tf

from kmura.models.backbones import BACKBONES

AUTO = "auto"
# flags of processors with bfloat16 instructions: x86 (AVX-512 BF16, AMX) and Arm
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "avx512bf16", "amx_bf16", "bf16"})

log = logging.getLogger("kmura")


def resolved(precision: str, backbone: str | None = None) -> str:
    """Returns the dtype policy for a value of `train.precision` on this machine.

    `auto` is the fastest policy that is safe here: `mixed_bfloat16` on GPUs of compute capability 8.0 or higher and on
    processors with bfloat16 instructions, otherwise `float32`; on processors also `float32` for backbones of depthwise
    convolutions. It never is `mixed_float16`, which needs loss scaling.

    Args:
        precision: a value of `train.precision`.
        backbone: a name of `kmura.models.backbones.BACKBONES`; None for a model without one.
    """
    if precision != AUTO:
        return precision
    capabilities = gpu_capabilities()
    depthwise = backbone is not None and BACKBONES[backbone].depthwise
    supported = min(capabilities) >= (8, 0) if capabilities else has_bfloat16() and not depthwise
    return "mixed_bfloat16" if supported else "float32"


def slow_reason(policy: str) -> str | None:
    """Returns a sentence that says why a dtype policy is slow on this machine, or None if it is not."""
    if policy == "float32" or gpu_capabilities():
        return None
    fix = "set train.precision to float32 or auto"
    if policy == "mixed_float16":
        return f"mixed_float16 is much slower than float32 on a CPU; {fix}"
    if not has_bfloat16():
        return f"mixed_bfloat16 is much slower than float32 on a CPU without bfloat16 instructions; {fix}"
    return None


@functools.cache
def warn_if_slow(policy: str) -> None:
    """Logs `slow_reason` as a warning, once per process and policy."""
    if reason := slow_reason(policy):
        log.warning("%s", reason)


@functools.cache
def has_bfloat16() -> bool:
    """Returns whether the processor has bfloat16 instructions; False if its flags cannot be read."""
    try:
        flags = cpuinfo.get_cpu_info().get("flags", ())
    except Exception:  # it reads files and runs programs of the system, which may not exist
        return False
    return not BFLOAT16_FLAGS.isdisjoint(flags)


def gpu_capabilities() -> list[tuple[int, int]]:
    """Returns the CUDA compute capability of each GPU that TensorFlow uses, (0, 0) where it is not known."""
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    return [detail.get("compute_capability", (0, 0)) for detail in details]
