"""Who may ask the server, what its answers tell browsers, and how it is started."""

import asyncio
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from command import kmura_main
from test_imports import MODULES, imports_of, module_of, package_of

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from kmura.errors import InputError
from kmura.server.app import application
from kmura.server.batching import Batcher
from kmura.server.engine import Engine
from kmura.server.guard import PUBLIC
from kmura.server.limits import Limits
from kmura.server.serve import Address, checked_token, named_exports, serve

TOKEN = "0123456789abcdef0123456789abcdef"
PATHS = (
    "/v1/studies",
    "/v1/models/wrist",
    "/v1/models/wrist/card",
    "/v1/models/wrist/metadata",
    "/metrics",
    "/v2/models/wrist/ready",
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An engine whose model is not loaded, which the guard does not need."""
    engine = Engine({"wrist": tmp_path_factory.mktemp("empty")}, Limits())
    yield engine
    engine.close()


def client_of(engine, token=None, hosts=None, url="http://127.0.0.1:8501"):
    app = application(engine, token=token, hosts=hosts, poll=0)
    return TestClient(app, base_url=url, raise_server_exceptions=False)


def test_only_requests_with_the_token_reach_data(engine):
    client = client_of(engine, TOKEN)
    for headers in ({}, {"authorization": f"Bearer {TOKEN[:-1]}"}, {"authorization": f"Basic {TOKEN}"},
                    {"authorization": "Bearer"}, {"authorization": "Bearer \xe9".encode("latin-1")}):  # fmt: skip
        for path in PATHS:
            answer = client.get(path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert client.post("/v1/models/wrist:predict", content=b"{}", headers=headers).status_code == 401
    right = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/studies", headers=right).status_code == 200
    assert client.post("/v1/models/wrist:predict", content=b"{}", headers=right).status_code == 404
    assert {path: client.get(path).status_code for path in sorted(PUBLIC)} == {
        path: 503 if path.endswith("ready") else 200 for path in PUBLIC
    }


def test_the_token_is_compared_in_constant_time(engine, monkeypatch):
    import hmac

    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    client = client_of(engine, TOKEN)
    for token in ("", "x", TOKEN, TOKEN * 9):
        client.get("/metrics", headers={"authorization": f"Bearer {token}"})
    assert compared == [(32, 32)] * 4  # digests of one length, whatever was sent


def test_other_web_sites_and_other_host_names_are_refused(engine):
    client = client_of(engine, hosts=frozenset({"localhost", "127.0.0.1"}))
    assert client.get("/v1/studies").status_code == 200
    assert client.get("/v1/studies", headers={"host": "LOCALHOST:1"}).status_code == 200
    for host in ("evil.example", "evil.example:8501", "127.0.0.1.evil.example", "", "[::1", "[::2]:8501"):
        assert client.get("/v1/studies", headers={"host": host}).status_code == 421, host
    assert client.get("/v1/studies", headers={"origin": "http://127.0.0.1:8501"}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", ""):
        assert client.get("/v1/studies", headers={"origin": origin}).status_code == 403, origin
        assert client.post("/v1/studies", headers={"origin": origin}, files={"f": b""}).status_code == 403


def test_answers_tell_browsers_to_load_nothing_from_elsewhere_and_to_share_nothing(engine):
    client = client_of(engine)
    for path in ("/", "/page.js", "/v1/studies", "/v1/foo", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "http" not in policy and "unsafe" not in policy
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert not [name for name in headers if name.startswith("access-control")]
    preflight = client.options("/v1/studies", headers={"access-control-request-method": "POST"})
    assert preflight.status_code >= 400 and "access-control-allow-origin" not in preflight.headers
    for path in (
        "/docs",
        "/redoc",
        "/openapi.json",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page/page.html",
    ):
        assert client.get(path).status_code == 404, path


def test_the_page_refers_to_no_other_host(engine):
    client = client_of(engine)
    for path in ("/", "/page.css", "/page.js"):
        text = client.get(path).text
        assert "http:" not in text and "https:" not in text and "//cdn" not in text and "@import" not in text
    assert "style=" not in client.get("/").text and "onclick" not in client.get("/").text  # the policy forbids them


def test_a_failure_is_logged_by_its_type_only(engine, monkeypatch, caplog):
    from kmura.server import studies

    def broken(_):
        raise KeyError("DOE^JANE")

    monkeypatch.setattr(studies, "described", broken)
    answer = client_of(engine).get("/v1/studies")
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error (KeyError)"})
    assert "unexpected KeyError in a request of kind studies" in caplog.text and "DOE" not in caplog.text


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address(host="0.0.0.0"), "can be reached from other machines; give --token-file"),
        (Address(host="::"), "can be reached from other machines"),
        (Address(host="192.0.2.1"), "can be reached from other machines"),
        (Address(host="example.org"), "can be reached from other machines"),
        (Address(token_file="short"), "at least 16 printable"),
        (Address(token_file="spaces"), "at least 16 printable"),
        (Address(token_file="missing"), "missing cannot be read"),
        (Address(token_file="good", no_auth=True), "contradict"),
        (Address(certificate="a.pem"), "give both --tls-certificate and --tls-key"),
    ],
)
def test_other_machines_are_served_only_with_a_token_or_on_request(tmp_path, monkeypatch, address, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("abc\n")
    (tmp_path / "spaces").write_text("a b " * 10)
    (tmp_path / "good").write_text(f"{TOKEN}\n")
    with pytest.raises(InputError, match=text):
        checked_token(address)
    assert checked_token(Address(host="0.0.0.0", token_file="good")) == TOKEN
    for free in (Address(), Address(host="localhost"), Address(host="::1"), Address(host="0.0.0.0", no_auth=True)):
        assert checked_token(free) is None


def test_models_are_named_after_their_folders(tmp_path):
    one, two = tmp_path / "wrist", tmp_path / "hand" / "2"
    assert list(named_exports([one, two])) == ["wrist", "hand"]
    assert named_exports([one, two], ["a", "b"]) == {"a": one, "b": two}
    for exports, names, text in (
        ([], (), "no export is given"),
        ([one], ("a", "b"), "2 names are given for 1 exports"),
        ([one, tmp_path / "x" / "wrist"], (), "have the same name wrist"),
        ([one], ("a/b",), "may only have letters, digits"),
    ):
        with pytest.raises(InputError, match=text):
            named_exports(exports, names)


def test_what_cannot_be_served_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "scans" / "1").mkdir(parents=True)
    (tmp_path / "scans" / "1" / "signature.json").write_text('{"export_version": 1, "kind": "segmentation"}')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, text in (
            (["empty"], "is not an export of kmura"),
            (["nowhere"], "is not a folder"),
            (["scans"], "is an export of a segmentation"),
            (["empty", "--host", "0.0.0.0"], "give --token-file"),
            (["empty", "--host", "no.such.host.invalid", "--no-auth"], "is unknown"),
            (["empty", "--port", str(taken.getsockname()[1])], "cannot be used: Address already in use"),
            (["empty", "--max-files", "200"], "give a queue of at least 200"),
        ):  # fmt: skip
            monkeypatch.chdir(tmp_path)
            code, _, err = kmura_main(monkeypatch, capsys, "serve", *arguments)
            assert code == 2 and text in err and err.count("\n") == 1, arguments


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    with pytest.raises(InputError, match=r"kmura serve needs uvicorn; run pip install '\.\[serve\]'"):
        serve([tmp_path])


def test_nothing_of_the_extra_is_imported_otherwise():
    packages = {"fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart", "markdown_it"}
    for path in MODULES:
        imported = imports_of(path)
        if package_of(module_of(path)) != "server":
            assert not packages & {name.partition(".")[0] for name in imported}, path
            assert path.name == "serve_command.py" or not any(name.startswith("kmura.server") for name in imported)
    code = (
        f"import sys, kmura.cli.main; assert not ({packages} | {{'tensorflow'}}) & set(sys.modules) - {{'markdown_it'}}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# micro-batches


def batched(run, requests, *, size=4, wait=0.05, delay=0.0):
    """Returns results of requests that start `delay` seconds apart, and the sizes of the steps."""
    sizes = []

    def recorded(images):
        sizes.append(len(images))
        return run(images)

    async def go():
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(recorded, pool, size=size, wait=wait)

            async def one(place, images):
                await asyncio.sleep(place * delay)
                return await batcher.outputs(images)

            return await asyncio.gather(*(one(place, images) for place, images in enumerate(requests)))

    return asyncio.run(go()), sizes


def test_images_of_concurrent_requests_share_steps_of_at_most_the_batch_size():
    results, sizes = batched(lambda images: {"twice": 2 * images}, [[1, 2], [3], [4, 5, 6]])
    assert [[int(output["twice"]) for output in outputs] for outputs in results] == [[2, 4], [6], [8, 10, 12]]
    assert sizes == [4, 2]


def test_an_image_waits_no_longer_than_allowed():
    start = time.perf_counter()
    _, sizes = batched(lambda images: {"x": images}, [[1], [2]], wait=0.05, delay=0.3)
    assert sizes == [1, 1] and time.perf_counter() - start < 2
    assert batched(lambda images: {"x": images}, [[1], [2]], wait=0.5, delay=0.05)[1] == [2]


def test_a_step_starts_as_soon_as_the_batch_is_full():
    start = time.perf_counter()
    assert batched(lambda images: {"x": images}, [[1, 2], [3, 4]], wait=30)[1] == [4]
    assert time.perf_counter() - start < 5


def test_an_image_that_the_model_refuses_fails_alone():
    def run(images):
        if 3 in images:
            raise InputError("three")
        return {"x": images}

    ((one,), (two, three)), sizes = batched(run, [[1], [2, 3]])
    assert (int(one["x"]), int(two["x"]), str(three)) == (1, 2, "three") and sizes == [3, 1, 1, 1]


def test_a_failure_of_the_model_reaches_every_request_of_its_batch_and_no_other():
    calls = []

    async def go():
        def run(images):
            calls.append(len(images))
            if len(calls) == 1:
                raise MemoryError("secret")
            return {"x": images}

        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(run, pool, size=4, wait=0.01)
            failed = await asyncio.gather(batcher.outputs([1]), batcher.outputs([2]), return_exceptions=True)
            return failed, await batcher.outputs([3])

    failed, (later,) = asyncio.run(go())
    assert [str(error) for error in failed] == ["the model failed (MemoryError)"] * 2 and int(later["x"]) == 3


def test_images_of_requests_that_were_given_up_take_no_step():
    async def go():
        sizes, busy = [], threading.Event()

        def run(images):
            sizes.append(len(images))
            busy.wait(5)
            return {"x": images}

        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(run, pool, size=2, wait=0)
            first = asyncio.create_task(batcher.outputs([1]))
            await asyncio.sleep(0.05)
            given_up, kept = asyncio.create_task(batcher.outputs([2])), asyncio.create_task(batcher.outputs([3]))
            await asyncio.sleep(0.05)
            given_up.cancel()
            busy.set()
            await asyncio.gather(first, kept)
        return sizes

    assert asyncio.run(go()) == [1, 1]


# versions


@pytest.mark.slow
def test_a_new_version_replaces_the_old_one_and_a_broken_one_is_refused(small_export, tmp_path, caplog):
    from kmura.export import golden

    out = tmp_path / "wrist"
    shutil.copytree(small_export, out)
    engine = Engine({"wrist": out}, Limits())
    (versions,) = engine.models.values()
    loads = []
    load = golden.load_checked

    async def update():
        return await versions.update()

    try:
        versions.load_first()
        first = versions.current
        assert first.version == 1 and not asyncio.run(update())
        (out / "2").mkdir()  # being copied: no signature yet
        assert not asyncio.run(update()) and versions.refused == {}
        shutil.copytree(small_export / "1", out / "2", dirs_exist_ok=True)
        variables = out / "2" / "variables" / "variables.data-00000-of-00001"
        whole = variables.read_bytes()
        variables.write_bytes(whole[:-1])
        assert not asyncio.run(update()) and versions.current is first
        assert "has changed since the export" in versions.refused[2]
        assert "version 2 is refused" in caplog.text and "version 1 stays in use" in caplog.text
        (status,) = client_of(engine).get("/v1/models/wrist/versions/2").json()["model_version_status"]
        assert (status["state"], status["status"]["error_code"]) == ("END", "FAILED_PRECONDITION")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("kmura.server.served_versions.load_checked", lambda *_: loads.append(1) or load(*_))
            assert not asyncio.run(update()) and loads == []  # not tried again while its files stay as they are
            variables.write_bytes(whole)
            assert asyncio.run(update()) and loads == [1]
        assert versions.current.version == 2 and versions.refused == {}
        assert client_of(engine).get("/v2/models/wrist/versions/2/ready").status_code == 200
        assert client_of(engine).get("/v2/models/wrist/versions/1/ready").status_code == 503
        shutil.rmtree(out / "2")
        assert asyncio.run(update()) and versions.current.version == 1
    finally:
        engine.close()


def test_a_version_whose_predictions_differ_from_its_golden_ones_is_refused(small_export, tmp_path, monkeypatch):
    import numpy as np

    from kmura.export import golden
    from kmura.export.golden import load_checked

    shutil.copytree(small_export / "1", tmp_path / "1")
    with np.load(tmp_path / "1" / "golden.npz") as arrays:
        changed = dict(arrays)
    changed["tensor/out/logit"] = changed["tensor/out/logit"] + 0.01
    np.savez_compressed(tmp_path / "1" / "golden.npz", **changed)
    monkeypatch.setattr(golden, "changed_files", lambda *_: [])
    with pytest.raises(InputError, match="signature tensor differs by .* from its golden outputs"):
        load_checked(tmp_path / "1")
