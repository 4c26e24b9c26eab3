"""The search space, and resumable versions of KerasTuner's oracles, which choose the values of each trial."""

import warnings
from pathlib import Path

import keras_tuner as kt
import numpy as np

from kmura.classification.phases import searched
from kmura.config import ClassificationConfig, TuneConfig
from kmura.files import reading_json, write_json

LOGARITHMIC = ("train.learning_rate", "train.weight_decay", "train.slow_factor")


def search_space(config: ClassificationConfig) -> kt.HyperParameters:
    """Returns KerasTuner's description of the search space, with one parameter per searched key."""
    space = kt.HyperParameters()
    for key in searched(config)[0]:
        values = _values(config.tune, key)
        low, high = values[0], values[-1]
        if is_fixed(config.tune, key):
            space.Fixed(key, low)
        elif isinstance(low, bool):
            space.Boolean(key)  # the values of a Choice would come back as 0 and 1
        elif isinstance(low, str):
            space.Choice(key, list(values))
        elif key == "cam.erase_every":
            space.Int(key, low, high)
        else:
            space.Float(key, low, high, sampling="log" if key in LOGARITHMIC else "linear")
    return space


def is_fixed(tune: TuneConfig, key: str) -> bool:
    """Whether the range or the list of a key `stage.key` fixes its value."""
    return len(set(_values(tune, key))) == 1


def _values(tune: TuneConfig, key: str) -> tuple:
    """Returns the ends of a range of numbers, or the values of a list."""
    return getattr(tune, key.partition(".")[2])


class _ResumableOracle:
    """A mixin that lets an oracle of KerasTuner survive a kill at any time.

    All state, including that of the trials, is stored in one file that is replaced as a whole. An interrupted trial is
    repeated, an ended one is not. The random numbers of a suggestion depend only on the seed and the trial.
    """

    def populate_space(self, trial_id):
        self._random_state = np.random.RandomState([self.seed, int(trial_id)])  # of the Bayesian oracle
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence warnings of the Gaussian process
            return super().populate_space(trial_id)

    def get_state(self):
        trials = {name: trial.get_state() for name, trial in self.trials.items()}
        return super().get_state() | {"trial_states": trials}

    def set_state(self, state):
        from_state = kt.engine.trial.Trial.from_state
        self.trials = {name: from_state(trial) for name, trial in state["trial_states"].items()}
        super().set_state(state)
        interrupted = [trial.trial_id for trial in self.ongoing_trials.values() if trial.status == "RUNNING"]
        self._retry_queue += [name for name in interrupted if name not in self._retry_queue]
        self.ongoing_trials = {}

    def save(self):
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def reload(self):
        with reading_json(
            Path(self._get_oracle_fname()), fix="delete this search and start again with --fresh"
        ) as state:
            self.set_state(state)

    def _save_trial(self, trial):
        write_json(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())


class _Bayesian(_ResumableOracle, kt.oracles.BayesianOptimizationOracle):
    pass


class _Random(_ResumableOracle, kt.oracles.RandomSearchOracle):
    pass


class _Hyperband(_ResumableOracle, kt.oracles.HyperbandOracle):
    pass


def make_oracle(config: ClassificationConfig) -> kt.Oracle:
    """Returns the oracle of `tune.tuner`, over the `search_space` of a configuration."""
    common = {
        "objective": kt.Objective(config.train.monitor, "max"),
        "hyperparameters": search_space(config),
        "seed": config.train.seed + 1,  # KerasTuner treats 0 as no seed
        "max_consecutive_failed_trials": 10**9,  # otherwise KerasTuner discards the completed trials
    }
    if config.tune.tuner == "bayesian":
        return _Bayesian(max_trials=config.tune.trials, num_initial_points=config.tune.startup_trials, **common)
    if config.tune.tuner == "random":
        return _Random(max_trials=config.tune.trials, **common)
    return _Hyperband(max_epochs=config.train.epochs, factor=3, **common)
