"""Errors of the service, and the one place that knows which HTTP status each becomes.

    ServiceError
    ├── RequestError      the client sent something that cannot be taken: 400, or 413, 415
    ├── AddressError      an address given by a client is refused, or does not answer: 400
    ├── Unauthenticated   no API key, or none that counts: 401
    ├── Forbidden         the key has not the scope: 403
    ├── RateLimited       too many requests a minute: 429, with the time to wait
    │   └── QuotaExceeded too many GPU-seconds an hour: 429
    ├── NotFound          no such video: 404
    ├── NotReady          exists, but not yet, or no more: 409
    ├── VideoFailed       it was waited for, and failed: 500
    ├── StillRunning      it was waited for long enough: 504
    ├── IdempotencyConflict   a key used for another request: 422
    ├── QueueFull         503, come back later
    ├── LedgerUnsafe      Redis could lose what it accepts: 503, and the gateway does not start
    ├── LedgerDown        Redis does not answer: 503
    └── BlobError         the store does not answer: 503
        ├── BlobMissing   an object that should be there is not: 404
        └── BlobFull      no room: 507

Every body has OpenAI's shape: {"error": {"message", "type", "param", "code"}}, and every answer
carries x-request-id.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

# A client's own retries wait at most so long (openai SDK: `_calculate_retry_timeout`).
PATIENCE_S = 60


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


class AddressError(ServiceError):
    """A client's address: may not be connected to, or failed. The message follows its name."""

    status = 400
    code = "address_refused"


class Unauthenticated(ServiceError):
    """Nobody knows who is calling."""

    status = 401
    code = "invalid_api_key"


class Forbidden(ServiceError):
    """The caller is known and may not do this."""

    status = 403
    code = "insufficient_scope"


class RateLimited(ServiceError):
    """Too much at once. `wait_s`: after so many seconds the same request would be taken.

    `standing`: headers that tell the limits and what is left of them.
    """

    status = 429
    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, wait_s: float, standing: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.standing = standing or {}

    @property
    def headers(self) -> dict[str, str]:
        """When to come back; and not to try by oneself where that is far away."""
        seconds = max(1, math.ceil(self.wait_s))
        far = {"x-should-retry": "false"} if seconds > PATIENCE_S else {}
        return {"retry-after": str(seconds), **far, **self.standing}


class QuotaExceeded(RateLimited):
    """The tenant's GPU-seconds of this hour are spent or reserved."""

    code = "quota_exceeded"


class NotFound(ServiceError):
    """No such thing, or not yours."""

    status = 404
    code = "not_found"


class NotReady(ServiceError):
    """The video exists, its content does not (yet)."""

    status = 409
    code = "video_not_ready"


class VideoFailed(ServiceError):
    """The video that a request waited for failed; asked again, so would that."""

    status = 500
    code = "video_failed"

    def __init__(self, message: str, video_id: str) -> None:
        super().__init__(message)
        self.video_id = video_id

    @property
    def headers(self) -> dict[str, str]:
        """Where it can be asked for, and that the request must not simply be sent again."""
        where = {"location": f"/v1/videos/{self.video_id}", "x-video-id": self.video_id}
        return {"x-should-retry": "false", **where}


class StillRunning(VideoFailed):
    """The video that a request waited for is not finished; it goes on."""

    status = 504
    code = "video_not_ready"


class IdempotencyConflict(ServiceError):
    """An idempotency key comes with another request than before."""

    status = 422
    code = "idempotency_conflict"


class LedgerUnsafe(ServiceError):
    """Redis is set up so that it could lose accepted jobs; the message has the line to change."""

    status = 503
    code = "ledger_unsafe"


class QueueFull(ServiceError):
    """The queue holds as many jobs as the operator allows."""

    status = 503
    code = "queue_full"


class Busy(ServiceError):
    """This process has as much in hand as it can hold."""

    status = 503
    code = "busy"


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
    extra: Mapping[str, str] = field(default_factory=dict)

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
        """When to come back, how to log in, and that a 409 is not worth a retry by the SDK."""
        usual = {
            401: {"www-authenticate": "Bearer"},
            409: {"x-should-retry": "false"},
            503: {"retry-after": "2"},
            507: {"retry-after": "2"},
        }
        return {**usual.get(self.status, {}), **self.extra}


def problem(error: ServiceError) -> Problem:
    """The border crossing. What a client called its field may be as long as it likes."""
    if isinstance(error, RequestError):
        param = error.param and error.param[:100]
        return Problem(error.http_status, f"{error!s:.500}", param, error.reason)
    if isinstance(error, RateLimited | VideoFailed):
        return Problem(error.status, str(error), None, error.code, error.headers)
    return Problem(error.status, str(error), None, error.code)
