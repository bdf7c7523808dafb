"""Quotas over a real Redis: what is reserved, charged and given back, and that it adds up."""

import time
from collections.abc import Callable

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.blobs import FolderBlobs
from service.errors import BlobMissing, LedgerDown, QuotaExceeded, RateLimited, RequestError
from service.ledger import Ledger, connect
from service.limits import Limits
from service.refs import home
from service.tenants import Tenants
from tests.service.rig import keys_of, request_of, wait_for
from workers.settings import Settings

REF = "acme/video_1"


@pytest.fixture
def limits(connection: redis.Redis, settings: Settings) -> Limits:
    return Limits(connection, settings)


@pytest.fixture
def bound(connection: redis.Redis, settings: Settings) -> Callable[..., object]:
    """Sets the bounds of acme."""
    return lambda **bounds: Tenants(connection, settings).set("acme", **bounds)


Quota = Callable[[], dict[str, float]]


@pytest.fixture
def quota(connection: redis.Redis, settings: Settings) -> Quota:
    """The bucket of acme, in seconds."""

    def read() -> dict[str, float]:
        names = ("granted", "settled", "reserved")
        found = connection.hmget(f"{settings.key_prefix}:quota:acme", names)
        return {name: float(value or 0) / 1000 for name, value in zip(names, found, strict=True)}

    return read


def test_who_is_not_bound_may_go_on_and_is_counted(limits: Limits, quota: Quota) -> None:
    for number in range(50):
        assert limits.reserve(f"acme/{number}", "miniature", 1e6).headers == {}
    assert quota()["reserved"] == 5e7


def test_a_request_reserves_its_estimate_and_pays_what_it_took(
    limits: Limits, bound: Callable[..., object], quota: Quota
) -> None:
    bound(gpu_seconds_per_hour=100)
    standing = limits.reserve(REF, "miniature", 30.0)
    assert standing.cost_s == 30 and standing.gpu_seconds_left == pytest.approx(70, abs=0.5)
    assert quota()["reserved"] == 30
    assert limits.settle(REF, 12.5) and not limits.settle(REF, 50.0)
    assert (quota()["settled"], quota()["reserved"]) == (12.5, 0)
    after = limits.reserve("acme/video_2", "miniature", 1.0)
    assert after.gpu_seconds_left == pytest.approx(86.5, abs=0.5)


def test_what_is_released_was_never_used(
    limits: Limits, bound: Callable[..., object], quota: Quota
) -> None:
    bound(gpu_seconds_per_hour=10)
    limits.reserve(REF, "miniature", 10.0)
    with pytest.raises(QuotaExceeded):
        limits.reserve("acme/video_2", "miniature", 10.0)
    assert limits.release(REF) and not limits.release(REF)
    assert quota()["settled"] == quota()["reserved"] == 0
    limits.reserve("acme/video_2", "miniature", 10.0)


def test_asking_twice_reserves_once(
    limits: Limits, bound: Callable[..., object], quota: Quota
) -> None:
    bound(gpu_seconds_per_hour=10, requests_per_minute=1)
    for _ in range(3):
        limits.reserve(REF, "miniature", 7.0)
    assert quota()["reserved"] == 7


def test_the_wait_is_told_exactly(limits: Limits, bound: Callable[..., object]) -> None:
    bound(gpu_seconds_per_hour=3600)
    limits.reserve(REF, "miniature", 3590.0)
    with pytest.raises(QuotaExceeded, match="estimated at 100 GPU-seconds; 10") as caught:
        limits.reserve("acme/video_2", "miniature", 100.0)
    # One GPU-second comes back each second: ninety are missing.
    assert caught.value.wait_s == pytest.approx(90, abs=0.5)
    assert caught.value.headers["retry-after"] == "90"
    assert caught.value.headers["x-should-retry"] == "false"
    assert caught.value.headers["ratelimit-policy"] == '"gpu";q=3600;qu="gpu-seconds";w=3600'
    assert caught.value.headers["ratelimit"] == '"gpu";r=10;t=3590'


def test_after_the_wait_it_is_taken(limits: Limits, bound: Callable[..., object]) -> None:
    bound(gpu_seconds_per_hour=360_000)  # a hundred each second
    limits.reserve(REF, "miniature", 360_000.0)
    with pytest.raises(QuotaExceeded) as caught:
        limits.reserve("acme/video_2", "miniature", 30.0)
    assert 0.2 < caught.value.wait_s <= 0.3
    time.sleep(caught.value.wait_s)
    limits.reserve("acme/video_2", "miniature", 30.0)


def test_requests_are_bound_by_the_minute(limits: Limits, bound: Callable[..., object]) -> None:
    bound(requests_per_minute=60)
    left = [limits.reserve(f"acme/{n}", "miniature", 1.0).requests_left for n in range(60)]
    assert left[0] == 59 and left == sorted(left, reverse=True)
    with pytest.raises(RateLimited, match="New videos a minute: at most 60") as caught:
        for number in range(60, 70):
            limits.reserve(f"acme/{number}", "miniature", 1.0)
    assert 0 < caught.value.wait_s <= 1
    assert caught.value.headers["retry-after"] == "1"
    assert caught.value.headers["ratelimit"] == '"requests";r=0;t=60'
    limits.reserve("zeta/1", "miniature", 1.0)  # another tenant has its own


def test_a_refusal_costs_nothing(
    limits: Limits, bound: Callable[..., object], quota: Quota
) -> None:
    bound(requests_per_minute=5, gpu_seconds_per_hour=10)
    limits.reserve(REF, "miniature", 9.0)
    for _ in range(10):
        with pytest.raises(QuotaExceeded):
            limits.reserve("acme/video_2", "miniature", 9.0)
    assert limits.reserve("acme/video_3", "miniature", 0.5).requests_left >= 3
    assert quota()["reserved"] == 9.5


def test_what_can_never_be_had_is_no_question_of_waiting(
    limits: Limits, bound: Callable[..., object], quota: Quota
) -> None:
    bound(gpu_seconds_per_hour=10)
    with pytest.raises(RequestError, match="estimated at 11 GPU-seconds, more than the 10"):
        limits.reserve(REF, "miniature", 11.0)
    bound(gpu_seconds_per_hour=0)
    with pytest.raises(RequestError, match="more than the 0"):
        limits.reserve(REF, "miniature", 1.0)
    bound(gpu_seconds_per_hour=None, requests_per_minute=0)
    with pytest.raises(RequestError, match="may make no videos"):
        limits.reserve(REF, "miniature", 1.0)
    assert quota()["reserved"] == 0


def test_who_took_more_than_he_reserved_owes_it(
    limits: Limits, bound: Callable[..., object]
) -> None:
    bound(gpu_seconds_per_hour=100)
    limits.reserve(REF, "miniature", 100.0)
    limits.settle(REF, 150.0)
    with pytest.raises(QuotaExceeded) as caught:
        limits.reserve("acme/video_2", "miniature", 1.0)
    # Fifty-one are missing, of which a hundred come in an hour.
    assert caught.value.wait_s == pytest.approx(51 * 36, abs=1)
    assert '"gpu";r=0;t=5400' in caught.value.headers["ratelimit"]


def test_a_bound_that_changes_counts_at_once(limits: Limits, bound: Callable[..., object]) -> None:
    bound(gpu_seconds_per_hour=100)
    limits.reserve(REF, "miniature", 60.0)
    bound(gpu_seconds_per_hour=20)
    left = limits.reserve("acme/video_2", "miniature", 5.0).gpu_seconds_left
    assert left == pytest.approx(15, abs=0.1)


def test_what_no_job_was_bound_to_comes_back_by_itself(
    connection: redis.Redis, settings: Settings, bound: Callable[..., object], quota: Quota
) -> None:
    limits = Limits(connection, settings, hold_s=0.2, look_s=0.1)
    bound(gpu_seconds_per_hour=10)
    limits.reserve("acme/dead", "miniature", 6.0)
    limits.reserve("acme/alive", "miniature", 4.0)
    limits.bind("acme/alive")
    connection.hset(f"{settings.key_prefix}:job:acme/alive", "state", "running")
    time.sleep(0.25)
    # Another gateway's next request finds it, reaper or not.
    limits.reserve("acme/next", "miniature", 6.0)
    assert quota() == {"granted": pytest.approx(10, abs=0.1), "settled": 0, "reserved": 10}
    assert f"{settings.key_prefix}:reservation:acme/dead" not in keys_of(settings)


@pytest.mark.parametrize(
    ("record", "settled"),
    [
        ({"state": "completed", "spent_ms": "2500", "attempts": "1"}, 2.5),
        ({"state": "failed", "spent_ms": "700", "attempts": "2"}, 0.7),
        ({"state": "failed"}, 0.0),  # cancelled before it began
        ({}, 4.0),  # gone: nobody knows
    ],
)
def test_a_job_that_ended_unseen_is_settled_by_its_record(
    record: dict[str, str],
    settled: float,
    connection: redis.Redis,
    settings: Settings,
    quota: Quota,
) -> None:
    limits = Limits(connection, settings, look_s=0.05)
    limits.reserve(REF, "miniature", 4.0)
    job = f"{settings.key_prefix}:job:{REF}"
    connection.hset(job, "state", "queued")
    limits.bind(REF)
    time.sleep(0.06)
    assert limits.sweep() == 1 and quota()["reserved"] == 4
    connection.delete(job)
    if record:
        connection.hset(job, items=[part for pair in record.items() for part in pair])
    wait_for(limits.sweep, every_s=0.01)
    assert (quota()["settled"], quota()["reserved"]) == (settled, 0)
    assert limits.sweep() == 0


def test_what_a_gateway_stored_before_it_died_is_swept(
    connection: redis.Redis, settings: Settings, ledger: Ledger, blobs: FolderBlobs
) -> None:
    """A photo without a job would lie there for ever, with nobody to delete it."""
    limits = Limits(connection, settings, hold_s=0.05, look_s=0.05)
    limits.reserve(REF, "miniature", 4.0)
    key = blobs.put(f"{home(REF)}/in", b"a face", ".png").key
    wait_for(limits.sweep, every_s=0.01)
    assert ledger.graves(0) == [REF]
    with pytest.raises(LedgerDown, match="too long"):  # the gateway was only slow
        ledger.submit(REF, request_of("anna"))
    for ref in ledger.graves(0):
        blobs.delete(home(ref))
        ledger.bury(ref)
    with pytest.raises(BlobMissing):
        blobs.size(key)
    assert ledger.books().submitted == 0


def test_a_gateway_that_died_before_binding_gives_no_job_away(
    connection: redis.Redis, settings: Settings, quota: Quota
) -> None:
    limits = Limits(connection, settings, hold_s=0.05, look_s=0.05)
    limits.reserve(REF, "miniature", 4.0)
    job = f"{settings.key_prefix}:job:{REF}"
    connection.hset(job, "state", "running")
    wait_for(limits.sweep, every_s=0.01)
    assert quota()["reserved"] == 4
    connection.hset(job, items=["state", "completed", "spent_ms", "3000"])
    wait_for(limits.sweep, every_s=0.01)
    assert quota()["settled"] == 3


def test_estimates_follow_what_jobs_took(limits: Limits) -> None:
    def cost(preset: str) -> float:
        standing = limits.reserve("acme/probe", preset, 0.01)
        limits.release("acme/probe")
        return standing.cost_s

    assert cost("miniature") == 0.01
    limits.reserve(REF, "miniature", 0.01)
    limits.settle(REF, 20.0, learn=True)
    assert cost("miniature") == 20.0  # the first says all
    limits.reserve(REF, "miniature", 0.01)
    limits.settle(REF, 10.0, learn=True)
    assert cost("miniature") == 18.0  # 0.8 of the old, 0.2 of the new
    for spent, learn in ((0.0, True), (100.0, False)):
        limits.reserve(REF, "miniature", 0.01)
        limits.settle(REF, spent, learn)
    assert cost("miniature") == 18.0 and cost("wan-1.3b") == 0.01
    limits.reserve(REF, "miniature", 0.01)
    limits.settle(REF, 1e6, learn=True)
    assert cost("miniature") == pytest.approx(1.6 * 18.0)  # one job counts for four times at most


def test_before_any_job_has_ended_a_worker_says_how_fast_it_is(
    limits: Limits, ledger: Ledger, settings: Settings
) -> None:
    def cost(estimate_s: float) -> float:
        standing = limits.reserve("acme/probe", "miniature", estimate_s)
        limits.release("acme/probe")
        return standing.cost_s

    limits.seed("miniature", 5000.0)
    assert cost(0.01) == 50.0
    # Four candidates are reserved, two are made, of each half its forwards: of 0.04 a quarter.
    wish = {"n": 1, "min_identity": 0.9, "max_reseeds": 3}
    ledger.submit(REF, {**request_of("anna"), "wish": wish})
    limits.reserve(REF, "miniature", 0.04)
    limits.bind(REF)
    mine = ledger.claim("h")
    assert mine is not None
    connection = connect(settings)
    connection.hincrby(f"{settings.key_prefix}:job:{REF}", "claimed_ms", -20_000)
    made = {"candidates": [{}, {}], "forwards": {"asked": 4, "computed": 2}}
    assert ledger.commit(mine, made) == "ok"
    connection.zadd(f"{settings.key_prefix}:reserved", {REF: 0})
    connection.close()
    limits.sweep()
    assert cost(0.01) == pytest.approx(20.0, rel=0.05)
    limits.seed("miniature", 1.0)
    assert cost(0.01) == pytest.approx(20.0, rel=0.05)


def test_without_redis_it_fails_clearly(settings: Settings) -> None:
    lost = settings.model_copy(update={"redis_url": "unix:///nowhere"})
    with pytest.raises(LedgerDown):
        Limits(connect(lost), lost).reserve(REF, "miniature", 1.0)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "release", "bind", "sweep"]),
        st.integers(0, 5),
        st.integers(0, 4000),
    ),
    max_size=40,
)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=MOVES)
def test_nothing_is_lost_or_made(
    moves: list[tuple[str, int, int]], connection: redis.Redis, settings: Settings
) -> None:
    """Against a model: charges = settled + reserved, none negative, none beyond the bucket."""
    bucket_ms = 10_000
    for name in keys_of(settings):
        connection.delete(name)
    Tenants(connection, settings).set("acme", gpu_seconds_per_hour=bucket_ms // 1000)
    limits = Limits(connection, settings)
    quota = f"{settings.key_prefix}:quota:acme"
    open_ms: dict[str, int] = {}
    settled_ms = owed_ms = 0
    began = time.monotonic()
    for act, number, amount in moves:
        ref = f"acme/{number}"
        held = open_ms.get(ref)
        if act == "reserve":
            try:
                limits.reserve(ref, "miniature", amount / 1000)
                open_ms.setdefault(ref, amount)
            except QuotaExceeded:
                assert held is None
        elif act in {"settle", "release"}:
            spent = amount if act == "settle" else 0
            assert limits.settle(ref, spent / 1000) == (held is not None)
            if held is not None:
                settled_ms += spent
                owed_ms += max(spent - held, 0)
                del open_ms[ref]
        elif act == "bind":
            limits.bind(ref)
        else:
            limits.sweep()
        found = {name: float(value) for name, value in connection.hgetall(quota).items()}
        reserved, settled = found.get("reserved", 0), found.get("settled", 0)
        assert (reserved, settled) == (sum(open_ms.values()), settled_ms)
        refilled = bucket_ms * (time.monotonic() - began + 0.1) / 3600
        assert reserved + settled <= bucket_ms + refilled + owed_ms
        assert found.get("granted", bucket_ms) - settled - reserved <= bucket_ms + 1e-6
