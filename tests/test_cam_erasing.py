"""The training step with CAM-erasing matches its formula in every precision and setting, and is traced once."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmura import cam
from kmura.classification.cam_erasing import CamErasingModel
from kmura.classification.losses import WeightedBinaryCrossentropy
from kmura.config import CamConfig, load_config
from kmura.errors import InputError
from kmura.models.build import build_model
from kmura.training.optimizers import AdamL2

SIZE = 64


def batch_of(number=6, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 255, (number, SIZE, SIZE, 1)).astype("float32")
    label = (np.arange(number)[:, None] % 2).astype("float32")
    mixed = 0.6 * image + 0.4 * image[::-1]
    return {"image": image, "label": label, "mixed_image": mixed, "mixed_label": 0.6 * label + 0.4 * label[::-1]}


def trainer(seed=1, optimizer=None, **options):
    model = CamErasingModel(
        build_model(backbone="densenet_mini", weights="none", image_size=SIZE, seed=seed), **options
    )
    model.compile(optimizer or AdamL2(1e-3), loss=WeightedBinaryCrossentropy(2.0), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def weights(model):
    return [variable.numpy() for variable in model.classifier.trainable_variables]


@pytest.mark.parametrize(
    ("erase", "loses"),
    [
        pytest.param("all", [1, 1], marks=pytest.mark.slow),
        ("positive", [0, 1]),
        pytest.param("negative", [1, 0], marks=pytest.mark.slow),
    ],
)
def test_an_erasing_step_matches_its_formula(erase, loses):
    """Compares with a step composed of its parts: two losses, their weighted sum, one gradient."""
    batch = batch_of()
    chosen = np.array(loses * 3)[:, None, None, None]  # the labels of the batch alternate
    ours, theirs = trainer(optimizer=keras.optimizers.SGD(0.1)), trainer(optimizer=keras.optimizers.SGD(0.1))
    ours.set_erasing(True, CamConfig(alpha_cam=0.3, erase_q=0.7, erase_every=1, erase=erase))
    dataset = tf.data.Dataset.from_tensors(batch)
    ours.fit(dataset, epochs=1, verbose=0, shuffle=False)

    loss, engine = WeightedBinaryCrossentropy(2.0), cam.CamEngine(theirs.classifier)
    with tf.GradientTape() as tape:
        first = loss(batch["mixed_label"], theirs.classifier(batch["mixed_image"], training=True))
        with tape.stop_recording():
            maps, _ = engine(batch["image"])  # after the mixed batch has updated the moving statistics
            erased = batch["image"] * (1 - cam.erase_mask(maps, 0.7).numpy()[..., None] * chosen)
        second = loss(batch["label"], theirs.classifier(erased, training=True))
        total = 0.7 * first + 0.3 * second
    gradients = tape.gradient(total, theirs.classifier.trainable_variables)
    for variable, gradient in zip(theirs.classifier.trainable_variables, gradients, strict=True):
        variable.assign_sub(0.1 * gradient)
    assert 0 < cam.erase_mask(maps, 0.7).numpy().mean() < 0.31
    for one, other in zip(weights(ours), weights(theirs), strict=True):
        assert one == pytest.approx(other, abs=2e-5)
    for one, other in zip(
        ours.classifier.non_trainable_variables, theirs.classifier.non_trainable_variables, strict=True
    ):
        assert one.numpy() == pytest.approx(other.numpy(), abs=1e-4)


@pytest.mark.slow
def test_steps_between_erasing_steps_are_standard_steps():
    plain, erasing = trainer(can_erase=False), trainer()
    erasing.set_erasing(True, CamConfig(erase_every=3))
    dataset = tf.data.Dataset.from_tensors(batch_of())
    start = weights(plain)
    seen = []
    for model in (plain, erasing):
        model.fit(dataset, epochs=1, verbose=0, shuffle=False)
        seen.append(weights(model))
    assert any(
        not np.allclose(one, other, atol=1e-6) for one, other in zip(*seen, strict=True)
    )  # step 0 is an erasing step
    for one, other in zip(erasing.classifier.variables, plain.classifier.variables, strict=True):
        one.assign(other)
    for one, other in zip(erasing.optimizer.variables, plain.optimizer.variables, strict=True):
        one.assign(other)
    for model in (plain, erasing):
        model.fit(
            tf.data.Dataset.from_tensors(batch_of()).repeat(2), epochs=1, verbose=0, shuffle=False
        )  # steps 1 and 2
    for one, other in zip(weights(erasing), weights(plain), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert any(not np.allclose(one, other) for one, other in zip(weights(plain), start, strict=True))


def test_changing_settings_does_not_retrace_the_step():
    model = trainer()
    traces = []
    step = model.train_step

    def counting(batch):
        traces.append(1)
        return step(batch)

    model.train_step = counting
    dataset = tf.data.Dataset.from_tensors(batch_of()).repeat(2)
    model.fit(dataset, epochs=1, verbose=0, shuffle=False)
    first = len(traces)
    for knobs in ({"alpha_cam": 0.1}, {"erase_q": 0.9}, {"erase_every": 2}, {"erase": "positive"}):
        model.set_erasing(True, CamConfig(**knobs))
        model.optimizer.learning_rate.assign(1e-5)
        model.optimizer.l2.assign(1e-4)
        model.fit(dataset, epochs=1, verbose=0, shuffle=False)
    assert first == 1 and len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_training_in_half_precision_reduces_the_loss(precision):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = trainer()
        model.set_erasing(True, CamConfig(erase_every=1))
        history = model.fit(
            tf.data.Dataset.from_tensors(batch_of()).repeat(8), epochs=2, verbose=0, shuffle=False
        ).history["loss"]
        assert np.isfinite(history).all() and history[-1] < history[0]
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.slow
def test_gradient_accumulation_updates_only_after_the_last_batch():
    model = trainer(optimizer=AdamL2(1e-3, gradient_accumulation_steps=2))
    model.set_erasing(True, CamConfig(erase_every=1))
    start = weights(model)
    model.fit(tf.data.Dataset.from_tensors(batch_of()), epochs=1, verbose=0, shuffle=False)
    assert all(np.array_equal(one, other) for one, other in zip(start, weights(model), strict=True))
    model.fit(tf.data.Dataset.from_tensors(batch_of()), epochs=1, verbose=0, shuffle=False)
    assert not all(np.array_equal(one, other) for one, other in zip(start, weights(model), strict=True))


def test_frozen_layers_do_not_change():
    model = trainer()
    model.classifier.backbone.trainable = False
    model.compile(AdamL2(1e-2), loss=WeightedBinaryCrossentropy(), jit_compile=False)
    model.set_erasing(True, CamConfig(erase_every=1))
    frozen = [variable.numpy() for variable in model.classifier.backbone.variables]
    head = model.classifier.get_layer("logits").kernel.numpy()
    model.fit(tf.data.Dataset.from_tensors(batch_of()), epochs=2, verbose=0, shuffle=False)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(frozen, model.classifier.backbone.variables, strict=True))
    assert not np.array_equal(head, model.classifier.get_layer("logits").kernel.numpy())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"alpha_cam": -0.1}, "cam.alpha_cam is -0.1; allowed is 0 to 1"),
        ({"erase_q": 0.0}, "cam.erase_q is 0.0; allowed is above 0 and below 1"),
        ({"erase_q": 1.0}, "cam.erase_q is 1.0"),
        ({"erase_every": 0}, "cam.erase_every is 0; 1 or more is needed"),
        ({"erase": "some"}, "cam.erase is 'some'; allowed: all, positive, negative"),
    ],
)
def test_values_out_of_range_are_rejected_with_the_allowed_range(knobs, message):
    with pytest.raises(InputError, match=message):
        load_config(settings={f"cam.{name}": value for name, value in knobs.items()})


MIRRORED = """
import sys
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, sys.argv[1])
from kmura.config import CamConfig
from test_cam_erasing import batch_of, trainer

def trained(strategy):
    with strategy.scope():
        model = trainer(optimizer=keras.optimizers.SGD(0.05))
        for layer in model.classifier._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False  # then a batch in two halves is the same as the whole
    model.set_erasing(True, CamConfig(alpha_cam=0.4, erase_every=2))
    data = tf.data.Dataset.from_tensor_slices(batch_of(8)).batch(8).repeat(3)
    history = model.fit(data, epochs=1, verbose=0, shuffle=False).history
    return model, history["loss"][0]

one, loss = trained(tf.distribute.get_strategy())
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
two, mirrored_loss = trained(mirrored)
assert abs(loss - mirrored_loss) < 1e-4, (loss, mirrored_loss)
for ours, theirs in zip(one.classifier.trainable_variables, two.classifier.trainable_variables):
    copies = [copy.numpy() for copy in theirs.value.values]
    assert len(copies) == 2 and np.array_equal(*copies), theirs.path
    assert np.abs(copies[0] - ours.numpy()).max() < 1e-4, theirs.path

with mirrored.scope():  # and with batch normalisation that learns
    model = trainer()
model.set_erasing(True, CamConfig(erase_every=1))
history = model.fit(tf.data.Dataset.from_tensor_slices(batch_of(8)).batch(8), epochs=3, verbose=0, shuffle=False)
assert np.isfinite(history.history["loss"]).all() and history.history["loss"][-1] < history.history["loss"][0]
print("done")
"""


@pytest.mark.slow
def test_compiling_again_applies_the_new_loss_and_frozen_layers():
    model = trainer()
    data = tf.data.Dataset.from_tensors(batch_of())
    model.fit(data, epochs=1, verbose=0, shuffle=False)
    kernel = model.classifier.get_layer("logits").kernel
    for layer in model.classifier.layers:
        layer.trainable = layer.name == "logits"
    model.compile(keras.optimizers.SGD(0.1), loss=WeightedBinaryCrossentropy(50.0), jit_compile=False)
    before, frozen = kernel.numpy(), model.classifier.layers[1].get_weights()
    batch = batch_of()
    expected = WeightedBinaryCrossentropy(50.0)(batch["mixed_label"], model.classifier(batch["mixed_image"]))
    loss = model.fit(data, epochs=1, verbose=0, shuffle=False).history["loss"][0]
    assert loss == pytest.approx(float(expected), rel=1e-3)
    assert not np.array_equal(before, kernel.numpy())
    for one, other in zip(frozen, model.classifier.layers[1].get_weights(), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_training_on_two_mirrored_devices_matches_one_device():
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", MIRRORED, folder], capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


@pytest.mark.parametrize(("erase", "chosen"), [("all", [1, 1, 0, 0, 0, 0]), ("positive", [0, 1, 0, 1, 0, 0])])
def test_the_first_images_of_a_batch_are_erased_into_the_mean_color(erase, chosen):
    model = trainer(how=CamConfig(erase_images=2, erase_fill="mean"))
    model.set_erasing(True, CamConfig(erase=erase))
    batch = batch_of()
    found = model._chosen(tf.constant(batch["label"])).numpy()
    np.testing.assert_array_equal(found[:, 0, 0], chosen)
    mask = (np.arange(6 * SIZE * SIZE).reshape(6, SIZE, SIZE) % 3 == 0).astype("float32")
    filled = model._filled(tf.constant(batch["image"]), tf.constant(mask)).numpy()
    assert filled[mask == 1] == pytest.approx(127.5)  # densenet_mini normalises with this mean
    np.testing.assert_array_equal(filled[mask == 0], batch["image"][mask == 0])


def test_the_method_of_the_map_is_configured():
    for method in ("grad_cam", "grad_cam_pp_summed"):
        assert trainer(how=CamConfig(method=method))._cam.weights_of is cam.METHODS[method]
