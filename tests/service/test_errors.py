"""The border crossing: each error's status, and OpenAI's shape."""

import pytest

from service.errors import (
    BlobError,
    BlobFull,
    BlobMissing,
    Forbidden,
    LedgerDown,
    NotFound,
    NotReady,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    RequestError,
    ServiceError,
    Unauthenticated,
    problem,
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("m", "size"), 400, "invalid_value"),
        (RequestError("m", None, "body_too_large", 413), 413, "body_too_large"),
        (Unauthenticated("m"), 401, "invalid_api_key"),
        (Forbidden("m"), 403, "insufficient_scope"),
        (RateLimited("m", 1), 429, "rate_limit_exceeded"),
        (QuotaExceeded("m", 1), 429, "quota_exceeded"),
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


@pytest.mark.parametrize(
    ("wait_s", "seconds", "far"),
    [(0.0, "1", False), (0.2, "1", False), (59.01, "60", False), (60.01, "61", True)],
)
def test_who_asks_too_much_is_told_when_to_come_back(
    wait_s: float, seconds: str, far: bool
) -> None:
    told = problem(RateLimited("m", wait_s, {"ratelimit": "x"})).headers
    assert told["retry-after"] == seconds and told["ratelimit"] == "x"
    assert told.get("x-should-retry") == ("false" if far else None)


def test_who_is_not_known_is_told_how_to_log_in() -> None:
    assert problem(Unauthenticated("m")).headers == {"www-authenticate": "Bearer"}


def test_what_a_client_called_its_field_is_not_repeated_whole() -> None:
    name = "n" * 10_000
    body = problem(RequestError(f"{name}: given twice.", name)).body["error"]
    assert (body["message"], body["param"]) == ("n" * 500, "n" * 100)
