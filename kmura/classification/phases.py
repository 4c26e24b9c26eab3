"""Phases: named training procedures, and the sources of their values."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kmura.config import RECIPES, ClassificationConfig, config_json, load_config, load_settings
from kmura.errors import InputError, check_choice
from kmura.files import reading_json
from kmura.runs.run import TUNED_VALUES, RunFolder, read_run

PHASES = ("baseline", "tune", "final", "hybrid")

# the keys that a search tunes for `final`
TUNED_KEYS = (
    "train.learning_rate",
    "train.weight_decay",
    "mix.mixup_alpha",
    "mix.cutmix_alpha",
    "mix.aug_p",
    "cam.erase_q",
    "cam.alpha_cam",
    "cam.erase_every",
)
HYBRID_KEYS = ("train.learning_rate", "train.weight_decay", "train.slow_factor")  # and for `hybrid`
# keys that a search also tunes where the stage `tune` lists values for them; each value needs a model of its own
OPTIONAL_KEYS = ("model.dropout", "train.schedule", "train.balance")
# phase -> the keys that a search tunes for it, and the name of the search's folder in RUNS/AREA
SEARCHES = {"final": (TUNED_KEYS, "tune"), "hybrid": (HYBRID_KEYS, "tune-hybrid")}
PUBLISHED_FOR = (None, "final", "final-plus")  # recipes that take the published values; None is that of the phase
PUBLISHED = "mura_tuned.csv"  # in the folder of the recipes


def phase_config(
    phase: str,
    area: str,
    runs: str | Path,
    recipe: str | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    fresh: bool = False,
) -> tuple[ClassificationConfig, str]:
    """Returns the configuration of a phase for an area, and a sentence that states the source of tuned values, or "".

    Later layers override earlier ones:

    1. The recipe; by default that of the phase, or `tune_hybrid` for `tune` of a hybrid.
    2. Tuned values, for `final` and `hybrid` only: those of the run that continues (unless `fresh`); else those of the
       search (`best.json`); else, for the recipes `final` and `final-plus`, the published values of the
       area.
    3. The settings.

    Raises:
        InputError: the phase, the recipe or a key is unknown, or `best.json` is damaged.
    """
    check_phase(phase)
    settings = load_settings(settings)
    if phase not in SEARCHES:
        if phase == "tune" and settings.get("model.architecture") == "hybrid":
            phase = "tune_hybrid"
        return load_config(recipe or phase, settings), ""
    keys, search = SEARCHES[phase]
    keys += OPTIONAL_KEYS
    begun, best = RunFolder(Path(runs) / area / phase), Path(runs) / area / search / TUNED_VALUES
    if not fresh and begun.last.exists() and begun.description.exists():
        tables = config_json(read_run(begun.path).config)
        tuned = {key: tables[key.partition(".")[0]][key.partition(".")[2]] for key in keys}
        source = f"tuned values of the run in {begun.path}"
    elif best.exists():
        tuned, source = read_best(best, keys), f"tuned values from {best}"
    elif phase == "final" and recipe in PUBLISHED_FOR and (tuned := published_values(area)):
        source = f"tuned values published for {area} of MURA"
    else:
        tuned, source = {}, f"no tuned values for {area}; using those of the recipe"
    config = load_config(recipe or phase, tuned | settings)
    if (config.model.architecture == "hybrid") != (phase == "hybrid"):
        raise InputError(
            f"phase {phase} takes its values from a search of another architecture than {config.model.architecture}; "
            "train a hybrid with phase hybrid or baseline, a classifier with phase final or baseline"
        )
    return config, source


def check_phase(phase: str) -> None:
    """Raises an InputError if the phase is unknown."""
    check_choice("phase", phase, PHASES)


def published_values(area: str) -> dict[str, Any]:
    """Returns the published tuned values of an area of MURA, configuration key -> value; empty for other areas."""
    with (RECIPES / PUBLISHED).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            if row["area"] == area:
                return {key: json.loads(row[key]) for key in TUNED_KEYS}
    return {}


def searched(config: ClassificationConfig) -> tuple[tuple[str, ...], str]:
    """Returns the keys that a search with this configuration tunes, and the name of its folder."""
    keys, folder = SEARCHES["hybrid" if config.model.architecture == "hybrid" else "final"]
    return keys + tuple(key for key in OPTIONAL_KEYS if getattr(config.tune, key.partition(".")[2])), folder


def read_best(path: str | Path, keys: tuple[str, ...] = TUNED_KEYS + OPTIONAL_KEYS) -> dict[str, Any]:
    """Returns the values of `keys` in a `best.json`, configuration key -> value.

    Raises:
        InputError: the file is damaged.
    """
    with reading_json(Path(path), fix="run the search again or remove the file") as best:
        return {key: best["values"][key] for key in keys if key in best["values"]}
