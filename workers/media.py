"""What of a finished video is kept: the mp4, a thumbnail, a contact sheet beside its references."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import VideoError
from engine.spec import Reference
from service.blobs import FULL
from service.errors import BlobFull

if TYPE_CHECKING:
    from engine.video import Video
    from workers.provenance import Sealed

    Seal = Callable[[Video], Sealed]


@dataclass(frozen=True)
class Media:
    """Encoded files: H.264 mp4, JPEG, PNG. told: what the result says of the video's origin."""

    video: bytes
    thumbnail: bytes
    spritesheet: bytes
    told: dict[str, str] = field(default_factory=dict)

    def files(self) -> dict[str, tuple[bytes, str]]:
        """Content and suffix, by the name of the variant on the wire."""
        return {
            "video": (self.video, ".mp4"),
            "thumbnail": (self.thumbnail, ".jpg"),
            "spritesheet": (self.spritesheet, ".png"),
        }


def render(
    video: "Video", references: Sequence[Reference], seal: "Seal | None" = None
) -> Media:
    """Encode all three; small frames are enlarged by a whole factor, for viewing.

    Args:
        seal: marks and signs the mp4, see `workers.provenance`.

    Raises:
        BlobFull: the scratch disk is.
        VideoError: the encoder or its scratch disk refused.
        SigningError: no signature, hence no video.
    """
    try:
        return _render(video, references, seal)
    except VideoError as error:
        if getattr(error.__cause__, "errno", None) in FULL:
            raise BlobFull("The disk on which this worker writes videos is full.") from error
        raise


def _render(video: "Video", references: Sequence[Reference], seal: "Seal | None") -> Media:
    # Imported here: it brings the codecs, which the parent process has no use for.
    from engine.video import picture_bytes

    # Beside the mp4, whose encoder keeps to one thread.
    with ThreadPoolExecutor(1, thread_name_prefix="pictures") as beside:
        sheet = beside.submit(lambda: picture_bytes(video.contact_sheet(references), "PNG"))
        thumbnail = beside.submit(video.thumbnail)
        sealed = None if seal is None else seal(video)
        return Media(
            video=video.mp4(video.view_scale()) if sealed is None else sealed.content,
            thumbnail=thumbnail.result(),
            spritesheet=sheet.result(),
            told={} if sealed is None else sealed.told(),
        )
