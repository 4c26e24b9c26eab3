"""The server of exports, asked in this process: TensorFlow Serving's REST, studies, limits and errors."""

import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import logging
import os
import signal
import tempfile
import zlib

import numpy as np
import pandas as pd
import pytest
from conftest import textured
from dicom_files import RAMP, dicom
from PIL import Image
from test_export_pixels import FILES, saved, smooth
from test_images import declares

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from kmura.records.images import UnreadableImage
from kmura.server.app import application
from kmura.server.decoders import DecoderPool
from kmura.server.engine import Engine
from kmura.server.guard import Guard
from kmura.server.limits import Limits
from kmura.serving.contract import read_signature

URL = "http://127.0.0.1:8501"
PREDICT = "/v1/models/wrist:predict"


def client_of(engine, token=None, hosts=frozenset({"127.0.0.1"})):
    return TestClient(
        application(engine, token=token, hosts=hosts, poll=0), base_url=URL, raise_server_exceptions=False
    )


@pytest.fixture(scope="module")
def engine(small_export):
    engine = Engine({"wrist": small_export}, Limits(files=60, queue=80, decoders=2, wait=0.02))
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def client(engine):
    with client_of(engine) as client:
        yield client


@pytest.fixture(scope="module")
def signatures(small_export):
    from kmura.export.golden import load_signatures

    return load_signatures(small_export / "1")


def b64(data: bytes) -> dict:
    return {"b64": base64.b64encode(data).decode()}


def tiff(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    return buffer.getvalue()


def files_of(*files: bytes):
    return [("files", (f"name{place}", data)) for place, data in enumerate(files)]


def counted(client, name: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


# TensorFlow Serving's interface


@pytest.mark.parametrize("signature", ["serving_default", "explain", "study"])
@pytest.mark.parametrize("kind", ["gray", "12 bits in 16-bit RGB"])
def test_answers_equal_those_of_the_signatures(client, signatures, signature, kind):
    import tensorflow as tf

    files = [FILES[kind], saved(smooth(50, 40))]
    expected = signatures[signature](image_bytes=tf.constant(files))
    body = {"signature_name": signature, "inputs": {"image_bytes": [b64(data) for data in files]}}
    outputs = client.post(PREDICT, json=body).json()["outputs"]
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        value = value.numpy()
        if value.dtype == object:
            assert outputs[name] == [text.decode() for text in value]
        else:
            assert np.array(outputs[name]) == pytest.approx(value, abs=1e-5)


def test_rows_and_columns_have_the_forms_of_tensorflow_serving(client):
    image = b64(FILES["gray"])
    named = client.post(PREDICT, json={"instances": [{"image_bytes": image}, {"image_bytes": image}]}).json()
    plain = client.post(PREDICT, json={"signature_name": "serving_default", "instances": [image, image]}).json()
    assert len(named["predictions"]) == 2 and named.keys() == {"predictions"}
    columns = client.post(PREDICT, json={"inputs": [image, image]}).json()["outputs"]
    for rows in (named["predictions"], plain["predictions"]):
        for place, row in enumerate(rows):
            assert row.keys() == columns.keys() == {"logit", "probability", "threshold", "decision", "calibration"}
            assert row["decision"] == columns["decision"][place] in ("normal", "abnormal")
            assert row["logit"] == pytest.approx(columns["logit"][place], abs=1e-5)
    pixels = np.full((2, 32, 32, 1), 7.5)
    answer = client.post(
        "/v1/models/wrist/versions/1:predict", json={"signature_name": "tensor", "inputs": pixels.tolist()}
    )
    assert answer.status_code == 200 and len(answer.json()["outputs"]["logit"]) == 2


# messages of tensorflow_serving/util/json_tensor.cc and model_servers/http_rest_api_handler.cc
ERRORS = [
    ("GET", "/v1/foo", None, 400, "Malformed request: GET /v1/foo"),
    ("POST", "/v1/foo", b"{}", 400, "Malformed request: POST /v1/foo"),
    ("GET", "/v1/models", None, 400, "Missing model name in request."),
    ("POST", "/v1/models", b"{}", 400, "Malformed request: POST /v1/models"),
    ("GET", "/v1/models/foo:predict", None, 400, "Malformed request"),
    ("GET", "/v1/models/foo/version/50:predict", None, 400, "Malformed request"),
    ("POST", "/v1/models/foo/versions/HELLO:regress", b"{}", 400, "Malformed request"),
    ("POST", f"/v1/models/foo/versions/{2**64 - 1}:predict", b"{}", 400, "Failed to convert version"),
    ("POST", "/v1/models/foo:predict", b'{"instances": [1]}', 404, "Servable not found for request: Latest(foo)"),
    ("POST", "/v1/models/foo/versions/50:predict", b'{"instances": [1]}', 404, "request: Specific(foo, 50)"),
    ("POST", "/v1/models/wrist/versions/9:predict", b'{"instances": [1]}', 404, "request: Specific(wrist, 9)"),
    ("POST", "/v1/models/wrist/labels/new:predict", b'{"instances": [1]}', 400, "Unrecognized servable version label"),
    ("GET", "/v1/models/foo", None, 404, "Could not find any versions of model foo"),
    ("GET", "/v1/models/wrist/versions/9", None, 404, "Could not find version 9 of model wrist"),
    ("GET", "/v1/models/foo/metadata", None, 404, "Servable not found for request: Latest(foo)"),
    ("POST", PREDICT, b"", 400, "JSON Parse error: The document is empty"),
    ("POST", PREDICT, b"instances = [1, 2]", 400, "JSON Parse error: Invalid value"),
    ("POST", PREDICT, b"[1]", 400, "Is not object"),
    ("POST", PREDICT, b"[" * 300_000, 413, "JSON values"),
    ("POST", PREDICT, b"[" * 9_000, 400, "JSON Parse error"),
    ("POST", PREDICT, b'{"instances": [' + b"9" * 5000 + b"]}", 400, "JSON Parse error"),
    ("POST", PREDICT, b"\xff{}", 400, "JSON Parse error"),
    ("POST", PREDICT, b"{}", 400, "Missing 'inputs' or 'instances' key"),
    ("POST", PREDICT, b'{"inputs": [], "instances": []}', 400, "expecting only one of 'inputs' or 'instances' keys"),
    ("POST", PREDICT, b'{"instances": {}}', 400, "Excepting 'instances' to be an list/array"),
    ("POST", PREDICT, b'{"instances": []}', 400, "No values in 'instances' array"),
    ("POST", PREDICT, b'{"signature_name": 1, "instances": [1]}', 400, "'signature_name' key must be a string value"),
    ("POST", PREDICT, b'{"signature_name": "x", "instances": [1]}', 400, 'name: "x" not found in signature def'),
    ("POST", PREDICT, b'{"instances": [1, 2]}', 400, "Type: Number is not of expected type: string"),
    ("POST", PREDICT, b'{"instances": [true]}', 400, "Type: True is not of expected type: string"),
    ("POST", PREDICT, b'{"instances": [{"b64": "?"}]}', 400, "Unable to base64 decode"),
    ("POST", PREDICT, b'{"instances": [{"other": 1}]}', 400, "does not have named input: other"),
    ("POST", PREDICT, b'{"instances": [{"b64": ""}, {"a": 1}]}', 400, "Expecting value/list but got object at item 1"),
    ("POST", PREDICT, b'{"inputs": {"other": 1}}', 400, "Missing named input: image_bytes in 'inputs' object."),
    ("POST", PREDICT, b'{"inputs": "text"}', 400, "expected the shape [B], received []"),
    ("POST", PREDICT, b'{"inputs": ["text"]}', 400, "its index in the request, counted from 0, is 0"),
    ("POST", PREDICT, b'{"signature_name": "tensor", "inputs": [[1, 2], [3]]}', 400, "unexpected size: 1 at level: 1"),
    ("POST", PREDICT, b'{"signature_name": "tensor", "inputs": [1, 2]}', 400, "expected the shape [B, 32, 32, 1]"),
    ("POST", PREDICT, b'{"signature_name": "tensor", "inputs": [1, "a"]}', 400, "Type: String is not of expected type"),
    ("POST", PREDICT, b'{"signature_name": "study", "inputs": []}', 400, "a study has at least one image"),
    ("POST", "/v1/models/wrist:classify", b'{"examples": [{}]}', 400, "Was: tensorflow/serving/predict"),
    ("POST", "/v1/models/wrist:classify", b"{}", 400, "key 'examples' is expected and was not found"),
    ("POST", "/v1/models/foo:regress", b'{"examples": [{}]}', 404, "Servable not found for request: Latest(foo)"),
    ("GET", "/other", None, 404, "Not Found"),
    ("DELETE", "/v1/models/wrist", None, 400, "Malformed request: DELETE"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "text"), ERRORS)
def test_errors_have_status_and_form_of_tensorflow_serving(client, method, path, body, status, text):
    answer = client.request(method, path, content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert answer.json().keys() == {"error"} and text in answer.json()["error"]
    assert len(answer.json()["error"]) < 600


def test_pixels_out_of_range_and_several_images_of_a_study_as_rows_are_refused(client):
    for value in (-1, 256, float("nan"), float("inf")):
        body = json.dumps({"signature_name": "tensor", "inputs": np.full((1, 32, 32, 1), value).tolist()})
        answer = client.post(PREDICT, content=body)
        assert answer.status_code == 400 and "outside 0 to 255" in answer.json()["error"]
    body = {"signature_name": "study", "instances": [b64(FILES["gray"])] * 2}
    assert "inconsistent batch size" in client.post(PREDICT, json=body).json()["error"]


def test_status_metadata_health_and_card(client):
    (status,) = client.get("/v1/models/wrist").json()["model_version_status"]
    assert status == {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    metadata = client.get("/v1/models/wrist/metadata").json()
    assert metadata["model_spec"] == {"name": "wrist", "signature_name": "", "version": "1"}
    definition = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert definition["method_name"] == "tensorflow/serving/predict"
    assert definition["inputs"]["image_bytes"]["dtype"] == "DT_STRING"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/wrist/ready", "/v2/models/wrist/versions/1/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v2/models/foo/ready").status_code == 404
    assert client.get("/v2/models/wrist/versions/2/ready").status_code == 503
    card = client.get("/v1/models/wrist/card").text
    assert "<h1>XR_WRIST" in card and "<table>" in card and "not a medical device" in card


# studies, and equality with kmura predict


def mixed_files() -> list[bytes]:
    """50 files: PNG, JPEG, TIFF, DICOM; gray, colour, 16 bits; of various sizes."""
    rng = np.random.default_rng(4)
    files = list(FILES.values())[:20]
    while len(files) < 50:
        height, width = (int(side) for side in rng.integers(20, 200, 2))
        image = np.asarray(smooth(height, width))
        deep = image.astype(np.uint16) * 16
        form = len(files) % 5
        if form == 0:
            files.append(dicom(deep))
        elif form == 1:
            files.append(dicom(deep, "MONOCHROME1", WindowCenter=1800, WindowWidth=2000))
        elif form == 2:
            files.append(tiff(deep))
        else:
            files.append(saved(Image.fromarray(image), "JPEG" if form == 3 else "PNG"))
    return files


def test_answers_equal_those_of_predict_for_50_mixed_files(client, small_export, tmp_path):
    import kmura

    files = mixed_files()
    for place, data in enumerate(files):
        (tmp_path / f"{place:02}").write_bytes(data)
    (tmp_path / "list.csv").write_text("image,study\n" + "".join(f"{place:02},one\n" for place in range(50)))
    predictions = kmura.predict(small_export, tmp_path / "list.csv")
    table, (study,) = predictions.images, predictions.studies.to_dict("records")
    assert len(table) == 50
    rows = client.post(PREDICT, json={"instances": [b64(data) for data in files]}).json()["predictions"]
    answer = client.post("/v1/studies", files=files_of(*files)).json()
    for images in (pd.DataFrame(rows), pd.DataFrame(answer["images"])):
        assert images["logit"].to_numpy() == pytest.approx(table["logit"].to_numpy(), abs=1e-5)
        assert images["probability"].to_numpy() == pytest.approx(table["probability"].to_numpy(), abs=1e-6)
        assert list(images["decision"]) == list(table["decision"])
    assert answer["study"]["probability"] == pytest.approx(study["probability"], abs=1e-6)
    assert answer["study"]["decision"] == study["decision"]
    assert (answer["study"]["images"], answer["study"]["failed"]) == (50, 0)
    assert (answer["model"], answer["version"]) == ("wrist", 1)


def test_one_bad_image_of_a_study_fails_alone(client):
    good, alone = FILES["gray"], client.post("/v1/studies", files=files_of(FILES["gray"])).json()
    bad = (b"", b"no image", good[:-100], dicom()[:-400], declares(20_000, 20_000), saved(smooth(40, 40))[:60])
    answer = client.post("/v1/studies", files=files_of(*bad, good)).json()
    assert [image["index"] for image in answer["images"]] == list(range(7))
    errors = [image.get("error") for image in answer["images"]]
    assert errors[-1] is None and all(errors[:-1]) and errors[0] == "empty file"
    assert (answer["study"]["images"], answer["study"]["failed"]) == (1, 6)
    assert answer["study"]["probability"] == pytest.approx(alone["study"]["probability"], abs=1e-6)
    none = client.post("/v1/studies", files=files_of(b"a", b"b"))
    assert none.status_code == 400 and none.json()["error"].startswith(
        "none of the 2 files can be read (0: not an image"
    )


def test_maps_and_pictures_are_pngs_on_request(client, signatures):
    import tensorflow as tf

    data = saved(smooth(50, 40))
    (plain,) = client.post("/v1/studies", files=files_of(data)).json()["images"]
    assert "map" not in plain and "picture" not in plain
    answer = client.post("/v1/studies", files=files_of(data), data={"maps": "1", "pictures": "true"}).json()
    (image,) = answer["images"]
    heat, picture = (Image.open(io.BytesIO(base64.b64decode(image[name]))) for name in ("map", "picture"))
    assert heat.mode == "RGBA" and heat.size == (32, 32)
    cam = signatures["explain"](image_bytes=tf.constant([data]))["cam"].numpy()[0]
    assert np.asarray(heat)[..., 3] == pytest.approx(255 * cam / cam.max(), abs=1)
    assert picture.mode == "L" and (image["width"], image["height"]) == picture.size
    assert (np.asarray(picture) == np.asarray(Image.open(io.BytesIO(data)))).all()
    assert len(image["box"]) == 4 and all(0 <= side <= 1 for side in image["box"])


def test_an_operating_point_changes_the_decision_and_nothing_else(client, small_export):
    described = client.get("/v1/studies").json()["models"][0]
    points = {point["rule"]: point for point in described["operating_points"]}
    assert described["rule"] == "max_f1" and {"0.5", "max_f1"} <= points.keys()
    for stored in json.loads((small_export / "1" / "signature.json").read_text())["operating_points"]:
        point = points[stored["rule"]]
        assert point["split"] == "test" and point["studies"] == 12
        assert point["sensitivity"][0] == stored["sensitivity"]["value"]
    files = files_of(*(FILES[name] for name in list(FILES)[:3]))
    answers = {rule: client.post("/v1/studies", files=files, data={"rule": rule}).json() for rule in points}
    probabilities = {answer["study"]["probability"] for answer in answers.values()}
    assert max(probabilities) - min(probabilities) < 1e-6
    for rule, answer in answers.items():
        study = answer["study"]
        assert (study["rule"], study["threshold"]) == (rule, points[rule]["threshold"])
        assert study["decision"] == ("abnormal" if study["probability"] >= study["threshold"] else "normal")
    wrong = client.post("/v1/studies", files=files, data={"rule": "youdn"})
    assert wrong.status_code == 400 and "max_f1" in wrong.json()["error"]


@pytest.mark.parametrize(
    ("files", "fields", "status", "text"),
    [
        ([], {"model": "wrist"}, 415, "multipart/form-data"),
        ([("files", ("a", b""))] * 61, {}, 413, "more than 60 files"),
        ([("files", ("a", b""))], {"model": "hand"}, 404, "Latest(hand)"),
        ([("files", ("a", b""))], {"maps": "perhaps"}, 400, "give 1 or 0"),
        ([("files", ("a", b""))], {"other": "1"}, 400, "the fields are model, rule, maps, pictures"),
        ([("files", ("a", b""))], {"rule": "x" * 2000}, 413, "a field of more than 1024 bytes"),
    ],
)
def test_wrong_studies_are_refused(client, files, fields, status, text):
    answer = client.post("/v1/studies", files=files, data=fields)
    assert answer.status_code == status and text in answer.json()["error"]


@pytest.mark.parametrize("cut", [10, 60, 150, -3])
def test_a_multipart_request_that_is_cut_off_is_refused(client, cut):
    request = client.build_request("POST", "/v1/studies", files=files_of(FILES["gray"]))
    body = request.read()[:cut]
    headers = {"content-type": request.headers["content-type"]}
    answer = client.post("/v1/studies", content=body, headers=headers)
    assert answer.status_code == 400 and "damaged or cut off" in answer.json()["error"]


# batches, queue, time and limits


def test_concurrent_requests_share_steps_and_only_the_bad_ones_fail(client):
    images = [saved(textured(seed)) for seed in range(24)]
    alone = [client.post(PREDICT, json={"instances": [b64(data)]}).json()["predictions"][0]["logit"] for data in images]
    steps, pixels = counted(client, "kmura_batch_images_count"), counted(client, "kmura_batch_images_sum")

    def ask(place):
        data = b"broken" if place % 6 == 5 else images[place]
        return client.post(PREDICT, json={"instances": [b64(data)]})

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    for place, answer in enumerate(answers):
        if place % 6 == 5:
            assert answer.status_code == 400
        else:
            assert answer.json()["predictions"][0]["logit"] == pytest.approx(alone[place], abs=1e-5)
    assert counted(client, "kmura_batch_images_sum") - pixels == 20
    assert counted(client, "kmura_batch_images_count") - steps < 20
    assert counted(client, "kmura_queue_images") == counted(client, "kmura_held_bytes") == 0


@contextlib.contextmanager
def limited(engine, **limits):
    """Changes the limits of an engine in the block."""
    before, engine.limits = engine.limits, dataclasses.replace(engine.limits, **limits)
    try:
        yield
    finally:
        engine.limits = before


def test_a_full_queue_refuses_with_the_time_to_try_again(engine, client):
    with limited(engine, files=2, queue=2), engine_busy(engine, 1):
        answer = client.post("/v1/studies", files=files_of(FILES["gray"], FILES["gray"]))
        assert answer.status_code == 503 and 1 <= int(answer.headers["retry-after"]) <= 60
        assert client.post(PREDICT, json={"instances": [b64(FILES["gray"])] * 2}).status_code == 503
        assert client.post(PREDICT, json={"instances": [b64(FILES["gray"])]}).status_code == 200
    assert client.post("/v1/studies", files=files_of(FILES["gray"], FILES["gray"])).status_code == 200


@contextlib.contextmanager
def engine_busy(engine, number):
    engine._admitted += number
    try:
        yield
    finally:
        engine._admitted -= number


def test_a_request_that_takes_too_long_is_answered_with_504(engine, client, monkeypatch):
    async def slow(*_, **__):
        await asyncio.sleep(5)

    monkeypatch.setattr(engine, "outputs", slow)
    with limited(engine, timeout=0.3):
        answer = client.post("/v1/studies", files=files_of(FILES["gray"]))
    assert answer.status_code == 504 and "too long" in answer.json()["error"]
    assert counted(client, "kmura_queue_images") == 0


def test_a_body_that_arrives_too_slowly_is_answered_with_408(engine, client):
    async def sent():
        guard, answers = Guard(None, engine, token=None, hosts=None), []

        async def receive():
            await asyncio.sleep(0.1)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message):
            answers.append(message)

        await guard({"type": "http", "method": "POST", "path": PREDICT, "headers": []}, receive, send)
        return answers[0]["status"]

    with limited(engine, timeout=0.5):
        assert asyncio.run(sent()) == 408


def test_limits_of_body_pixels_and_files(engine, client):
    with limited(engine, body=1000):
        declared = client.post(PREDICT, content=b"x" * 1001)
        chunked = client.post(PREDICT, content=(b"x" * 100 for _ in range(11)))
        assert declared.status_code == chunked.status_code == 413
        assert client.post(PREDICT, content=(b"x" * 100 for _ in range(10))).status_code == 400
    with limited(engine, files=2):
        answer = client.post(PREDICT, json={"instances": [b64(FILES["gray"])] * 3})
        assert answer.status_code == 413 and "at most 2" in answer.json()["error"]
    for data in (declares(8000, 8000), dicom(Rows=8000, Columns=8000)):
        (image,) = client.post("/v1/studies", files=files_of(data, FILES["gray"])).json()["images"][:1]
        assert "more than 40,000,000" in image["error"]
    compressed = client.post(PREDICT, content=b"x", headers={"content-encoding": "gzip"})
    assert compressed.status_code == 415
    assert counted(client, "kmura_held_bytes") == 0


def test_bodies_of_all_requests_together_are_limited(engine, client):
    engine.hold(engine.limits.held)
    try:
        answer = client.post(PREDICT, content=b"x")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    finally:
        engine.hold(-engine.limits.held)
    assert client.post(PREDICT, content=b"x").status_code == 400


# decoders


def test_a_decoder_that_crashes_fails_its_image_and_is_replaced(engine, client):
    for child in list(engine._decoders._children):
        child.kill()
        child.wait()
    answer = client.post("/v1/studies", files=files_of(FILES["gray"], dicom()))
    assert answer.status_code == 200 and answer.json()["study"]["failed"] == 0


def test_a_decoder_that_hangs_is_ended_and_its_image_fails_alone(small_export):
    contract = read_signature(small_export / "1").contract
    pool = DecoderPool(workers=1, pixels=1_000_000, timeout=5)
    pool.start()
    (child,) = pool._children
    os.kill(child.pid, signal.SIGSTOP)
    pool._timeout = 0.2
    try:
        with pytest.raises(UnreadableImage, match="took too long"):
            asyncio.run(pool.decode(FILES["gray"], contract))
        pool._timeout = 30
        assert asyncio.run(pool.decode(FILES["gray"], contract)).ready.shape == (32, 32, 1)
    finally:
        pool.close()
    assert child.poll() is not None


def test_identifiers_of_dicom_files_never_leave_the_parser(client, caplog):
    secret = "DOE^JANE"
    tags = {"PatientName": secret, "PatientID": secret, "StudyDescription": secret, "AccessionNumber": secret}
    files = [
        dicom(**tags),
        dicom(kind=secret, **tags),
        dicom(**tags)[:-500],
        dicom(**tags).replace(b"MONOCHROME2", b"DOE^JANE...").replace(b"OW", secret[:2].encode(), 1),
        dicom(WindowCenter=None, VOILUTFunction=secret, **tags),
    ]
    caplog.set_level(logging.DEBUG)
    caplog.clear()  # pydicom's messages while the files were made
    for maps in ("0", "1"):
        answer = client.post("/v1/studies", files=files_of(*files), data={"maps": maps})
        assert "DOE" not in answer.text and "JANE" not in answer.text
    for data in files:
        assert "DOE" not in client.post(PREDICT, json={"instances": [b64(data)]}).text
    assert "DOE" not in caplog.text and "DOE" not in client.get("/metrics").text


def test_a_deflated_dicom_file_is_refused_before_it_is_inflated(client):
    pydicom = pytest.importorskip("pydicom")
    data = dicom()
    uid = pydicom.uid.DeflatedExplicitVRLittleEndian.encode()
    head = b"\x02\0\x10\0UI" + len(uid).to_bytes(2, "little") + uid
    bomb = bytes(128) + b"DICM" + head + zlib.compress(bytes(50 << 20), 9)[2:-4]
    answer = client.post("/v1/studies", files=files_of(bomb, data)).json()
    assert "deflated" in answer["images"][0]["error"] and answer["study"]["images"] == 1


def test_uploads_are_never_written_to_disk(client, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a temporary file")

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    large = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500)).astype(np.uint8)))
    assert len(large) > 2 << 20  # more than frameworks keep in memory by default
    answer = client.post("/v1/studies", files=files_of(large, tiff(RAMP)), data={"maps": "1"})
    assert answer.status_code == 200 and answer.json()["study"]["images"] == 2
