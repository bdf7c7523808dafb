"""The Lua itself: it takes its time from Redis, and its states are those the ledger knows."""

from pathlib import Path

from service import scripts
from service.ledger import Ledger, connect
from tests.service.rig import keys_of, request_of
from workers.settings import Settings

LUA = Path(scripts.__file__).parent / "lua"
ALL = [scripts.source(name) for name in scripts.NAMES]


def test_no_script_trusts_a_callers_clock(ledger: Ledger) -> None:
    assert all("redis.call('TIME')" in source for source in ALL)
    assert {path.stem for path in LUA.glob("*.lua")} == {
        "head",
        *scripts.NAMES,
        *(part for parts in scripts.USED.values() for part in parts),
    }


def test_every_script_compiles(settings: Settings) -> None:
    client = connect(settings)
    assert all(len(client.script_load(source)) == 40 for source in ALL)
    client.close()


def test_every_key_lies_under_the_prefix(ledger: Ledger, settings: Settings) -> None:
    client = connect(settings)
    before = set(client.scan_iter("*"))
    ledger.submit("local/a", request_of("anna"))
    ledger.claim("h")
    ledger.delete("local/a")
    after = set(client.scan_iter("*"))
    client.close()
    assert after - before == set(keys_of(settings))
