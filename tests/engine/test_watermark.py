"""The mark in the pixels: unseen, read back after what happens to videos, never found in vain."""

import hashlib
import math

import numpy as np
import pytest
from PIL import Image

from engine import watermark
from engine.video import Video
from engine.watermark import FALSE_ALARM, find, mark, payload_of, scores

PAYLOAD = payload_of("video_1")


def film(kind="walk", num_frames=9, height=256, width=384):
    """Frames: a square that walks over a gradient, a flat grey, or noise."""
    frames = np.full((num_frames, height, width, 3), 128, np.uint8)
    if kind == "noise":
        noise = np.random.default_rng(0).normal(128, 40, frames.shape)
        return np.clip(noise, 0, 255).astype(np.uint8)
    if kind == "walk":
        frames[..., 2] = np.linspace(0, 200, width, dtype=np.uint8)
        for number in range(num_frames):
            x = 16 + number * (width - 96) // num_frames
            frames[number, 64:128, x : x + 64] = (220, 220, 40)
    return frames


def marked(frames):
    return np.stack(list(mark(frames, PAYLOAD)))


def encoded(frames):
    return Video.from_mp4(Video(frames, 8).mp4()).frames


def scaled(frames, factor):
    size = tuple(2 * round(side * factor / 2) for side in (frames.shape[2], frames.shape[1]))
    method = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(f).resize(size, method)) for f in frames])


ATTACKS = {
    "none": lambda frames: frames,
    "encoded": encoded,
    "cut": lambda frames: encoded(frames[:, 18:-8, 30:-8]),
    "smaller": lambda frames: encoded(scaled(frames, 0.75)),
    "larger": lambda frames: encoded(scaled(frames, 1.5)),
    "most frames gone": lambda frames: encoded(frames[::4]),
    "cut and smaller": lambda frames: encoded(scaled(frames[:, 18:-8, 30:-8], 0.8)),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", ["walk", "grey"])
def test_the_payload_is_read_back(kind, attack):
    found = find(ATTACKS[attack](marked(film(kind))))
    assert found is not None and found.payload == PAYLOAD
    assert found.false_alarm < 1e-9
    wanted = {"smaller": 0.75, "larger": 1.5, "cut and smaller": 0.8}.get(attack, 1.0)
    assert found.scale == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("payload", [bytes(8), b"\xff" * 8, b"\x00\x7f\x80\xff\x01\x81\x40\xc0"])
def test_every_kind_of_byte(payload):
    found = find(np.stack(list(mark(film(num_frames=1), payload))))
    assert found is not None and found.payload == payload


@pytest.mark.parametrize("kind", ["walk", "grey", "noise"])
def test_no_pixel_moves_by_more_than_two_levels(kind):
    frames = film(kind, num_frames=2)
    change = marked(frames).astype(int) - frames
    assert set(np.unique(np.abs(change))) <= {0, 1, 2}
    assert 10 * math.log10(255**2 / np.square(change).mean()) >= 42.1
    two = (np.abs(change) == 2).any(-1).mean()  # of the picture, where it is busy
    assert {"grey": two == 0, "walk": 0 < two < 0.1, "noise": two > 0.9}[kind]
    assert (change == change[..., :1]).mean() > 0.99  # of luma alone, but where a channel is full


@pytest.mark.parametrize("kind", ["walk", "grey", "noise"])
@pytest.mark.parametrize("attack", ["none", "encoded", "smaller"])
def test_nothing_is_found_where_nothing_is(kind, attack):
    assert find(ATTACKS[attack](film(kind))) is None


def test_a_score_is_as_rare_as_its_bound_says():
    """Hoeffding's: of all places of an unmarked picture, at most exp(-z^2/2) score above z."""
    for seed in range(4):
        sums_PP = np.random.default_rng(seed).laplace(size=(256, 256)).cumsum(0)
        score_PP = scores(sums_PP - sums_PP.mean())
        assert score_PP.std() == pytest.approx(1, abs=0.1)
        for z in (2.0, 2.5, 3.0):
            assert (score_PP > z).mean() <= math.exp(-(z**2) / 2)
        assert score_PP.max() < math.sqrt(2 * math.log(score_PP.size / FALSE_ALARM))


def test_a_payload_that_is_not_sure_is_not_told():
    """Cut together of two marked videos; half of one alone is sure enough."""
    frames = film("grey", num_frames=2)
    other = np.stack(list(mark(frames, payload_of("video_2"))))
    found = find(np.concatenate([marked(frames), other]))
    assert found is not None and found.payload is None
    half = find(np.concatenate([marked(frames), frames]))
    assert half is not None and half.payload == PAYLOAD


def test_same_frames_same_mark_and_another_name_another():
    frames = film(num_frames=2)
    assert (marked(frames) == marked(frames)).all()
    other = np.stack(list(mark(frames, payload_of("video_2"))))
    assert (other != marked(frames)).any()


def test_the_layout_is_for_ever():
    """Videos are out in the world: a detector of tomorrow must read the marks of today."""
    grey = np.full((1, 256, 256, 3), 128, np.uint8)
    digest = hashlib.sha256(marked(grey).tobytes()).hexdigest()
    assert digest == "b97015d8555b70ffd1be0e15bccac0396c347ac10ab13475f56874d649a7be18"


def test_a_search_tries_scales_as_close_as_half_a_chip():
    for side in (256, 832):
        found = watermark.coarse_scales(side)
        assert found[0] == pytest.approx(0.65) and found[-1] == pytest.approx(1.6)
        assert max(b / a for a, b in zip(found, found[1:], strict=False)) <= 1 + 4.1 / side
