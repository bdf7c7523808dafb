"""Strangers' videos to plain frames: what is taken, what is refused, and with which words."""

import io
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.video import Video
from service import decode_video
from service.decode_video import HEAD, Clip, Plan, Refused, frames_of, pack, size_of, unpack

SAME = Plan(fps=8, most=99, size=(96, 64))


def grey(num: int, size: tuple[int, int] = (96, 64)) -> NDArray[np.uint8]:
    """Frames that get lighter by 20 each."""
    levels = (20 * np.arange(num) % 240).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num, size[1], size[0], 3)).copy()


def film(
    frames: NDArray[np.uint8], codec: str = "libx264", form: str = "mp4", fps: int = 8,
    times: list[int] | None = None,
) -> bytes:  # fmt: skip
    """A file of some form. times: of each frame, in frames."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def pixels(clip: Clip) -> NDArray[np.uint8]:
    shape = (clip.frames, clip.height, clip.width, 3)
    return np.frombuffer(clip.rgb, np.uint8).reshape(shape)


def levels(clip: Clip) -> list[int]:
    """Of each frame, which of `grey` it is."""
    return [round(float(mean) / 20) for mean in pixels(clip).mean((1, 2, 3))]


@pytest.mark.parametrize(
    ("codec", "form"), [("libx264", "mp4"), ("libx264", "mov"), ("mpeg4", "mp4")]
)
def test_what_is_taken(codec: str, form: str) -> None:
    clip = frames_of(film(grey(9), codec, form), SAME)
    assert clip[:4] == (9, 64, 96, 8) and levels(clip) == list(range(9))


def test_our_own_enlarged_video_becomes_what_it_was() -> None:
    rng = np.random.default_rng(0)
    small = np.repeat(np.repeat(rng.integers(0, 255, (5, 16, 24, 3), np.uint8), 4, 1), 4, 2)
    video = Video(small, 8)
    found = pixels(frames_of(video.mp4(4), SAME))
    assert np.abs(found.astype(int) - small).mean() < 4  # of 255, in saturated noise


@pytest.mark.parametrize(
    ("fps", "wanted"), [(8, [0, 1, 2, 3]), (4, [0, 2]), (16, [0, 0, 1, 1, 2, 2, 3, 3])]
)
def test_each_frame_is_the_one_shown_at_its_time(fps: int, wanted: list[int]) -> None:
    assert levels(frames_of(film(grey(4)), Plan(fps=fps, most=99, size=(96, 64)))) == wanted


def test_frames_of_uneven_length() -> None:
    uneven = film(grey(3), times=[0, 4, 5])
    assert levels(frames_of(uneven, SAME)) == [0, 0, 0, 0, 1, 2]


def test_the_end_is_left_out_or_refused() -> None:
    data = film(grey(9))
    assert levels(frames_of(data, Plan(fps=8, most=5, size=(96, 64)))) == list(range(5))
    assert frames_of(data, Plan(fps=8, most=9, size=(96, 64), whole=True)).frames == 9
    with pytest.raises(Refused, match="has more than 8 frames at 8 a second"):
        frames_of(data, Plan(fps=8, most=8, size=(96, 64), whole=True))


def test_stills_are_evenly_spread() -> None:
    clip = frames_of(film(grey(8)), Plan(fps=0, stills=4, most=4, area=96 * 64, multiple=8))
    assert clip[:3] == (4, 64, 96) and levels(clip) == [1, 3, 5, 7]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ((96, 64), (96, 64)),
        ((1920, 1080), (104, 56)),
        ((300, 300), (72, 72)),
        ((30, 90), (40, 128)),
    ],
)
def test_the_sides_follow_the_sources_shape(
    source: tuple[int, int], wanted: tuple[int, int]
) -> None:
    plan = Plan(fps=8, most=9, area=96 * 64, multiple=8, low=32, high=128)
    assert size_of(*source, plan) == wanted


def test_another_shape_is_filled_from_the_middle() -> None:
    tall = np.zeros((2, 128, 96, 3), np.uint8)
    tall[:, 32:96] = 200  # what is not cut
    assert pixels(frames_of(film(tall), SAME)).min() > 180


def test_a_phones_upright_video_is_turned() -> None:
    frames = np.zeros((2, 64, 96, 3), np.uint8)
    frames[:, :, :48] = 250  # light on the left
    data = bytearray(film(frames))
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    at = data.index(plain, data.index(b"tkhd"))  # a player turns it clockwise
    data[at : at + len(plain)] = turned
    clip = frames_of(bytes(data), Plan(fps=8, most=9, area=96 * 64, multiple=8))
    assert (clip.width, clip.height) == (64, 96)
    assert pixels(clip)[0, :40].mean() > 200 and pixels(clip)[0, 56:].mean() < 30


def test_files_of_another_form_or_codec_are_refused() -> None:
    for form, words in (("matroska", "is not an MP4"), ("avi", "is not an MP4")):
        with pytest.raises(Refused, match=words):
            frames_of(film(grey(2), form=form), SAME)
    with pytest.raises(Refused, match="is coded as vp9; send one of h264, hevc, mpeg4"):
        frames_of(film(grey(2), "libvpx-vp9"), SAME)
    for data in (b"", b"text", b"#EXTM3U\nfile:///etc/passwd", grey(1).tobytes()):
        with pytest.raises(Refused, match="is not an MP4"):
            frames_of(data, SAME)


def test_damage_is_refused_and_never_raises_anything_else() -> None:
    good = film(grey(9))
    rng = np.random.default_rng(0)
    for cut in range(0, len(good), max(len(good) // 40, 1)):
        torn = bytearray(good)
        torn[cut : cut + 8] = rng.bytes(8)
        for data in (good[:cut], bytes(torn)):
            try:
                frames_of(data, SAME)
            except Refused:
                continue


def test_sizes_and_lengths_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="is 96x320|longer side"):
        frames_of(film(grey(2, (64, 320))), SAME)
    monkeypatch.setattr(decode_video, "MAX_MEGAPIXELS", 0.005)
    with pytest.raises(Refused, match="is 96x64; at most 0.005 megapixels"):
        frames_of(film(grey(2)), SAME)
    monkeypatch.undo()
    with pytest.raises(Refused, match="is 61 s long; at most 60 s"):
        frames_of(film(grey(61), fps=1), SAME)
    monkeypatch.setattr(decode_video, "MAX_DECODED", 4)
    with pytest.raises(Refused, match="or 4 frames"):
        frames_of(film(grey(5)), SAME)
    monkeypatch.undo()
    monkeypatch.setattr(decode_video, "MAX_RAW_BYTES", 3 * 96 * 64 * 3)
    with pytest.raises(Refused, match="too many frames at 96x64"):
        frames_of(film(grey(5)), SAME)


def test_a_form_that_only_this_reads() -> None:
    clip = Clip(2, 4, 6, 8, np.arange(144, dtype=np.uint8).tobytes())
    data = pack(clip)
    assert unpack(data) == clip
    lying = HEAD.pack(b"TRPV", 3, 4, 6, 8) + data[HEAD.size :]
    endless = HEAD.pack(b"TRPV", 2, 4, 6, 8) + zlib.compress(bytes(10_000_000))
    huge = HEAD.pack(b"TRPV", 9999, 9999, 9999, 8)
    for wrong in (b"", b"TRPV", data[:-3], b"X" + data[1:], lying, endless, huge):
        with pytest.raises(ValueError):
            unpack(wrong)


def test_the_plan_survives_its_way() -> None:
    for plan in (SAME, Plan(fps=0, most=4, area=6144, stills=4, whole=True)):
        assert Plan.from_json(plan.to_json()) == plan


def test_the_child_may_open_no_file_for_writing_and_says_why_it_refuses() -> None:
    command = [sys.executable, "-I", decode_video.__file__, SAME.to_json()]
    done = subprocess.run(command, input=film(grey(3)), capture_output=True, check=False)
    assert done.returncode == 0 and levels(unpack(done.stdout)) == [0, 1, 2]
    done = subprocess.run(command, input=b"text", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (decode_video.REFUSED, b"")
    assert done.stderr == b"is not an MP4 or MOV file, whatever its name says"
