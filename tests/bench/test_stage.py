"""The stage starts what the service needs, kills it, and brings it back as the real thing would."""

from pathlib import Path

import pytest

from bench.stage import Stage, as_env, free_port, quantiles, stage
from workers.settings import Settings


def test_the_ledger_comes_back_with_its_data_and_the_broker_without() -> None:
    with stage(gateways=0, workers=0) as place:
        place.ledger.submit("local/a", {"spec": {}})
        place.redis.set("bench:x", 1)
        place.kill("ledger")
        place.wait(lambda: place.redis.ping())
        assert place.ledger.read("local/a").state == "queued"
        assert place.refs() == ["local/a"]
        assert [fields["kind"] for _, fields in place.events("local/a")] == ["queued"]
        assert (place.folder / "ledger" / "appendonlydir").is_dir()

        (place.folder / "broker" / "kept").touch()
        place.wipe("broker")
        place.tend()
        assert place.restarts == 2
        assert not (place.folder / "broker" / "kept").exists()
    assert not place.folder.exists()


def test_who_was_told_to_end_stays_ended() -> None:
    with stage(gateways=0, workers=0) as place:
        place.term("broker")
        place.wait(lambda: place.ended("broker"))
        place.tend()
        assert place.ended("broker") and place.restarts == 0
        place.start("broker")
        assert not place.ended("broker")


def test_it_says_who_did_not_come_up() -> None:
    with stage(gateways=0, workers=0) as place, pytest.raises(TimeoutError, match=r"ledger\.log"):
        place.wait(lambda: False, limit_s=0.1)


def test_fields_of_a_record() -> None:
    with stage(gateways=0, workers=0) as place:
        place.ledger.submit("local/a", {"spec": {}})
        assert place.fields("local/a", "attempts", "nothing") == [0, 0]
        assert place.texts("local/a", "state", "nothing") == ["queued", ""]
        assert place.holders() == {}


def test_processes_get_the_settings(tmp_path: Path) -> None:
    env = as_env(Settings(key_prefix="p", blobs_url=str(tmp_path)))
    assert (env["TROUPE_KEY_PREFIX"], env["TROUPE_BLOBS_URL"]) == ("p", str(tmp_path))
    assert "TROUPE_BROKER_URL" not in env


def test_a_stage_has_a_port_for_each_gateway(tmp_path: Path) -> None:
    assert free_port() > 1023
    place = Stage(tmp_path, 2, 1, {}, {}, {})
    try:
        assert len(set(place.urls)) == 2 and place.url("gateway-1") == place.urls[0]
    finally:
        place.close()


def test_quantiles() -> None:
    assert quantiles([]) == {"count": 0}
    assert quantiles([float(n) for n in range(1, 101)]) == {
        "count": 100, "p50": 51.0, "p99": 99.0, "max": 100.0,
    }  # fmt: skip
    assert quantiles([2.0])["p99"] == 2.0
