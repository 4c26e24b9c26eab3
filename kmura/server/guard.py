"""What every request passes before it reaches the application: who may ask, how much, and for how long."""

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kmura.server.engine import Engine
from kmura.server.limits import Overloaded

PUBLIC = frozenset({"/", "/page.css", "/page.js", "/v2/health/live", "/v2/health/ready"})  # without any data
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_ROUTES = (  # label of the counters -> paths
    ("predict", re.compile(r"/v1/models/[^/]*(?:/[^/]*/[^/]*)?:\w+", re.IGNORECASE)),
    ("studies", re.compile(r"/v1/studies")),
    ("models", re.compile(r"/v1/models.*", re.IGNORECASE)),
    ("health", re.compile(r"/v2/.*")),
    ("metrics", re.compile(r"/metrics")),
    ("page", re.compile(r"/|/page\.(?:css|js)")),
)
_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that is answered by the guard.

    Attributes:
        status, reason: of the answer, and of the counter.
        headers: of the answer.
    """

    def __init__(self, status: int, reason: str, text: str, headers: dict[str, str] | None = None):
        super().__init__(text)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Guard:
    """An ASGI application around another one.

    Refuses requests without the token, from other web sites, to unexpected host names and above the limits; reads the
    body into memory; adds headers to every answer; counts. Errors are logged by their type, because their texts could
    contain parts of an upload.
    """

    def __init__(self, app: ASGIApp, engine: Engine, *, token: str | None, hosts: frozenset[str] | None):
        """
        Args:
            app: the application.
            engine: limits and counters.
            token: that requests must present; None: none.
            hosts: host names that requests may address; None: any.
        """
        self._app, self._engine, self._hosts = app, engine, hosts
        self._digest = None if token is None else hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        start, status = time.perf_counter(), 0
        route = next((name for name, pattern in _ROUTES if pattern.fullmatch(scope["path"])), "other")

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        try:
            await self._passed(scope, receive, answered, lambda: status > 0)
        except Exception as error:
            _log.error("unexpected %s in a request of kind %s", type(error).__name__, route)
            if not status:
                text = {"error": f"internal error ({type(error).__name__})"}
                await JSONResponse(text, 500)(scope, receive, answered)
        finally:
            telemetry = self._engine.telemetry
            telemetry.requests.labels(route, str(status or "closed")).inc()
            telemetry.seconds.labels(route).observe(time.perf_counter() - start)

    async def _passed(self, scope: Scope, receive: Receive, send: Send, has_started: Callable[[], bool]) -> None:
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            self._engine.hold(size)
            held += size

        try:
            headers = Headers(scope=scope)
            self._check_origin(headers)
            self._check_token(headers, scope["path"])
            body = await self._body(headers, receive, hold) if scope["method"] == "POST" else b""
            async with asyncio.timeout(self._engine.limits.timeout):
                await self._app(scope, _replayed(body, receive), send)
        except Refused as refused:
            self._engine.telemetry.refused.labels(refused.reason).inc()
            await JSONResponse({"error": str(refused)}, refused.status, refused.headers)(scope, receive, send)
        except Overloaded as overloaded:
            await overloaded_response(overloaded)(scope, receive, send)
        except TimeoutError:
            self._engine.telemetry.refused.labels("timeout").inc()
            if has_started():  # the client takes the answer too slowly: returning closes the connection
                return
            await JSONResponse({"error": "the request took too long"}, 504)(scope, receive, send)
        except ConnectionError:
            return  # the client has gone
        finally:
            self._engine.hold(-held)

    def _check_origin(self, headers: Headers) -> None:
        """Refuses other web sites, whose scripts a browser lets send requests to this server."""
        host = headers.get("host", "")
        if self._hosts is not None and _hostname(host) not in self._hosts:
            raise Refused(421, "host", "this server does not answer to that host name")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "origin", "requests of other web sites are refused")

    def _check_token(self, headers: Headers, path: str) -> None:
        if self._digest is None or path in PUBLIC:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        right = hmac.compare_digest(digest, self._digest)  # takes the same time for every wrong token
        if kind.lower() != "bearer" or not right:
            text = "the request has no valid token; send the header Authorization: Bearer TOKEN"
            raise Refused(401, "token", text, {"www-authenticate": "Bearer"})

    async def _body(self, headers: Headers, receive: Receive, hold) -> bytes:
        limit = self._engine.limits.body
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "encoding", "compressed requests are not accepted; send the body as it is")
        declared = headers.get("content-length", "")
        if declared.isdigit() and (len(declared) > 15 or int(declared) > limit):
            raise Refused(413, "size", f"the request has {declared[:20]} bytes, at most {limit} are allowed")
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._engine.limits.timeout):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    part = message.get("body", b"")
                    if len(body) + len(part) > limit:
                        raise Refused(413, "size", f"the request has more than {limit} bytes")
                    hold(len(part))
                    body += part
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise Refused(408, "slow", "the request was not received in time") from error
        return bytes(body)


def overloaded_response(error: Overloaded) -> JSONResponse:
    """Returns the answer to a request for which the server has no room at the moment."""
    return JSONResponse({"error": str(error)}, 503, {"retry-after": str(error.retry_after)})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that yields the body that was read already."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
