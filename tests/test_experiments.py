"""The six experiments with 14 classes, from training to export, with a small backbone."""

import numpy as np
import pytest

import kmura
from kmura.classification.fit import fit_areas
from kmura.evaluation.scoring import ScoreOptions

SMALL = {
    "model.backbone": "densenet_mini",
    "model.weights": "none",
    "data.image_size": 32,
    "train.epochs": 1,
    "train.batch_size": 16,
}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 7))
def test_an_experiment_can_be_trained_evaluated_explained_and_exported(number, records, tmp_path):
    from kmura.prediction.predict import predict

    recipe = f"multiclass-exp{number}"
    run = next(iter(fit_areas(records, area="all", runs=tmp_path / "runs", recipe=recipe, settings=SMALL))).folder
    found = kmura.evaluate(run, options=ScoreOptions(resamples=10))
    assert np.isfinite(found.scores.splits["test"]["image"].scores["log_loss"].value)
    shown = kmura.explain(run, cases=1, sample=2)
    attention = {look.tap for case in shown.cases for look in case.beside if look.tap.startswith("attention")}
    assert len(attention) == (3 if number >= 5 else 0)
    export = kmura.export(run, tmp_path / "served", warmup=False)
    assert export.parity.probability < 1e-5 and export.parity.logit < 1e-5
    picture = next((run / "explain").glob("*-image.png"))
    assert len(predict(export.folder, [picture]).images) == 1
