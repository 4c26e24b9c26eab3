"""`last/`: the checkpoint from which a run resumes, replaced as a whole after every epoch."""

import json
from pathlib import Path

import numpy as np

from kmura.errors import InputError, in_brief, unreadable
from kmura.files import replacing, write_json

STATE = "state.json"
# best.keras beside the checkpoint is not damaged with it
_ANEW = (
    "the run cannot continue, but its best model can still be used; to train again, choose another --runs folder, or "
    "delete this run and start again with --fresh"
)


class LastCheckpoint:
    """Saves and restores variables and plain values of a run.

    The arrays of each epoch are written to a new file, and `state.json`, which is replaced last, refers to the current
    one. A kill at any time therefore leaves the checkpoint of the previous or of the current epoch.
    """

    def __init__(self, folder: Path, variables: list):
        """
        Args:
            folder: folder of the checkpoint; created by the first `save`.
            variables: Keras variables in a fixed order: weights, random states, optimizer.
        """
        self.folder = folder
        self.variables = variables

    @property
    def exists(self) -> bool:
        """Whether an epoch was saved."""
        return (self.folder / STATE).is_file()

    def save(self, epoch: int, values: dict, keep: str | None = None) -> None:
        """Saves the variables and `values` (plain JSON) at the end of `epoch` (the number of finished epochs).

        Deletes the older files of the folder, except the one named `keep`.
        """
        arrays = f"epoch-{epoch:05d}.npz"
        with replacing(self.folder / arrays, "wb") as file:
            np.savez(file, **{f"{i:05d}": variable.numpy() for i, variable in enumerate(self.variables)})
        names = [variable.path for variable in self.variables]
        write_json(self.folder / STATE, {"epoch": epoch, "arrays": arrays, "variables": names, "values": values})
        for path in self.folder.iterdir():
            if path.name not in (arrays, STATE, keep):
                path.unlink()

    def restore(self) -> tuple[int, dict] | None:
        """Restores the variables; returns the epoch and the plain values, or None if nothing was saved.

        Raises:
            InputError: the checkpoint is damaged or belongs to another model.
        """
        try:
            state = json.loads((self.folder / STATE).read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.folder / STATE, error) from error
        except ValueError as error:
            raise InputError(f"{self.folder / STATE} is damaged ({error}); {_ANEW}") from error
        path = self.folder / state["arrays"]
        try:
            with np.load(path, allow_pickle=False) as arrays:
                saved = [arrays[f"{i:05d}"] for i in range(len(arrays.files))]
        except Exception as error:  # zipfile, zlib and numpy raise different errors
            if isinstance(error, OSError) and error.errno and not isinstance(error, FileNotFoundError):
                raise unreadable(path, error) from error
            raise InputError(f"{path} cannot be read ({in_brief(error)}); {_ANEW}") from error
        shapes = [tuple(variable.shape) for variable in self.variables]
        if [array.shape for array in saved] != shapes:
            raise InputError(
                f"{path} belongs to another model, perhaps of other versions of kmura or Keras (run.json names them); "
                "choose another --runs folder, or delete this run and start again with --fresh"
            )
        for variable, array in zip(self.variables, saved, strict=True):
            variable.assign(array)
        return state["epoch"], state["values"]
