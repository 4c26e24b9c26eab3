"""AdamL2 compared with the published algorithm, for both implementations of a step and distribution strategies."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from kmura.training.optimizers import AdamL2

RATE, L2, EPSILON = 0.01, 0.3, 1e-9


class StepByStep(AdamL2):
    """Uses `update_step` of Keras, as in a Keras version without the private method."""

    def _distributed_tf_update_step(self, distribution, grads_and_vars, learning_rate):
        for gradient, variable in grads_and_vars:
            self.update_step(gradient, variable, learning_rate)


def adam(weight, gradients, rate=lambda step: RATE):
    """Adam (Kingma & Ba 2015, Algorithm 1) with L2 * w added to the gradient."""
    m = v = np.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        coupled = gradient + L2 * weight
        m, v = 0.9 * m + 0.1 * coupled, 0.999 * v + 0.001 * coupled**2
        weight = weight - rate(step) * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + EPSILON)
    return weight


@pytest.fixture
def steps():
    rng = np.random.default_rng(0)
    return rng.normal(size=5), rng.normal(size=(6, 5))


@pytest.mark.parametrize("kind", [AdamL2, StepByStep])
def test_adam_l2_is_adam_with_the_penalty_added_to_the_gradient(kind, steps):
    weight, gradients = steps
    variable = keras.Variable(weight.astype("float32"))
    optimizer = kind(RATE, l2=L2, epsilon=EPSILON)
    for gradient in gradients:
        optimizer.apply([gradient.astype("float32")], [variable])
    assert variable.numpy() == pytest.approx(adam(weight, gradients), abs=1e-5)


def test_schedules_clipping_and_averaging_of_keras_are_supported(steps):
    weight, gradients = steps
    rate = keras.optimizers.schedules.CosineDecay(RATE, 6)
    variable = keras.Variable(weight.astype("float32"))
    optimizer = AdamL2(rate, l2=L2, epsilon=EPSILON, clipnorm=1.0, use_ema=True)
    for gradient in gradients:
        optimizer.apply([gradient.astype("float32")], [variable])
    clipped = [gradient / max(1, np.linalg.norm(gradient)) for gradient in gradients]
    expected = adam(weight, clipped, lambda step: float(rate(step - 1)))
    assert variable.numpy() == pytest.approx(expected, abs=1e-5)
    optimizer.finalize_variable_values([variable])
    assert not np.allclose(variable.numpy(), expected, atol=1e-4)


def test_a_traced_step_reads_the_penalty_from_a_variable(steps):
    import tensorflow as tf

    weight, gradients = steps
    variable = keras.Variable(weight.astype("float32"))
    optimizer = AdamL2(RATE, l2=0.0, epsilon=EPSILON)
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply([gradient], [variable]))
    optimizer.l2.assign(L2)
    for gradient in gradients:
        step(tf.constant(gradient, tf.float32))
    assert variable.numpy() == pytest.approx(adam(weight, gradients), abs=1e-5)
    assert step.experimental_get_tracing_count() == 1
    assert AdamL2.from_config(optimizer.get_config()).get_config() == optimizer.get_config()


MIRRORED = """
import numpy as np, tensorflow as tf, keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from kmura.training.optimizers import AdamL2
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(0)
weight, gradients = rng.normal(size=5), rng.normal(size=(6, 5))
with strategy.scope():
    variable = keras.Variable(weight.astype("float32"))
    optimizer = AdamL2(0.01, l2=0.3, epsilon=1e-9)
    optimizer.build([variable])

@tf.function
def step(gradient):
    def replica():  # a quarter and three quarters of the gradient: the sum counts
        share = 0.25 + 0.5 * tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
        optimizer.apply([gradient * share], [variable])
    strategy.run(replica)

for gradient in gradients:
    step(tf.constant(gradient, tf.float32))
for copy in variable.value.values:
    print(*copy.numpy().tolist())
"""


@pytest.mark.slow
def test_all_replicas_of_a_mirrored_strategy_take_the_same_step(steps):
    done = subprocess.run([sys.executable, "-c", MIRRORED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    copies = [list(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(copies) == 2
    for copy in copies:
        assert copy == pytest.approx(adam(*steps), abs=1e-5)


def test_unfrozen_variables_start_with_steps_of_the_learning_rate():
    one, late = (keras.Variable(np.zeros(3, np.float32)) for _ in range(2))
    optimizer = AdamL2(0.01)
    optimizer.build([one, late])
    optimizer.set_late([late])
    gradient = np.full(3, 2.0, np.float32)
    for _ in range(200):
        optimizer.apply([gradient], [one])
    optimizer.begin_late()
    before = one.numpy().copy()
    for _ in range(30):
        optimizer.apply([gradient, gradient], [one, late])
    assert late.numpy() == pytest.approx(
        -0.3, rel=1e-3
    )  # with a constant gradient, every step equals the learning rate
    assert one.numpy() - before == pytest.approx(-0.3, rel=1e-3)
