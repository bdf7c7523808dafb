"""The border crossing: each error's status, and OpenAI's shape."""

import pytest

from service.errors import (
    BlobError,
    BlobFull,
    BlobMissing,
    LedgerDown,
    NotFound,
    NotReady,
    QueueFull,
    RequestError,
    ServiceError,
    problem,
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("m", "size"), 400, "invalid_value"),
        (RequestError("m", None, "body_too_large", 413), 413, "body_too_large"),
        (NotFound("m"), 404, "not_found"),
        (NotReady("m"), 409, "video_not_ready"),
        (QueueFull("m"), 503, "queue_full"),
        (LedgerDown("m"), 503, "ledger_unavailable"),
        (BlobError("m"), 503, "storage_unavailable"),
        (BlobMissing("m"), 404, "not_found"),
        (BlobFull("m"), 507, "storage_full"),
    ],
)
def test_each_error_has_its_status(error: ServiceError, status: int, code: str) -> None:
    found = problem(error)
    assert (found.status, found.code, found.message) == (status, code, "m")


def test_the_body_has_openais_four_fields() -> None:
    body = problem(RequestError("size: wrong.", "size")).body
    assert body == {
        "error": {
            "message": "size: wrong.",
            "type": "invalid_request_error",
            "param": "size",
            "code": "invalid_value",
        }
    }
    assert problem(LedgerDown("m")).body["error"]["type"] == "server_error"


def test_a_passing_trouble_says_when_to_come_back_and_a_conflict_not_to() -> None:
    assert problem(LedgerDown("m")).headers == {"retry-after": "2"}
    assert problem(NotReady("m")).headers == {"x-should-retry": "false"}
    assert problem(NotFound("m")).headers == {}
