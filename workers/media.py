"""What of a finished video is kept: the mp4, a thumbnail, a contact sheet beside its references."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.spec import Reference

if TYPE_CHECKING:
    from PIL.Image import Image

    from engine.pipeline import Video


@dataclass(frozen=True)
class Media:
    """Encoded files: H.264 mp4, JPEG, PNG."""

    video: bytes
    thumbnail: bytes
    spritesheet: bytes


def render(video: "Video", references: Sequence[Reference]) -> Media:
    """Encode all three. engine.video is imported here because only the child may reach it."""
    from engine.video import contact_sheet, thumbnail

    return Media(
        video=video.mp4(),
        thumbnail=_encoded(thumbnail(video), "JPEG"),
        spritesheet=_encoded(contact_sheet(video, references), "PNG"),
    )


def _encoded(image: "Image", form: str) -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()
