"""`POST /v1/studies`: the files of one study to its probability and decision, and the maps of its images."""

import base64
import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from kmura.data.resize import covered
from kmura.errors import InputError
from kmura.explain.overlays import box_of, heat_layer
from kmura.prediction.study_outputs import study_outputs
from kmura.records.images import UnreadableImage, encode_png
from kmura.server.decoders import Picture
from kmura.server.engine import Engine
from kmura.server.served_versions import Loaded
from kmura.server.tensor_json import RequestError, plain
from kmura.server.tf_rest import loaded
from kmura.server.uploads import Upload, upload
from kmura.serving.contract import Contract

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_FIELDS = ("model", "rule", "maps", "pictures")


def described(engine: Engine) -> dict[str, Any]:
    """Returns the models that studies can be sent to, their operating points, and the limits of a request."""
    models = [versions.current for versions in engine.models.values() if versions.current]
    limits = engine.limits
    return {
        "models": [_description(model) for model in models],
        "limits": {"body_bytes": limits.body, "files": limits.files, "pixels": limits.pixels},
    }


async def answer(engine: Engine, body: bytes, content_type: str) -> dict[str, Any]:
    """Returns the prediction for a study.

    Args:
        engine: the models.
        body, content_type: of the request, multipart/form-data with the files, and the optional fields `model` (name),
            `rule` (operating point), `maps` and `pictures` (1: add PNGs of the maps and of the images as the model sees
            them).

    Returns:
        `study`: the prediction for the study from the images that could be read; `images`: one entry per file in the
        order of the request, with an `error` for files that could not be read.

    Raises:
        RequestError: The request is wrong, or no file can be read.
        Overloaded: The queue is full.
    """
    sent = await engine.parsed(upload, body, content_type, engine.limits.files)
    model = _model(engine, sent)
    contract = _at_operating_point(model, sent.fields.get("rule", ""))
    maps, pictures = (_flag(sent.fields, name) for name in ("maps", "pictures"))
    if unknown := sorted(sent.fields.keys() - set(_FIELDS)):
        raise RequestError(f"the field {unknown[0][:50]!r} is unknown; the fields are {', '.join(_FIELDS)}")
    if not sent.files:
        raise RequestError("a study has at least one image; the request has no file")
    with engine.images(len(sent.files)):
        decoded = await engine.pictures(model, sent.files, sent.suffixes)
        places = [place for place, picture in enumerate(decoded) if isinstance(picture, Picture)]
        rows = await engine.outputs(model, [decoded[place].ready for place in places], explained=maps)
        outputs = dict(zip(places, rows, strict=True))
        return await engine.parsed(_answer, model, decoded, outputs, contract, maps, pictures)


def _answer(model: Loaded, decoded, outputs, contract: Contract, maps: bool, pictures: bool) -> dict[str, Any]:
    errors = {place: picture for place, picture in enumerate(decoded) if isinstance(picture, UnreadableImage)}
    errors |= {place: row for place, row in outputs.items() if isinstance(row, InputError)}
    used = [place for place in range(len(decoded)) if place not in errors]
    if not used:
        texts = "; ".join(f"{place}: {error}" for place, error in list(errors.items())[:3])
        raise RequestError(f"none of the {len(decoded)} files can be read ({texts})")
    rows = [outputs[place] for place in used]
    # each image as a study of one view, in float64, as the decision is made
    probability = contract.study_probabilities(np.arange(len(used)), np.stack([row["logit"] for row in rows])).value
    images: dict[int, dict[str, Any]] = {
        place: {"index": place, "error": str(error)} for place, error in errors.items()
    }
    for place, row, value, decision in zip(used, rows, probability, contract.decision(probability), strict=True):
        picture = decoded[place]
        entry = {"index": place, "width": picture.width, "height": picture.height, "remarks": list(picture.remarks)}
        entry |= {"logit": plain(row["logit"])} | _probability(contract, value) | {"decision": str(decision)}
        if "abnormal_probability" in row:
            entry["abnormal_probability"] = plain(row["abnormal_probability"])
        if maps:
            entry |= _map(picture, row["cam"], contract)
        if pictures:
            entry["picture"] = _png(picture.pixels[..., 0] if contract.channels == 1 else picture.pixels)
        images[place] = entry
    pooled = study_outputs(contract, rows)
    study = _probability(contract, pooled["probability"][0]) | {"decision": str(pooled["decision"][0])}
    if contract.is_binary:
        study |= {"rule": contract.rule, "threshold": contract.threshold}
    if "abnormal_probability" in pooled:
        study["abnormal_probability"] = plain(pooled["abnormal_probability"][0])
    study |= {"calibration": contract.calibration, "images": len(used), "failed": len(errors)}
    return {
        "model": model.name,
        "version": model.version,
        "study": study,
        "images": [images[place] for place in sorted(images)],
    }


def _description(model: Loaded) -> dict[str, Any]:
    contract = model.contract
    return {
        "name": model.name,
        "version": model.version,
        "area": model.signature.area,
        "task": contract.task,
        "classes": list(contract.classes),
        "calibration": contract.calibration,
        "rule": contract.rule if contract.is_binary else None,
        "threshold": contract.threshold if contract.is_binary else None,
        "operating_points": [
            {
                "rule": point.rule,
                "threshold": point.threshold,
                "split": point.split,
                "studies": point.studies,
                "sensitivity": _interval(point.sensitivity),
                "specificity": _interval(point.specificity),
            }
            for point in model.signature.operating_points
        ],
        "image_size": contract.image_size,
        "resize": contract.resize,
        "card": bool(model.card),
    }


def _interval(interval) -> list[float | None]:
    """Returns value, low and high; None where undefined, as JSON has no NaN."""
    return [None if np.isnan(value) else value for value in (interval.value, interval.low, interval.high)]


def _model(engine: Engine, sent: Upload) -> Loaded:
    name = sent.fields.get("model", "")
    if not name and len(engine.models) > 1:
        raise RequestError(f"this server has several models; add the field model, one of {', '.join(engine.models)}")
    return loaded(engine, name or next(iter(engine.models)))


def _at_operating_point(model: Loaded, rule: str) -> Contract:
    """Returns the contract of the model with the threshold of a rule."""
    contract = model.contract
    if not rule or rule == contract.rule:
        return contract
    if not contract.is_binary:
        raise RequestError(f"{model.name} has no operating points, because it has several classes; omit the field rule")
    points = {point.rule: point.threshold for point in model.signature.operating_points}
    if rule not in points:
        known = ", ".join(dict.fromkeys([contract.rule, *points]))
        raise RequestError(f"the rule {rule[:50]!r} is unknown; the rules of {model.name} are {known}")
    return dataclasses.replace(contract, rule=rule, threshold=points[rule])


def _flag(fields: dict[str, str], name: str) -> bool:
    value = fields.get(name, "").lower()
    if value not in (*_YES, *_NO):
        raise RequestError(f"the field {name} is {value[:50]!r}; give 1 or 0")
    return value in _YES


def _probability(contract: Contract, value: np.ndarray) -> dict[str, Any]:
    value = np.asarray(value, np.float32)
    if contract.is_binary:
        return {"probability": plain(value)}
    return {"probabilities": dict(zip(contract.classes, plain(value), strict=True))}


def _map(picture: Picture, heat: np.ndarray, contract: Contract) -> dict[str, Any]:
    """Returns the PNG of the map of the part that the image covers, and the box of its highest values.

    The box is left, top, right and bottom as shares of the width and height of the image; None for an empty map.
    """
    rows, columns = covered(picture.pixels.shape[:2], contract.image_size, contract.resize)
    heat = heat[rows, columns]
    box = box_of(heat)
    height, width = heat.shape
    shares = None if box is None else [box[0] / width, box[1] / height, box[2] / width, box[3] / height]
    return {"map": _layer(heat_layer(heat)), "box": shares}


def _png(pixels: np.ndarray) -> str:
    return base64.b64encode(encode_png(np.ascontiguousarray(pixels))).decode("ascii")


def _layer(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
