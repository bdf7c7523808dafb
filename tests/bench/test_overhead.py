"""Both ways make the same frames, and the figures are of what was measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from bench import overhead
from bench.overhead import Turn, compared


def turn(clock_s: float, cpu_s: float, frames: str = "f", **stages: float) -> Turn:
    return Turn(clock_s, cpu_s, stages, frames)


def test_pairs_are_compared() -> None:
    turns = [
        (turn(10.0, 8.0, denoise=9.0), turn(10.1, 10.0, denoise=9.5, store=0.1)),
        (turn(20.0, 8.0, denoise=9.0), turn(20.2, 8.8, denoise=9.5, store=0.3)),
    ]
    found = compared(turns, [{"post": 0.1}, {"post": 0.3}])
    assert found["ratio"]["median"] == pytest.approx(1.01) and found["equal"]
    assert found["added_s"]["least"] == pytest.approx(0.2)
    assert found["added_s"]["most"] == pytest.approx(0.6)
    assert found["added"] == pytest.approx(1 + 0.4 / 15) and not found["met"]
    assert found["cpu"]["least"] == pytest.approx(1.1)
    assert found["cpu"]["most"] == pytest.approx(1.25)
    assert found["overhead_ms"]["least"] == pytest.approx(100)
    assert found["stages"] == {
        "denoise": {"bare": 9.0, "service": 9.5}, "store": {"bare": 0.0, "service": 0.2},
    }  # fmt: skip
    assert found["around"] == {"post": 0.2}


def test_other_frames_are_told_and_little_is_enough() -> None:
    found = compared([(turn(10.0, 1.0), turn(10.3, 1.0, frames="g"))], [{"post": 0.1}])
    assert found["met"] and not found["equal"]


def test_a_job_is_made_as_long_as_asked_for() -> None:
    class Clockwork:
        engine = SimpleNamespace(preset=SimpleNamespace(limits=SimpleNamespace(max_steps=200)))

        def turn(self, seed: int, steps: int) -> Turn:
            return turn(0.5 + steps / 8, 0.0)

    bare = cast(overhead.Bare, Clockwork())
    assert overhead.steps_of(15.5, bare) == 120
    assert (overhead.steps_of(99, bare), overhead.steps_of(0, bare)) == (200, 1)


@pytest.mark.slow
def test_small(random_model: Path) -> None:
    found = overhead.run(random_model, rounds=1, steps=4)
    assert found["equal"]
    assert found["service_s"]["median"] > 0 and found["cpu"]["median"] > 0.5
    assert {"encode", "denoise", "decode"} <= found["stages"].keys()
    assert all(row["service"] >= 0 for row in found["stages"].values())
    assert found["around"]["post"] > 0 and found["around"]["wait"] >= 0
    assert found["store"].keys() >= {"of these, mp4", "mark, mp4 and signature"}
