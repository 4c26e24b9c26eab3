"""Adam with an L2 penalty as in torch, LARS, and learning rate schedules."""

from collections.abc import Iterable

import keras
import tensorflow as tf

from kmura.config import TrainConfig


@keras.saving.register_keras_serializable("kmura")
class AdamL2(keras.optimizers.Adam):
    """Adam with an L2 penalty in the gradient: g + l2 * w before the moments, as in torch's `Adam(weight_decay=l2)`.

    This is not AdamW (Loshchilov & Hutter 2019, Algorithm 2), which decays the weights independently of the moments;
    the published values of the project are for the coupled form. `l2` is a variable, so changing it does not retrace
    the step.

    Variables that are frozen at first count their steps from `begin_late` on, as torch counts the steps of each
    parameter. Otherwise the bias correction of their moments (Kingma & Ba 2015, Algorithm 1) would end before their
    first update.

    Each variable is updated by one kernel of TensorFlow (ResourceApplyAdam, the same formula as Keras') instead of a
    dozen operations, which reduces the tracing time: DenseNet-121 has 364 variables.
    """

    def __init__(self, learning_rate=1e-3, l2: float = 0.0, name="adam_l2", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self._initial_l2 = l2
        self.l2 = None
        self.late_start = None
        self._late = frozenset()  # indices of variables

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.l2 = self.add_variable((), initializer=keras.initializers.Constant(self._initial_l2), name="l2")
        self.late_start = self.add_variable((), dtype="int64", initializer="zeros", name="late_start")

    def set_late(self, variables: Iterable[keras.Variable]) -> None:
        """Sets the variables that are frozen at first. Call it on a built optimizer, before its first step."""
        self._late = frozenset(self._get_variable_index(variable) for variable in variables)

    def begin_late(self) -> None:
        """Marks the next step as the first one of the variables of `set_late`."""
        self.late_start.assign(self.iterations)

    def update_step(self, gradient, variable, learning_rate):
        penalty = keras.ops.cast(self.l2, gradient.dtype) * keras.ops.cast(variable, gradient.dtype)
        super().update_step(gradient + penalty, variable, learning_rate)

    def _distributed_tf_update_step(self, distribution, grads_and_vars, learning_rate):
        # Keras' loop over the variables calls `update_step` above; this computes the same in one operation
        if self.amsgrad:
            return super()._distributed_tf_update_step(distribution, grads_and_vars, learning_rate)
        done = keras.ops.convert_to_tensor(self.iterations)
        steps = [tf.cast(count, tf.float32) + 1 for count in (done, done - tf.cast(self.late_start.value, done.dtype))]
        powers = [(tf.pow(self.beta_1, step), tf.pow(self.beta_2, step)) for step in steps]
        for gradient, variable in grads_and_vars:
            of_variable = powers[self._get_variable_index(variable) in self._late]
            once = (learning_rate, *of_variable, self.l2.value)
            distribution.extended.update(variable, self._apply_adam, args=(gradient, *once), group=False)

    def _apply_adam(self, variable, gradient, learning_rate, beta_1_power, beta_2_power, l2):
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.cast(beta_1_power, variable.dtype),
            beta2_power=tf.cast(beta_2_power, variable.dtype),
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, variable.dtype) + tf.cast(l2, variable.dtype) * variable,
        )

    def get_config(self):
        return super().get_config() | {"l2": float(self._initial_l2)}


@keras.saving.register_keras_serializable("kmura")
class LARS(keras.optimizers.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, Algorithm 1): momentum SGD with a rate for each variable.

    For each variable w with gradient g, learning rate r and velocity v:

        local = trust * |w| / (|g| + l2 * |w|)
        v <- momentum * v + r * local * (g + l2 * w)
        w <- w - v

    `local` is 1 where |w| or |g| is zero. Variables of at most one dimension (biases; scale and offset of a
    normalisation) and excluded variables have neither adaptation nor penalty: v <- momentum * v + r * g.

    Args:
        learning_rate: a number or a schedule.
        momentum: 0 to below 1.
        l2: L2 penalty.
        trust: trust coefficient, above 0.
    """

    def __init__(self, learning_rate=0.1, momentum=0.9, l2: float = 0.0, trust: float = 0.001, name="lars", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.l2 = l2
        self.trust = trust
        self._excluded = frozenset()  # identities of variables

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def exclude(self, variables: Iterable[keras.Variable]) -> None:
        """Sets variables, besides those of at most one dimension, that have neither adaptation nor penalty."""
        self._excluded = frozenset(map(id, variables))

    def update_step(self, gradient, variable, learning_rate):
        ops = keras.ops
        index, rate = self._get_variable_index(variable), ops.cast(learning_rate, variable.dtype)
        gradient, velocity = ops.cast(gradient, variable.dtype), self._velocities[index]
        if len(variable.shape) > 1 and not self._is_excluded(index):
            length, slope = (ops.sqrt(ops.sum(ops.square(value))) for value in (variable, gradient))
            both = (length > 0) & (slope > 0)
            local = self.trust * length / ops.where(both, slope + self.l2 * length, 1.0)
            gradient = ops.where(both, local, 1.0) * (gradient + self.l2 * variable)
        self.assign(velocity, self.momentum * velocity + rate * gradient)
        self.assign_sub(variable, velocity)

    def _is_excluded(self, index: int) -> bool:
        return id(self._trainable_variables[index]) in self._excluded

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum, "l2": self.l2, "trust": self.trust}


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer without the loss scaling that mixed_float16 wraps around it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A Keras schedule times `peak`, which is a variable, so changing it does not retrace the step."""

    def __init__(self, shape: keras.optimizers.schedules.LearningRateSchedule, peak: float):
        """
        Args:
            shape: a schedule with values from 0 to 1.
            peak: the largest learning rate.
        """
        self.shape = shape
        self.peak = keras.Variable(peak, trainable=False, dtype="float32", name="peak")

    def __call__(self, step):
        return self.peak * self.shape(step)

    def get_config(self):
        return {"shape": keras.optimizers.schedules.serialize(self.shape), "peak": float(self.peak)}


def learning_rate(train: TrainConfig, steps_per_epoch: int) -> float | Schedule:
    """Returns the learning rate of a run: a number, or Keras' CosineDecay over its steps."""
    if train.schedule == "constant" and not train.warmup_epochs:
        return train.learning_rate
    warmup = round(train.warmup_epochs * steps_per_epoch)
    decay = max(1, train.epochs * steps_per_epoch - warmup)
    shape = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else 1.0,
        warmup_target=1.0 if warmup else None,
        warmup_steps=warmup,
        decay_steps=decay,
        alpha=1.0 if train.schedule == "constant" else 0.0,
    )
    return Schedule(shape, train.learning_rate)


def set_learning_rate(optimizer: keras.optimizers.Optimizer, rate: float) -> None:
    """Sets the learning rate of an optimizer, or the peak of its schedule, without retracing the step."""
    schedule = getattr(optimizer, "_learning_rate", None)
    if isinstance(schedule, Schedule):
        schedule.peak.assign(rate)
    else:
        optimizer.learning_rate.assign(rate)
