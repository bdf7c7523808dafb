"""The same request is the same job, however often it arrives; what is refused leaves nothing."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from service.accept import terms_of
from service.blobs import get
from service.deps import House
from service.errors import LedgerDown, RequestError
from service.form import Raw
from service.intake import Upload
from service.jobs import Books
from service.ledger import Ledger, connect
from tests.service.rig import picture
from tests.service.routes.test_videos import stored
from workers.settings import Settings

AGAIN = {"x-stainless-retry-count": "1"}


def post(client: TestClient, headers: dict[str, str] | None = None, **fields: Any) -> Response:
    asked = {"prompt": "@anna waves", "subjects": '[{"name": "anna", "image": "a.png"}]'}
    files = [("images", ("a.png", picture(), "image/png"))]
    return client.post("/v1/videos", data=asked | fields, files=files, headers=headers or {})


def key(value: str) -> dict[str, str]:
    return {"Idempotency-Key": value}


def test_a_key_makes_one_job(client: TestClient, ledger: Ledger, settings: Settings) -> None:
    first = post(client, key("k1"))
    kept = stored(settings)
    again = post(client, key("k1"))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.headers["location"] == first.headers["location"]
    assert ledger.books() == Books(1, 1, 0, 0, 0) and stored(settings) == kept


def test_a_key_with_another_request_is_a_conflict(client: TestClient, ledger: Ledger) -> None:
    post(client, key("k1"))
    other = post(client, key("k1"), prompt="@anna spins")
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_conflict"
    assert ledger.books().submitted == 1


def test_many_at_once_make_one_job_and_keep_one_picture(
    client: TestClient, ledger: Ledger, settings: Settings
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(client, key("k")), range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert ledger.books().submitted == 1 and len(stored(settings)) == 1


def test_an_answer_of_the_ledger_that_got_lost_costs_no_picture(
    client: TestClient, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis died after it had written the job down: who sends it again gets it, whole."""
    run = house.ledger._run

    def lossy(name: str, *given: Any) -> Any:
        answer = run(name, *given)
        if name == "submit":
            raise LedgerDown("its answer got lost")
        return answer

    monkeypatch.setattr(house.ledger, "_run", lossy)
    assert post(client, key("k")).status_code == 503
    monkeypatch.undo()
    again = post(client, key("k"))
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    [one] = house.ledger.read(f"local/{again.json()['id']}").request["references"]
    assert get(house.blobs, one["key"])[1:4] == b"PNG"


def test_what_a_library_sends_again_is_one_job(client: TestClient, ledger: Ledger) -> None:
    first, again = post(client), post(client, AGAIN)
    assert first.json()["id"] == again.json()["id"]
    assert ledger.books().submitted == 1


def test_what_a_person_sends_twice_is_two_jobs(client: TestClient, ledger: Ledger) -> None:
    first, second = post(client, seed=1), post(client, seed=1)
    assert first.json()["id"] != second.json()["id"]
    assert post(client, AGAIN, seed=1).json()["id"] == second.json()["id"]
    assert post(client, AGAIN, seed=2).json()["id"] not in {first.json()["id"], second.json()["id"]}
    assert ledger.books().submitted == 3


def test_what_was_refused_is_not_answered_with_an_earlier_job(
    client: TestClient, house: House, settings: Settings
) -> None:
    """The SDK tries a 429 again by itself; an equal earlier request is another one."""
    first = post(client).json()["id"]
    connection = connect(settings)
    connection.hset(f"{settings.key_prefix}:tenant:local", "requests_per_minute", 0)
    assert post(client).status_code in {400, 429}
    connection.hdel(f"{settings.key_prefix}:tenant:local", "requests_per_minute")
    connection.close()
    assert post(client, AGAIN).json()["id"] != first


def test_a_key_of_a_refused_request_may_be_used_again(client: TestClient) -> None:
    assert post(client, key("k"), seed=-1).status_code == 400
    files = [("images", ("a.png", b"no picture", "image/png"))]
    asked = {"prompt": "@anna waves", "subjects": '[{"name": "anna", "image": "a.png"}]'}
    bad = client.post("/v1/videos", data=asked, files=files, headers=key("k"))
    assert bad.status_code == 400
    assert post(client, key("k")).status_code == 202


def test_half_a_character_is_refused(client: TestClient, ledger: Ledger) -> None:
    """It could be stored nowhere, and would break every answer that shows it."""
    answer = client.post(
        "/v1/videos",
        content=b'{"prompt": "a \\ud800 meadow"}',
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"
    whole = client.post(
        "/v1/videos",
        content=b'{"prompt": "a \\ud83c\\udf3b meadow"}',
        headers={"content-type": "application/json"},
    )
    assert whole.status_code == 202 and "\N{SUNFLOWER}" in whole.json()["prompt"]
    assert client.get("/v1/videos").status_code == 200
    assert ledger.books().submitted == 1


def test_a_first_try_that_never_arrived_is_made_up_for(client: TestClient) -> None:
    assert post(client, AGAIN).status_code == 202


@pytest.mark.parametrize("value", ["", "x" * 256, "tab\there"])
def test_a_key_that_is_none_is_told(value: str) -> None:
    with pytest.raises(RequestError, match="Idempotency-Key: must have 1 to 255"):
        terms_of(Raw(), {"idempotency-key": value})


def test_a_request_is_known_by_what_it_asks_not_by_how_it_was_sent() -> None:
    def digest(fields: dict[str, Any], *pictures: Upload) -> str:
        return terms_of(Raw(fields, list(pictures)), {}).digest

    one = Upload("images", "a.png", b"1")
    assert digest({"a": "1", "b": "2"}, one) == digest({"b": "2", "a": "1"}, one)
    others = [
        digest({"a": "1"}, one),
        digest({"a": "1", "b": "2"}),
        digest({"a": "1", "b": "2"}, Upload("images", "a.png", b"2")),
        digest({"a": "1", "b": "2"}, Upload("images", "b.png", b"1")),
    ]
    assert len({digest({"a": "1", "b": "2"}, one), *others}) == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"min_identity": 1.5}, "min_identity"),
        ({"max_reseeds": -1}, "max_reseeds"),
        ({"priority": "urgent"}, "priority"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_told(
    client: TestClient, ledger: Ledger, settings: Settings, fields: dict[str, Any], param: str
) -> None:
    answer = post(client, **fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert ledger.books().submitted == 0 and stored(settings) == []


def test_candidates_without_subjects_cannot_be_compared(client: TestClient) -> None:
    answer = client.post("/v1/videos", json={"prompt": "a meadow", "n": 2})
    assert answer.json()["error"]["param"] == "n"
    assert "needs subjects" in answer.json()["error"]["message"]


def test_a_wish_reaches_the_record(client: TestClient, ledger: Ledger) -> None:
    answer = post(client, n=2, min_identity=0.5, priority="high").json()
    job = ledger.read(f"local/{answer['id']}")
    assert job.request["wish"] == {"n": 2, "min_identity": 0.5, "max_reseeds": 3}
    assert answer["priority"] == job.text("priority") == "high"
