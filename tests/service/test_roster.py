"""Who is alive, by entries that expire."""

import time

from service.ledger import connect
from service.roster import Roster, WorkerState
from workers.settings import Settings


def test_the_living_are_listed_with_what_they_say(roster: Roster) -> None:
    idle = WorkerState("w1", "idle", preset="miniature", digest="d")
    broken = WorkerState("w2", "unhealthy", message="vae.safetensors: digest differs")
    roster.announce(broken)
    roster.announce(idle)
    assert roster.present() == [idle, broken]
    assert [worker.healthy for worker in roster.present()] == [True, False]


def test_a_later_word_replaces_an_earlier(roster: Roster) -> None:
    roster.announce(WorkerState("w1", "idle"))
    roster.announce(WorkerState("w1", "busy", job="video_1"))
    assert roster.present() == [WorkerState("w1", "busy", job="video_1")]


def test_the_silent_and_those_who_leave_vanish(roster: Roster, settings: Settings) -> None:
    client = connect(settings)
    Roster(client, settings.model_copy(update={"lease_s": 0.2})).announce(WorkerState("w3", "idle"))
    roster.announce(WorkerState("w1", "idle"))
    roster.announce(WorkerState("w2", "idle"))
    roster.leave("w1")
    time.sleep(0.3)
    assert [worker.id for worker in roster.present()] == ["w2"]
    assert client.smembers(f"{settings.key_prefix}:workers") == {"w2"}
    client.close()


def test_starting_is_not_yet_healthy() -> None:
    assert not WorkerState("w", "starting").healthy
    assert WorkerState("w", "busy").healthy
