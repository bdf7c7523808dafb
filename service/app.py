"""The gateway: `create_app()` builds it, `uvicorn service.app:create_app --factory` serves it.

Nothing happens at import. It imports no tensor library: what it needs of the engine are the
light modules (`engine.spec`, `engine.presets`, `engine.errors`).
"""

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from engine.presets import PRESETS, Preset
from service import logs, traces
from service.audit import Audit
from service.auth import Keys
from service.blobs import open_blobs
from service.deps import House, unguarded
from service.doorbell import Doorbell
from service.durable import Durability
from service.errors import LedgerDown, Problem, ServiceError, problem
from service.events import Events
from service.fleet import Fleet
from service.front import Front
from service.intake import Intake
from service.lately import Lately
from service.ledger import Ledger, connect
from service.limits import Limits
from service.links import Links
from service.metrics import Measured, Metrics
from service.openapi import describe
from service.outward import Outward
from service.refs import new_id
from service.room import Body, Room
from service.roster import Roster
from service.routes import (
    content,
    events,
    health,
    links,
    metrics,
    models,
    ops,
    sources,
    subjects,
    videos,
)
from service.settings import Settings
from service.subjects import Subjects
from service.turns import Turns

log = logging.getLogger(__name__)

STUDIO = Path(__file__).parent / "studio"
OPS = Path(__file__).parent / "ops"


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Settings come from the environment unless given. It does not start up over
    a Redis that could lose jobs (LedgerUnsafe).

    Raises:
        ValueError: a setting that cannot be.
    """
    if settings is None:  # this process is a gateway, not a test
        logs.set_up()
        traces.set_up("troupe-gateway")
        settings = Settings()
    preset = find_preset(settings.preset)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.house = house = open_house(settings, preset)
        with suppress(LedgerDown):  # /readyz says so, and it is asked again before a job is taken
            house.durable.require()
        house.events.leave_on_signals()
        _settle()
        yield
        await house.events.close()
        house.outward.close()
        house.intake.close()
        house.doorbell.close()
        await house.front.close()
        house.ledger.close()
        traces.flush()

    # /docs and /redoc with scripts of our own: a cluster without a way out would see blank pages.
    app = FastAPIOffline(title="Troupe", version="1", lifespan=lifespan, redirect_slashes=False)
    # Before a path with an id come those that it would match.
    for module in (subjects, sources, videos, content, links, events, models, health, metrics, ops):
        app.include_router(module.router)
    _show_pages(app)
    _handle_errors(app)
    describe(app)
    if open_to_all := unguarded(app):
        raise AssertionError(f"These routes ask for no scope and are not public: {open_to_all}")
    max_bytes = int(settings.max_body_mb * 1e6)
    app.state.room = Room(max_bytes)
    app.add_middleware(Envelope, max_bytes=max_bytes, room=app.state.room)
    app.state.metrics = Metrics()
    app.add_middleware(Measured, metrics=app.state.metrics)
    return app


def _settle() -> None:
    """Take what was imported out of the garbage collector's rounds, once for a process: every one
    of them held all requests up for 80 ms (`bench.load`)."""
    if gc.get_freeze_count() == 0:
        gc.collect()
        gc.freeze()


def find_preset(name: str) -> Preset:
    """Raises ValueError with the names there are."""
    if name not in PRESETS:
        raise ValueError(f"TROUPE_PRESET={name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]


def open_house(settings: Settings, preset: Preset) -> House:
    """The clients."""
    client, blobs = connect(settings), open_blobs(settings)
    return House(
        ledger=Ledger(client, settings),
        front=Front(settings),
        durable=Durability(client, settings),
        roster=Roster(client, settings),
        blobs=blobs,
        store=Lately(blobs.check),
        doorbell=Doorbell(settings),
        intake=Intake(settings),
        turns=Turns(),
        events=Events(settings),
        outward=Outward(settings.fetch_hosts, int(settings.max_picture_mb * 1e6)),
        keys=Keys(client, settings, required=settings.auth == "keys"),
        limits=Limits(client, settings),
        links=Links(client, settings),
        audit=Audit(client, settings),
        subjects=Subjects(client, settings),
        fleet=Fleet(client, settings),
        preset=preset,
    )


def _show_pages(app: FastAPI) -> None:
    """The web pages, where they are installed."""
    if not (STUDIO / "index.html").is_file():
        return
    app.mount("/ops", StaticFiles(directory=OPS, html=True), name="ops")
    app.mount("/studio", StaticFiles(directory=STUDIO, html=True), name="studio")

    @app.get("/ops", include_in_schema=False)
    async def ops_page() -> RedirectResponse:
        return RedirectResponse("/ops/")

    @app.get("/", include_in_schema=False)
    async def home() -> RedirectResponse:
        return RedirectResponse("/studio/")


def _answer(request: Request, found: Problem) -> JSONResponse:
    return JSONResponse(found.body, found.status, headers=found.headers)


def _handle_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    @app.exception_handler(ServiceError)
    async def ours(request: Request, error: ServiceError) -> JSONResponse:
        return _answer(request, problem(error))

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        found = Problem(400, f"{name}: {first['msg']}.", name, "invalid_value")
        return _answer(request, found)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return _answer(request, Problem(error.status_code, str(error.detail), None, code))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        return _answer(request, Problem(400, "The body ended early.", None, "bad_request"))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        log.error("unhandled %s on %s", type(error).__name__, request.url.path, exc_info=error)
        message = "An error of ours; the log has it under this request id."
        answer = _answer(request, Problem(500, message, None, "internal_error"))
        # The framework sends this one from outside the Envelope.
        answer.headers["x-request-id"] = request.state.request_id
        return answer


class Envelope:
    """Around every request: an id, the body's limit, and headers that every answer carries."""

    def __init__(self, app: ASGIApp, max_bytes: int, room: Room) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        body = state["body"] = Body(self._room, scope, self._max_bytes)

        async def counted() -> Message:
            return await body.next(receive)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            with bound_contextvars(request_id=request_id):  # in this request's log lines
                await self._app(scope, counted, marked)
        finally:
            await body.leave()
