"""Letters over a real Redis: who may take one, how it is signed, and that nothing stays of it."""

import base64
import json
import time

import openai
import pytest
import redis

from service import views, webhooks
from service.errors import RequestError
from service.ledger import Ledger
from service.outward import Outward
from service.webhooks import Letter, Outbox, Secrets, body_of, check_webhook_url, headers_of
from tests.service.letters import ended
from tests.service.rig import keys_of
from workers.settings import Settings

URL = "https://example.com/hook"


@pytest.fixture
def outbox(connection: redis.Redis, settings: Settings) -> Outbox:
    return Outbox(connection, settings)


@pytest.fixture
def keys(connection: redis.Redis, settings: Settings) -> Secrets:
    return Secrets(connection, settings)


def take(outbox: Outbox, *not_of: str) -> Letter:
    letter = outbox.take(not_of)
    assert letter is not None
    return letter


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_an_end_is_a_letter(ledger: Ledger, outbox: Outbox, how: str) -> None:
    assert outbox.take() is None
    ref = ended(ledger, "a", URL, how)
    letter = take(outbox)
    assert letter == Letter(ref, how, 1)
    assert outbox.take() is None, "it is leased"
    event = json.loads(body_of(letter, ledger.read(ref)))
    kind = "video.completed" if how == "completed" else "video.failed"
    assert (event["id"], event["object"], event["type"]) == (letter.id, "event", kind)
    assert event["data"] == views.video(ledger.read(ref)).model_dump(mode="json")
    assert event["data"]["id"] == "a"
    assert event["created_at"] == ledger.read(ref).number("finished_ms") // 1000
    outbox.done(letter)
    assert outbox.take() is None


def test_no_address_no_letter(ledger: Ledger, outbox: Outbox) -> None:
    ended(ledger, "a", "")
    assert outbox.take() is None


def test_a_letter_whose_courier_died_is_due_again(
    ledger: Ledger, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "LEASE_S", 0.05)
    ended(ledger, "a", URL)
    first = take(outbox)
    time.sleep(0.1)
    second = take(outbox)
    assert (second.id, second.tries) == (first.id, 2)


def test_the_longest_due_comes_first_but_of_no_tenant_that_is_busy(
    ledger: Ledger, outbox: Outbox
) -> None:
    for name, tenant in (("a", "one"), ("b", "one"), ("c", "two")):
        ended(ledger, name, URL, tenant=tenant)
        time.sleep(0.002)
    assert [take(outbox, "one").ref, take(outbox).ref, take(outbox).ref] == [
        "two/c", "one/a", "one/b",
    ]  # fmt: skip


def test_put_off_and_given_up(ledger: Ledger, outbox: Outbox) -> None:
    ref = ended(ledger, "a", URL)
    outbox.put_off(take(outbox), "answered 503", 0.1)
    assert outbox.take() is None and ledger.read(ref).text("webhook_error") == "answered 503"
    time.sleep(0.15)
    letter = take(outbox)
    assert letter.tries == 2
    outbox.give_up(letter, "answered 404")
    assert outbox.take() is None and outbox.dead("other") == []
    (dead,) = outbox.dead("local")
    assert (dead.letter, dead.error) == (letter, "answered 404")
    assert abs(dead.at_ms / 1000 - time.time()) < 600


def test_the_dead_are_sent_again_with_the_same_id(ledger: Ledger, outbox: Outbox) -> None:
    for name in "abc":
        ended(ledger, name, URL)
        outbox.give_up(take(outbox), "no")
    ids = [one.letter.id for one in outbox.dead("local")]
    assert outbox.replay("other") == [] and outbox.replay("local", "nobody") == []
    assert [one.ref for one in outbox.replay("local", "b")] == ["local/b"]
    again = take(outbox)
    assert (again.id, again.tries) == (ids[1], 1)
    assert len(outbox.replay("local")) == 2 and outbox.dead("local") == []


def test_a_slow_courier_that_delivers_after_all_takes_it_off_the_dead(
    ledger: Ledger, outbox: Outbox
) -> None:
    ended(ledger, "a", URL)
    letter = take(outbox)
    outbox.give_up(letter, "no")
    outbox.done(letter)
    assert outbox.dead("local") == []
    outbox.put_off(letter, "late", 0)
    assert outbox.take() is None, "what was delivered does not come back"


@pytest.mark.parametrize("when", ["waiting", "taken", "dead"])
def test_nothing_stays_of_a_deleted_video(
    ledger: Ledger, outbox: Outbox, settings: Settings, connection: redis.Redis, when: str
) -> None:
    ref = ended(ledger, "a", URL)
    letter = take(outbox) if when != "waiting" else Letter(ref, "completed")
    if when == "dead":
        outbox.give_up(letter, "no")
    ledger.delete(ref)
    ledger.bury(ref)
    outbox.put_off(letter, "too late", 0)
    outbox.give_up(letter, "too late")
    assert outbox.take() is None and outbox.dead("local") == []
    left = [key for key in keys_of(settings) if ref in key or "dead" in key or "outbox" in key]
    assert left == []


def test_a_letter_of_a_record_that_is_gone_is_dropped(
    outbox: Outbox, connection: redis.Redis, settings: Settings
) -> None:
    connection.zadd(f"{settings.key_prefix}:outbox", {"local/nobody|completed": 0})
    assert outbox.take() is None
    assert keys_of(settings) == []


def test_the_sdk_verifies_what_is_sent(ledger: Ledger, outbox: Outbox, keys: Secrets) -> None:
    ref = ended(ledger, "a", URL)
    letter = take(outbox)
    body = body_of(letter, ledger.read(ref))
    (secret,) = keys.valid("local")
    sdk = openai.OpenAI(api_key="none", webhook_secret=secret).webhooks
    headers = headers_of(letter, body, [secret], int(time.time()))
    event = sdk.unwrap(body, headers)
    assert (event.id, event.type) == (letter.id, "video.completed")
    for wrong in (
        (body + b" ", headers),
        (body, headers_of(letter, body, [secret], int(time.time()) - 3600)),
        (body, headers | {"webhook-id": "evt_other"}),
        (body, headers_of(letter, body, keys.valid("other"), int(time.time()))),
    ):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            sdk.verify_signature(*wrong)


def test_the_signature_is_that_of_the_standard() -> None:
    """The example of the Standard Webhooks specification's reference libraries."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    letter, body = Letter("local/a", "completed"), b'{"test": 2432232314}'
    signed = b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330." + body
    assert webhooks._signature(secret, signed) == "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    headers = headers_of(letter, body, [secret, secret], 1614265330)
    signature = webhooks._signature(secret, f"{letter.id}.1614265330.".encode() + body)
    assert headers["webhook-signature"] == f"v1,{signature} v1,{signature}"


def test_a_secret_is_made_once_for_each_tenant(keys: Secrets) -> None:
    (mine,), (theirs,) = keys.valid("one"), keys.valid("two")
    assert keys.valid("one") == [mine] and mine != theirs
    assert mine.startswith("whsec_") and len(base64.b64decode(mine[6:])) == 32


def test_while_a_rotation_lasts_both_secrets_sign(
    keys: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = keys.valid("one")
    fresh = keys.rotate("one")
    assert keys.valid("one") == [fresh, old]
    body, letter = b"{}", Letter("one/a", "completed")
    headers = headers_of(letter, body, keys.valid("one"), int(time.time()))
    for secret in (old, fresh):
        openai.OpenAI(api_key="x").webhooks.verify_signature(body, headers, secret=secret)
    monkeypatch.setattr(webhooks, "OVERLAP_S", -1)
    last = keys.rotate("one")
    assert keys.valid("one") == [last]


def test_an_address_is_looked_at_before_the_job_is_taken() -> None:
    assert check_webhook_url(URL, Outward("", 0)) == URL
    assert check_webhook_url("", Outward("", 0)) == ""
    check_webhook_url("http://localhost:8000/", Outward("localhost:8000", 0))
    for url in ("http://example.com/", "https://10.0.0.1/", "https://a@example.com/", "x"):
        with pytest.raises(RequestError, match="webhook_url: the address") as told:
            check_webhook_url(url, Outward("", 0))
        assert told.value.param == "webhook_url"
