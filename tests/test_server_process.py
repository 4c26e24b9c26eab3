"""`kmura serve` as a process: README's client, SIGTERM, slow and wrong clients, TLS, versions under load."""

import base64
import concurrent.futures
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from serving_process import serving
from test_export_pixels import FILES, saved, smooth

pytestmark = pytest.mark.slow
pytest.importorskip("fastapi")


def asked(url, body=None, headers=None, context=None):
    """Returns status and JSON of an answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    data = None if body is None else json.dumps(body).encode()
    try:
        with opener.open(urllib.request.Request(url, data, headers or {}), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def instances(*files: bytes) -> dict:
    return {"instances": [{"b64": base64.b64encode(data).decode()} for data in files]}


@pytest.fixture(scope="module")
def server(small_export, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "stderr.txt"
    with serving(small_export, "--timeout", "10", log=log) as (process, url):
        yield process, url, log


def test_the_client_of_the_serving_guide_works_unchanged(server, small_export, monkeypatch, capsys, tmp_path):
    from kmura.prediction.predict import predict

    (tmp_path / "image.png").write_bytes(FILES["gray"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    guide = Path(__file__).parents[1] / "docs" / "serving.md"
    blocks = re.findall("```python\n(.*?)```", guide.read_text(), re.DOTALL)
    (client,) = (block for block in blocks if "localhost:8501" in block)
    exec(client.replace("http://localhost:8501/", server[1]), {})
    row, study = capsys.readouterr().out.splitlines()
    (expected,) = predict(small_export, tmp_path / "image.png").images.to_dict("records")
    for name in ("logit", "probability"):
        assert float(re.search(rf"'{name}': ([-\d.e]+)", row)[1]) == pytest.approx(expected[name], abs=1e-5)
    assert f"'decision': '{expected['decision']}'" in row
    assert float(study.strip("[]")) == pytest.approx(expected["probability"], abs=1e-5)


def raw(url, data: bytes, *, pause=0.0, wait=30.0) -> bytes:
    """Sends bytes to the server, one by one if there is a pause, and returns what comes back until it closes."""
    port = int(re.search(r":(\d+)/", url)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        try:
            for place in range(0, len(data), 1 if pause else max(1, len(data))):
                connection.sendall(data[place : place + 1] if pause else data)
                time.sleep(pause)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # the server has closed the connection
            pass
        received = b""
        try:
            while part := connection.recv(1 << 16):
                received += part
        except OSError:
            pass
        return received


def test_malformed_requests_are_answered_with_4xx_or_closed_and_the_next_good_one_is_right(server):
    _, url, log = server
    good = instances(FILES["gray"])
    (before,) = asked(f"{url}v1/models/wrist:predict", good)[1]["predictions"]
    rng = np.random.default_rng(0)
    head = b"POST /v1/models/wrist:predict HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    requests = [
        rng.bytes(500),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        head + b"X-Header: " + b"y" * 100_000 + b"\r\n\r\n",
        head + b"\r\n".join(b"X-%d: y" % place for place in range(5000)) + b"\r\n\r\n",
        head + b"Content-Length: -1\r\n\r\n",
        head + b"Content-Length: 99999999999999999999\r\n\r\n",
        head + b"Content-Length: 100\r\n\r\n{",
        head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
        head + b"Content-Length: 5\r\n\r\n\xff\xfe\xfd\xfc\xfb",
        *(head + b"Content-Length: 300\r\n\r\n" + rng.bytes(300) for _ in range(20)),
    ]  # fmt: skip
    for request in requests:
        answer = raw(url, request)
        assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d ", answer), (request[:80], answer[:200])
    (after,) = asked(f"{url}v1/models/wrist:predict", good)[1]["predictions"]
    assert after["logit"] == pytest.approx(before["logit"], abs=1e-5) and after["decision"] == before["decision"]
    assert "Traceback" not in log.read_text()


def test_connections_that_send_their_headers_too_slowly_are_closed(server, monkeypatch):
    start = time.monotonic()
    assert raw(server[1], b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"x" * 60, pause=0.5, wait=60) == b""
    assert time.monotonic() - start < 45


def test_sigterm_answers_the_requests_in_progress_and_ends_with_success(small_export, tmp_path):
    images = [saved(smooth(60, 50 + place)) for place in range(30)]
    with serving(small_export, "--batch-size", "1", "--poll", "0", log=tmp_path / "log") as (process, url):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(asked, f"{url}v1/models/wrist:predict", instances(*images)) for _ in range(4)]
            time.sleep(0.4)  # they have been received and are being worked on
            process.send_signal(signal.SIGTERM)
            answers = [future.result() for future in waiting]
        assert process.wait(30) == 0
    assert [status for status, _ in answers] == [200] * 4
    assert all(len(answer["predictions"]) == 30 for _, answer in answers)
    assert (tmp_path / "log").read_text() == ""
    with pytest.raises(urllib.error.URLError):
        asked(f"{url}v2/health/live")


def test_a_version_switch_under_load_fails_no_request(small_export, tmp_path):
    out = tmp_path / "wrist"
    shutil.copytree(small_export, out)
    with serving(out, "--poll", "0.5", log=tmp_path / "log") as (_, url):
        stop, answers = threading.Event(), []

        def ask():
            while not stop.is_set():
                answers.append(asked(f"{url}v1/models/wrist:predict", instances(FILES["gray"])))

        def current():
            return {
                item["version"]: item["state"] for item in asked(f"{url}v1/models/wrist")[1]["model_version_status"]
            }

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            running = [pool.submit(ask) for _ in range(3)]
            shutil.copytree(out / "1", tmp_path / "next")
            (tmp_path / "next").rename(out / "2")
            deadline = time.monotonic() + 300
            while current().get("2") != "AVAILABLE" and time.monotonic() < deadline:
                time.sleep(0.5)
            switched = current()
            shutil.copytree(out / "1", tmp_path / "broken")
            (tmp_path / "broken" / "saved_model.pb").write_bytes(b"nonsense")
            (tmp_path / "broken").rename(out / "3")
            while current().get("3") != "END" and time.monotonic() < deadline + 300:
                time.sleep(0.5)
            stop.set()
            for future in running:
                future.result()
        assert switched == {"2": "AVAILABLE"} and current() == {"3": "END", "2": "AVAILABLE"}
    assert len(answers) > 20 and {status for status, _ in answers} == {200}
    logits = [answer["predictions"][0]["logit"] for _, answer in answers]
    assert logits == pytest.approx([logits[0]] * len(logits), abs=1e-5)
    log = (tmp_path / "log").read_text()
    assert "version 2 replaces version 1" in log and "version 3 is refused" in log


def test_tls_and_token(small_export, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    command = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    subprocess.run(["openssl", *command.split(), *files], check=True, capture_output=True)
    (tmp_path / "token").write_text("t" * 32)
    options = ["--tls-certificate", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem"]
    with serving(small_export, *options, "--token-file", tmp_path / "token") as (_, url):
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        assert asked(f"{url}v1/models/wrist", context=context)[0] == 401
        right = {"Authorization": f"Bearer {'t' * 32}"}
        assert asked(f"{url}v1/models/wrist", headers=right, context=context)[0] == 200
