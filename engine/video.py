"""Frames to H.264 in MP4, to a thumbnail, to a contact sheet, and back. Knows no torch.

Legend: T frames, H W height, width in px.
"""

from __future__ import annotations

import hashlib
import io
import platform
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from engine import watermark
from engine.errors import VideoError
from engine.spec import Reference

Frames = NDArray[np.uint8]

CRF = "12"  # tiny frames: a stronger quantiser would eat the faces
# x264's AVX-512 code decides by memory that nobody wrote to: the same frames became other files.
# With SSE 4.2 at most they do not, at the same speed (docs/decisions.md).
ON_X86 = platform.machine() in ("x86_64", "AMD64")
ASM: dict[str, object] = {"x264-params": "asm=sse4.2"} if ON_X86 else {}
VIEW_SIDE_PX = 256  # below this, players show a stamp
SHEET_FRAMES = 8
MARGIN_PX = 8
LABEL_PX = 16
PAPER, INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True)
class Made:
    """How a video was computed: its tier, forwards asked for and forwards computed in full."""

    tier: str
    asked: int
    computed: int

    def __str__(self) -> str:
        return f"tier {self.tier}, {self.computed} of {self.asked} forwards computed"


@dataclass(frozen=True, eq=False)
class Video:
    """frames: uint8 [T, H, W, 3], RGB. fps: frames a second. made: None where no engine did."""

    frames: Frames
    fps: int
    made: Made | None = None

    def __post_init__(self) -> None:
        assert self.frames.dtype == np.uint8 and self.frames.ndim == 4
        assert self.frames.shape[3] == 3 and len(self.frames) > 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return int(self.frames.shape[2]), int(self.frames.shape[1])

    def view_scale(self) -> int:
        """The whole factor that makes the shorter side at least VIEW_SIDE_PX."""
        return max(1, -(-VIEW_SIDE_PX // min(self.size)))

    def mp4(self, scale: int = 1, payload: bytes | None = None) -> bytes:
        """H.264, yuv420p, index first; each pixel enlarged to `scale` x `scale`. Same in, same out.
        Its comment says how it was made.

        Args:
            payload: goes into the enlarged pixels, see `engine.watermark`.

        Raises:
            VideoError: the encoder or the disk refused.
        """
        comment = "" if self.made is None else str(self.made)
        return mp4(self.frames, self.fps, scale, comment, payload)

    def sha256(self) -> str:
        """Of the frames' bytes, in hex: the same for the same request and seed."""
        return hashlib.sha256(self.frames.tobytes()).hexdigest()

    @classmethod
    def from_mp4(cls, content: bytes) -> Video:
        """Raises VideoError when the bytes hold no video."""
        try:
            with av.open(io.BytesIO(content), "r") as container:
                stream = container.streams.video[0]
                frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
                rate = stream.average_rate
        except (FFmpegError, IndexError, ValueError) as error:
            raise VideoError(f"cannot read the video: {error}") from error
        if not frames or rate is None:
            raise VideoError("cannot read the video: it has no frames")
        return cls(np.stack(frames), round(rate))

    def thumbnail(self, max_side: int = 512, format: str = "JPEG") -> bytes:
        """The middle frame as a picture file, enlarged for viewing, at most `max_side` px."""
        image = Image.fromarray(self.frames[len(self.frames) // 2])
        return picture_bytes(_enlarge(image, self.view_scale(), max_side), format)

    def contact_sheet(
        self,
        references: Sequence[Reference] = (),
        num_frames: int = SHEET_FRAMES,
        before: Video | None = None,
    ) -> Image.Image:
        """References with their names in a column, beside frames spread evenly over the video.

        before: what this video was edited from, of the same length: half as many frames, each
        below the one that it was.
        """
        scale = min(self.view_scale(), 3)
        width, height = (side * scale for side in self.size)
        num_picks = min(num_frames if before is None else num_frames // 2, len(self.frames))
        picks = np.linspace(0, len(self.frames) - 1, num_picks).round().astype(int)
        rows = [("frame", self)] if before is None else [("before", before), ("frame", self)]
        shots = [
            (f"{word} {index}", _enlarge(Image.fromarray(video.frames[index]), scale))
            for word, video in rows
            for index in picks
        ]
        portraits = [(r.name, _fit(r.to_image(), height, height)) for r in references]
        num_columns = -(-len(shots) // 2) if len(shots) > 2 else len(shots)
        num_rows = max(-(-len(shots) // num_columns), -(-len(portraits) // 2))
        left_columns = min(2, len(portraits))
        step_y = height + LABEL_PX + MARGIN_PX
        offset = MARGIN_PX + left_columns * (height + MARGIN_PX)
        sheet = Image.new(
            "RGB",
            (offset + num_columns * (width + MARGIN_PX), num_rows * step_y + MARGIN_PX),
            PAPER,
        )
        for place, (name, image) in enumerate(portraits):
            x = MARGIN_PX + place % 2 * (height + MARGIN_PX)
            _paste(sheet, image, name, x, MARGIN_PX + place // 2 * step_y)
        for place, (name, image) in enumerate(shots):
            x = offset + place % num_columns * (width + MARGIN_PX)
            _paste(sheet, image, name, x, MARGIN_PX + place // num_columns * step_y)
        return sheet


def mp4(
    frames: Iterable[Frames],
    fps: int,
    scale: int = 1,
    comment: str = "",
    payload: bytes | None = None,
) -> bytes:
    """What `Video.mp4` says, of frames [H, W, 3] of one size that are taken as they come.

    Raises:
        VideoError: there are no frames, or the encoder or the disk refused.
    """
    enlarged = (frame.repeat(scale, axis=0).repeat(scale, axis=1) for frame in frames)
    large = enlarged if payload is None else watermark.mark(enlarged, payload)
    # The muxer moves the index to the front by reading its own output: it needs a real file.
    try:
        with tempfile.TemporaryDirectory(prefix="troupe-") as folder:
            path = Path(folder) / "video.mp4"
            _write_mp4(path, _ahead(large), fps, comment)
            return path.read_bytes()
    except (FFmpegError, OSError) as error:
        raise VideoError(f"cannot write the video: {error}") from error


def _ahead(frames: Iterator[Frames]) -> Iterator[Frames]:
    """The same; each is made while the one before is encoded."""
    with ThreadPoolExecutor(1, thread_name_prefix="frames") as beside:
        coming = beside.submit(next, frames, None)
        while (frame := coming.result()) is not None:
            coming = beside.submit(next, frames, None)
            yield frame


def picture_bytes(image: Image.Image, format: str = "JPEG") -> bytes:
    """A picture file: JPEG, PNG or whatever Pillow writes under that name."""
    buffer = io.BytesIO()
    # A sheet's PNG takes a third of the time at level 3, for a seventh more bytes.
    options = {"JPEG": {"quality": 92, "subsampling": 0}, "PNG": {"compress_level": 3}}
    image.save(buffer, format, **options.get(format, {}))
    return buffer.getvalue()


def _write_mp4(path: Path, frames: Iterator[Frames], fps: int, comment: str) -> None:
    first = next(frames, None)
    if first is None:
        raise VideoError("cannot write the video: it has no frames")
    options = {"movflags": "faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        # One thread: x264's output depends on how many share the work.
        stream.options = {"crf": CRF, "preset": "medium", "threads": "1"} | ASM
        stream.codec_context.thread_count = 1
        for number, pixels in enumerate(chain((first,), frames)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _enlarge(image: Image.Image, scale: int, max_side: int = 10_000) -> Image.Image:
    scale = max(1, min(scale, max_side // max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _paste(sheet: Image.Image, image: Image.Image, name: str, x: int, y: int) -> None:
    font = ImageFont.load_default(size=LABEL_PX - 4)
    ImageDraw.Draw(sheet).text((x, y), name, fill=INK, font=font)
    sheet.paste(image, (x, y + LABEL_PX))
