"""The courier against real receivers: until it is delivered, and to nobody who must not hear."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import openai
import pytest

from service import webhooks
from service.ledger import Ledger, connect
from service.outward import Answer, Outward
from service.webhooks import Outbox, Secrets
from tests.service.letters import ended
from tests.service.receiver import Receiver, receiving, reply
from tests.service.rig import Service, wait_for
from workers import courier as module
from workers.courier import TRIES, Courier, asked_wait_s, wait_s
from workers.settings import Settings


@pytest.fixture
def outbox(settings: Settings) -> Outbox:
    return Outbox(connect(settings), settings)


@pytest.fixture
def send(
    settings: Settings, ledger: Ledger, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], None]]:
    """Rounds of a courier in this process until these many deliveries were tried, to hosts that
    the receiver's port is listed for."""
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    keys = Secrets(connect(settings), settings)
    couriers: list[Courier] = []

    def rounds(port: int) -> None:
        outward = Outward(f"localhost:{port}", 0)
        couriers.append(Courier(outbox, keys, ledger, outward))

        def over() -> bool:
            couriers[-1].round()
            return not couriers[-1]._out and not waiting(settings)

        wait_for(over)

    yield rounds
    for courier in couriers:
        courier.close()


def waiting(settings: Settings) -> list[str]:
    found: list[str] = connect(settings).zrange(f"{settings.key_prefix}:outbox", 0, -1)
    return found


def failing(times: int, status: int = 503) -> Callable[[BaseHTTPRequestHandler], None]:
    """A receiver that takes it after so many refusals."""
    left = [reply(status)] * times

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (left.pop() if left else reply(204))(handler)

    return answer


def test_it_is_delivered_signed_with_the_whole_video(
    ledger: Ledger, settings: Settings, send: Callable[[int], None]
) -> None:
    with receiving(Receiver(reply(200))) as server:
        ended(ledger, "a", f"http://localhost:{server.port}/hook?x=1")
        send(server.port)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/hook?x=1")
    (secret,) = Secrets(connect(settings), settings).valid("local")
    sdk = openai.OpenAI(api_key="none", webhook_secret=secret)
    event = sdk.webhooks.unwrap(seen.body, seen.headers)
    assert event.type == "video.completed" and event.id == seen.headers["webhook-id"]
    assert json.loads(seen.body)["data"]["status"] == "completed"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_it_is_tried_until_it_is_taken_under_one_id(
    ledger: Ledger, outbox: Outbox, send: Callable[[int], None], status: int
) -> None:
    with receiving(Receiver(failing(3, status))) as server:
        ended(ledger, "a", f"http://localhost:{server.port}/")
        send(server.port)
    assert len(server.seen) == 4 and outbox.dead("local") == []
    assert len({one.headers["webhook-id"] for one in server.seen}) == 1


def test_after_the_last_try_it_is_dead_and_a_replay_delivers_it(
    ledger: Ledger, outbox: Outbox, send: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "wait_s", lambda tries: 0.01)
    with receiving(Receiver(failing(TRIES))) as server:
        ended(ledger, "a", f"http://localhost:{server.port}/")
        send(server.port)
        (dead,) = outbox.dead("local")
        assert len(server.seen) == dead.letter.tries == TRIES
        assert dead.error == "The receiver answered 503."
        outbox.replay("local")
        send(server.port)
    assert len({one.headers["webhook-id"] for one in server.seen}) == 1
    assert len(server.seen) == TRIES + 1 and outbox.dead("local") == []


@pytest.mark.parametrize("status", [301, 307, 400, 404, 410])
def test_a_no_is_a_no(
    ledger: Ledger, outbox: Outbox, send: Callable[[int], None], status: int
) -> None:
    target = {"location": "http://169.254.169.254/"}
    with receiving(Receiver(reply(status, target))) as server:
        ended(ledger, "a", f"http://localhost:{server.port}/")
        send(server.port)
    assert len(server.seen) == 1
    assert [one.error for one in outbox.dead("local")] == [f"The receiver answered {status}."]


def test_nobody_inside_is_told(
    ledger: Ledger, outbox: Outbox, send: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRIES", 2)
    with receiving(Receiver(reply(200))) as server:
        for name, url in (
            ("a", f"http://127.0.0.1:{server.port}/"),
            ("b", f"https://localhost:{server.port + 1}/"),
            ("c", "https://169.254.169.254/"),
        ):
            ended(ledger, name, url)
        send(server.port)
    assert server.seen == [] and len(outbox.dead("local")) == 3
    assert all("The address" in one.error for one in outbox.dead("local"))


def test_a_receiver_that_hangs_holds_up_nobody_else(
    ledger: Ledger, settings: Settings, send: Callable[[int], None]
) -> None:
    told = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/hangs":
            assert told.wait(60)
        else:
            told.set()
        reply(200)(handler)

    with receiving(Receiver(answer)) as server:
        for number in range(20):
            ended(ledger, f"a{number}", f"http://localhost:{server.port}/hangs", tenant="one")
        ended(ledger, "b", f"http://localhost:{server.port}/", tenant="two")
        send(server.port)
    paths = [one.path for one in server.seen]
    assert len(paths) == 21 and paths.index("/") <= module.OF_ONE_TENANT


def test_a_bug_of_ours_puts_the_letter_off_and_is_logged(
    ledger: Ledger,
    outbox: Outbox,
    send: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def bug(*_: object) -> bytes:
        raise KeyError("detail")

    monkeypatch.setattr(module, "body_of", bug)
    monkeypatch.setattr(module, "TRIES", 2)
    ended(ledger, "a", "https://example.com/")
    send(1)
    assert [one.error for one in outbox.dead("local")] == ["KeyError in the courier"]
    assert caplog.text.count("not delivered") == 2


def test_the_tries_take_hours_in_all() -> None:
    assert all(0.8 * 5 * 4**n <= wait_s(n + 1) <= 1.2 * 5 * 4**n for n in range(TRIES))
    assert 6 * 3600 < sum(wait_s(n) for n in range(1, TRIES)) < 10 * 3600


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("0", 0), (" 30 ", 30), ("99999999999", 86400), ("", 0), ("soon", 0), ("-3", 0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("1e9", 0), ("٣", 0)],
)  # fmt: skip
def test_how_long_a_receiver_asks_to_wait(text: str, seconds: float) -> None:
    assert asked_wait_s(Answer(503, {"retry-after": text})) == seconds


def test_a_date_to_wait_for() -> None:
    asked = asked_wait_s(Answer(503, {"retry-after": formatdate(time.time() + 600, usegmt=True)}))
    assert 500 < asked <= 600
    assert asked_wait_s(Answer(503, {})) == 0


def test_what_a_receiver_asks_for_is_heeded(
    ledger: Ledger, settings: Settings, outbox: Outbox
) -> None:
    with receiving(Receiver(reply(429, {"retry-after": "3600"}))) as server:
        ended(ledger, "a", f"http://localhost:{server.port}/")
        letter = outbox.take()
        assert letter is not None
        outward, keys = Outward(f"localhost:{server.port}", 0), Secrets(connect(settings), settings)
        Courier(outbox, keys, ledger, outward).deliver(letter)
    due_ms = connect(settings).zscore(f"{settings.key_prefix}:outbox", letter.name)
    assert due_ms is not None and 3500 < due_ms / 1000 - time.time() < 3700  # type: ignore[operator]


class WithCourier(Service):
    """The processes, with a courier whose times are short."""

    def _courier(self) -> list[str]:
        return ["tests.workers.hasty_courier"]


def test_a_courier_killed_before_it_could_note_it_down_delivers_again(
    settings: Settings, ledger: Ledger, outbox: Outbox, tmp_path: Path
) -> None:
    held = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if len(server.seen) == 1:
            held.wait(60)  # the first courier dies while it waits for this answer
        reply(200)(handler)

    with receiving(Receiver(answer)) as server:
        listed = settings.model_copy(update={"fetch_hosts": f"localhost:{server.port}"})
        service = WithCourier(listed, tmp_path)
        try:
            service.start("courier")
            ended(ledger, "a", f"http://localhost:{server.port}/")
            wait_for(lambda: len(server.seen) == 1)
            service.stop("courier", signal.SIGKILL)
            held.set()
            assert waiting(settings) == ["local/a|completed"]
            service.start("courier")
            wait_for(lambda: not waiting(settings))
            assert service.stop("courier") == 0
        finally:
            service.close()
    first, second = server.seen
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body and outbox.dead("local") == []


def test_two_couriers_deliver_each_letter_once(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    with receiving(Receiver(reply(200))) as server:
        listed = settings.model_copy(update={"fetch_hosts": f"localhost:{server.port}"})
        services = [WithCourier(listed, tmp_path / name) for name in "ab"]
        try:
            for service in services:
                service.start("courier")
            for number in range(60):
                ended(ledger, f"v{number}", f"http://localhost:{server.port}/", tenant=f"t{number}")
            wait_for(lambda: not waiting(settings))
        finally:
            for service in services:
                service.close()
    ids = [one.headers["webhook-id"] for one in server.seen]
    assert len(set(ids)) == 60 and len(ids) == 60
    assert webhooks.LEASE_S == 60
