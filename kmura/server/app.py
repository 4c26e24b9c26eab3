"""The routes of the server."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from markdown_it import MarkdownIt
from starlette.exceptions import HTTPException

from kmura.server import studies, tf_rest
from kmura.server.engine import Engine
from kmura.server.guard import Guard, overloaded_response
from kmura.server.limits import Overloaded
from kmura.server.telemetry import CONTENT_TYPE
from kmura.server.tensor_json import RequestError

_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
_log = logging.getLogger(__name__)


def application(engine: Engine, *, token: str | None, hosts: frozenset[str] | None, poll: float) -> Guard:
    """Returns the ASGI application.

    Args:
        engine: the models.
        token: that requests must present; None: none.
        hosts: host names that requests may address; None: any.
        poll: seconds between two looks for new versions; 0: never.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(engine, poll)) if poll else None
        yield
        engine.stopping = True
        if watching:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    # the pages of FastAPI that describe the interface load scripts from other hosts
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_page(app)
    _add_health(app, engine)
    _add_models(app, engine)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(Overloaded, _overloaded)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _failed)
    return Guard(app, engine, token=token, hosts=hosts)


def _add_page(app: FastAPI) -> None:
    folder = files("kmura.server") / "page"
    for path, (name, kind) in _PAGE.items():
        app.add_api_route(path, _constant((folder / name).read_bytes(), kind), methods=["GET"])


def _constant(content: bytes, kind: str):
    """Returns a route that always gives the same content."""

    async def route() -> Response:
        return Response(content, media_type=kind)

    return route


def _add_health(app: FastAPI, engine: Engine) -> None:
    """Adds the health checks of the Open Inference Protocol (KServe v2) and the counters."""

    @app.get("/v2/health/live")
    async def live() -> dict:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        return _readiness(not engine.stopping and all(versions.current for versions in engine.models.values()))

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        return _readiness(not engine.stopping and bool(tf_rest.loaded(engine, name)), name)

    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def version_ready(name: str, version: str) -> Response:
        model = tf_rest.loaded(engine, name)
        return _readiness(not engine.stopping and str(model.version) == version, name)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(engine.telemetry.text(), headers={"content-type": CONTENT_TYPE})


def _readiness(ready: bool, name: str | None = None) -> Response:
    content = {"ready": ready} if name is None else {"name": name, "ready": ready}
    return JSONResponse(content, 200 if ready else 503)


def _add_models(app: FastAPI, engine: Engine) -> None:
    @app.get("/v1/studies")
    async def describe() -> dict:
        return studies.described(engine)

    @app.post("/v1/studies")
    async def study(request: Request) -> Response:
        body = await request.body()
        content = await studies.answer(engine, body, request.headers.get("content-type", ""))
        return Response(await engine.parsed(_encoded, content), media_type="application/json")

    @app.get("/v1/models/{name}/card")
    async def card(name: str) -> Response:
        model = tf_rest.loaded(engine, name)
        if not model.card:
            raise RequestError("the export has no model card", 404)
        body = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image"]).render(model.card)
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f'<title>Model card</title><link rel="stylesheet" href="/page.css"><main class="card-text">{body}</main>'
        )
        return Response(page, media_type="text/html; charset=utf-8")

    @app.api_route("/{path:path}", methods=_METHODS)
    async def other(request: Request) -> Response:
        path = request.url.path
        if not path.lower().startswith("/v1/"):
            return JSONResponse({"error": "Not Found"}, 404)
        content = await tf_rest.answer(engine, request.method, path, await request.body())
        return Response(await engine.parsed(_encoded, content), media_type="application/json")


async def _refused(_: Request, error: RequestError) -> Response:
    return JSONResponse({"error": str(error)}, error.status)


async def _overloaded(_: Request, error: Overloaded) -> Response:
    return overloaded_response(error)


async def _not_found(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code)


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"internal error ({type(error).__name__})"}, 500)


def _encoded(content: dict) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def _watch(engine: Engine, poll: float) -> None:
    """Looks for new versions of all models until it is cancelled."""
    while True:
        await asyncio.sleep(poll)
        for versions in engine.models.values():
            try:
                await versions.update()
            except Exception as error:  # a folder that cannot be listed for a moment: the version in use goes on
                _log.warning("%s: looking for new versions failed (%s)", versions.name, type(error).__name__)
