"""Adam with the L2 penalty where torch puts it."""

from collections.abc import Iterable

import keras
import tensorflow as tf

from kmura.config import TrainConfig


@keras.saving.register_keras_serializable("kmura")
class AdamL2(keras.optimizers.Adam):
    """Adam whose gradient carries an L2 penalty: g + l2 * w before the moments, as torch's `Adam(weight_decay=l2)`.

    This is not AdamW (Loshchilov & Hutter 2019, Algorithm 2), which shrinks the weights past the moments; the published
    values of the project are for the coupled form. `l2` is a variable: changing it does not retrace a step.

    Variables that are frozen at first count their steps from `begin_late` on, as torch counts those of each parameter:
    the moments' correction for their start (Kingma & Ba 2015, Algorithm 1) would else be over before they have any.

    A variable is updated by TensorFlow's own kernel (ResourceApplyAdam, Keras' formula in one operation) instead of by
    a dozen: DenseNet-121 has 364 variables, and all of them are traced.
    """

    def __init__(self, learning_rate=1e-3, l2: float = 0.0, name="adam_l2", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self._initial_l2 = l2
        self.l2 = None
        self.late_start = None
        self._late = frozenset()  # places among the variables

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.l2 = self.add_variable((), initializer=keras.initializers.Constant(self._initial_l2), name="l2")
        self.late_start = self.add_variable((), dtype="int64", initializer="zeros", name="late_start")

    def set_late(self, variables: Iterable[keras.Variable]) -> None:
        """Names the variables that are frozen at first; of a built optimizer, before its first step."""
        self._late = frozenset(self._get_variable_index(variable) for variable in variables)

    def begin_late(self) -> None:
        """Says that the late variables learn from the next step on."""
        self.late_start.assign(self.iterations)

    def update_step(self, gradient, variable, learning_rate):
        penalty = keras.ops.cast(self.l2, gradient.dtype) * keras.ops.cast(variable, gradient.dtype)
        super().update_step(gradient + penalty, variable, learning_rate)

    def _distributed_tf_update_step(self, distribution, grads_and_vars, learning_rate):
        # Keras' loop over the variables, which calls `update_step` above; what follows is the same in one operation.
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


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer itself where mixed_float16 has wrapped it, to scale its loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of Keras times `peak`, a variable: another peak does not trace the step again."""

    def __init__(self, shape: keras.optimizers.schedules.LearningRateSchedule, peak: float):
        """
        Args:
            shape: between 0 and 1 over the steps.
            peak: its largest learning rate.
        """
        self.shape = shape
        self.peak = keras.Variable(peak, trainable=False, dtype="float32", name="peak")

    def __call__(self, step):
        return self.peak * self.shape(step)

    def get_config(self):
        return {"shape": keras.optimizers.schedules.serialize(self.shape), "peak": float(self.peak)}


def learning_rate(train: TrainConfig, steps_per_epoch: int) -> float | Schedule:
    """The learning rate of a run: a number, or Keras' CosineDecay counted in steps."""
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
    """Gives an optimizer another learning rate, or its schedule another peak, without a new trace."""
    schedule = getattr(optimizer, "_learning_rate", None)
    if isinstance(schedule, Schedule):
        schedule.peak.assign(rate)
    else:
        optimizer.learning_rate.assign(rate)
