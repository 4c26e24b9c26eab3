"""The folder of a search: the files of its trials, and the result. The only place that knows these file names.

`RUNS/AREA/tune/` contains the files of a run and one folder `trial_NN/` per trial. That is itself a run folder, with
`values.json` (the values of the trial) and, once the trial has ended, `result.json` (its row of the summary).
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kmura.config import TuneConfig
from kmura.errors import InputError, unreadable
from kmura.files import replacing, write_json
from kmura.runs.checkpoint import STATE
from kmura.runs.run import TUNED_VALUES, RunFolder

RESULT, VALUES, SUMMARY = "result.json", "values.json", "tuner_summary.csv"
FAILED = (
    "every trial failed: the loss was not a number; reduce the range tune.learning_rate, or train in float32 if "
    "precision is mixed_float16, and start again with --fresh, which deletes this search"
)


def trial_folder(folder: Path, trial: str) -> RunFolder:
    """Returns the run folder of a trial of the search in `folder`."""
    return RunFolder(folder / f"trial_{trial}")


def results(folder: Path) -> list[tuple[Path, dict]]:
    """Returns folder and `result.json` of every ended trial, in the order of the trials."""
    trials = [
        (path, read_result(path)) for path in sorted(folder.glob("trial_*"), key=lambda path: path.name[6:].zfill(9))
    ]
    return [(path, result) for path, result in trials if result is not None]


def read_result(trial: Path) -> dict | None:
    """Returns the `result.json` of a trial; None if the trial has not ended.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        result = json.loads((trial / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:  # it may have ended
        raise unreadable(trial / RESULT, error) from error
    return result | {"score": math.nan if result["score"] is None else result["score"]}


def best_of(ended: list[tuple[Path, dict]]) -> tuple[Path, dict] | None:
    """Returns the trial with the best score (of equal scores the first); None if no trial has a score."""
    scored = [item for item in ended if not math.isnan(item[1]["score"])]
    return max(scored, key=lambda item: item[1]["score"], default=None)


def claim_values(folder: RunFolder, values: Mapping[str, Any]) -> None:
    """Writes the values of a trial to its folder; deletes files there that belong to a trial with other values.

    Raises:
        InputError: the values of an earlier trial cannot be read.
    """
    note, wanted = folder.path / VALUES, json.loads(json.dumps(dict(values)))
    try:
        same = json.loads(note.read_text(encoding="utf-8")) == wanted
    except (FileNotFoundError, ValueError):
        same = False
    except OSError as error:  # its trial may be a good one
        raise unreadable(note, error) from error
    if not same:
        for path in (folder.path / RESULT, folder.history, folder.best):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder.last, ignore_errors=True)
        write_json(note, wanted)


def drop_files(folder: Path) -> None:
    """Deletes the checkpoints of the ended trials, and all their models except the best."""
    ended = results(folder)
    best = best_of(ended)
    for path, _ in ended:
        trial = RunFolder(path)
        shutil.rmtree(trial.last, ignore_errors=True)
        if best is None or path != best[0]:
            trial.best.unlink(missing_ok=True)


def is_over(folder: Path, tune: TuneConfig) -> bool:
    """Whether all trials of a search have ended; always False for Hyperband, where only the search itself knows."""
    return tune.tuner != "hyperband" and len(results(folder)) >= tune.trials


def read_history(folder: RunFolder) -> pd.DataFrame:
    """Returns the history of a trial: up to its last checkpoint, or complete if it has ended.

    Raises:
        InputError: the checkpoint is damaged.
    """
    try:
        return pd.DataFrame(json.loads((folder.last / STATE).read_text(encoding="utf-8"))["values"]["history"])
    except FileNotFoundError:
        return pd.read_csv(folder.history) if folder.history.exists() else pd.DataFrame()
    except OSError as error:
        raise unreadable(folder.last / STATE, error) from error
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{folder.last / STATE} is damaged ({error}); remove {folder.path} and search again"
        ) from error


def finish(folder: RunFolder, area: str, monitor: str) -> None:
    """Makes the folder a run of the best trial, and writes the summary and `best.json`.

    Raises:
        InputError: every trial failed.
    """
    ended = results(folder.path)
    best = best_of(ended)
    if best is None:
        raise InputError(f"{folder.path}: {FAILED}")
    path, result = best
    for source, target in ((RunFolder(path).history, folder.history), (RunFolder(path).best, folder.best)):
        if source.exists():
            with replacing(target, "wb") as file:
                file.write(source.read_bytes())
    rows = [
        {name: value for name, value in result.items() if name != "values"} | result["values"]
        for _, result in sorted(ended, key=lambda item: -np.nan_to_num(item[1]["score"], nan=-1))
    ]
    with replacing(folder.path / SUMMARY) as file:
        pd.DataFrame(rows).to_csv(file, index=False)
    tuned = {"area": area, "trial": result["trial"], monitor: result["score"], "values": result["values"]}
    write_json(folder.path / TUNED_VALUES, tuned)
    for path, _ in ended:
        shutil.rmtree(RunFolder(path).last, ignore_errors=True)
        RunFolder(path).best.unlink(missing_ok=True)


def join_summaries(runs: Path) -> None:
    """Writes `RUNS/tuner_summary.csv`, which joins the summaries of all areas."""
    tables = []
    for path in sorted(runs.glob(f"*/tune*/{SUMMARY}")):
        table = pd.read_csv(path, dtype={"trial": str})
        table.insert(0, "area", path.parents[1].name)
        table.insert(1, "search", path.parent.name)
        tables.append(table)
    with replacing(runs / SUMMARY) as file:
        pd.concat(tables).to_csv(file, index=False)
