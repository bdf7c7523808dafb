"""Jobs that begin with a video: what the engine is given, and what the client gets."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.presets import MINIATURE
from engine.spec import Spec
from engine.video import Video
from service.blobs import get
from service.decode_video import Clip, pack
from service.errors import BlobError
from tests.engine.conftest import random_engine
from tests.workers.stage import place, submit
from workers.boot import Station
from workers.generate import answer
from workers.source import continued, edit_of, finished, joined

__all__ = ["place"]

SPEC = Spec.of(MINIATURE, "a field", (), num_frames=17)


def noise(num: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (num, 64, 96, 3), np.uint8)


def request(place: Station, frames: NDArray[np.uint8], keep: int, **told: Any) -> dict[str, Any]:
    data = pack(Clip(len(frames), 64, 96, 8, frames.tobytes()))
    key = place.blobs.put("t/local/videos/v/in", data, ".frames").key
    return {"edit": {"key": key, "strength": 0.4, "keep_frames": keep, **told}}


def test_a_job_without_a_source_is_as_ever(place: Station) -> None:
    video = Video(noise(17), 8)
    assert edit_of(place, {}, SPEC) is None and finished(place, {}, video) is video


def test_an_edit_starts_from_the_whole_source(place: Station) -> None:
    asked = request(place, noise(17), 0)
    for spec in (SPEC, replace(SPEC, num_frames=13)):  # what does not fit is left out
        edit = edit_of(place, asked, spec)
        assert edit is not None and (edit.strength, edit.mask) == (0.4, None)
        assert np.array_equal(edit.video.frames, noise(17)[: spec.num_frames])
        edit.validate(spec)
    video = Video(noise(17, 1), 8)
    assert finished(place, asked, video) is video


def test_an_extension_knows_the_last_frames_and_nothing_else(place: Station) -> None:
    edit = edit_of(place, request(place, noise(12), 9), SPEC)
    assert edit is not None and edit.mask is not None and edit.strength == 1.0
    edit.validate(SPEC)
    assert np.array_equal(edit.video.frames[:9], noise(12)[3:])
    assert not edit.mask[:9].any() and edit.mask[9:].all()


def test_an_extension_is_given_with_its_source_in_front(place: Station) -> None:
    asked, made = request(place, noise(12), 9), Video(noise(17, 1), 8)
    video = finished(place, asked, made)
    assert len(video.frames) == 12 + 17 - 9 and video.fps == 8
    assert np.array_equal(video.frames[:3], noise(12)[:3])
    assert np.array_equal(video.frames[12:], made.frames[9:])


def test_over_the_known_frames_one_fades_into_the_other() -> None:
    dark, light = np.zeros((5, 64, 96, 3), np.uint8), np.full((9, 64, 96, 3), 240, np.uint8)
    levels = joined(dark, Video(light, 8), 5).frames[:, 0, 0, 0]
    assert list(levels) == [40, 80, 120, 160, 200, 240, 240, 240, 240]
    same = joined(noise(9), Video(noise(17), 8), 9)  # what the engine gave back unchanged
    assert np.array_equal(same.frames, noise(17))


def test_what_cannot_be_read_is_the_stores_fault(place: Station) -> None:
    key = place.blobs.put("t/local/videos/v/in", b"TRPV torn", ".frames").key
    with pytest.raises(BlobError, match="The stored source cannot be read"):
        edit_of(place, {"edit": {"key": key, "strength": 1, "keep_frames": 0}}, SPEC)


def test_a_worker_makes_it(place: Station) -> None:
    asked = request(place, noise(12), 9)
    submit(place, job_id="v", **asked)
    assert answer(place) == "completed"
    result = place.ledger.read("local/v").result
    film = Video.from_mp4(get(place.blobs, result["video"]))
    assert len(film.frames) == 12 + 17 - 9


def test_the_real_engine_keeps_what_is_known() -> None:
    engine = random_engine()
    spec = Spec.of(engine.preset, SPEC.prompt, steps=2, num_frames=13)
    known = engine.generate(spec, []).frames[-9:]
    assert known.std() > 1
    there = engine.decode(engine.encoders.vae.encode(continued(known, spec).pixels()[0][None]))
    made = engine.generate(spec, [], edit=continued(known, spec))
    # Up to the codec, which works in blocks of time: what follows may not reach back.
    assert np.abs(made.frames[:9].astype(int) - there[0, :9].numpy()).max() <= 1
    assert not np.array_equal(made.frames[9:], there[0, 9:].numpy())
