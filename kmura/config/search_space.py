"""Configuration of the search of the phase `tune`."""

import dataclasses
from typing import Literal

from kmura.config.keys import Range, check_values, key
from kmura.errors import InputError


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """The search of the phase `tune`: its method and the range of each searched key (equal ends fix its value)."""

    tuner: Literal["bayesian", "random", "hyperband"] = key(
        "bayesian",
        "Search method: 'bayesian' (Gaussian process), 'random', or 'hyperband' (chooses the number of trials and "
        "their epochs itself, at most train.epochs).",
    )
    trials: int = key(25, "Number of trials; not for hyperband.", at_least=1)
    startup_trials: int = key(
        8,
        "Number of trials before the Gaussian process chooses values.",
        at_least=1,
    )
    prune: bool = key(
        True, "Stop a trial after an epoch whose best score so far is below the completed trials' median at that epoch."
    )
    prune_startup_trials: int | None = key(
        None, "Number of completed trials before any is pruned; none takes startup_trials.", at_least=1
    )
    prune_from_epoch: int = key(1, "First epoch of a trial, counted from 1, after which it may be pruned.", at_least=1)
    learning_rate: tuple[float, float] = key(
        (1e-5, 3e-4), "Range of train.learning_rate, searched on a logarithmic scale.", pair=Range(1e-12, 1)
    )
    weight_decay: tuple[float, float] = key(
        (1e-7, 1e-3), "Range of train.weight_decay, searched on a logarithmic scale.", pair=Range(0, 1)
    )
    mixup_alpha: tuple[float, float] = key((0.0, 0.6), "Range of mix.mixup_alpha.", pair=Range(0, 100))
    cutmix_alpha: tuple[float, float] = key((0.0, 1.5), "Range of mix.cutmix_alpha.", pair=Range(0, 100))
    aug_p: tuple[float, float] = key((0.3, 0.8), "Range of mix.aug_p.", pair=Range(0, 1))
    erase_q: tuple[float, float] = key((0.7, 0.9), "Range of cam.erase_q.", pair=Range(0.01, 0.99))
    alpha_cam: tuple[float, float] = key((0.3, 0.7), "Range of cam.alpha_cam.", pair=Range(0, 1))
    erase_every: tuple[int, int] = key((6, 12), "Range of cam.erase_every, steps.", pair=Range(1, 10**6))
    slow_factor: tuple[float, float] = key(
        (0.01, 1.0),
        "Range of train.slow_factor, searched on a logarithmic scale; for a hybrid only, whose search leaves out the "
        "keys of mix and cam.",
        pair=Range(1e-6, 1),
    )
    dropout: tuple[float, float] | None = key(
        None, "Range of model.dropout; none does not search it.", pair=Range(0, 0.99)
    )
    schedule: tuple[Literal["constant", "cosine"], ...] = key(
        (), "Values of train.schedule that are searched; an empty list does not search it."
    )
    balance: tuple[bool, ...] = key((), "Values of train.balance that are searched; an empty list does not search it.")

    def __post_init__(self):
        check_values(self, "tune")
        if self.tuner == "hyperband" and self.trials != TuneConfig.trials:
            raise InputError("tune.trials requires tuner bayesian or random; hyperband chooses the number itself")
        if self.weight_decay[0] <= 0 < self.weight_decay[1]:
            raise InputError(
                "tune.weight_decay begins at 0 but is searched on a logarithmic scale; give 0 < low, such as 1e-7"
            )
