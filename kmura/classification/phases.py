"""Phases: named ways to train, and where each takes its values from."""

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

# what the search chooses for `final`, in the words of the configuration
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
# phase -> what a search chooses for it, and the folder of that search beside the phase's own
SEARCHES = {"final": (TUNED_KEYS, "tune"), "hybrid": (HYBRID_KEYS, "tune-hybrid")}
PUBLISHED = "mura_tuned.csv"  # in the folder of the recipes


def phase_config(
    phase: str,
    area: str,
    runs: str | Path,
    recipe: str | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    fresh: bool = False,
) -> tuple[ClassificationConfig, str]:
    """The configuration of a phase for an area, and a sentence that says where tuned values came from, or "".

    From the bottom: the recipe (by default the phase's own; for `tune` of a hybrid `tune_hybrid`); for `final` and
    `hybrid` the values of the run that goes on (unless `fresh`), else those of the search's `best.json`; where that
    does not exist and no other recipe was asked for, for `final` the published ones of the area; the settings.

    Raises:
        InputError: unknown phase, recipe or key; a damaged `best.json`.
    """
    check_phase(phase)
    settings = load_settings(settings)
    if phase not in SEARCHES:
        if phase == "tune" and settings.get("model.architecture") == "hybrid":
            phase = "tune_hybrid"
        return load_config(recipe or phase, settings), ""
    keys, search = SEARCHES[phase]
    begun, best = RunFolder(Path(runs) / area / phase), Path(runs) / area / search / TUNED_VALUES
    if not fresh and begun.last.exists() and begun.description.exists():
        tables = config_json(read_run(begun.path).config)
        tuned = {key: tables[key.partition(".")[0]][key.partition(".")[2]] for key in keys}
        source = f"tuned values as {begun.path} began with"
    elif best.exists():
        tuned, source = read_best(best, keys), f"tuned values from {best}"
    elif phase == "final" and recipe is None and (tuned := published_values(area)):
        source = f"tuned values as published for MURA's {area}"
    else:
        tuned, source = {}, f"no tuned values for {area}: those of the recipe"
    config = load_config(recipe or phase, tuned | settings)
    if (config.model.architecture == "hybrid") != (phase == "hybrid"):
        raise InputError(
            f"phase {phase} takes its values from a search of another architecture than {config.model.architecture}; "
            "train a hybrid by phase hybrid or baseline, a classifier by final or baseline"
        )
    return config, source


def check_phase(phase: str) -> None:
    """Refuses an unknown phase."""
    check_choice("phase", phase, PHASES)


def published_values(area: str) -> dict[str, Any]:
    """The published tuned values of an area of MURA by configuration key; empty for any other area."""
    with (RECIPES / PUBLISHED).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            if row["area"] == area:
                return {key: json.loads(row[key]) for key in TUNED_KEYS}
    return {}


def searched(config: ClassificationConfig) -> tuple[tuple[str, ...], str]:
    """What a search with this configuration chooses, and the name of its folder."""
    return SEARCHES["hybrid" if config.model.architecture == "hybrid" else "final"]


def read_best(path: str | Path, keys: tuple[str, ...] = TUNED_KEYS) -> dict[str, Any]:
    """The values of a `best.json` by configuration key, those of `keys`.

    Raises:
        InputError: it is damaged.
    """
    with reading_json(Path(path), fix="tune again or remove it") as found:
        return {key: found["values"][key] for key in keys if key in found["values"]}
