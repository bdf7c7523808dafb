"""Requests that begin with a video, as orders: what spec they lead to, and what is stored."""

from typing import Any

import numpy as np
import pytest

from engine.spec import Spec
from engine.video import Video
from service import sources
from service.accept import Order
from service.auth import EVERYBODY
from service.blobs import get
from service.decode_video import unpack
from service.deps import House
from service.errors import NotFound, NotReady, RequestError
from service.form import Raw
from service.intake import Upload
from service.jobs import Claim
from service.refs import home as job_home
from service.subjects import home
from tests.service.rig import picture, request_of

HEADERS: dict[str, str] = {}


def grey(num: int, size: tuple[int, int] = (96, 64), fps: int = 8) -> Video:
    levels = (10 * np.arange(num) % 240).astype(np.uint8)[:, None, None, None]
    return Video(np.broadcast_to(levels, (num, size[1], size[0], 3)).copy(), fps)


def finished(house: House, *names: str, frames: int = 17, video_id: str = "v", **spec: Any) -> str:
    """A completed job of the caller's, as a worker leaves it."""
    ref = f"local/{video_id}"
    request = request_of(*names, prompt=" ".join(f"@{name} waves" for name in names) or "a field")
    request["spec"] |= spec
    request["references"] = [
        {"name": name, "key": house.blobs.put(f"{job_home(ref)}/in", picture(), ".png").key}
        for name in names
    ]
    house.ledger.submit(ref, request)
    claim = house.ledger.claim("h")
    assert isinstance(claim, Claim) and claim.ref == ref
    mp4 = grey(frames, fps=request["spec"]["fps"]).mp4(4)
    key = house.blobs.put(f"t/local/videos/{video_id}/out", mp4, ".mp4").key
    house.ledger.commit(claim, {"video": key})
    return video_id


def raw(film: Video | None = None, **fields: Any) -> Raw:
    found = Raw(fields={"prompt": "a field", **fields})
    if film is not None:
        found.film = Upload("video", "a.mp4", film.mp4())
    return found


def made(order: Order, house: House) -> tuple[Spec, dict[str, Any], list[int]]:
    """The spec, what the record keeps, and which of `grey` the stored frames are."""
    assert order.source is not None
    spec, told = order.source("local/new")
    clip = unpack(get(house.blobs, told["edit"]["key"]))
    assert told["edit"]["key"].startswith("t/local/videos/new/in/")
    pixels = np.frombuffer(clip.rgb, np.uint8).reshape(clip.frames, -1)
    assert (clip.width, clip.height) == (spec.width, spec.height)
    return spec, told, [round(float(mean) / 10) for mean in pixels.mean(1)]


def edit(house: House, asked: Raw) -> Order:
    return sources.edit(asked, HEADERS, EVERYBODY, house)


def extension(house: House, asked: Raw) -> Order:
    return sources.extension(asked, HEADERS, EVERYBODY, house)


# edits


def test_an_edit_of_ones_own_video_keeps_its_shape(house: House) -> None:
    finished(house, num_frames=13, width=64, height=96, fps=6, frames=13)
    order = edit(house, raw(video={"id": "v"}))
    spec, told, frames = made(order, house)
    assert (spec.num_frames, spec.width, spec.height, spec.fps) == (13, 64, 96, 6)
    assert spec == order.spec  # nothing more was reserved than is used
    assert told["edit"]["strength"] == sources.EDIT_STRENGTH and told["edit"]["keep_frames"] == 0
    assert frames == list(range(13))


def test_an_edit_of_a_file_takes_as_much_as_the_model_makes(house: House) -> None:
    order = edit(house, raw(grey(40, (120, 60)), strength="0.3"))
    assert order.spec.num_frames == 33
    spec, told, frames = made(order, house)
    assert (spec.num_frames, told["edit"]["strength"]) == (33, 0.3)
    assert frames == [number % 24 for number in range(33)]
    assert (spec.width, spec.height) == (104, 48)
    spec, _, frames = made(edit(house, raw(grey(8), size="64x64", fps="8")), house)
    assert (spec.num_frames, spec.width, spec.height) == (5, 64, 64)


def test_an_edit_never_reserves_less_than_it_takes(house: House) -> None:
    for size in ((96, 64), (300, 100), (64, 200), (1000, 990)):
        order = edit(house, raw(grey(9, size)))
        spec, _, _ = made(order, house)
        assert spec.width * spec.height <= order.spec.width * order.spec.height
        assert spec.num_frames <= order.spec.num_frames


def test_subjects_whom_the_new_prompt_calls_come_along(house: House) -> None:
    finished(house, "anna", "bob")
    order = edit(house, raw(video={"id": "v"}, prompt="@bob spins"))
    assert [one.name for one in order.bound] == ["bob"] and order.spec.names == ("bob",)
    assert edit(house, raw(video={"id": "v"})).bound == []
    with pytest.raises(RequestError, match="@zoe"):
        edit(house, raw(video={"id": "v"}, prompt="@zoe spins"))


def test_a_kept_subject_may_be_given_instead(house: House) -> None:
    ref = "local/subj_1"
    key = house.blobs.put(home(ref), picture(), ".png").key
    house.subjects.add(ref, "zoe", (key,))
    finished(house, "anna")
    asked = raw(video={"id": "v"}, prompt="@zoe spins", subjects=[{"id": "subj_1"}])
    (bound,) = edit(house, asked).bound
    assert (bound.name, bound.photos, bound.subject) == ("zoe", (key,), "subj_1")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "video"),
        ({"video": {"id": "v"}, "seconds": 1}, "seconds"),
        ({"video": {"id": "v"}, "num_frames": 9}, "num_frames"),
        ({"video": {"id": "v"}, "strength": 0}, "strength"),
        ({"video": {"id": "v"}, "strength": 1.1}, "strength"),
        ({"video": {"id": "v"}, "fps": 0}, "fps"),
        ({"video": {"name": "v"}}, "video.id"),
        ({"video": "v"}, "video"),
    ],
)
def test_what_is_refused_is_named(house: House, fields: Any, param: str) -> None:
    finished(house)
    with pytest.raises(RequestError) as told:
        edit(house, raw(**fields))
    assert told.value.param == param


def test_a_file_and_an_id_are_one_too_many(house: House) -> None:
    finished(house)
    with pytest.raises(RequestError, match="video: send"):
        edit(house, raw(grey(9), video={"id": "v"}))


def test_only_finished_videos_of_ones_own(house: House) -> None:
    house.ledger.submit("local/waits", request_of())
    house.ledger.submit("other/theirs", request_of())
    with pytest.raises(NotReady, match="is queued"):
        edit(house, raw(video={"id": "waits"}))
    for name in ("theirs", "none", "../other/theirs"):
        with pytest.raises(NotFound):
            edit(house, raw(video={"id": name}))


def test_too_short_a_file_is_refused(house: House) -> None:
    order = edit(house, raw(grey(4)))
    with pytest.raises(RequestError, match="has 4 frames at 8 a second, at least 5") as told:
        made(order, house)
    assert told.value.param == "video"


# remixes


def test_a_remix_is_as_it_was_but_for_what_is_given(house: House) -> None:
    finished(house, "anna", steps=9, solver="unipc", seed=11, negative_prompt="blur", fps=6)
    asked = raw(prompt="@anna spins", steps="5")
    order = sources.remix("v", asked, HEADERS, EVERYBODY, house)
    spec, told, _ = made(order, house)
    assert (spec.prompt, spec.names, spec.steps) == ("@anna spins", ("anna",), 5)
    assert (spec.seed, spec.solver, spec.negative_prompt, spec.fps) == (11, "unipc", "blur", 6)
    assert told["remixed_from"] == "v" and told["edit"]["strength"] == sources.REMIX_STRENGTH


def test_a_remix_takes_no_other_video(house: House) -> None:
    finished(house)
    for asked in (raw(grey(9)), raw(video={"id": "v"})):
        with pytest.raises(RequestError, match="id is in the path"):
            sources.remix("v", asked, HEADERS, EVERYBODY, house)


# extensions


@pytest.mark.parametrize(
    ("frames", "seconds", "keep", "new"),
    [(17, 1, 9, 8), (17, 3, 9, 24), (6, 2, 5, 16), (2, 1, 1, 8)],
)
def test_an_extension_follows_the_last_second(
    house: House, frames: int, seconds: int, keep: int, new: int
) -> None:
    order = extension(house, raw(grey(frames), seconds=seconds))
    spec, told, stored = made(order, house)
    assert spec.num_frames == keep + new and stored == list(range(frames))
    assert told["edit"]["keep_frames"] == keep and told["frames"] == frames + new
    assert spec.num_frames <= order.spec.num_frames


def test_a_long_extension_keeps_less_of_the_source(house: House) -> None:
    spec, told, _ = made(extension(house, raw(grey(17), seconds=4)), house)
    assert (spec.num_frames, told["edit"]["keep_frames"], told["frames"]) == (33, 1, 49)


def test_an_extension_can_be_extended(house: House) -> None:
    finished(house)
    spec, told, _ = made(extension(house, raw(video={"id": "v"}, seconds=1)), house)
    assert told["frames"] == 25 and spec.num_frames == 17


@pytest.mark.parametrize("seconds", [0, -1, 4.1, 1e9])
def test_lengths_that_cannot_be_made(house: House, seconds: float) -> None:
    with pytest.raises(RequestError, match="at most 4 at a time") as told:
        extension(house, raw(grey(9), seconds=seconds))
    assert told.value.param == "seconds"


def test_an_extension_says_how_long(house: House) -> None:
    with pytest.raises(RequestError, match="seconds: is required"):
        extension(house, raw(grey(9)))


def test_two_kinds_are_two_requests(house: House) -> None:
    finished(house)
    finished(house, video_id="w")
    asked = {"prompt": "a field"}
    keys = {
        edit(house, raw(grey(9), **asked)).terms.digest,
        edit(house, raw(grey(9), **asked)).terms.digest,
        edit(house, raw(grey(13), **asked)).terms.digest,
        sources.remix("v", raw(**asked), HEADERS, EVERYBODY, house).terms.digest,
        sources.remix("w", raw(**asked), HEADERS, EVERYBODY, house).terms.digest,
        extension(house, raw(grey(9), seconds=1, **asked)).terms.digest,
    }
    assert len(keys) == 5
