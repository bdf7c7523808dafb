"""The small form against real gateways; and that whatever goes wrong is counted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import hostile
from bench.hostile import Answer, Tally, cases, clean, connects, hidden, judge, kept, raw, send
from bench.hostile_case import Case
from bench.hostile_pictures import MARK
from bench.stage import stage

CASE = Case("kind", "name", bytes)


def refusal(status: int = 400, **fields: Any) -> Answer:
    usual = {"message": "m", "type": "invalid_request_error", "param": "seed", "code": "c"}
    return Answer(status, "req_1", json.dumps({"error": usual | fields}).encode())


def test_small() -> None:
    found = hostile.run(seed=1, most=140)
    assert found["clean"], found
    assert found["cases"] > 140 and len(found["kinds"]) == 17
    assert found["accepted"] > 10 and found["refused"] > 90
    assert found["decoder_mb"] > 1


def test_the_full_form_is_large_enough_and_the_seed_decides_it() -> None:
    full = cases(1, 9)
    assert len(full) >= 2000
    assert [case.name for case in full] == [case.name for case in cases(1, 9)]
    assert [case.name for case in full] != [case.name for case in cases(2, 9)]
    assert not any(case.slow for case in cases(1, 9, most=100))


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (None, "unanswered"),
        (refusal(500), "server_errors"),
        (refusal(), ""),
        (refusal(param=None), "unnamed"),
        (refusal(param=None, code="invalid_json"), ""),
        (refusal(more="x"), "misshapen"),
        (refusal(message=""), "misshapen"),
        (refusal(message="m" * 2000), "misshapen"),
        (refusal(type="server_error"), "misshapen"),
        (replace(refusal(), request_id=""), "misshapen"),
        (Answer(400, "req_1", b"Bad Request"), "misshapen"),
        (Answer(400, "req_1", b"[]"), "misshapen"),
        (Answer(202, "req_1", b"{}"), ""),
    ],
)
def test_what_is_wrong_with_an_answer(answer: Answer | None, word: str) -> None:
    assert judge(CASE, answer) == word


def test_what_became_of_it_is_compared_with_what_had_to() -> None:
    assert judge(replace(CASE, must="refused"), Answer(202, "", b"{}")) == "mistaken"
    assert judge(replace(CASE, must="taken"), refusal()) == "mistaken"
    tally = Tally()
    tally.note(replace(CASE, must="refused"), Answer(202, "", b'"video_' + b"0" * 32 + b'"'), 1.5)
    tally.note(CASE, refusal(message=f"is damaged, or {hostile.LOST}"), 0.5)
    assert (tally.count["mistaken"], tally.count["lost"], tally.slowest_s) == (1, 1, 1.5)
    assert tally.accepted == {"video_" + "0" * 32} and len(tally.faults) == 1


def test_nothing_wrong_is_clean_and_anything_is_not() -> None:
    found: dict[str, Any] = dict.fromkeys(hostile.MUST_BE_NONE, 0)
    found |= {"growth_mb": 9.0, "settled_mb": 9.0, "good_request_served": True}
    assert clean(found)
    wrong = {name: 1 for name in hostile.MUST_BE_NONE}
    wrong |= {"growth_mb": 257, "settled_mb": 257, "good_request_served": 0}
    assert not any(clean(found | {name: value}) for name, value in wrong.items())


def test_what_is_left_behind_is_found() -> None:
    with stage(gateways=0, workers=0) as place:
        place.ledger.submit("local/video_" + "a" * 32, {"spec": {}})
        place.redis.set("bench:odd", 1)
        folder = Path(place.settings.blobs_url)
        folder.mkdir()
        (folder / ("subj_" + "b" * 32)).write_bytes(b"x" + MARK)
        ids, others = kept(place)
        assert ids == {"video_" + "a" * 32, "subj_" + "b" * 32} and "bench:odd" in others
        assert hidden(place) == ["subj_" + "b" * 32]


def test_sockets_to_what_lies_inside_are_found(tmp_path: Path) -> None:
    log = tmp_path / "connects"
    assert connects(log, "127.0.0.1 9") == []
    log.write_text("127.0.0.1 9\n10.0.0.1 443\n93.184.215.14 443\n")
    assert connects(log, "127.0.0.1 9") == ["10.0.0.1 443"]


def test_a_server_that_is_gone_answers_nothing() -> None:
    with stage(gateways=1, workers=0) as place:
        port = place.ports["gateway-1"]
        assert send(port, CASE) is None
        place.start("gateway-1")
        place.wait(lambda: send(port, Case("k", "n", bytes, "", "/healthz", "GET")))
        assert raw(port, b"GET / HTTP/9.9\r\n\r\n") == 400
        assert raw(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n") == 200
