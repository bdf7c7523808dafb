"""Candidates, judged and kept; and a job that goes on where another worker stopped."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.candidates import seed_of
from engine.likeness import Likeness, SubjectLikeness
from engine.spec import Spec
from service.blobs import get
from service.errors import LedgerDown
from service.jobs import Job
from tests.service.rig import wait_for
from tests.workers.scripted import ScriptedEngine
from tests.workers.stage import place, submit
from tests.workers.test_generate import at_step
from workers.attempt import Candidate, Saved
from workers.boot import Station
from workers.generate import answer

__all__ = ["place"]

STEPS = 6


class Rising:
    """Judges the first video .2, the next one .4, and so on, by its frames."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def score(self, frames: Any, references: Any) -> Likeness:
        """By how many others were seen before."""
        if frames.tobytes() not in self.seen:
            self.seen.append(frames.tobytes())
        worth = round(0.2 * (1 + self.seen.index(frames.tobytes())), 3)
        return Likeness((SubjectLikeness(references[0].name, worth, worth),), 0.0, worth)


def wished(place: Station, judge: Any = None, **wish: Any) -> None:
    """A job with a wish beyond one video."""
    place.judge = judge
    submit(place, wish=wish)


def job(place: Station) -> Job:
    return place.ledger.read("local/v")


def engine_of(place: Station) -> ScriptedEngine:
    found: Any = place.engine
    return found


def save_always(place: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.pace.Pace.due", lambda *_: True)


def test_of_several_candidates_the_likest_is_given(place: Station) -> None:
    wished(place, Rising(), n=3)
    assert answer(place) == "completed"
    result = job(place).result
    made = result["candidates"]
    assert [one["overall"] for one in made] == [0.2, 0.4, 0.6]
    assert [one["chosen"] for one in made] == [False, False, True]
    assert [one["seed"] for one in made] == [seed_of(7, n) for n in range(3)]
    assert result["video"] == made[2]["video"] and result["seed"] == made[2]["seed"]
    assert result["identity"]["overall"] == 0.6
    assert all(get(place.blobs, one["video"])[4:8] == b"ftyp" for one in made)


def test_one_candidate_is_the_plain_video(place: Station) -> None:
    wished(place, Rising())
    assert answer(place) == "completed"
    result = job(place).result
    assert result["seed"] == 7 and "candidates" not in result
    assert result["identity"]["subjects"][0]["name"] == "anna"


def test_more_are_made_until_one_is_like_enough(place: Station) -> None:
    wished(place, Rising(), min_identity=0.6, max_reseeds=3)
    answer(place)
    assert [one["overall"] for one in job(place).result["candidates"]] == [0.2, 0.4, 0.6]


def test_at_most_as_many_as_allowed_and_then_the_best_is_given(place: Station) -> None:
    wished(place, Rising(), min_identity=0.9, max_reseeds=1)
    answer(place)
    result = job(place).result
    assert job(place).state == "completed" and result["identity"]["overall"] == 0.4
    assert len(result["candidates"]) == 2


def test_without_a_judge_nobody_compares(place: Station) -> None:
    wished(place, None, n=2)
    assert answer(place) == "failed"
    assert "n: this model brings nobody" in (job(place).text("error_message") or "")
    place.judge = None
    submit(place, job_id="w")
    assert answer(place) == "completed"
    assert place.ledger.read("local/w").result["identity"] is None


def killed(place: Station, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The worker dies after so many steps in all: its lease runs out."""
    engine = engine_of(place)
    inner = engine._act

    def act(spec: Spec, step: int) -> None:
        if engine.steps_made == at:
            monkeypatch.setattr(engine, "_act", inner)
            raise KeyboardInterrupt
        inner(spec, step)

    monkeypatch.setattr(engine, "_act", act)
    with pytest.raises(KeyboardInterrupt):
        answer(place)
    wait_for(lambda: place.ledger.reap() == (["local/v"], []))
    engine.steps_made = 0


def finished(place: Station) -> Job:
    wait_for(lambda: answer(place) == "completed")
    return job(place)


@pytest.mark.parametrize("at", [1, 2, 4, 6])
def test_the_next_worker_goes_on_at_the_step_that_was_saved(
    place: Station, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    save_always(place, monkeypatch)
    submit(place, job_id="plain")
    answer(place)
    undisturbed = place.ledger.read("local/plain").result["frames_sha256"]
    engine_of(place).steps_made = 0
    submit(place)
    killed(place, monkeypatch, at)
    done = finished(place)
    assert engine_of(place).steps_made == STEPS - (at - 1)
    assert done.result["frames_sha256"] == undisturbed
    assert done.result["attempt"] == 2 and states(place) == []


def states(place: Station) -> list[str]:
    found = Path(place.settings.blobs_url).rglob("state/*")
    return sorted(path.name for path in found if any(path.iterdir()))


def test_a_finished_candidate_is_not_made_again(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_always(place, monkeypatch)
    wished(place, Rising(), n=2)
    killed(place, monkeypatch, STEPS + 3)
    result = finished(place).result
    assert engine_of(place).steps_made == STEPS - 2
    assert [one["overall"] for one in result["candidates"]] == [0.2, 0.4]
    assert all(get(place.blobs, one["video"])[4:8] == b"ftyp" for one in result["candidates"])


def test_a_leaving_worker_saves_where_it_is(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pace.Pace.due", lambda *_: False)
    submit(place)
    at_step(place, monkeypatch, place.leaving.set)
    assert answer(place) == "leave"
    assert json.loads(job(place).text("saved") or "")["key"]
    place.leaving.clear()
    engine_of(place).steps_made = 0
    monkeypatch.undo()
    assert answer(place) == "completed"
    assert engine_of(place).steps_made == STEPS - 3


def test_a_candidate_made_before_a_hand_back_is_still_there(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that only became the first of several because it was not like enough."""
    wished(place, Rising(), min_identity=0.4, max_reseeds=1)
    engine = engine_of(place)
    monkeypatch.setattr(
        engine, "_act", lambda spec, step: place.leaving.set() if engine.steps_made == 8 else None
    )
    assert answer(place) == "leave"
    place.leaving.clear()
    assert answer(place) == "completed"
    made = job(place).result["candidates"]
    assert [get(place.blobs, one["video"])[4:8] for one in made] == [b"ftyp"] * 2


def test_nothing_is_left_of_candidates_that_were_cancelled(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    wished(place, Rising(), n=2)
    engine = engine_of(place)
    monkeypatch.setattr(
        engine,
        "_act",
        lambda spec, step: place.ledger.cancel("local/v") if engine.steps_made == 8 else None,
    )
    assert answer(place) == "cancel"
    left = Path(place.settings.blobs_url).rglob("*.*")
    assert {path.suffix for path in left if path.is_file()} == {".png"}
    assert len(list(Path(place.settings.blobs_url).rglob("*.png"))) == 1  # what came in


@pytest.mark.parametrize("spoil", ["gone", "altered", "another request's"])
def test_a_state_that_does_not_fit_is_passed_over(
    place: Station, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    save_always(place, monkeypatch)
    submit(place)
    killed(place, monkeypatch, 4)
    key = json.loads(job(place).text("saved") or "")["key"]
    put: dict[str, Callable[[], str]] = {
        "gone": lambda: "t/local/videos/v/state/none.safetensors",
        "altered": lambda: place.blobs.put("t/local/videos/v/state", b"x", ".safetensors").key,
        "another request's": lambda: place.blobs.put(
            "t/local/videos/v/state",
            get(place.blobs, key).replace(b"waves", b"walks"),
            ".safetensors",
        ).key,
    }
    client = place.ledger._redis
    record = f"{place.settings.key_prefix}:job:local/v"
    client.hset(record, "saved", Saved((), put[spoil]()).to_json())
    assert finished(place).state == "completed"
    assert engine_of(place).steps_made == STEPS


def test_the_old_state_goes_when_a_new_one_is_there(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_always(place, monkeypatch)
    counts: list[int] = []

    def act(spec: Spec, step: int) -> None:
        counts.append(len(states(place)))

    monkeypatch.setattr(engine_of(place), "_act", act)
    submit(place)
    answer(place)
    assert counts == [0, 1, 1, 1, 1, 1] and states(place) == []


def test_a_state_stays_while_the_ledger_leads_to_it(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis was away when the second was saved; the worker died before the third."""
    save_always(place, monkeypatch)
    beat = place.ledger.beat

    def deaf(*given: Any, **fields: Any) -> str:
        if fields.get("saved_step", 0) > 1:
            raise LedgerDown("away")
        return beat(*given, **fields)

    monkeypatch.setattr(place.ledger, "beat", deaf)
    submit(place)
    killed(place, monkeypatch, 4)
    assert finished(place).state == "completed"
    assert engine_of(place).steps_made == STEPS - 1


def test_a_saved_place_survives_the_record() -> None:
    made = (Candidate(7, 0.5, {"video": "k"}, {"forwards": {"asked": 2, "computed": 1}}, {"a": 1}),)
    saved = Saved(made, "key")
    assert Saved.of(saved.to_json()) == saved
    assert Saved.of("") == Saved()
    assert Saved.of(replace(saved, key="").to_json()).key == ""
