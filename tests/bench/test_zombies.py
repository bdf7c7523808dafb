"""Who comes back from the dead changes nothing, and neither does a wrong clock."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from bench import zombies
from bench.zombies import cases, clean, skewed

GOOD: dict[str, Any] = {
    "stops": 8, "stale_accepted": 0, "told": 8, "commits": 3, "wrong": 0, "failed": 0,
    "balanced": True, "skew": {"jobs": 6, "failed": 0, "wrong": 0, "moved": 0, "astray": 0},
}  # fmt: skip


def test_what_is_clean() -> None:
    assert clean(GOOD)
    assert clean(GOOD | {"skew": {"skipped": "libfaketime is not installed"}})
    for name in ("stale_accepted", "wrong", "failed"):
        assert not clean(GOOD | {name: 1})
    for name, value in (("told", 7), ("commits", 0), ("balanced", False)):
        assert not clean(GOOD | {name: value})
    for name in ("failed", "wrong", "moved", "astray"):
        assert not clean(GOOD | {"skew": GOOD["skew"] | {name: 1}})


def test_every_other_one_is_stopped_with_only_the_commit_left() -> None:
    found = list(islice(cases(seed=0), 10))
    assert [case.at == 0 for case in found] == [True, False] * 5
    assert all(case.at < zombies.STEPS for case in found)


def test_a_skewed_process_has_another_wall_clock_only(tmp_path: Path) -> None:
    env = skewed(Path("lib.so"), -600, tmp_path)
    assert (env["LD_PRELOAD"], env["FAKETIME"]) == ("lib.so", "-600")
    assert env["FAKETIME_DONT_FAKE_MONOTONIC"] == "1"
    assert (tmp_path / "sitecustomize.py").is_file()


@pytest.mark.slow
def test_small() -> None:
    found = zombies.run(8, 0, at_once=2, lease_s=2.0)
    assert clean(found | {"skew": {}}), found
    assert found["stops"] == 8


@pytest.mark.slow
@pytest.mark.skipif(zombies.faketime() is None, reason="libfaketime is not installed")
def test_small_with_wrong_clocks() -> None:
    found = zombies.run_skewed(6, 0, lease_s=3.0)
    nothing = dict.fromkeys(("failed", "wrong", "moved", "astray"), 0)
    assert found == {"jobs": 6, "balanced": True, **nothing}
