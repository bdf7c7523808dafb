"""What of a finished video is kept: the mp4, a thumbnail, a contact sheet beside its references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.spec import Reference

if TYPE_CHECKING:
    from engine.video import Video


@dataclass(frozen=True)
class Media:
    """Encoded files: H.264 mp4, JPEG, PNG."""

    video: bytes
    thumbnail: bytes
    spritesheet: bytes

    def files(self) -> dict[str, tuple[bytes, str]]:
        """Content and suffix, by the name of the variant on the wire."""
        return {
            "video": (self.video, ".mp4"),
            "thumbnail": (self.thumbnail, ".jpg"),
            "spritesheet": (self.spritesheet, ".png"),
        }


def render(video: "Video", references: Sequence[Reference]) -> Media:
    """Encode all three; small frames are enlarged by a whole factor, for viewing.

    Raises:
        VideoError: the encoder or its scratch disk refused.
    """
    # Imported here: it brings the codecs, which the parent process has no use for.
    from engine.video import picture_bytes

    return Media(
        video=video.mp4(video.view_scale()),
        thumbnail=video.thumbnail(),
        spritesheet=picture_bytes(video.contact_sheet(references), "PNG"),
    )
