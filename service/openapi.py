"""The interface as a document that tells the truth: every status that a route can answer with.

FastAPI documents what succeeds, and a 422 of a shape that we never send. Here each operation gets
the errors that its kind can have, all in the one shape of `service.errors`.
"""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

MEANS = {
    400: "A field is missing, unknown, or cannot be what it says; `param` names it",
    401: "No key, or none that counts",
    403: "The key may not do this",
    404: "No such thing, or not yours",
    408: "The body came too slowly",
    409: "Not in this state, or not yet",
    413: "Body or picture too large",
    415: "Neither multipart/form-data nor application/json",
    416: "The range begins behind the end",
    422: "The Idempotency-Key came with another request before",
    429: "More than your tenant may; `retry-after` says when to come back",
    500: "An error of ours; the log has it under `x-request-id`",
    503: "Redis or the store does not answer, or the queue is full; `retry-after` is set",
    504: "Not finished in time; it goes on, and `location` is where to ask",
    507: "The store is full",
}
OPEN = {"/healthz", "/readyz"}  # no key is asked for
SIGNED = {"/v1/links/{tenant}/{video_id}/{variant}"}  # the address itself is the key
BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key; only where keys are required.",
}
ALWAYS = {400, 500, 503}
KEYED = {401, 403}
WITH_BODY = {408, 413, 415, 422, 429, 507}
OF_CONTENT = {409, 416}
OF_SOURCES = {404, 409}  # of requests that name another video

OF_FILES = {206: "The range that was asked for", 304: "What If-None-Match names"}
# What else the last part of a path can answer with.
ALSO = {
    "content": OF_FILES,
    "{variant}": OF_FILES,
    "events": {204: "All events were seen: the job has ended"},
    "readyz": {503: "Not ready; the reasons are in the body"},
}

ABOUT = (
    "A prompt and photos of several subjects become a video in which each of them stays who they"
    " are. `POST /v1/videos`, then ask for the video until its `status` is `completed`, or listen"
    " to its events; then fetch its content. What lies under `/v1/videos` is OpenAI's Videos API."
)
TAGS = {  # in the order in which they are shown
    "videos": "Ask for a video, ask how far it is, list, cancel and delete.",
    "subjects": "Somebody's photos, kept under an id that requests may name.",
    "content": "The finished video, its thumbnail and its contact sheet.",
    "events": "A job's progress as server-sent events.",
    "models": "What is served.",
    "health": "Whether this service can work.",
    "ops": "For who runs it: queue, workers, weights, webhooks, books.",
}

ERROR = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def describe(app: FastAPI) -> None:
    """Have the application's document made here, once, when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, description=ABOUT, routes=app.routes,
                tags=[{"name": name, "description": about} for name, about in TAGS.items()],
            )  # fmt: skip
            app.openapi_schema = complete(made)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every error; definitions that a body brought along are where links look."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Error"] = ERROR
    document["components"]["securitySchemes"] = {"HTTPBearer": BEARER}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _hoist(operation.get("requestBody", {}), schemas)
            if path not in OPEN | SIGNED:
                operation["security"] = [{"HTTPBearer": []}]
            responses = operation["responses"]
            responses.pop("422", None)
            for status in sorted(errors_of(path, operation)):
                responses.setdefault(str(status), _error(status))
            for status, meaning in ALSO.get(path.rpartition("/")[2], {}).items():
                responses[str(status)] = {"description": meaning}
    return document


def errors_of(path: str, operation: dict[str, Any]) -> set[int]:
    """The statuses of errors that an operation can answer with."""
    found = set(ALWAYS)
    if path not in OPEN:
        found |= KEYED
    if "{" in path:
        found.add(404)
    if path in {"/v1/videos", "/v1/subjects"}:
        found.add(404)  # `after` names none of yours
    if path.endswith(("/edits", "/extensions", "/remix")):
        found |= OF_SOURCES
    if path.endswith("/sync"):
        found |= {404, 504}
    if "requestBody" in operation:
        found |= WITH_BODY
    if path.endswith(("/content", "/references/{name}", "/url", "/{variant}")):
        found |= OF_CONTENT
    return found


def _hoist(body: dict[str, Any], schemas: dict[str, Any]) -> None:
    """A body's own definitions become the document's, and its links lead there."""
    for media in body.get("content", {}).values():
        text = json.dumps(media.get("schema", {}))
        schema = json.loads(text.replace("#/$defs/", "#/components/schemas/"))
        for name, definition in schema.pop("$defs", {}).items():
            schemas.setdefault(name, definition)
        media["schema"] = schema


def _error(status: int) -> dict[str, Any]:
    link = {"schema": {"$ref": "#/components/schemas/Error"}}
    return {"description": MEANS[status], "content": {"application/json": link}}
