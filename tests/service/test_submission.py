"""What a new job is told of, and what is made of each answer."""

import json

import pytest

from service.errors import IdempotencyConflict, LedgerDown, QueueFull
from service.jobs import PLAIN, Quota, Terms
from service.submission import PRIORITIES, same, submission, taken


def test_every_submission_has_its_places_filled() -> None:
    bare = submission("t/a", {"spec": {}}, PLAIN, 5, None)
    assert bare[0] == "t/a" and json.loads(bare[1]) == {"spec": {}} and bare[2] == 5
    assert bare[3] == PRIORITIES["normal"] and bare[10:14] == ["", "", "", ""]
    assert bare[14:] == ["priority", "normal"]
    terms = Terms(priority="high", webhook="https://x", trace="00-1")
    full = submission("t/a", {}, terms, 5, Quota("p", 10, 20, 30))
    assert full[3] == PRIORITIES["high"] and full[10:14] == ["p", 10, 20, 30]
    assert full[14:] == [
        "priority", "high", "webhook", "https://x", "traceparent", "00-1"
    ]  # fmt: skip


def test_nothing_costs_nothing() -> None:
    assert submission("t/a", {}, Terms(cost=0.0), 5, None)[4] > 0  # else its turn never passes


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (["late"], LedgerDown, "too long"),
        (["full"], QueueFull, "5 jobs are waiting"),
        (["tenant_full"], QueueFull, "your jobs"),
        (["conflict"], IdempotencyConflict, "Idempotency-Key"),
    ],
)
def test_a_refusal_is_told(answer: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        taken(answer, 5)


def test_an_earlier_job_is_named() -> None:
    assert same("again", ["t/b"]) == "t/b"
    assert taken(["again", "t/b"], 5).ref == "t/b"
    assert taken(["refused", ["1", "2"]], 5).standing == ("1", "2")
