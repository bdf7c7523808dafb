"""One video from stdin to plain frames on stdout. Run as a child process, as a script.

What `service/decode.py` is for pictures: a stranger's bytes meet a demuxer and a decoder in a
process of their own, with limits on memory, time and files, which dies with them. Only MP4 and its
kin are opened, only codecs of CODECS are decoded, sound is never looked at, and what leaves it
holds pixels only (`pack`). The argument is a Plan as JSON.

Exit 0 with frames on stdout, or exit 3 with one sentence on stderr that completes "the video …". It
imports nothing of this project.
"""

import io
import json
import math
import resource
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    import av

CODECS = ("h264", "hevc", "mpeg4")
MAGIC = b"TRPV"
HEAD = struct.Struct(">4sIIII")  # magic, frames, height, width, frames a second
MAX_MEGAPIXELS = 9.0  # of a frame: 4096x2160 is 8.8
MAX_SECONDS = 60
MAX_DECODED = 4000  # frames, whatever their times say
MAX_RAW_BYTES = 300_000_000  # of all frames that leave
MIN_SIDE = 16
MAX_ASPECT = 4
MEMORY_BYTES = 2 << 30
REFUSED = 3


class Refused(Exception):
    """The video cannot be taken; the message completes "the video …"."""


@dataclass(frozen=True)
class Plan:
    """What to make of it. Sides in px.

    size: width and height, filled and cut around the middle; None: of the source's own shape, as
    many pixels as `area` at most, sides multiples of `multiple` from `low` to `high`.
    fps: frames a second; each is the one that a player shows at that time. 0: `stills` frames,
    evenly spread.
    most: frames to take. whole: refuse a longer video, in place of leaving its end out.
    seconds: of the processor.
    """

    fps: int
    most: int
    size: tuple[int, int] | None = None
    area: int = 0
    multiple: int = 1
    low: int = MIN_SIDE
    high: int = 4096
    stills: int = 0
    whole: bool = False
    seconds: int = 60

    def to_json(self) -> str:
        """As the child's argument; `from_json` is the inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Raises ValueError or TypeError for anything else."""
        values = json.loads(text)
        size = values.pop("size")
        return cls(size=None if size is None else (size[0], size[1]), **values)


class Clip(NamedTuple):
    """Plain frames: RGB, row by row, frame after frame; `rgb` holds T * H * W * 3 bytes."""

    frames: int
    height: int
    width: int
    fps: int
    rgb: bytes


def pack(clip: Clip) -> bytes:
    """A head and the frames, deflated: a form that nothing but `unpack` has to read."""
    head = HEAD.pack(MAGIC, clip.frames, clip.height, clip.width, clip.fps)
    return head + zlib.compress(clip.rgb, 1)


def unpack(data: bytes) -> Clip:
    """Raises ValueError when it is not what `pack` wrote; inflates no more than the head says."""
    try:
        magic, frames, height, width, fps = HEAD.unpack_from(data)
        size = frames * height * width * 3
        if magic != MAGIC or size > MAX_RAW_BYTES:
            raise ValueError("another form")
        inflate = zlib.decompressobj()
        rgb = inflate.decompress(data[HEAD.size :], size + 1)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"these are no frames: {error}") from error
    if len(rgb) != size or not size or not inflate.eof:
        raise ValueError("these are no frames: not as many as they say")
    return Clip(frames, height, width, fps, rgb)


def size_of(width: int, height: int, plan: Plan) -> tuple[int, int]:
    """The sides of what leaves, for a source of these."""
    if plan.size is not None:
        return plan.size
    scale = math.sqrt(plan.area / (width * height))
    sides = (math.floor(side * scale / plan.multiple) * plan.multiple for side in (width, height))
    wide, tall = (min(max(side, plan.low), plan.high) for side in sides)
    return wide, tall


def frames_of(data: bytes, plan: Plan) -> Clip:
    """The frames that the plan asks for.

    Raises:
        Refused: no MP4, another codec, too large, too long, too short or damaged.
    """
    import av
    from av.error import FFmpegError

    # Neither names in the file nor what they point at are followed.
    options = {"protocol_whitelist": "none", "codec_whitelist": ",".join(CODECS)}
    options |= {"enable_drefs": "0", "use_absolute_path": "0"}
    try:
        container = av.open(io.BytesIO(data), "r", format="mov", options=options)
    except (FFmpegError, ValueError) as error:
        raise Refused("is not an MP4 or MOV file, whatever its name says") from error
    try:
        with container:
            return _frames_of(container, plan)
    except (FFmpegError, ValueError, OverflowError, IndexError) as error:
        raise Refused(f"is damaged and cannot be decoded ({error!s:.80})") from error


def _stream_of(container: "av.container.InputContainer") -> tuple[Any, float]:
    """The first stream of pictures, and its length in s as the file says it, 0 if it does not."""
    if not container.streams.video:
        raise Refused("has no pictures")
    stream: Any = container.streams.video[0]
    coder = stream.codec_context
    if coder is None or coder.name not in CODECS:
        name = "nothing known" if coder is None else coder.name
        raise Refused(f"is coded as {name}; send one of {', '.join(CODECS)}")
    coder.thread_count = 1
    length_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if length_s > MAX_SECONDS:
        raise Refused(f"is {length_s:.0f} s long; at most {MAX_SECONDS} s")
    return stream, length_s


def _frames_of(container: "av.container.InputContainer", plan: Plan) -> Clip:
    stream, length_s = _stream_of(container)
    step_s = 1 / plan.fps if plan.fps else max(length_s, 1e-3) / plan.stills
    next_s = 0.0 if plan.fps else step_s / 2
    chosen: list[bytes] = []
    size: tuple[int, int] | None = None
    for frame, end_s in _shown(container, stream, length_s):
        if next_s >= end_s - 1e-6:
            continue
        if len(chosen) == plan.most:
            if plan.whole:
                raise Refused(f"has more than {plan.most} frames at {plan.fps} a second")
            break
        image = _upright(frame)
        size = size or size_of(*image.size, plan)
        pixels = _fitted(image, size).tobytes()
        while next_s < end_s - 1e-6 and len(chosen) < plan.most:
            chosen.append(pixels)
            next_s += step_s
        if len(pixels) * len(chosen) > MAX_RAW_BYTES:
            raise Refused(f"has too many frames at {size[0]}x{size[1]}")
    if not chosen or size is None:
        raise Refused("has no frames")
    return Clip(len(chosen), size[1], size[0], plan.fps or 1, b"".join(chosen))


def _shown(
    container: "av.container.InputContainer", stream: Any, length_s: float
) -> Iterator[tuple[Any, float]]:
    """Each frame with the time until which it is shown, from 0 on."""
    first_s, last, last_s = 0.0, None, 0.0
    for number, frame in enumerate(container.decode(stream)):
        _check_size(frame.width, frame.height)
        time_s = float(frame.time or 0.0)
        first_s = first_s if number else time_s
        if number == MAX_DECODED or time_s - first_s > MAX_SECONDS:
            raise Refused(f"is longer than {MAX_SECONDS} s or {MAX_DECODED} frames")
        if last is not None:
            yield last, max(time_s - first_s, last_s)
        last, last_s = frame, max(time_s - first_s, last_s)
    if last is not None:
        rate = float(stream.average_rate or 1)
        yield last, length_s if length_s > last_s else last_s + 1 / rate


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turned = round(frame.rotation) % 360
    return image.rotate(turned, expand=True) if turned in {90, 180, 270} else image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise Refused(f"is {width}x{height}; at most {MAX_MEGAPIXELS:g} megapixels a frame")
    if min(width, height) < MIN_SIDE:
        raise Refused(f"is {width}x{height}; each side must be at least {MIN_SIDE} px")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Refused(f"is {width}x{height}; the longer side at most {MAX_ASPECT} times the other")


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Filled, the middle of what is too much; our own enlarged videos become what they were."""
    scale = min(image.width / size[0], image.height / size[1])
    wide, tall = scale * size[0], scale * size[1]
    left, top = (image.width - wide) / 2, (image.height - tall) / 2
    exact = scale == round(scale)
    how = Image.Resampling.BOX if exact else Image.Resampling.LANCZOS
    return image.resize(size, how, box=(left, top, left + wide, top + tall))


def main(arguments: list[str]) -> int:
    """Entry point of the child."""
    plan = Plan.from_json(arguments[0])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (plan.seconds, plan.seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        clip = frames_of(sys.stdin.buffer.read(), plan)
    except Refused as refusal:
        sys.stderr.write(str(refusal))
        return REFUSED
    sys.stdout.buffer.write(pack(clip))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
