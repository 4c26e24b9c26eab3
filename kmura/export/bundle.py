"""The folder of an exported version: a SavedModel and the files to use, verify and assess it."""

import contextlib
import dataclasses
import datetime
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import kmura
from kmura.errors import InputError, check_choice, reason, remedy
from kmura.export import exchange
from kmura.export.card import model_card
from kmura.export.golden import PATTERN_CHARACTERS, golden_requests, versions, write_golden
from kmura.export.parity import Parity, parity_in_fresh_process
from kmura.files import flush_to_disk, locked, sha256_of, write_json
from kmura.runs.fold_runs import members_of
from kmura.runs.run import Run, RunDescription, load_model
from kmura.serving.answers import answers_of
from kmura.serving.contract import EXPORT_VERSION, SIGNATURE, Contract, contract_of_run, operating_points
from kmura.serving.signatures import SIGNATURES, ServedModel, check_warmup_possible, write_warmup

CARD = "model_card.md"
FORMATS = ("savedmodel", *exchange.FORMATS)
_ASIDE = ".exporting-"  # not a number, so servers do not load it as a version


@dataclasses.dataclass(frozen=True)
class Export:
    """Result of an export.

    Attributes:
        folder: folder of the version.
        version: number of the version.
        contract: preprocessing and postprocessing of the model.
        parity: differences from the original model; None for formats other than savedmodel.
        notes: remarks on the export.
    """

    folder: Path
    version: int
    contract: Contract
    parity: Parity | None
    notes: tuple[str, ...] = ()


def export(run: str | os.PathLike | Sequence[str | os.PathLike], out: str | os.PathLike, **options) -> Any:
    """Exports the best model of a run, or several as one ensemble, as the next version: `OUT/1`, `OUT/2`, ...

    Args:
        run: folder of a run; several runs, a folder of folds, or a run of the kind `folds` give an ensemble.
        out: folder of the versions.
        **options: of `export_classifier`, `kmura.export.ensemble.export_ensemble` (several runs), or
            `kmura.export.slice_model.export_slices`.

    Raises:
        InputError: see there; the kind of the run cannot be exported.
    """
    runs = [Run(path) for path in members_of([run] if isinstance(run, str | os.PathLike) else run)]
    if len(runs) == 1:
        return runs[0].part("export")(runs[0], out, **options)

    exports = {each.part("ensemble"): each for each in runs}
    if len(exports) > 1:
        one, other, *_ = exports.values()
        raise InputError(
            f"{one} is of the kind {one.kind} and {other} of the kind {other.kind}; export runs of one kind"
        )
    return next(iter(exports))(runs, out, **options)


def export_classifier(
    run: Run,
    out: str | os.PathLike,
    *,
    records: str | os.PathLike | None = None,
    threshold: str | None = None,
    format: str = "savedmodel",
    warmup: bool = True,
) -> Export:
    """Exports the best model of an evaluated classifier as the next version.

    The export is verified in a fresh process. It is written to a hidden folder of `out`, which is renamed once it is
    complete and verified: a server that watches `out` never loads a partial version, and an interruption or an error
    leaves no version.

    Args:
        run: an evaluated run.
        out: folder of the versions.
        records: folder of the records, if they were moved; see `contract_of_run`.
        threshold: for a binary run, one of the rules with which it was evaluated; None selects 0.5, or the first rule
            if 0.5 is not among them.
        format: `savedmodel`; `onnx` and `litert` contain only the network, from pixels to logits.
        warmup: whether to write warm-up requests for TensorFlow Serving (requires tensorflow-serving-api).

    Returns:
        Folder, number, contract and parity of the version.

    Raises:
        InputError: The run is not evaluated or has changed since, the threshold or format is unknown, a package is
            missing, `out` cannot be written, or the predictions of the export differ from those of the model.
    """
    check_choice("format", format, FORMATS)
    out = Path(out)
    folder, description = run.folder, run.description
    contract = contract_of_run(run, records=records, threshold=threshold)
    description.warn_of_leaks()
    evaluation, _ = run.part("evaluation")(run)
    if format != "savedmodel":
        exchange.check_possible(format)
    elif warmup:
        check_warmup_possible()
    model = load_model(folder.best)
    signature = signature_of(description, contract, format) | {
        "model_sha256": evaluation.model_sha256,
        "operating_points": [dataclasses.asdict(point) for point in operating_points(evaluation.scores)],
    }
    made = f"Exported on {signature['exported']} with kmura {kmura.__version__}, trained with {_versions(description)}"
    card = functools.partial(
        model_card,
        description,
        evaluation,
        contract,
        trained=run.epochs_trained(),
        made=made,
        records=os.fspath(records or description.records),
    )
    if format == "savedmodel":
        how = {"served": ServedModel(model, contract), "originals": [folder.best], "warmup": warmup}
    else:
        how = {"exchanged": model}
    return finished(out, card, signature, contract, **how)


def finished(
    out: Path,
    card: Callable[[], str],
    signature: dict[str, Any],
    contract: Contract,
    *,
    served: ServedModel | None = None,
    originals: Sequence[Path] = (),
    warmup: bool = True,
    exchanged: Any = None,
) -> Export:
    """Writes the next version of an export, verifies it in a fresh process, and publishes it.

    Args:
        out: folder of the versions.
        card: returns the model card.
        signature: content of `signature.json`, without parity and checksums.
        contract: of the model.
        served: the model of a SavedModel.
        originals: the `.keras` files of its models, with which it is compared.
        warmup: whether to write warm-up requests.
        exchanged: the Keras model of another format.

    Raises:
        InputError: the folder cannot be written, or the predictions differ from those of the originals.
    """
    with aside_of(out) as aside:
        (aside / CARD).write_text(card(), encoding="utf-8")
        if signature["format"] == "savedmodel":
            _write_served(aside, served, signature["area"], warmup)
            write_json(aside / SIGNATURE, signature)  # the parity check reads the contract from it
            parity, notes = parity_in_fresh_process(aside, *originals), _notes_on_place(out)
            signature |= {"parity": dataclasses.asdict(parity)}
        else:
            parity, notes = None, exchange.write(aside, exchanged, signature["format"])
            signature |= {"notes": notes}
        files = {path.relative_to(aside).as_posix(): path for path in sorted(aside.rglob("*")) if path.is_file()}
        signature["files"] = {name: sha256_of(path) for name, path in files.items() if name != SIGNATURE}
        write_json(aside / SIGNATURE, signature)
        version = published(aside, out)
    return Export(out / str(version), version, contract, parity, notes)


def _notes_on_place(out: Path) -> tuple[str, ...]:
    """A remark if TensorFlow cannot load a SavedModel from a folder."""
    characters = sorted(PATTERN_CHARACTERS.intersection(os.path.abspath(out)))
    if not characters:
        return ()
    text = f"the path of {out} contains {' '.join(characters)}: kmura can use it, but TensorFlow and TensorFlow Serving"
    return (f"{text} cannot load a SavedModel from there; move it before serving",)


def _write_served(folder: Path, served: ServedModel, area: str, warmup: bool) -> None:
    served.save(folder)
    requests = golden_requests(served.contract, area)
    write_golden(folder, requests, served.signatures)
    if warmup:
        write_warmup(folder, requests)


def signature_of(description: RunDescription, contract: Contract, format: str) -> dict[str, Any]:
    """Returns the content of `signature.json` without models, parity and checksums."""
    content = {
        "export_version": EXPORT_VERSION,
        "format": format,
        "exported": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "area": description.area,
        "phase": description.phase,
        "versions": description.versions | {"kmura": kmura.__version__},
        "calibration": contract.calibration,
        "contract": dataclasses.asdict(contract),
    }
    if format == "savedmodel":
        size = (contract.image_size, contract.image_size, contract.channels)
        inputs = {
            "image_bytes": "string [B], PNG or JPEG files",
            "image": f"float32 [B, {size[0]}, {size[1]}, {size[2]}]",
        }
        answers = answers_of(contract)
        words = {"each": answers.each, "study": answers.study, "explained": answers.explained}
        content["signatures"] = {
            name: {"input": {given: inputs[given]}, "gives": gives.format(**words)}
            for name, (given, gives) in SIGNATURES.items()
        }
        content["answers"] = answers.described
    return content


def _versions(description: RunDescription) -> str:
    return ", ".join(f"{name} {version}" for name, version in description.versions.items())


@contextlib.contextmanager
def aside_of(out: Path) -> Iterator[Path]:
    """Yields an empty hidden folder in `out` that is removed after the block; also removes those of killed exports."""
    busy = f"another export is writing to {out}; wait for it or choose another --out"
    with locked(out / f"{_ASIDE}lock", busy):
        for leftover in out.glob(f"{_ASIDE}*.part"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside = out / f"{_ASIDE}{os.getpid()}.part"
        try:
            aside.mkdir()
            yield aside
        except OSError as error:
            fix = remedy(error, "choose another --out")
            raise InputError(f"cannot write to {out}: {reason(error)}; {fix}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def published(aside: Path, out: Path) -> int:
    """Renames the folder to the next version and returns its number."""
    for path in (*aside.rglob("*"), aside):  # flush the content before the rename, in case of a power failure
        flush_to_disk(path)
    version = max(versions(out), default=0) + 1
    aside.rename(out / str(version))
    return version
