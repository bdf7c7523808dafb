"""Video files: what a browser plays, and what comes back out of them."""

import hashlib
import io
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from engine import watermark
from engine.errors import VideoError
from engine.video import Made, Video, mp4
from tests.engine.conftest import picture


def moving(num_frames: int = 17, height: int = 64, width: int = 96) -> Video:
    """A bright square that walks over a gradient."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[..., 2] = np.linspace(0, 200, width, dtype=np.uint8)
    for number in range(num_frames):
        x = 4 + number * (width - 24) // num_frames
        frames[number, 16:32, x : x + 16] = (220, 220, 40)
    return Video(frames, 8)


def test_a_browser_can_play_it():
    content = moving().mp4()
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.frames == 17 and stream.average_rate == 8
    assert content.find(b"moov") < content.find(b"mdat")


def test_what_goes_in_comes_out():
    video = moving()
    back = Video.from_mp4(video.mp4(scale=4))
    assert back.fps == 8 and back.size == (384, 256)
    small = back.frames[:, 2::4, 2::4].astype(int)
    assert np.abs(small - video.frames).mean() < 4


def test_same_frames_same_bytes():
    assert moving().mp4() == moving().mp4()
    assert moving().mp4(scale=2) != moving().mp4()


@pytest.mark.parametrize("size", [(32, 48), (64, 96)])
def test_what_lies_in_free_memory_is_not_in_the_file(size):
    """As in processes that have computed something: an encoder that reads it makes other files."""
    random, (height, width) = np.random.default_rng(0), size
    coarse = random.integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    scene = np.array(Image.fromarray(coarse).resize((2 * width, 2 * height)))
    video = Video(np.stack([scene[t : t + height, 2 * t : 2 * t + width] for t in range(17)]), 8)
    files = set()
    for _ in range(12):
        sizes = random.integers(64, 400_000, 300)
        litter = [random.integers(0, 256, number, dtype=np.uint8) for number in sizes]
        del litter
        files.add(video.mp4())
    assert len(files) == 1


@pytest.mark.parametrize("scale", [1, 2])
def test_frames_that_come_one_by_one_make_the_same_file(scale):
    video = moving(5)
    shown = []

    def frames():  # noqa: ANN202
        for frame in video.frames:
            shown.append(True)
            yield frame.copy()

    large = video.frames.repeat(scale, axis=1).repeat(scale, axis=2)
    assert mp4(frames(), 8, scale) == Video(large, 8).mp4() == video.mp4(scale)
    assert len(shown) == 5
    with pytest.raises(VideoError, match="no frames"):
        mp4(iter(()), 8)


def test_the_file_says_how_it_was_made():
    content = replace(moving(), made=Made("fast", 48, 20)).mp4()
    with av.open(io.BytesIO(content)) as container:
        assert container.metadata["comment"] == "tier fast, 20 of 48 forwards computed"
    with av.open(io.BytesIO(moving().mp4())) as container:
        assert "comment" not in container.metadata


def test_a_payload_goes_into_the_enlarged_pixels():
    payload = watermark.payload_of("video_1")
    marked = moving().mp4(scale=4, payload=payload)
    assert marked == moving().mp4(scale=4, payload=payload) != moving().mp4(scale=4)
    found = watermark.find(Video.from_mp4(marked).frames)
    assert found is not None and (found.payload, found.scale) == (payload, 1.0)


def test_the_digest_is_of_the_frames_alone():
    video = moving()
    assert video.sha256() == replace(video, fps=4, made=Made("fast", 48, 20)).sha256()
    assert video.sha256() == hashlib.sha256(video.frames.tobytes()).hexdigest()
    turned = Video(video.frames[::-1], 8)  # not contiguous
    assert turned.sha256() == Video(turned.frames.copy(), 8).sha256() != video.sha256()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (128, 40)])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_every_size_of_the_grid(height, width, num_frames):
    back = Video.from_mp4(moving(num_frames, height, width).mp4())
    assert back.frames.shape == (num_frames, height, width, 3)


@pytest.mark.parametrize("content", [b"", b"no video", moving().mp4()[:300]])
def test_what_is_no_video_is_told(content):
    with pytest.raises(VideoError):
        Video.from_mp4(content)


def test_a_disk_that_refuses_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(VideoError):
        moving().mp4()


def test_view_scale_reaches_a_visible_size():
    assert moving().view_scale() == 4
    assert moving(height=480, width=832).view_scale() == 1


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_thumbnail_is_a_picture_of_the_middle(format):
    image = Image.open(io.BytesIO(moving().thumbnail(format=format)))
    assert image.format == format and image.size == (384, 256)
    assert max(Image.open(io.BytesIO(moving().thumbnail(100))).size) <= 100


@pytest.mark.parametrize("num_references", [0, 1, 2, 4])
@pytest.mark.parametrize("num_frames", [1, 5, 17])
def test_contact_sheet_shows_references_and_frames(num_references, num_frames):
    references = [picture(f"n{i}", (10 + i, 200, 10)) for i in range(num_references)]
    sheet = moving(num_frames).contact_sheet(references)
    pixels = np.array(sheet).astype(int)
    greens = (pixels[..., 1] > 180) & (pixels[..., 0] < 60) & (pixels[..., 2] < 60)
    assert greens.any() == (num_references > 0)
    yellows = (pixels[..., 0] > 200) & (pixels[..., 1] > 200) & (pixels[..., 2] < 80)
    assert yellows.sum() > 16 * 16 * min(num_frames, 8)
    assert sheet.width < 2200 and sheet.height < 1400


def test_contact_sheet_of_an_edit_shows_the_frames_as_they_were_above():
    grey, white = (Video(np.full((9, 16, 16, 3), level, np.uint8), 8) for level in (90, 250))
    sheet = np.array(white.contact_sheet(before=grey).convert("L"))
    rows_grey, rows_white = (
        np.flatnonzero((sheet == level).sum(axis=1) > 4 * 16) for level in (90, 250)
    )
    assert len(rows_grey) == len(rows_white) > 0 and rows_grey.max() < rows_white.min()
