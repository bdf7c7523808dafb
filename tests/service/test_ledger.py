"""The ledger over a real Redis: every transition, who may make it, and that the books balance."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from service.errors import LedgerDown, NotFound, QueueFull
from service.ledger import Books, Claim, Ledger, connect
from tests.service.rig import request_of, start_redis
from workers.settings import Settings


def submit(ledger: Ledger, *ids: str) -> None:
    for job_id in ids:
        ledger.submit(job_id, request_of("anna"))


def claim(ledger: Ledger, job_id: str, holder: str = "h") -> Claim:
    found = ledger.claim(job_id, holder)
    assert isinstance(found, Claim), found
    return found


def eventually(what: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_submitted_job_is_queued_in_order(ledger: Ledger) -> None:
    submit(ledger, "a", "b", "c")
    jobs = [ledger.read(name) for name in "abc"]
    assert [(job.state, job.place) for job in jobs] == [("queued", n) for n in range(3)]
    assert jobs[0].request == request_of("anna")
    assert ledger.books() == Books(3, 3, 0, 0, 0)


def test_submitting_twice_is_submitting_once(ledger: Ledger) -> None:
    submit(ledger, "a", "a")
    assert ledger.books() == Books(1, 1, 0, 0, 0)


def test_the_queue_has_a_bound(settings: Settings) -> None:
    ledger = Ledger(connect(settings), settings.model_copy(update={"max_queued": 2}))
    submit(ledger, "a", "b")
    with pytest.raises(QueueFull, match="2 jobs are waiting"):
        submit(ledger, "c")
    assert ledger.books() == Books(2, 2, 0, 0, 0)
    ledger.close()


def test_only_one_of_two_claims_succeeds(ledger: Ledger) -> None:
    submit(ledger, "a")
    first = claim(ledger, "a", "h1")
    assert first.attempt == 1 and first.request == request_of("anna")
    assert ledger.claim("a", "h2") == "held"
    assert ledger.read("a").state == "running" and ledger.read("a").place == -1


def test_a_claim_whose_answer_was_lost_can_be_repeated(ledger: Ledger) -> None:
    submit(ledger, "a")
    assert claim(ledger, "a", "h1") == claim(ledger, "a", "h1")
    assert ledger.read("a").number("attempts") == 1


def test_unknown_and_ended_jobs_are_not_claimed(ledger: Ledger) -> None:
    assert ledger.claim("nobody", "h") == "gone"
    submit(ledger, "a")
    assert ledger.commit(claim(ledger, "a"), {"video": "k"}) == "ok"
    assert ledger.claim("a", "h") == "ended"


def test_commit_ends_a_job_once(ledger: Ledger) -> None:
    submit(ledger, "a")
    mine = claim(ledger, "a")
    assert ledger.commit(mine, {"video": "k"}) == "ok"
    assert ledger.fail(mine, "x", "x", retry=True) == "stale"
    job = ledger.read("a")
    assert (job.state, job.result, job.number("progress")) == ("completed", {"video": "k"}, 100)
    assert job.mean_ms is not None
    assert ledger.books() == Books(1, 0, 0, 1, 0)


def test_who_waits_is_told_what_is_in_hand(ledger: Ledger) -> None:
    submit(ledger, "a", "b", "c")
    ledger.commit(claim(ledger, "a"), {"video": "k"})
    claim(ledger, "b")
    waiting, in_hand = ledger.read("c"), ledger.read("b")
    assert waiting.mean_ms is not None
    assert (waiting.place, waiting.in_hand) == (0, 1)
    assert 0 <= waiting.rest_ms <= waiting.mean_ms
    assert (in_hand.place, in_hand.in_hand, in_hand.rest_ms) == (-1, 0, 0)


def test_a_starts_previews_end_with_it(ledger: Ledger) -> None:
    """The worker deletes them; a name that is left over would lead nowhere."""
    submit(ledger, "a", "b", "c")
    claims = {name: claim(ledger, name) for name in "abc"}
    for one in claims.values():
        ledger.beat(one, 10, preview="k.jpg")
        assert ledger.read(one.job_id).text("preview") == "k.jpg"
    ledger.commit(claims["a"], {"video": "k"})
    ledger.fail(claims["b"], "x", "why", retry=True)
    ledger.fail(claims["c"], "x", "why", retry=False)
    assert [ledger.read(name).text("preview") for name in "abc"] == [None] * 3


def test_an_answer_that_was_lost_is_given_again(ledger: Ledger) -> None:
    """The client repeats a call whose answer timed out; the worker must not think itself stale."""
    submit(ledger, "a", "b", "c", "d")
    done, bad, later, back = (claim(ledger, name) for name in "abcd")
    for _ in range(2):
        assert ledger.commit(done, {"video": "k"}) == "ok"
        assert ledger.fail(bad, "x", "why", retry=False) == "ok"
        assert ledger.fail(later, "x", "why", retry=True) == "again"
        assert ledger.hand_back(back) == "ok"
    states = [ledger.read(name).state for name in "abcd"]
    assert states == ["completed", "failed", "queued", "queued"]
    assert [ledger.read(name).number("attempts") for name in "cd"] == [1, 0]
    assert ledger.books() == Books(4, 2, 0, 1, 1)


def test_progress_never_falls_and_fields_are_written(ledger: Ledger) -> None:
    submit(ledger, "a")
    mine = claim(ledger, "a")
    assert ledger.beat(mine, 40, stage="denoise", step=4) == "ok"
    assert ledger.beat(mine, 10) == "ok"
    job = ledger.read("a")
    assert job.number("progress") == 40
    assert (job.text("stage"), job.number("step")) == ("denoise", 4)


def test_a_beaten_lease_lives_and_a_silent_one_is_reaped(settings: Settings) -> None:
    ledger = Ledger(connect(settings), settings.model_copy(update={"lease_s": 2.0}))
    submit(ledger, "a")
    mine = claim(ledger, "a")
    for _ in range(5):
        time.sleep(0.5)
        assert ledger.beat(mine) == "ok"
        assert ledger.reap() == ([], [])
    eventually(lambda: ledger.reap() == (["a"], []))
    assert ledger.read("a").state == "queued"
    ledger.close()


def test_the_dead_who_return_change_nothing(ledger: Ledger) -> None:
    submit(ledger, "a")
    zombie = claim(ledger, "a", "h1")
    eventually(lambda: ledger.reap()[0] == ["a"])
    eventually(lambda: ledger.claim("a", "h2") != "early")
    heir = claim(ledger, "a", "h2")
    assert heir.token != zombie.token and heir.attempt == 2
    for word in (
        ledger.beat(zombie, 99, stage="lies"),
        ledger.commit(zombie, {"video": "old"}),
        ledger.fail(zombie, "x", "x", retry=False),
        ledger.hand_back(zombie),
    ):
        assert word == "stale"
    assert ledger.commit(heir, {"video": "new"}) == "ok"
    assert ledger.read("a").result == {"video": "new"}


def test_a_job_whose_workers_keep_dying_is_given_up_with_a_reason(ledger: Ledger) -> None:
    submit(ledger, "a")
    for _ in range(3):
        eventually(lambda: isinstance(ledger.claim("a", "h"), Claim))
        eventually(lambda: ledger.reap() != ([], []))
    job = ledger.read("a")
    assert job.state == "failed" and job.text("error_code") == "worker_lost"
    assert "3 starts" in (job.text("error_message") or "")
    assert ledger.books() == Books(1, 0, 0, 0, 1)


def test_back_off_doubles(ledger: Ledger, settings: Settings) -> None:
    submit(ledger, "a")
    waits = []
    for _ in range(2):
        eventually(lambda: ledger.claim("a", "h") != "early")
        assert ledger.fail(claim(ledger, "a"), "x", "x", retry=True) == "again"
        job = ledger.read("a")
        waits.append(job.number("not_before_ms") - job.now_ms)
        assert ledger.claim("a", "other") == "early"
    backoff_ms = settings.backoff_s * 1000
    assert backoff_ms / 2 < waits[0] <= backoff_ms < waits[1] <= 2 * backoff_ms


def test_a_failure_worth_no_retry_is_final(ledger: Ledger) -> None:
    submit(ledger, "a")
    assert ledger.fail(claim(ledger, "a"), "bad", "because", retry=False) == "ok"
    job = ledger.read("a")
    assert (job.state, job.text("error_message")) == ("failed", "because")


def test_a_job_handed_back_keeps_its_place_and_its_starts(ledger: Ledger) -> None:
    submit(ledger, "a", "b")
    assert ledger.hand_back(claim(ledger, "a")) == "ok"
    assert ledger.read("a").place == 0
    assert claim(ledger, "a", "h2").attempt == 1


def test_cancel_ends_a_waiting_job_at_once(ledger: Ledger) -> None:
    submit(ledger, "a")
    assert ledger.cancel("a") is True
    job = ledger.read("a")
    assert (job.state, job.text("error_code")) == ("failed", "cancelled")
    assert ledger.cancel("a") is False
    with pytest.raises(NotFound):
        ledger.cancel("nobody")


def test_cancel_is_heard_at_the_next_step_and_by_commit(ledger: Ledger) -> None:
    submit(ledger, "a")
    mine = claim(ledger, "a")
    assert ledger.cancel("a") is True
    assert ledger.read("a").state == "running"
    assert ledger.beat(mine, 50) == "cancel"
    assert ledger.commit(mine, {}) == "cancel"
    assert ledger.fail(mine, "cancelled", "Cancelled", retry=True) == "ok"
    assert ledger.books() == Books(1, 0, 0, 0, 1)


def test_a_cancelled_job_whose_worker_died_is_not_started_again(ledger: Ledger) -> None:
    submit(ledger, "a")
    claim(ledger, "a")
    ledger.cancel("a")
    eventually(lambda: ledger.reap() == ([], ["a"]))
    assert ledger.read("a").text("error_code") == "cancelled"


def test_deletion_leaves_a_grave_and_tells_the_worker(ledger: Ledger) -> None:
    submit(ledger, "a", "b")
    mine = claim(ledger, "a")
    assert ledger.delete("a") == "running" and ledger.delete("b") == "queued"
    assert ledger.beat(mine) == "gone" and ledger.commit(mine, {}) == "gone"
    for name in "ab":
        with pytest.raises(NotFound):
            ledger.read(name)
        assert ledger.delete(name) == "deleted"
    assert ledger.books() == Books(2, 0, 0, 0, 2)
    assert ledger.graves(600) == [] and ledger.graves(0) == ["a", "b"]
    ledger.bury("a")
    with pytest.raises(NotFound):
        ledger.delete("a")
    assert ledger.graves(0) == ["b"]


def test_due_names_the_oldest_that_were_not_rung_lately(ledger: Ledger) -> None:
    submit(ledger, "a", "b", "c")
    assert ledger.due(9, 0.2) == []
    time.sleep(0.25)
    assert ledger.due(2, 0.2) == ["a", "b"]
    assert ledger.due(9, 0.2) == ["c"]
    claim(ledger, "a")
    time.sleep(0.25)
    assert ledger.due(9, 0.2) == ["b", "c"]


def test_pages_cover_everything_once_in_both_orders(ledger: Ledger) -> None:
    names = [f"j{n}" for n in range(7)]
    submit(ledger, *names)
    for newest_first in (False, True):
        seen: list[str] = []
        more, after = True, None
        while more:
            jobs, more = ledger.page(after, 3, newest_first)
            seen += [job.id for job in jobs]
            after = seen[-1]
        assert seen == (names[::-1] if newest_first else names)
    assert ledger.page(None, 7, True)[1] is False
    with pytest.raises(NotFound):
        ledger.page("nobody", 3, True)


class Walk:
    """Random transitions over a few jobs: live, stale and senseless ones."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self.rng = random.Random(seed)
        self.names = [f"j{n}" for n in range(12)]
        self.claims: list[Claim] = []
        self.commits: set[str] = set()

    def step(self) -> None:
        moves = (self.submit, self.grab, self.grab, self.finish, self.spoil, self.drop, self.reap)
        self.rng.choice(moves)()

    def submit(self) -> None:
        submit(self.ledger, self.rng.choice(self.names))

    def grab(self) -> None:
        found = self.ledger.claim(self.rng.choice(self.names), f"h{self.rng.random()}")
        self.claims.extend([found] if isinstance(found, Claim) else [])

    def finish(self) -> None:
        mine = self.rng.choice(self.claims) if self.claims else None
        if mine and self.ledger.commit(mine, {}) == "ok":
            self.commits.add(mine.token)

    def spoil(self) -> None:
        if self.claims:
            mine = self.rng.choice(self.claims)
            self.ledger.fail(mine, "x", "x", retry=self.rng.random() < 0.5)

    def drop(self) -> None:
        act = self.rng.choice((self.ledger.cancel, self.ledger.delete))
        with suppress(NotFound):
            act(self.rng.choice(self.names))

    def reap(self) -> None:
        if self.rng.random() < 0.3:
            time.sleep(0.05)
            self.ledger.reap()


@pytest.mark.parametrize("seed", [1, 2])
def test_the_books_balance_whatever_happens(ledger: Ledger, seed: int) -> None:
    walk = Walk(ledger, seed)
    for _ in range(400):
        walk.step()
        assert ledger.books().balanced, ledger.books()
    assert 0 < len(walk.commits) == ledger.books().completed


def test_without_redis_every_call_fails_soon_and_clearly(
    settings: Settings, tmp_path: Path
) -> None:
    lost = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none"})
    ledger = Ledger(connect(lost), lost)
    for call in (ledger.ping, ledger.books, ledger.reap, lambda: ledger.read("a")):
        begin = time.monotonic()
        with pytest.raises(LedgerDown, match="does not answer"):
            call()
        assert time.monotonic() - begin < 2


def test_a_redis_that_hangs_is_a_redis_that_is_down(settings: Settings, tmp_path: Path) -> None:
    import signal
    import tempfile

    server = start_redis(Path(tempfile.mkdtemp(prefix="tr")))
    quick = settings.model_copy(
        update={"redis_url": f"unix://{server.unix_socket_path}", "redis_timeout_s": 0.3}
    )
    ledger = Ledger(connect(quick), quick)
    submit(ledger, "a")
    process = server._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        with pytest.raises(LedgerDown):
            ledger.read("a")
        assert time.monotonic() - begin < 2
    finally:
        process.send_signal(signal.SIGCONT)
    assert ledger.read("a").state == "queued"
    ledger.close()
    server.stop()
