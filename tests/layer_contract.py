"""The contract of all layers: serialization, symbolic, eager and Dataset.map calls, mixed precision, training."""

import inspect
import json

import keras
import numpy as np
import tensorflow as tf

POLICIES = ("mixed_float16", "mixed_bfloat16")


def check_layer(
    layer_class,
    config: dict,
    inputs,
    *,
    random: bool = False,
    in_dataset: bool = True,
    mixed_precision: bool = True,
    keeps_float32: bool = False,
    trains: bool = True,
    differentiable: bool = True,
    tolerance: float = 0.02,
) -> None:
    """Asserts that a layer satisfies the contract, in training mode if it has one.

    Args:
        layer_class: class of the layer.
        config: arguments of its constructor.
        inputs: one batch of inputs for the call, a NumPy array or a nested structure of arrays.
        random: whether two calls may differ; then only shapes, dtypes and finiteness are compared.
        in_dataset: whether the layer works inside Dataset.map.
        mixed_precision: whether the layer works with mixed precision policies.
        keeps_float32: whether outputs are float32 in mixed precision (else they have the compute dtype).
        trains: whether a model with the layer can be compiled and trained for one step.
        differentiable: whether gradients reach its float inputs.
        tolerance: tolerance of outputs in mixed precision, relative to the largest float32 output.
    """
    layer = layer_class(**config)
    eager = _numpy(_call(layer, inputs))
    _check_finite(eager)
    _check_config(layer, config, inputs, None if random else eager)
    _check_symbolic(layer_class(**config), inputs, eager)
    if in_dataset:
        dataset = tf.data.Dataset.from_tensors(inputs).map(lambda batch: _call(layer, batch))
        _check_same(_numpy(next(iter(dataset))), eager, 0 if not random else None)
    if mixed_precision:
        for policy in POLICIES:
            _check_mixed(layer_class(**config, dtype=policy), layer, inputs, eager, keeps_float32, random, tolerance)
    if differentiable:
        _check_gradient(layer, inputs)
    if trains:
        _check_training(layer_class(**config), inputs)


def _call(layer, inputs):
    if "training" in inspect.signature(layer.call).parameters:
        return layer(inputs, training=True)
    return layer(inputs)


def _numpy(outputs):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)


def _is_float(array) -> bool:
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(array.dtype))


def _check_finite(outputs) -> None:
    for array in keras.tree.flatten(outputs):
        if _is_float(array):
            assert np.isfinite(np.asarray(array, np.float32)).all(), "an output is not finite"


def _check_same(outputs, expected, tolerance) -> None:
    """Asserts equal structure, shapes and dtypes, and values within `tolerance` relative to the largest (None: any)."""
    keras.tree.assert_same_structure(outputs, expected)
    for array, other in zip(keras.tree.flatten(outputs), keras.tree.flatten(expected), strict=True):
        assert (array.shape, array.dtype) == (other.shape, other.dtype)
        if tolerance is not None:
            limit = tolerance * np.abs(other).max() + 1e-6 if _is_float(other) else 0
            np.testing.assert_allclose(array, other, rtol=0, atol=limit)


def _check_config(layer, config, inputs, eager) -> None:
    assert set(config) <= set(layer.get_config()), "get_config leaves out an argument of the constructor"
    described = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    copy = keras.saving.deserialize_keras_object(described)
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()
    if eager is not None:
        _call(copy, inputs)  # builds the layer
        copy.set_weights(layer.get_weights())
        _check_same(_numpy(_call(copy, inputs)), eager, 1e-6)


def _check_symbolic(layer, inputs, eager) -> None:
    outputs = layer(_keras_inputs(inputs))
    keras.tree.assert_same_structure(outputs, eager)
    for symbolic, array in zip(keras.tree.flatten(outputs), keras.tree.flatten(eager), strict=True):
        assert symbolic.dtype == keras.backend.standardize_dtype(array.dtype)
        assert tuple(symbolic.shape)[1:] == array.shape[1:], "the symbolic shape is not the eager one"
        assert symbolic.shape[0] in (None, array.shape[0])


def _keras_inputs(inputs):
    return keras.tree.map_structure(lambda array: keras.Input(array.shape[1:], dtype=str(array.dtype)), inputs)


def _check_mixed(layer, float32_layer, inputs, eager, keeps_float32, random, tolerance) -> None:
    _call(layer, inputs)  # builds the layer
    layer.set_weights(float32_layer.get_weights())
    outputs = _numpy(_call(layer, inputs))
    _check_finite(outputs)
    for array, other in zip(keras.tree.flatten(outputs), keras.tree.flatten(eager), strict=True):
        if not _is_float(other):
            assert array.dtype == other.dtype
            continue
        assert str(array.dtype) == ("float32" if keeps_float32 else layer.compute_dtype)
        if not random:
            limit = tolerance * np.abs(other).max()
            np.testing.assert_allclose(np.asarray(array, np.float32), other, rtol=0, atol=limit)
    for weight in layer.weights:
        assert weight.dtype != layer.compute_dtype, "weights stay float32 in mixed precision"


def _check_gradient(layer, inputs) -> None:
    tensors = keras.tree.map_structure(tf.convert_to_tensor, inputs)
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = [output for output in keras.tree.flatten(_call(layer, tensors)) if _is_float(output)]
        total = tf.add_n(
            [tf.reduce_sum(output * tf.random.stateless_normal(output.shape, (1, 2))) for output in outputs]
        )
    floats = [tensor for tensor in keras.tree.flatten(tensors) if _is_float(tensor)]
    for gradient in tape.gradient(total, floats):
        assert gradient is not None, "no gradient reaches an input"
        assert np.isfinite(gradient.numpy()).all()


def _check_training(layer, inputs) -> None:
    """Trains a model with the layer for one compiled step and asserts that each of its trainable weights changes."""
    symbolic = _keras_inputs(inputs)
    outputs = [output for output in keras.tree.flatten(layer(symbolic)) if _is_float(output)]
    features = [keras.layers.Dense(8)(keras.layers.Flatten()(output)) for output in outputs]
    model = keras.Model(symbolic, keras.layers.Dense(1)(sum(features[1:], start=features[0])))
    model.compile("adam", "mse", jit_compile=False)
    before = [weight.numpy().copy() for weight in layer.trainable_weights]
    size = keras.tree.flatten(inputs)[0].shape[0]
    loss = model.train_on_batch(inputs, np.linspace(-1, 1, size, dtype=np.float32)[:, None])
    assert np.isfinite(loss)
    for weight, value in zip(layer.trainable_weights, before, strict=True):
        assert np.abs(weight.numpy() - value).max() > 0, f"{weight.path} did not move in a training step"
