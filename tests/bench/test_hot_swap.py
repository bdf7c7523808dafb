"""Publishing under load, and that the counts would tell."""

from collections import Counter
from typing import Any

import pytest

from bench import hot_swap
from bench.hot_swap_faults import KINDS


def video(digest: str, frames: str, **changed: Any) -> dict[str, Any]:
    found = {"id": "v", "status": "completed", "seed": 1, "attempts": 1, "timings": None}
    return found | {"model_digest": digest, "frames_sha256": frames} | changed


def test_two_hundred_publishes_hold_every_fault_twice() -> None:
    found = Counter(hot_swap.turns(200))
    assert {kind: found[kind] for kind in KINDS} == dict.fromkeys(KINDS, found["truncated"])
    published = sum(found.values()) - found["back"] + (hot_swap.RACERS - 1) * found["race"]
    assert 200 <= published < 220 and found["back"] >= 18


def test_frames_tell_which_weights_made_them() -> None:
    expected = {("a", 1): "1", ("b", 1): "2"}
    right = [video("a", "1"), video("b", "2"), video("a", "", status="failed")]
    assert hot_swap.wrong_weights(right, expected) == []
    wrong = [
        video("a", "2"),  # made with other weights than it says
        video("a", "mixed"),
        video("c", "1"),  # a model that was never published
        video("a", "1", seed=2),
    ]
    assert len(hot_swap.wrong_weights(wrong, expected)) == len(wrong)


def test_bars_that_do_not_hold_are_named() -> None:
    found: dict[str, Any] = dict.fromkeys(hot_swap.BARS, 0)
    assert hot_swap.over(found) == []
    assert hot_swap.over(found | {"rollback_s": 5.1, "rss_ratio": float("nan")}) == [
        "rollback_s",
        "rss_ratio",
    ]


@pytest.mark.slow
def test_small() -> None:
    """Four of the ten faults, chosen so that everything is passed through once."""
    what = ("good", "back", "flipped", "nan", "swapped", "race")
    found = hot_swap.run(what, workers=1, customers=2)
    assert found["publishes"] == 1 + 1 + 3 + hot_swap.RACERS
    assert [found[n] for n in ("wrong_weights", "failed_jobs", "lost_publishes")] == [0] * 3, found
    assert found["told_apart"] and found["models_seen"] >= 3 and found["jobs"] > 5
    assert found["rollback_s"] > 0 and found["exchanged_s"]["count"] >= 3
