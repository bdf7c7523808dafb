"""Strangers' pictures in, clean PNGs out; videos in, plain frames out. Each is decoded in a limited
child (`service/decode.py`, `service/decode_video.py`)."""

import io
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from service import decode, decode_video
from service.errors import RequestError
from service.settings import Settings
from service.turns import FairPool

log = logging.getLogger(__name__)

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
        self._spare = Spare([decode.__file__, str(self._megapixels), str(self._timeout_s)])
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
        return self._pool.submit(tenant, self._film, arguments, upload, limit_s).result()

    def close(self) -> None:
        """Stop taking pictures."""
        self._pool.close()
        self._spare.close()

    def _check_bytes(self, upload: Upload, kind: str) -> None:
        if not upload.data:
            raise _refusal(upload, kind, "is empty")
        if len(upload.data) > self._max_bytes[kind]:
            size, most = len(upload.data) / 1e6, self._max_bytes[kind] / 1e6
            raise _refusal(upload, kind, f"is {size:.1f} MB; at most {most:g} MB", 413)

    def _decode(self, upload: Upload) -> bytes:
        try:
            return _fed(self._spare.take, upload, self._timeout_s, "picture")
        finally:
            self._spare.fill()

    def _film(self, arguments: list[str], upload: Upload, limit_s: float) -> bytes:
        return _fed(lambda: _child(arguments), upload, limit_s, "video")


class Spare:
    """A child that has started and waits for its picture: starting takes ten times as long as most
    pictures. Each takes one picture and ends; when this process dies they read the end of a file.
    """

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._waiting: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def take(self) -> subprocess.Popen[bytes]:
        """The one that waits, or else a new one."""
        with self._lock:
            found, self._waiting = self._waiting, None
        if found is not None and found.poll() is None:
            return found
        return _child(self._arguments)

    def fill(self) -> None:
        """Let one wait, if there is room for it."""
        with self._lock:
            if self._waiting is None and not self._closed:
                try:
                    self._waiting = _child(self._arguments)
                except OSError as error:  # what was asked for is done
                    log.warning("no child waits for the next picture: %s", error)

    def close(self) -> None:
        """Nobody waits any longer."""
        with self._lock:
            self._closed, found = True, self._waiting
            self._waiting = None
        if found is not None:
            found.kill()
            found.communicate()


def _child(arguments: list[str]) -> subprocess.Popen[bytes]:
    # -I: neither the environment nor the working directory may add code to the child.
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-I", *arguments], stdin=pipe, stdout=pipe, stderr=pipe
    )


def _fed(
    start: Callable[[], subprocess.Popen[bytes]], upload: Upload, limit_s: float, kind: str
) -> bytes:
    """What a child makes of it. One that is killed says nothing of what it was given: a machine
    short of memory kills whom it likes. So another one is asked, once."""
    status, made, said = _asked(start(), upload, limit_s, kind)
    if status == -signal.SIGKILL:
        log.warning("a decoding child was killed; another one is asked")
        status, made, said = _asked(start(), upload, limit_s, kind)
    if status == decode.REFUSED:
        raise _refusal(upload, kind, said.decode(errors="replace"))
    if status != 0:
        raise _refusal(upload, kind, "is damaged, or needs too much memory to decode")
    return made


def _asked(
    child: subprocess.Popen[bytes], upload: Upload, limit_s: float, kind: str
) -> tuple[int, bytes, bytes]:
    """Exit status and both outputs of a child that was fed."""
    with child:
        try:
            made, said = child.communicate(upload.data, limit_s)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise _refusal(upload, kind, f"took longer than {limit_s:g} s to decode") from error
        except BaseException:
            child.kill()
            raise
    return child.returncode, made, said


def _refusal(upload: Upload, kind: str, what: str, status: int = 400) -> RequestError:
    return RequestError(
        f"{upload.field}: the {kind} {upload.filename!r:.80} {what}.",
        param=upload.field,
        code="invalid_image" if kind == "picture" else "invalid_video",
        status=status,
    )
