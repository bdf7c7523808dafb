"""The ledger over a real Redis: every transition, who may make it, and that the books balance."""

import json
import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.durable import LAYOUT, Durability
from service.errors import IdempotencyConflict, LedgerDown, NotFound, QueueFull
from service.jobs import Books, Claim, Job, Terms
from service.ledger import PLAIN, Ledger, connect
from tests.service.rig import keys_of, request_of, start_redis
from workers.settings import Settings


def submit(ledger: Ledger, *names: str, terms: Terms = PLAIN) -> None:
    """Jobs of the tenant t, unless a name brings its own."""
    for name in names:
        ledger.submit(ref(name), request_of("anna"), terms)


def ref(name: str) -> str:
    return name if "/" in name else f"t/{name}"


def read(ledger: Ledger, name: str) -> Job:
    return ledger.read(ref(name))


def claim(ledger: Ledger, name: str, holder: str = "") -> Claim:
    """The next claim, which must give this job."""
    found = ledger.claim(holder or uuid.uuid4().hex)
    assert found is not None and found.ref == ref(name), found
    return found


def soon(ledger: Ledger, name: str) -> Claim:
    """A claim of a job that has to wait out its back-off."""
    found: list[Claim] = []

    def look() -> bool:
        found.extend(one for one in [ledger.claim(uuid.uuid4().hex)] if one is not None)
        return bool(found)

    eventually(look)
    assert found[0].ref == ref(name)
    return found[0]


def eventually(what: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_submitted_job_is_queued_in_order(ledger: Ledger) -> None:
    submit(ledger, "a", "b", "c")
    jobs = [read(ledger, name) for name in "abc"]
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
    assert ledger.claim("h2") is None
    assert read(ledger, "a").state == "running" and read(ledger, "a").place == -1


def test_a_claim_whose_answer_was_lost_can_be_repeated(ledger: Ledger) -> None:
    submit(ledger, "a")
    assert claim(ledger, "a", "h1") == claim(ledger, "a", "h1")
    assert read(ledger, "a").number("attempts") == 1


def test_an_empty_queue_and_ended_jobs_give_no_claim(ledger: Ledger) -> None:
    assert ledger.claim("h1") is None
    submit(ledger, "a")
    assert ledger.commit(claim(ledger, "a"), {"video": "k"}) == "ok"
    assert ledger.claim("h2") is None


def test_commit_ends_a_job_once(ledger: Ledger) -> None:
    submit(ledger, "a")
    mine = claim(ledger, "a")
    assert ledger.commit(mine, {"video": "k"}) == "ok"
    assert ledger.fail(mine, "x", "x", retry=True) == "stale"
    job = read(ledger, "a")
    assert (job.state, job.result, job.number("progress")) == ("completed", {"video": "k"}, 100)
    assert job.mean_ms is not None
    assert ledger.books() == Books(1, 0, 0, 1, 0)


def test_who_waits_is_told_what_is_in_hand(ledger: Ledger) -> None:
    submit(ledger, "a", "b", "c")
    ledger.commit(claim(ledger, "a"), {"video": "k"})
    claim(ledger, "b")
    waiting, in_hand = read(ledger, "c"), read(ledger, "b")
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
        assert ledger.read(one.ref).text("preview") == "k.jpg"
    ledger.commit(claims["a"], {"video": "k"})
    ledger.fail(claims["b"], "x", "why", retry=True)
    ledger.fail(claims["c"], "x", "why", retry=False)
    assert [read(ledger, name).text("preview") for name in "abc"] == [None] * 3


def test_an_answer_that_was_lost_is_given_again(ledger: Ledger) -> None:
    """The client repeats a call whose answer timed out; the worker must not think itself stale."""
    submit(ledger, "a", "b", "c", "d")
    done, bad, later, back = (claim(ledger, name) for name in "abcd")
    for _ in range(2):
        assert ledger.commit(done, {"video": "k"}) == "ok"
        assert ledger.fail(bad, "x", "why", retry=False) == "ok"
        assert ledger.fail(later, "x", "why", retry=True) == "again"
        assert ledger.hand_back(back) == "ok"
    states = [read(ledger, name).state for name in "abcd"]
    assert states == ["completed", "failed", "queued", "queued"]
    assert [read(ledger, name).number("attempts") for name in "cd"] == [1, 0]
    assert ledger.books() == Books(4, 2, 0, 1, 1)


def test_progress_never_falls_and_fields_are_written(ledger: Ledger) -> None:
    submit(ledger, "a")
    mine = claim(ledger, "a")
    assert ledger.beat(mine, 40, stage="denoise", step=4) == "ok"
    assert ledger.beat(mine, 10) == "ok"
    job = read(ledger, "a")
    assert job.number("progress") == 40
    assert (job.text("stage"), job.number("step")) == ("denoise", 4)


def test_a_lease_that_ran_out_while_nobody_looked_is_renewed_once(settings: Settings) -> None:
    """As after an outage of the ledger: the workers may be well."""
    ledger = Ledger(connect(settings), settings)
    submit(ledger, "a", "b")
    well, dead = claim(ledger, "a"), claim(ledger, "b")
    assert ledger.reap() == ([], [])
    time.sleep(1.2 * settings.lease_s)
    assert ledger.reap() == ([], [])
    assert ledger.beat(well) == "ok"
    eventually(lambda: (ledger.beat(well), ledger.reap()) == ("ok", (["t/b"], [])))
    assert ledger.beat(dead) == ledger.word(dead) == "stale"
    assert ledger.beat(well) == ledger.word(well) == "ok"
    time.sleep(1.2 * settings.lease_s)
    assert ledger.reap() == ([], [])  # the next outage
    time.sleep(1.2 * settings.lease_s)
    assert ledger.reap() == (["t/a"], [])  # it was not heard since
    ledger.close()


def test_a_stall_is_not_counted_while_nobody_looked(settings: Settings) -> None:
    quick = settings.model_copy(update={"stall_s": 0.5})
    ledger = Ledger(connect(quick), quick)
    submit(ledger, "a")
    mine = claim(ledger, "a")
    assert ledger.reap() == ([], [])
    time.sleep(1.2 * settings.lease_s)
    assert ledger.reap() == ([], []) and ledger.beat(mine) == "ok"
    eventually(lambda: ledger.reap() == (["t/a"], []))
    ledger.close()


def test_a_beaten_lease_lives_and_a_silent_one_is_reaped(settings: Settings) -> None:
    ledger = Ledger(connect(settings), settings.model_copy(update={"lease_s": 2.0}))
    submit(ledger, "a")
    mine = claim(ledger, "a")
    for _ in range(5):
        time.sleep(0.5)
        assert ledger.beat(mine) == "ok"
        assert ledger.reap() == ([], [])
    eventually(lambda: ledger.reap() == (["t/a"], []))
    assert read(ledger, "a").state == "queued"
    ledger.close()


def test_the_dead_who_return_change_nothing(ledger: Ledger) -> None:
    submit(ledger, "a")
    zombie = claim(ledger, "a", "h1")
    eventually(lambda: ledger.reap()[0] == ["t/a"])
    heir = soon(ledger, "a")
    assert heir.token != zombie.token and heir.attempt == 2
    for word in (
        ledger.beat(zombie, 99, stage="lies"),
        ledger.commit(zombie, {"video": "old"}),
        ledger.fail(zombie, "x", "x", retry=False),
        ledger.hand_back(zombie),
    ):
        assert word == "stale"
    assert ledger.commit(heir, {"video": "new"}) == "ok"
    assert read(ledger, "a").result == {"video": "new"}


def test_a_job_whose_workers_keep_dying_is_given_up_with_a_reason(ledger: Ledger) -> None:
    submit(ledger, "a")
    for _ in range(3):
        soon(ledger, "a")
        eventually(lambda: ledger.reap() != ([], []))
    job = read(ledger, "a")
    assert job.state == "failed" and job.text("error_code") == "quarantined"
    assert "3 starts" in (job.text("error_message") or "")
    assert ledger.books() == Books(1, 0, 0, 0, 1)


def test_back_off_doubles(ledger: Ledger, settings: Settings) -> None:
    submit(ledger, "a")
    for _ in range(2):
        assert ledger.fail(soon(ledger, "a"), "x", "x", retry=True) == "again"
        waiting = read(ledger, "a")  # until when is compared with the time of writing it down
        told = events_of(settings, "t/a")[-1]
        assert waiting.number("not_before_ms") == told["at_ms"] + told["wait_ms"]
    waits = [one["wait_ms"] for one in events_of(settings, "t/a") if "wait_ms" in one]
    backoff_ms = settings.backoff_s * 1000
    assert waits == [backoff_ms, 2 * backoff_ms]


def events_of(settings: Settings, ref: str) -> list[dict[str, Any]]:
    """The data of a job's events."""
    client = connect(settings)
    found = client.xrange(f"{settings.key_prefix}:events:{ref}")
    client.close()
    return [json.loads(fields["data"]) for _, fields in found]


def test_a_failure_worth_no_retry_is_final(ledger: Ledger) -> None:
    submit(ledger, "a")
    assert ledger.fail(claim(ledger, "a"), "bad", "because", retry=False) == "ok"
    job = read(ledger, "a")
    assert (job.state, job.text("error_message")) == ("failed", "because")


def test_a_job_handed_back_keeps_its_place_and_its_starts(ledger: Ledger) -> None:
    submit(ledger, "a", "b")
    assert ledger.hand_back(claim(ledger, "a")) == "ok"
    assert read(ledger, "a").place == 0
    assert claim(ledger, "a", "h2").attempt == 1


def test_cancel_ends_a_waiting_job_at_once(ledger: Ledger) -> None:
    submit(ledger, "a")
    assert ledger.cancel(ref("a")) is True
    job = read(ledger, "a")
    assert (job.state, job.text("error_code")) == ("failed", "cancelled")
    assert ledger.cancel(ref("a")) is False
    with pytest.raises(NotFound):
        ledger.cancel(ref("nobody"))


def test_cancel_is_heard_at_the_next_step_and_by_commit(ledger: Ledger) -> None:
    submit(ledger, "a")
    mine = claim(ledger, "a")
    assert ledger.cancel(ref("a")) is True
    assert read(ledger, "a").state == "running"
    assert ledger.beat(mine, 50) == ledger.word(mine) == "cancel"
    assert ledger.commit(mine, {}) == "cancel"
    assert ledger.fail(mine, "cancelled", "Cancelled", retry=True) == "ok"
    assert ledger.books() == Books(1, 0, 0, 0, 1)


def test_a_cancelled_job_whose_worker_died_is_not_started_again(ledger: Ledger) -> None:
    submit(ledger, "a")
    claim(ledger, "a")
    ledger.cancel(ref("a"))
    eventually(lambda: ledger.reap() == ([], ["t/a"]))
    assert read(ledger, "a").text("error_code") == "cancelled"


def test_deletion_leaves_a_grave_and_tells_the_worker(ledger: Ledger) -> None:
    submit(ledger, "a", "b")
    mine = claim(ledger, "a")
    assert ledger.delete(ref("a")) == "running" and ledger.delete(ref("b")) == "queued"
    assert ledger.beat(mine) == ledger.word(mine) == ledger.commit(mine, {}) == "gone"
    for name in "ab":
        with pytest.raises(NotFound):
            read(ledger, name)
        assert ledger.delete(ref(name)) == "deleted"
    assert ledger.books() == Books(2, 0, 0, 0, 2)
    assert ledger.graves(600) == [] and ledger.graves(0) == ["t/a", "t/b"]
    ledger.bury(ref("a"))
    with pytest.raises(NotFound):
        ledger.delete(ref("a"))
    assert ledger.graves(0) == ["t/b"]


def test_due_names_the_oldest_that_were_not_rung_lately(ledger: Ledger) -> None:
    submit(ledger, "a", "b", "c")
    assert ledger.due(9, 0.2) == []
    time.sleep(0.25)
    assert ledger.due(2, 0.2) == ["t/a", "t/b"]
    assert ledger.due(9, 0.2) == ["t/c"]
    claim(ledger, "a")
    time.sleep(0.25)
    assert ledger.due(9, 0.2) == []  # the second pause is twice as long
    time.sleep(0.25)
    assert ledger.due(9, 0.2) == ["t/b", "t/c"]


def test_pages_cover_everything_once_in_both_orders(ledger: Ledger) -> None:
    names = [f"j{n}" for n in range(7)]
    submit(ledger, *names)
    for newest_first in (False, True):
        seen: list[str] = []
        more, after = True, None
        while more:
            jobs, more = ledger.page("t", after, 3, newest_first)
            seen += [job.id for job in jobs]
            after = ref(seen[-1])
        assert seen == (names[::-1] if newest_first else names)
    assert ledger.page("t", None, 7, True)[1] is False
    with pytest.raises(NotFound):
        ledger.page("t", "t/nobody", 3, True)


class Walk:
    """Random transitions over a few jobs: live, stale and senseless ones."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self.rng = random.Random(seed)
        self.names = [f"{who}/j{n}" for n in range(4) for who in "abc"]
        self.claims: list[Claim] = []
        self.commits: set[str] = set()

    def step(self) -> None:
        moves = (self.submit, self.grab, self.grab, self.finish, self.spoil, self.drop, self.reap)
        self.rng.choice(moves)()

    def submit(self) -> None:
        with suppress(LedgerDown):  # the name of a deleted job, which lies in its grave still
            submit(self.ledger, self.rng.choice(self.names))

    def grab(self) -> None:
        found = self.ledger.claim(f"h{self.rng.random()}")
        self.claims.extend([] if found is None else [found])

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
            act(ref(self.rng.choice(self.names)))

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
    for call in (ledger.ping, ledger.books, ledger.reap, lambda: ledger.read("t/a")):
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
            read(ledger, "a")
        assert time.monotonic() - begin < 2
    finally:
        process.send_signal(signal.SIGCONT)
    assert read(ledger, "a").state == "queued"
    ledger.close()
    server.stop()


# whose turn it is

TRIO = ("slow", "quick", "even")


def tenant(settings: Settings, name: str, **limits: float) -> None:
    client = connect(settings)
    client.hset(f"{settings.key_prefix}:tenant:{name}", mapping=dict(limits))
    client.close()


def order(ledger: Ledger, how_many: int, tiers: tuple[str, ...] = ()) -> list[str]:
    """The next claims, all at once; then what was claimed ends."""
    found = [ledger.claim(uuid.uuid4().hex, tiers=tiers) for _ in range(how_many)]
    claims = [mine for mine in found if mine is not None]
    assert [ledger.commit(mine, {}) for mine in claims] == ["ok"] * how_many
    return [mine.ref for mine in claims]


def test_a_tenant_with_many_jobs_does_not_starve_one_with_few(ledger: Ledger) -> None:
    submit(ledger, *(f"many/{n}" for n in range(20)), "few/0", "few/1")
    assert ledger.head(4) == ["many/0", "few/0", "many/1", "few/1"] or ledger.head(4) == [
        "few/0", "many/0", "few/1", "many/1",
    ]  # fmt: skip
    assert ledger.head(4) == order(ledger, 4)
    assert order(ledger, 18) == [f"many/{n}" for n in range(2, 20)]


def test_starts_are_shared_by_weight_and_cost(ledger: Ledger, settings: Settings) -> None:
    tenant(settings, "heavy", weight=3)
    for n in range(40):
        submit(ledger, f"heavy/{n}", f"light/{n}", f"dear/{n}", terms=PLAIN)
    starts = [ref.partition("/")[0] for ref in order(ledger, 50)]
    assert [starts.count(who) for who in ("heavy", "light", "dear")] == [30, 10, 10]
    for n in range(40):
        ledger.submit(f"big/{n}", request_of("anna"), Terms(cost=4))
        ledger.submit(f"small/{n}", request_of("anna"), Terms(cost=1))
    tenants = [ref.partition("/")[0] for ref in order(ledger, 40)]
    assert abs(tenants.count("small") - 4 * tenants.count("big")) <= 4


def test_what_a_job_took_counts_not_what_it_was_estimated_at(
    ledger: Ledger, settings: Settings
) -> None:
    client, prefix = connect(settings), settings.key_prefix
    tenant(settings, "slow", weight=2)
    took, starts, spent = {"slow": 8000, "quick": 1000, "even": 2000}, [], dict.fromkeys(TRIO, 0.0)
    submit(ledger, *(f"{who}/{n}" for who in TRIO for n in range(30)), terms=Terms(cost=2.0))
    for _ in range(40):
        mine = ledger.claim(uuid.uuid4().hex)
        assert mine is not None
        who = mine.ref.partition("/")[0]
        client.hincrby(f"{prefix}:job:{mine.ref}", "claimed_ms", -took[who])
        assert ledger.commit(mine, {}) == "ok"
        spent[who] += ledger.read(mine.ref).spent_s
        starts.append(who)
    for who, weight in (("slow", 2), ("quick", 1), ("even", 1)):
        paid = float(client.hget(f"{prefix}:passes", who) or 0)
        assert paid * weight == pytest.approx(spent[who], abs=1e-6)
    shares = [spent["slow"] / 2, spent["quick"], spent["even"]]
    assert max(shares) - min(shares) <= 4.5  # one start of each
    assert starts.count("quick") > 1.5 * starts.count("even") > 2 * starts.count("slow")
    client.close()


def test_who_comes_back_from_idleness_has_saved_nothing_up(ledger: Ledger) -> None:
    submit(ledger, *(f"busy/{n}" for n in range(30)))
    order(ledger, 20)
    submit(ledger, *(f"late/{n}" for n in range(10)))
    next_ten = [ref.partition("/")[0] for ref in order(ledger, 10)]
    assert next_ten.count("late") == 5


def test_within_a_tenant_priority_goes_before_age(ledger: Ledger) -> None:
    for name, priority in (("l", "low"), ("n1", "normal"), ("h", "high"), ("n2", "normal")):
        submit(ledger, name, terms=Terms(priority=priority))
    assert [read(ledger, name).place for name in ("h", "n1", "n2", "l")] == [0, 1, 2, 3]
    assert order(ledger, 4) == ["t/h", "t/n1", "t/n2", "t/l"]


def test_the_place_counts_what_other_tenants_start_before(ledger: Ledger) -> None:
    submit(ledger, *(f"many/{n}" for n in range(9)), "few/0", "few/1")
    line = ledger.head(11)
    for at in range(4):
        assert abs(read(ledger, line[at]).place - at) <= 1
    assert read(ledger, "many/8").place == 10


def test_a_tenant_has_no_more_in_hand_than_it_may(ledger: Ledger, settings: Settings) -> None:
    tenant(settings, "t", max_running=2)
    submit(ledger, "a", "b", "c", "other/d")
    got = [ledger.claim(f"h{n}") for n in range(4)]
    refs = [one.ref for one in got if one is not None]
    assert sorted(refs) == ["other/d", "t/a", "t/b"] and got[3] is None
    assert ledger.head(9) == []
    done = next(one for one in got if one is not None and one.ref == "t/a")
    ledger.commit(done, {})
    assert claim(ledger, "c").ref == "t/c"


def test_a_tenants_queue_has_a_bound_of_its_own(ledger: Ledger, settings: Settings) -> None:
    tenant(settings, "t", max_queued=1)
    submit(ledger, "a", "other/b")
    with pytest.raises(QueueFull, match="your jobs"):
        submit(ledger, "c")


def test_a_job_that_waits_for_its_retry_counts_as_waiting(
    ledger: Ledger, settings: Settings
) -> None:
    tenant(settings, "t", max_queued=1)
    submit(ledger, "a")
    assert ledger.fail(claim(ledger, "a"), "engine_error", "", retry=True) == "again"
    with pytest.raises(QueueFull, match="your jobs"):
        submit(ledger, "b")
    mine = soon(ledger, "a")
    submit(ledger, "b")
    assert ledger.commit(mine, {}) == "ok"
    ledger.delete(ref("b"))
    client = connect(settings)
    assert client.hgetall(f"{settings.key_prefix}:waiting") == {}
    client.close()


def test_a_worker_gets_only_what_it_can_make(ledger: Ledger) -> None:
    submit(ledger, "fast", terms=Terms(tier="fast"))
    submit(ledger, "plain")
    mine = ledger.claim("h1", tiers=("exact",))
    assert mine is not None and mine.ref == "t/plain"
    assert ledger.claim("h2", tiers=("exact",)) is None
    assert (ledger.wanted(("exact",)), ledger.wanted(("exact", "fast"))) == (False, True)
    both = ledger.claim("h3", tiers=("exact", "fast"))
    assert both is not None and both.ref == "t/fast"
    assert not ledger.wanted()


def test_a_thousand_jobs_of_another_tier_are_in_nobodys_way(settings: Settings) -> None:
    ledger, fast = Ledger(connect(settings), settings), Terms(tier="fast")
    ledger._max_queued = 0
    submit(ledger, *(f"t/fast{n}" for n in range(1000)), terms=fast)
    submit(ledger, *(f"many{n}/fast" for n in range(200)), terms=fast)
    submit(ledger, "t/exact", "late/exact")
    assert ledger.wanted(("exact",))
    exact = [ledger.claim(f"h{n}", tiers=("exact",)) for n in range(3)]
    assert [one and one.ref for one in exact] == ["late/exact", "t/exact", None]
    assert not ledger.wanted(("exact",)) and ledger.books().balanced
    ledger.close()


def test_turns_are_the_same_whoever_asks(ledger: Ledger, settings: Settings) -> None:
    """A worker of all tiers that names them gets what one that names none would."""
    tenant(settings, "heavy", weight=3)
    orders = []
    for tiers in ((), ("fast", "exact"), ("exact", "fast", "none")):
        names = [f"{who}/{n}" for who in ("heavy", "light", "dear") for n in range(12)]
        for number, name in enumerate(names):
            terms = Terms(tier="fast" if number % 3 else "exact", cost=1 + number % 5)
            submit(ledger, name, terms=terms)
        orders.append(order(ledger, len(names), tiers))
        for name in names:
            ledger.delete(name)
            ledger.bury(name)
        client = connect(settings)
        client.delete(f"{settings.key_prefix}:passes", f"{settings.key_prefix}:vtime")
        client.close()
    assert orders[0] == orders[1] == orders[2]


def test_a_tier_keeps_its_tenants_shares(ledger: Ledger, settings: Settings) -> None:
    """What a tenant starts in one tier counts in the other."""
    for n in range(20):
        submit(ledger, f"both/fast{n}", terms=Terms(tier="fast"))
        submit(ledger, f"both/exact{n}", f"plain/{n}")
    for n in range(10):
        assert ledger.claim(f"f{n}", tiers=("fast",))
    starts = [ledger.claim(f"e{n}", tiers=("exact",)) for n in range(12)]
    refs = [one.ref for one in starts if one]
    assert sum(ref.startswith("plain/") for ref in refs) == 11


def test_what_waited_before_there_were_lists_by_tier_is_found(
    ledger: Ledger, settings: Settings
) -> None:
    submit(ledger, "a", "b", terms=Terms(tier="fast"))
    client = connect(settings)
    new = ("turns:fast", "wait:t:fast", "waiting")
    client.delete(*(f"{settings.key_prefix}:{key}" for key in new))
    client.set(f"{settings.key_prefix}:layout", "2")
    assert ledger.claim("h", tiers=("fast",)) is None
    Durability(client, settings).check()
    assert client.get(f"{settings.key_prefix}:layout") == LAYOUT == "3"
    assert client.hgetall(f"{settings.key_prefix}:waiting") == {"t": "2"}
    client.close()
    found = [ledger.claim(name, tiers=("fast",)) for name in "jk"]
    assert [one and one.ref for one in found] == ["t/a", "t/b"]


# the same request again


def keyed(ledger: Ledger, name: str, digest: str, honour: bool = True) -> str:
    terms = Terms(key="k", digest=digest, honour=honour)
    return ledger.submit(ref(name), request_of("anna"), terms).ref


def test_a_key_makes_one_job_of_many_requests(ledger: Ledger) -> None:
    assert [keyed(ledger, name, "d") for name in ("a", "b", "c")] == ["t/a"] * 3
    assert keyed(ledger, "other/a", "d") == "other/a"  # a key is its tenant's
    assert ledger.books().submitted == 2
    assert ledger.arrive("t/new", Terms(key="k", digest="d")) == ("t/a", True)
    assert ledger.arrive("t/new", Terms(key="none", digest="d")) == ("t/new", False)


def test_a_key_with_another_request_is_refused(ledger: Ledger) -> None:
    keyed(ledger, "a", "d")
    for call in (
        lambda: keyed(ledger, "b", "another"),
        lambda: ledger.arrive("t/b", Terms(key="k", digest="another")),
    ):
        with pytest.raises(IdempotencyConflict, match="Idempotency-Key"):
            call()
    assert ledger.books() == Books(1, 1, 0, 0, 0)


def test_a_key_that_is_only_noted_down_makes_a_new_job_each_time(ledger: Ledger) -> None:
    """What a client sends twice on purpose is two jobs; what its library sends again is one."""
    assert keyed(ledger, "a", "d", honour=False) == "t/a"
    assert keyed(ledger, "b", "d", honour=False) == "t/b"
    assert keyed(ledger, "again", "d") == "t/b"


def test_a_deleted_jobs_key_may_be_used_anew(ledger: Ledger) -> None:
    keyed(ledger, "a", "d")
    ledger.delete("t/a")
    assert keyed(ledger, "b", "another") == "t/b"


def test_two_equal_requests_on_their_way_make_the_same_job(ledger: Ledger) -> None:
    terms = Terms(key="k", digest="d")
    assert ledger.arrive("t/a", terms) == ("t/a", False)
    assert ledger.arrive("t/b", terms) == ("t/a", False)
    assert [keyed(ledger, "a", "d") for _ in range(2)] == ["t/a"] * 2
    assert ledger.books().submitted == 1


def test_a_request_that_was_refused_has_not_used_its_key(ledger: Ledger) -> None:
    ledger.arrive("t/a", Terms(key="k", digest="d"))
    ledger.withdraw("t/other", Terms(key="k"))
    with pytest.raises(IdempotencyConflict):
        ledger.arrive("t/b", Terms(key="k", digest="another"))
    ledger.withdraw("t/a", Terms(key="k"))
    assert ledger.arrive("t/b", Terms(key="k", digest="another")) == ("t/b", False)
    keyed(ledger, "b", "another")
    ledger.withdraw("t/b", Terms(key="k"))  # too late: it is a job
    assert ledger.arrive("t/c", Terms(key="k", digest="another")) == ("t/b", True)


def test_a_new_request_takes_over_what_an_equal_one_left(ledger: Ledger) -> None:
    """Else a library's second try of one that was refused would get the job of an earlier one."""
    early, now = Terms(key="s", digest="d", honour=False), Terms(key="s", digest="d")
    ledger.arrive("t/a", early)
    ledger.submit("t/a", request_of("anna"), early)
    assert ledger.arrive("t/b", early) == ("t/b", False)
    ledger.withdraw("t/b", early)  # refused by a quota
    assert ledger.arrive("t/c", now) == ("t/c", False)


def test_a_job_handed_back_is_paid_for_once(ledger: Ledger, settings: Settings) -> None:
    submit(ledger, "a")
    for _ in range(3):
        ledger.hand_back(claim(ledger, "a"))
    client = connect(settings)
    assert float(str(client.hget(f"{settings.key_prefix}:passes", "t"))) == 1
    client.close()


# getting on


def test_a_job_that_does_not_get_on_is_taken_away(settings: Settings) -> None:
    ledger = Ledger(connect(settings), settings.model_copy(update={"lease_s": 60, "stall_s": 0.5}))
    submit(ledger, "a")
    mine = claim(ledger, "a")
    for _ in range(4):
        time.sleep(0.2)
        assert ledger.beat(mine, moved=True) == "ok"
        assert ledger.reap() == ([], [])
    end = time.monotonic() + 20
    while ledger.reap() != (["t/a"], []):  # beaten, but by a thread beside the work
        ledger.beat(mine)
        time.sleep(0.05)
        assert time.monotonic() < end
    assert ledger.beat(mine) == "stale"
    assert "stalled" in (read(ledger, "a").text("history") or "")
    ledger.close()


def test_starts_that_get_further_are_not_counted_against_a_job(ledger: Ledger) -> None:
    submit(ledger, "a")
    for step in range(5, 35, 5):
        mine = soon(ledger, "a")
        ledger.beat(mine, 10, True, steps=50, saved=f"k{step}", saved_step=step)
        assert ledger.fail(mine, "x", "x", retry=True) == "again"
    saved = soon(ledger, "a")
    assert (saved.saved, saved.attempt) == ("k30", 7)
    assert ledger.fail(saved, "x", "x", retry=True) == "again"
    for word in ("again", "ok"):
        mine = soon(ledger, "a")
        ledger.beat(mine, 10, True, saved="k30", saved_step=30)  # no further than before
        assert ledger.fail(mine, "x", "x", retry=True) == word


def test_a_step_at_a_time_is_not_getting_on(ledger: Ledger) -> None:
    """One that kills each worker where it stands, however often it was saved, is given up."""
    submit(ledger, "a")
    for step, word in enumerate(("again", "again", "ok"), 1):
        mine = soon(ledger, "a")
        ledger.beat(mine, 10, True, steps=50, saved=f"k{step}", saved_step=step)
        assert ledger.fail(mine, "x", "x", retry=True) == word


def test_every_attempt_leaves_a_line(ledger: Ledger) -> None:
    submit(ledger, "a")
    first = ledger.claim("h1", worker="w1")
    assert first is not None
    ledger.fail(first, "oom", "x", retry=True)
    second = soon(ledger, "a")
    ledger.commit(second, {})
    lines = json.loads(read(ledger, "a").text("history") or "")
    assert [(one["attempt"], one["ended"]) for one in lines] == [(1, "oom"), (2, "completed")]
    assert lines[0]["worker"] == "w1" and read(ledger, "a").number("spent_ms") >= 0


def kinds(settings: Settings, name: str) -> list[str]:
    client = connect(settings)
    entries = client.xrange(f"{settings.key_prefix}:events:{ref(name)}")
    client.close()
    return [fields["kind"] for _, fields in entries]


def test_what_happens_is_told_in_order(ledger: Ledger, settings: Settings) -> None:
    submit(ledger, "a", "b", terms=Terms(webhook="https://example.org/hook"))
    mine = claim(ledger, "a")
    ledger.beat(mine, 10, True, step=1)
    ledger.beat(mine, 10)  # nothing new
    ledger.hand_back(mine)
    ledger.commit(claim(ledger, "a"), {})
    ledger.cancel("t/b")
    assert kinds(settings, "a") == [
        "queued", "started", "progress", "requeued", "started", "completed",
    ]  # fmt: skip
    assert kinds(settings, "b") == ["queued", "cancelled"]
    client = connect(settings)
    outbox = f"{settings.key_prefix}:outbox"
    assert client.zrange(outbox, 0, -1) == ["t/a|completed", "t/b|cancelled"]
    ledger.delete("t/a")
    assert client.zrange(outbox, 0, -1) == ["t/b|cancelled"]
    client.close()


def test_what_ended_long_ago_is_named_for_deletion(ledger: Ledger) -> None:
    submit(ledger, "a", "b")
    ledger.commit(claim(ledger, "a"), {})
    assert ledger.expired(600) == [] and ledger.expired(0) == ["t/a"]
    ledger.delete("t/a")
    assert ledger.expired(0) == []


def test_deletion_leaves_no_key_with_the_jobs_name(ledger: Ledger, settings: Settings) -> None:
    keyed(ledger, "a", "d")
    claim(ledger, "a")
    ledger.delete("t/a")
    ledger.bury("t/a")
    client = connect(settings)
    left = [key for key in keys_of(settings) if "t/a" in key or "idem" in key or "holding" in key]
    values = [key for key in keys_of(settings) if client.type(key) == "zset"]
    client.close()
    assert left == [] and values == []


def test_deletions_are_counted_and_who_is_gone_can_be_asked(ledger: Ledger) -> None:
    submit(ledger, "a", "b")
    assert ledger.deletions() == 0 and ledger.gone([]) == set()
    assert ledger.gone({"t/a", "t/b", "t/c", "other/a"}) == {"t/c", "other/a"}
    ledger.delete("t/a")
    ledger.delete("t/a")
    assert ledger.deletions() == 1 and ledger.gone(["t/a", "t/b"]) == {"t/a"}


def test_compacting_takes_the_deleted_out_of_the_file_and_keeps_the_rest(
    ledger: Ledger, settings: Settings
) -> None:
    client = connect(settings)
    folder = Path(str(client.config_get("dir")["dir"]))

    def on_disk(word: str) -> bool:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return any(word.encode() in path.read_bytes() for path in files)

    gone, kept = uuid.uuid4().hex, uuid.uuid4().hex  # which no compression shortens
    for name, word in (("a", gone), ("b", kept)):
        ledger.submit(ref(name), {"spec": {"prompt": word}})
    ledger.delete(ref("a"))
    ledger.bury(ref("a"))
    assert on_disk(gone)

    def compacted() -> bool:
        ledger.compact()  # it may be at it already
        return not on_disk(gone)

    eventually(compacted)
    assert read(ledger, "b").request["spec"] == {"prompt": kept}
    client.close()
