"""Records as the wire shows them."""

from dataclasses import replace
from typing import Any

import pytest

from engine.presets import MINIATURE
from engine.spec import Spec
from service.jobs import Job
from service.views import eta_s, video, warnings_for
from tests.service.rig import request_of

QUEUED = Job(
    ref="local/v",
    state="queued",
    request={**request_of("anna"), "references": [{"name": "anna", "key": "k"}]},
    result={},
    fields={"created_ms": "1000000", "progress": "0", "attempts": "0", "stage": "queued"},
    place=2,
    now_ms=1_004_000,
    mean_ms=None,
)


def running(**fields: Any) -> Job:
    known = {"started_ms": "1001000", "claimed_ms": "1001000", "stage": "denoise"}
    known |= {name: str(value) for name, value in fields.items()}
    return replace(QUEUED, state="running", place=-1, fields={**QUEUED.fields, **known})


def test_a_waiting_job() -> None:
    shown = video(QUEUED)
    assert (shown.status, shown.queue_position, shown.eta_s) == ("queued", 2, None)
    assert shown.timings.queued_s == 4.0
    assert shown.subjects[0].reference == "/v1/videos/v/references/anna"
    assert (shown.preview, shown.error, shown.completed_at, shown.step) == (None,) * 4


def test_a_running_job() -> None:
    shown = video(running(progress=40, step=5, preview="k.jpg", attempts=2, digest="d"))
    assert (shown.status, shown.progress, shown.step) == ("in_progress", 40, 5)
    assert shown.preview == "/v1/videos/v/content?variant=preview"
    assert (shown.attempts, shown.model_digest, shown.queue_position) == (2, "d", None)
    assert shown.timings.queued_s == 1.0


def test_the_wait_is_estimated_by_the_mean_of_the_last_jobs() -> None:
    assert eta_s(replace(QUEUED, mean_ms=5000)) == 15.0
    assert eta_s(replace(QUEUED, place=0, mean_ms=5000)) == 5.0


def test_who_waits_waits_for_the_jobs_in_hand_too() -> None:
    first = replace(QUEUED, place=0, mean_ms=5000, in_hand=1, rest_ms=4000)
    assert eta_s(first) == 9.0
    assert eta_s(replace(first, place=2)) == 19.0
    assert eta_s(replace(first, place=2, in_hand=2)) == 12.0  # two workers share what is before it


def test_the_rest_is_estimated_by_this_starts_own_pace() -> None:
    assert eta_s(running(fraction=0.25)) == 9.0  # 3 s for a quarter
    assert eta_s(running(fraction=0.01)) is None
    assert eta_s(replace(running(fraction=0.01), mean_ms=10_000)) == 7.0
    assert eta_s(replace(running(fraction=0.01), mean_ms=1_000)) == 0.0


def test_an_ended_job_has_nothing_left_to_wait_for() -> None:
    fields = {**running().fields, "finished_ms": "1003000", "progress": "100"}
    done = replace(QUEUED, state="completed", place=-1, fields=fields, mean_ms=9)
    shown = video(done)
    assert (shown.eta_s, shown.completed_at, shown.timings.total_s) == (None, 1003, 3.0)


def test_a_failure_is_told() -> None:
    fields = {**QUEUED.fields, "error_code": "worker_lost", "error_message": "gone"}
    shown = video(replace(QUEUED, state="failed", place=-1, fields=fields))
    assert shown.error is not None
    assert (shown.error.code, shown.error.message) == ("worker_lost", "gone")
    assert shown.queue_position is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        ({"width": 64}, ["Trained at 96x64 and 17 frames"]),
        ({"num_frames": 33}, ["Trained at 96x64 and 17 frames"]),
        ({"fps": 24}, ["Trained at 8 frames a second"]),
    ],
)
def test_what_was_not_trained_is_said(given: dict[str, int], words: list[str]) -> None:
    notes = warnings_for(Spec.of(MINIATURE, "p", (), **given), "miniature")
    assert "only the drawn world" in notes[0]
    assert [note.split(";")[0].startswith(w) for note, w in zip(notes[1:], words, strict=True)] == [
        True
    ] * len(words)


def test_real_weights_carry_no_note_about_the_miniature() -> None:
    from engine.presets import WAN_1_3B

    assert warnings_for(Spec.of(WAN_1_3B, "p"), "wan-1.3b") == []
