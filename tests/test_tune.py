"""The search: one trace for all trials, pruning, resuming after kills, best values handed to the phase `final`."""

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from kmura.config import RECIPES, ClassificationConfig, TuneConfig, config_json, load_config
from kmura.errors import InputError

SETTINGS = {
    "model.backbone": "densenet_mini",
    "model.weights": "none",
    "data.image_size": 32,
    "train.batch_size": 16,
    "train.deterministic": True,
    "tune.trials": 5,
    "tune.startup_trials": 2,
    "tune.learning_rate": [1e-4, 1e-2],
}
TINY = load_config("tune", SETTINGS)
AREA = "XR_WRIST"


def changed(**search):
    return dataclasses.replace(TINY, tune=dataclasses.replace(TINY.tune, **search))


@pytest.fixture(scope="module")
def undisturbed(records, tmp_path_factory):
    from kmura.classification.cam_erasing import CamErasingModel
    from kmura.classification.search import tune

    traces = []
    step = CamErasingModel.train_step

    def counted(self, batch):
        traces.append(self)
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CamErasingModel, "train_step", counted)
        done = tune(records, area=AREA, runs=tmp_path_factory.mktemp("search"), config=TINY)
    return done, len(traces)


@pytest.mark.slow
def test_a_search_traces_its_training_step_once(undisturbed):
    assert undisturbed[1] == 1


@pytest.mark.slow
def test_a_search_saves_the_best_trial_as_a_run(undisturbed, records):
    from kmura.classification.phases import TUNED_KEYS, read_best
    from kmura.evaluation.evaluate import evaluate
    from kmura.evaluation.scoring import ScoreOptions

    done, _ = undisturbed
    summary = pd.read_csv(done.folder / "tuner_summary.csv", dtype={"trial": str})
    assert sorted(summary["trial"]) == list("01234")
    assert set(summary["status"]) <= {"completed", "pruned"}
    assert summary["score"].is_monotonic_decreasing and (summary["peak_memory_mb"] > 100).all()
    best = read_best(done.folder / "best.json")
    assert list(best) == list(TUNED_KEYS)
    assert best == pytest.approx(summary.iloc[0][list(TUNED_KEYS)].to_dict())
    assert done.best["val_auc_study"] == pytest.approx(summary["score"][0])
    scores = evaluate(done.folder, options=ScoreOptions(resamples=10)).scores.splits["val"]["study"].scores
    assert scores["auc"].value == pytest.approx(summary["score"][0])
    assert (pd.read_csv(done.folder.parents[1] / "tuner_summary.csv")["area"] == AREA).all()
    models = [path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*") if path.suffix == ".keras"]
    assert models == ["best.keras"] and not list(done.folder.glob("trial_*/last"))


@pytest.mark.slow
def test_a_trial_equals_a_single_run_with_the_same_values(undisturbed, records, tmp_path):
    """Reset weights, moments, random states and knobs: the last trial equals a fresh model's run."""
    from kmura.classification.fit import fit
    from kmura.classification.search import with_values

    done, _ = undisturbed
    trial = json.loads((done.folder / "trial_4" / "result.json").read_text())
    alone = fit(records, area=AREA, runs=tmp_path, config=with_values(TINY, trial["values"])).history
    curve = pd.read_csv(done.folder / "trial_4" / "history.csv").drop(columns="seconds")
    pd.testing.assert_frame_equal(curve, alone.drop(columns="seconds")[: len(curve)], check_dtype=False, rtol=1e-6)


TUNE = """
import json, sys
from kmura.config import config_from_tables
from kmura.classification.search import tune
tune(sys.argv[1], area="XR_WRIST", runs=sys.argv[2], config=config_from_tables(json.loads(sys.argv[3])))
"""


def outcome(folder):
    summary = pd.read_csv(folder / "tuner_summary.csv", dtype={"trial": str})
    return summary.drop(columns=["training_seconds", "other_seconds", "peak_memory_mb"])


@pytest.mark.slow
def test_a_search_killed_at_random_moments_has_the_same_trials_after_resuming(undisturbed, records, tmp_path):
    command = [sys.executable, "-c", TUNE, records, tmp_path, json.dumps(config_json(TINY))]
    rng = random.Random(2)
    folder = tmp_path / AREA / "tune"
    # inside a trial, between two trials, while the state is written: past one of these files, then a moment longer
    for wanted in ("run.json", "trial_0/last/state.json", "trial_1/trial.json", "trial_2/history.csv", "trial_3"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (folder / wanted).exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, "the search ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    pd.testing.assert_frame_equal(outcome(folder), outcome(undisturbed[0].folder), check_exact=True)
    best, theirs = ((path / "best.json").read_text() for path in (folder, undisturbed[0].folder))
    assert best == theirs


@pytest.mark.slow
def test_repeating_the_call_changes_nothing_and_more_trials_continue_the_search(records, tmp_path):
    from kmura.classification.search import tune

    first = tune(records, area=AREA, runs=tmp_path, config=changed(trials=1))
    before = (first.folder / "best.keras").stat().st_mtime_ns
    tune(records, area=AREA, runs=tmp_path, config=changed(trials=1))
    assert (first.folder / "best.keras").stat().st_mtime_ns == before
    tune(records, area=AREA, runs=tmp_path, config=changed(trials=2))
    assert len(pd.read_csv(first.folder / "tuner_summary.csv")) == 2
    with pytest.raises(InputError, match=r"run of another configuration \(tune.aug_p"):
        tune(records, area=AREA, runs=tmp_path, config=changed(trials=2, aug_p=(0.1, 0.2)))


@pytest.mark.slow
def test_trials_worse_than_the_median_are_stopped(records, tmp_path):
    """Curves of other trials are files: below two that began with 2.0 none can go on, above -1.0 all do."""
    from kmura.classification.search import tune
    from kmura.files import write_json

    for score, status in ((2.0, "pruned"), (-1.0, "completed")):
        folder = tmp_path / str(score) / AREA / "tune"
        for number in range(2):  # as if two workers had ended trials
            path = folder / f"trial_9{number}"
            write_json(
                path / "result.json", {"trial": f"9{number}", "status": "completed", "score": -5.0, "values": {}}
            )
            (path / "history.csv").write_text(f"val_auc_study\n{score}\n{score}\n")
        done = tune(records, area=AREA, runs=tmp_path / str(score), config=changed(trials=3, startup_trials=2))
        result = json.loads((done.folder / "trial_0" / "result.json").read_text())
        assert (result["status"], result["epochs"]) == (status, {"pruned": 1, "completed": 2}[status])
        assert json.loads((done.folder / "trial_0" / "trial.json").read_text())["status"] == "COMPLETED"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "settings", "status", "epochs"),
    [
        (1, {"startup_trials": 8, "prune_startup_trials": 1}, "pruned", 1),
        # None: pruning waits for as many trials as sampling
        (1, {"startup_trials": 8, "prune_startup_trials": None}, "completed", 2),
        (3, {"startup_trials": 1, "prune_startup_trials": 4}, "completed", 2),
        (3, {"startup_trials": 1, "prune_from_epoch": 1}, "pruned", 1),
        (3, {"startup_trials": 1, "prune_from_epoch": 2}, "completed", 2),
    ],
)
def test_pruning_has_its_own_number_of_trials_and_its_first_epoch(records, tmp_path, others, settings, status, epochs):
    from kmura.classification.search import tune
    from kmura.files import write_json

    folder = tmp_path / AREA / "tune"
    for number in range(others):
        path = folder / f"trial_9{number}"
        write_json(path / "result.json", {"trial": f"9{number}", "status": "completed", "score": -5.0, "values": {}})
        (path / "history.csv").write_text("val_auc_study\n2.0\n2.0\n")
    done = tune(records, area=AREA, runs=tmp_path, config=changed(trials=others + 1, **settings))
    result = json.loads((done.folder / "trial_0" / "result.json").read_text())
    assert (result["status"], result["epochs"]) == (status, epochs)


@pytest.mark.slow
def test_a_search_without_a_trainable_trial_is_an_error(records, tmp_path, capsys, caplog):
    from kmura.classification.search import tune

    hopeless = dataclasses.replace(changed(learning_rate=(1.0, 1.0)), train=TINY.train)
    import keras

    class Poison(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.classifier.get_layer("logits").bias.assign([float("nan")])

    with pytest.raises(InputError, match="every trial failed: the loss was not a number"):
        tune(records, area=AREA, runs=tmp_path, config=hopeless, callbacks=[Poison()])
    assert "Traceback" not in capsys.readouterr().err
    assert "trial 0 failed: the loss is nan in epoch 1, batch 1; the search continues" in caplog.text
    assert json.loads((tmp_path / AREA / "tune" / "trial_0" / "result.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_trials_share_the_decoded_images(records, tmp_path, monkeypatch):
    from kmura.classification.search import tune
    from kmura.data import decoded

    splits, decode = [], decoded._in_memory
    monkeypatch.setattr(decoded, "_in_memory", lambda index, *rest: splits.append(index.split) or decode(index, *rest))
    tune(records, area=AREA, runs=tmp_path, config=changed(trials=3))
    assert sorted(splits) == ["train", "val"]


@pytest.mark.slow
def test_diverging_trials_do_not_end_a_search(records, tmp_path):
    import keras

    from kmura.classification.search import tune

    class Poison(keras.callbacks.Callback):
        trial = None

        def on_train_begin(self, logs=None):
            if self.trial in ("1", "2", "3"):
                self.model.classifier.get_layer("logits").bias.assign([float("nan")])

    done = tune(records, area=AREA, runs=tmp_path, config=changed(trials=5, prune=False), callbacks=[Poison()])
    summary = pd.read_csv(done.folder / "tuner_summary.csv")
    assert summary["status"].value_counts().to_dict() == {"failed": 3, "completed": 2}
    assert np.isfinite(done.best["val_auc_study"])


@pytest.mark.slow
def test_checkpoints_of_other_values_are_not_resumed(records, tmp_path):
    from kmura.classification.search import tune
    from kmura.files import write_json

    stale = tmp_path / AREA / "tune" / "trial_0"
    write_json(stale / "result.json", {"trial": "0", "status": "completed", "score": 2.0, "values": {}})
    write_json(stale / "values.json", {"train.learning_rate": 7.0})
    (stale / "history.csv").write_text("val_auc_study\n2.0\n")
    done = tune(records, area=AREA, runs=tmp_path, config=changed(trials=2))
    assert done.best["val_auc_study"] <= 1


def test_settings_for_a_shared_search_must_be_complete(records, tmp_path, monkeypatch):
    from kmura.classification.search import tune

    monkeypatch.setenv("KERASTUNER_TUNER_ID", "one")
    with pytest.raises(InputError, match="KERASTUNER_ORACLE_IP is not set"):
        tune(records, area=AREA, runs=tmp_path, config=TINY)


def test_a_search_over_unused_settings_is_rejected(records, tmp_path):
    from kmura.classification.search import tune

    for setting, message in (
        ({"cam.from_epoch": 3}, "cam.erase_q is searched but never used in the 2 epochs of a trial"),
        ({"mix.until_epoch": 0}, "mix.mixup_alpha is searched but never used"),
        ({"tune.tuner": "hyperband", "tune.trials": 25}, "hyperband has nothing to stop in trials of 2 epochs"),
    ):
        with pytest.raises(InputError, match=message):
            tune(records, area=AREA, runs=tmp_path, config=load_config("tune", SETTINGS | setting))


@pytest.mark.slow
def test_hyperband_resumes_the_trials_it_promotes(records, tmp_path):
    from kmura.classification.search import tune

    config = changed(tuner="hyperband", trials=25)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=3))
    done = tune(records, area=AREA, runs=tmp_path, config=config)
    summary = pd.read_csv(done.folder / "tuner_summary.csv")
    assert set(summary["epochs"]) == {1, 3} and set(summary["status"]) == {"completed"}
    promoted = [
        json.loads(path.read_text())["hyperparameters"]["values"] for path in done.folder.glob("trial_*/trial.json")
    ]
    assert any("tuner/trial_id" in values for values in promoted)


@pytest.mark.slow
def test_a_chief_and_two_workers_share_a_search(records, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    config = changed(trials=4)
    command = [sys.executable, "-c", TUNE, records, tmp_path, json.dumps(config_json(config))]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ
            | {"KERASTUNER_TUNER_ID": name, "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for name in ("chief", "one", "two")
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-2000:]
    summary = pd.read_csv(tmp_path / AREA / "tune" / "tuner_summary.csv")
    assert len(summary) == 4 and set(summary["worker"]) == {"one", "two"}
    assert (tmp_path / AREA / "tune" / "best.json").exists() and (tmp_path / AREA / "tune" / "best.keras").exists()


def test_every_suggestion_is_within_the_space():
    from kmura.classification.oracles import search_space
    from kmura.classification.phases import TUNED_KEYS
    from kmura.classification.search import with_values

    tune = TuneConfig(aug_p=(0.4, 0.4))
    space = search_space(ClassificationConfig(tune=tune))
    assert [hp.name for hp in space.space] == list(TUNED_KEYS)
    rng = np.random.default_rng(0)
    for seed in rng.integers(0, 1000, 20):
        values = {hp.name: hp.random_sample(int(seed)) for hp in space.space}
        config = with_values(TINY, values)
        for key in TUNED_KEYS:
            stage, _, name = key.partition(".")
            low, high = getattr(tune, name)
            assert low <= getattr(getattr(config, stage), name) <= high


def test_dropout_schedule_and_balance_are_searched_where_values_are_listed():
    from kmura.classification.oracles import search_space
    from kmura.classification.phases import OPTIONAL_KEYS, TUNED_KEYS

    tune = TuneConfig(dropout=(0.1, 0.4), schedule=("constant", "cosine"), balance=(True, False))
    space = search_space(ClassificationConfig(tune=tune))
    assert [hp.name for hp in space.space] == [*TUNED_KEYS, *OPTIONAL_KEYS]
    dropout, schedule, balance = (
        {space.space[len(TUNED_KEYS) + place].random_sample(seed) for seed in range(50)} for place in range(3)
    )
    assert 0.1 <= min(dropout) < max(dropout) <= 0.4
    assert schedule == {"constant", "cosine"} and balance == {True, False}
    hybrid = load_config("tune_hybrid").tune
    assert hybrid.dropout and len(hybrid.schedule) == len(hybrid.balance) == 2


@pytest.mark.slow
def test_trials_of_different_models_equal_single_runs(records, tmp_path):
    """A new model is built where dropout, schedule or balance change, and trains as a run of its own."""
    from kmura.classification.fit import fit
    from kmura.classification.search import tune, with_values

    config = changed(
        trials=3,
        tuner="random",
        prune=False,
        dropout=(0.0, 0.5),
        schedule=("constant", "cosine"),
        balance=(True, False),
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))
    config = dataclasses.replace(config, cam=dataclasses.replace(config.cam, from_epoch=1))
    done = tune(records, area=AREA, runs=tmp_path / "search", config=config)
    values = [json.loads((done.folder / f"trial_{trial}" / "result.json").read_text())["values"] for trial in "012"]
    assert len({value["model.dropout"] for value in values}) == 3
    alone = fit(records, area=AREA, runs=tmp_path / "alone", config=with_values(config, values[2])).history
    curve = pd.read_csv(done.folder / "trial_2" / "history.csv").drop(columns="seconds")
    pd.testing.assert_frame_equal(curve, alone.drop(columns="seconds"), check_dtype=False, rtol=1e-6)


def test_final_takes_tuned_values_then_published_ones_then_settings(tmp_path):
    from kmura.classification.phases import phase_config

    published, source = phase_config("final", "XR_HAND", tmp_path)
    assert "published" in source and published.train.learning_rate == 5.9050e-05 and published.cam.erase_every == 11
    assert (published.train.slow_from_epoch, published.mix.until_epoch, published.cam.from_epoch) == (16, 15, 3)
    own, source = phase_config("final", "XR_HAND", tmp_path, recipe=str(RECIPES / "final.toml"))
    assert own.train.learning_rate == 1e-4 and "of the recipe" in source
    best = tmp_path / "XR_HAND" / "tune" / "best.json"
    best.parent.mkdir(parents=True)
    best.write_text(json.dumps({"values": {"train.learning_rate": 0.0123, "cam.erase_every": 3}}))
    tuned, source = phase_config("final", "XR_HAND", tmp_path, settings=["cam.erase_every=5"])
    assert tuned.train.learning_rate == 0.0123 and tuned.cam.erase_every == 5 and str(best) in source
    best.write_text("{")
    with pytest.raises(InputError, match="best.json is damaged"):
        phase_config("final", "XR_HAND", tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tune.aug_p=[0.5,0.2]", r"tune.aug_p is \[0.5, 0.2\]; give 0 <= low <= high <= 1"),
        ("tune.erase_q=[0.5,1.0]", "tune.erase_q"),
        ("tune.erase_every=[0,3]", "give 1 <= low"),
        ("tune.trials=0", "tune.trials is 0; 1 or more"),
        ('tune.schedule=["linear"]', "tune.schedule is 'linear'; allowed: constant, cosine"),
        ("tune.tuner=tpe", "tune.tuner is 'tpe'; allowed: bayesian, random, hyperband"),
    ],
)
def test_an_invalid_space_is_rejected(setting, message):
    with pytest.raises(InputError, match=message):
        load_config("tune", [setting])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["tune.balance=[true,false]", "train.sampling=balanced"], "train.balance is searched but not used"),
        (['tune.schedule=["constant","cosine"]', "train.plateau_patience=1"], "requires schedule constant"),
    ],
)
def test_a_searched_key_that_has_no_effect_is_rejected(settings, message):
    from kmura.classification.search import check_search

    with pytest.raises(InputError, match=message):
        check_search(load_config("tune", settings))
