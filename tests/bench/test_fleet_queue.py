"""The ledger on another clock, and its model: the same answers to the same calls."""

import random

import pytest

from bench.fleet_queue import CLOCK, Model, Queue, Real, timed
from service import scripts
from service.ledger import connect
from service.settings import Settings
from tests.service.rig import redis_url, settings

__all__ = ["redis_url", "settings"]


@pytest.fixture
def real(settings: Settings) -> Real:
    given = {"lease_s": 15.0, "max_queued": 0, "max_attempts": 10**6, "stall_s": 1e9}
    changed = settings.model_copy(update=given)
    return Real(connect(changed), changed)


def story(queue: Queue, seed: int) -> list[object]:
    """Random calls, and what each said."""
    rng, now, heard, hands = random.Random(seed), 0, [], []  # type: ignore[var-annotated]
    for number in range(300):
        now += rng.randrange(1, 4000)
        word = rng.choice(("submit", "submit", "claim", "claim", "commit", "back", "die"))
        if word == "submit":
            queue.submit(now, f"{rng.choice('abc')}/{number}", rng.choice((1.0, 2.5, 40.0)))
        elif word == "claim":
            ref = queue.claim(now)
            hands += [ref] if ref else []
            heard.append(ref)
        elif hands:
            ref = hands.pop(rng.randrange(len(hands)))
            act = {"commit": queue.commit, "back": queue.hand_back, "die": queue.expire}[word]
            heard.append(act(now, ref))
        heard.append(queue.sizes())
    return heard


@pytest.mark.parametrize("seed", range(2))
def test_the_model_is_the_ledger(real: Real, seed: int) -> None:
    told = story(real, seed)
    assert story(Model(int(1000 * 15 / 8)), seed) == told
    assert len({one for one in told if isinstance(one, str)}) > 30


def test_only_the_clock_is_another() -> None:
    for name in ("submit", "claim", "beat", "commit", "hand_back", "reap"):
        ours, theirs = timed(scripts.source(name)).splitlines(), scripts.source(name).splitlines()
        changed = [line for line in theirs if line not in ours]
        assert changed == [CLOCK.strip()]
    for wrong in ("", 2 * CLOCK, CLOCK + "redis.call( 'TIME')"):
        with pytest.raises(ValueError, match="time from elsewhere"):
            timed(wrong)
