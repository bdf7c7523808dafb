"""Errors of the service, and the one place that knows which HTTP status each becomes.

    ServiceError
    ├── RequestError      the client sent something that cannot be taken: 400, or 413, 415
    ├── NotFound          no such video: 404
    ├── NotReady          exists, but not yet, or no more: 409
    ├── QueueFull         503, come back later
    ├── LedgerDown        Redis does not answer: 503
    └── BlobError         the store does not answer: 503
        ├── BlobMissing   an object that should be there is not: 404
        └── BlobFull      no room: 507

Every body has OpenAI's shape: {"error": {"message", "type", "param", "code"}}, and every answer
carries x-request-id.
"""

from dataclasses import dataclass
from typing import ClassVar


class ServiceError(Exception):
    """Base of all: a message for a person."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"


class RequestError(ServiceError):
    """A request refused. `param` names the field, `message` says what would be right."""

    def __init__(
        self, message: str, param: str | None = None, code: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.param = param
        self.reason = code
        self.http_status = status


class NotFound(ServiceError):
    """No such thing, or not yours."""

    status = 404
    code = "not_found"


class NotReady(ServiceError):
    """The video exists, its content does not (yet)."""

    status = 409
    code = "video_not_ready"


class QueueFull(ServiceError):
    """The queue holds as many jobs as the operator allows."""

    status = 503
    code = "queue_full"


class LedgerDown(ServiceError):
    """Redis cannot be reached, or does not answer in time."""

    status = 503
    code = "ledger_unavailable"


class BlobError(ServiceError):
    """The store of pictures and videos refused or did not answer."""

    status = 503
    code = "storage_unavailable"


class BlobMissing(BlobError):
    """An object is not there."""

    status = 404
    code = "not_found"


class BlobFull(BlobError):
    """The store has no room left."""

    status = 507
    code = "storage_full"


@dataclass(frozen=True)
class Problem:
    """An error as the wire carries it."""

    status: int
    message: str
    param: str | None
    code: str

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """When to come back; and that a 409 is not worth a retry by the SDK."""
        if self.status in {503, 507}:
            return {"retry-after": "2"}
        return {"x-should-retry": "false"} if self.status == 409 else {}


def problem(error: ServiceError) -> Problem:
    """The border crossing."""
    if isinstance(error, RequestError):
        return Problem(error.http_status, str(error), error.param, error.reason)
    return Problem(error.status, str(error), None, error.code)
