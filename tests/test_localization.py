"""Localization faithfulness of models with several classes or labels."""

import numpy as np
import pytest

from kmura import cam
from kmura.config import DataConfig
from kmura.data.dataset import Dataset
from kmura.evaluation.localization import localization_faithfulness


@pytest.mark.slow
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_it_is_the_mean_drop_of_the_predicted_class_without_the_hottest_part(evaluated_run, task):
    """Computed again an image at a time, in numpy."""
    import kmura

    records = evaluated_run[0] / "records"
    dataset = Dataset(records, "XR_WRIST", DataConfig(image_size=32, task=task))
    outputs = dataset.labels.outputs
    model = kmura.build_model(backbone="densenet_mini", weights="none", image_size=32, num_classes=outputs, seed=3)
    logits = model.get_layer("logits")
    logits.kernel.assign(logits.kernel * 40)  # with random weights, all logits are nearly equal
    engine, drops = cam.CamEngine(model), []
    for image in dataset.images("test", range(len(dataset.index("test"))))[:, None]:
        logit = model(image).numpy()[0]
        p = dataset.labels.probabilities(logit[None])[0]
        side = int(np.argmax(logit)) if outputs > 1 else 0
        target = np.eye(outputs, dtype="float32")[side][None] * (1 if outputs > 1 or logit[0] >= 0 else -1)
        maps = [engine(x, lambda _, target=target: target)[0].numpy()[0] for x in (image, image[:, :, ::-1])]
        heat = (maps[0] + maps[1][:, ::-1]) / 2
        order = np.argsort(-heat.ravel(), kind="stable")[: round(0.2 * (heat > 0).sum())]
        erased = image.copy()
        erased.reshape(-1, image.shape[-1])[order] = 0
        after = dataset.labels.probabilities(model(erased).numpy())[0]
        drops.append(max(0, p[side] - after[side]))
    found = localization_faithfulness(model, dataset, "test", q=0.8)
    assert found == pytest.approx(np.mean(drops), abs=1e-4) and found > 0


@pytest.mark.slow
def test_it_is_computed_for_any_run_on_request(evaluated_run, tmp_path):
    import shutil

    import kmura
    from kmura.evaluation.scoring import ScoreOptions

    run = shutil.copytree(evaluated_run[1], tmp_path / "XR_WRIST" / "baseline")
    options = ScoreOptions(resamples=10)
    found = kmura.evaluate(run, options=options, faithfulness=True, splits=("test",)).localization_faithfulness
    assert set(found) == {"test"} and 0 <= found["test"] <= 1
    assert kmura.evaluate(run, options=options, splits=("test",)).localization_faithfulness is None
