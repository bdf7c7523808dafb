"""Who is alive, by entries that expire."""

import time

from service.ledger import connect
from service.roster import Roster, WorkerState, tiers_of
from workers.settings import Settings


def test_the_living_are_listed_with_what_they_say(roster: Roster) -> None:
    idle = WorkerState("w1", "idle", preset="miniature", digest="d")
    broken = WorkerState("w2", "unhealthy", message="vae.safetensors: digest differs")
    roster.announce(broken)
    roster.announce(idle)
    assert roster.present() == [idle, broken]
    assert [worker.healthy for worker in roster.present()] == [True, False]


def test_a_tier_is_served_if_some_worker_serves_it(roster: Roster) -> None:
    both = ("exact", "fast")
    starting, encoder = WorkerState("w0", "starting"), WorkerState("w1", "idle", role="encode")
    assert tiers_of([starting, encoder], both) == tiers_of([], both) == both
    exact = WorkerState("w2", "busy", tiers=("exact",))
    roster.announce(exact)
    assert roster.present() == [exact]
    assert tiers_of([starting, encoder, exact], both) == ("exact",)
    assert tiers_of([exact, WorkerState("w3", "idle", tiers=both)], both) == both
    assert tiers_of([WorkerState("w3", "idle", tiers=both)], ("exact",)) == ("exact",)


def test_a_worker_from_before_tiers_has_not_said_which() -> None:
    assert WorkerState.from_json('{"id": "w", "state": "idle"}') == WorkerState("w", "idle")


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
