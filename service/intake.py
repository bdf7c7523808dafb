"""Strangers' pictures in, clean PNGs out; videos in, plain frames out. Each is decoded in a limited
child (`service/decode.py`, `service/decode_video.py`)."""

import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from service import decode, decode_video
from service.errors import RequestError
from service.settings import Settings
from service.turns import FairPool

MAX_MEGAPIXELS = 25.0
FILM_TIME = 6  # a video may take so many times a picture's time


def picture_of(rgb: bytes, width: int, height: int) -> bytes:
    """Clean pixels as PNG."""
    out = io.BytesIO()
    Image.frombytes("RGB", (width, height), rgb).save(out, "PNG", compress_level=3)
    return out.getvalue()


@dataclass(frozen=True)
class Upload:
    """A picture as it came: the field it came in, its file name, its bytes, or the address that
    they have still to be fetched from (`service.form.fetched`)."""

    field: str
    filename: str
    data: bytes
    link: str = ""


class Intake:
    """Decodes pictures, at most `decode_children` at a time over all requests, tenants in turn."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = {
            "picture": int(settings.max_picture_mb * 1e6),
            "video": int(settings.max_video_mb * 1e6),
        }
        self._megapixels = MAX_MEGAPIXELS
        self._timeout_s = settings.decode_timeout_s
        self._pool = FairPool(settings.decode_children, "intake")

    def clean(self, uploads: Sequence[Upload], tenant: str) -> list[bytes]:
        """Each picture as RGB PNG, in order.

        Raises:
            RequestError: for the first picture that cannot be taken; its field is the param.
        """
        for upload in uploads:
            self._check_bytes(upload, "picture")
        pictures = [self._pool.submit(tenant, self._decode, upload) for upload in uploads]
        try:
            return [picture.result() for picture in pictures]
        finally:
            for picture in pictures:  # after a refusal, for nothing
                picture.cancel()

    def film(self, upload: Upload, plan: decode_video.Plan, tenant: str) -> bytes:
        """A video's frames as `decode_video.pack` writes them.

        Raises:
            RequestError: it cannot be taken; its field is the param.
        """
        self._check_bytes(upload, "video")
        limit_s = FILM_TIME * self._timeout_s
        plan = replace(plan, seconds=int(limit_s) + 1)
        arguments = [decode_video.__file__, plan.to_json()]
        return self._pool.submit(tenant, _run, arguments, upload, limit_s, "video").result()

    def close(self) -> None:
        """Stop taking pictures."""
        self._pool.close()

    def _check_bytes(self, upload: Upload, kind: str) -> None:
        if not upload.data:
            raise _refusal(upload, kind, "is empty")
        if len(upload.data) > self._max_bytes[kind]:
            size, most = len(upload.data) / 1e6, self._max_bytes[kind] / 1e6
            raise _refusal(upload, kind, f"is {size:.1f} MB; at most {most:g} MB", 413)

    def _decode(self, upload: Upload) -> bytes:
        arguments = [decode.__file__, str(self._megapixels), str(self._timeout_s)]
        return _run(arguments, upload, self._timeout_s, "picture")


def _run(arguments: list[str], upload: Upload, limit_s: float, kind: str) -> bytes:
    """What a child makes of it."""
    # -I: neither the environment nor the working directory may add code to the child.
    try:
        done = subprocess.run(
            [sys.executable, "-I", *arguments],
            input=upload.data,
            capture_output=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refusal(upload, kind, f"took longer than {limit_s:g} s to decode") from error
    if done.returncode == decode.REFUSED:
        raise _refusal(upload, kind, done.stderr.decode(errors="replace"))
    if done.returncode != 0:
        raise _refusal(upload, kind, "is damaged, or needs too much memory to decode")
    return done.stdout


def _refusal(upload: Upload, kind: str, what: str, status: int = 400) -> RequestError:
    return RequestError(
        f"{upload.field}: the {kind} {upload.filename!r:.80} {what}.",
        param=upload.field,
        code="invalid_image" if kind == "picture" else "invalid_video",
        status=status,
    )
