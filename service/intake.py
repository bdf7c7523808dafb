"""Strangers' pictures in, clean PNGs out; each decoded in a limited child (`service/decode.py`)."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from service import decode
from service.errors import RequestError
from service.settings import Settings


@dataclass(frozen=True)
class Upload:
    """A picture as it came: the field it came in, its file name, its bytes."""

    field: str
    filename: str
    data: bytes


class Intake:
    """Decodes pictures, at most `decode_children` at a time over all requests."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = int(settings.max_picture_mb * 1e6)
        self._megapixels = settings.max_picture_mpx
        self._timeout_s = settings.decode_timeout_s
        self._pool = ThreadPoolExecutor(settings.decode_children, thread_name_prefix="intake")

    def clean(self, uploads: Sequence[Upload]) -> list[bytes]:
        """Each picture as RGB PNG, in order.

        Raises:
            RequestError: for the first picture that cannot be taken; its field is the param.
        """
        for upload in uploads:
            self._check_bytes(upload)
        return list(self._pool.map(self._decode, uploads))

    def close(self) -> None:
        """Stop taking pictures."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check_bytes(self, upload: Upload) -> None:
        if not upload.data:
            raise _refusal(upload, "is empty")
        if len(upload.data) > self._max_bytes:
            raise _refusal(
                upload,
                f"is {len(upload.data) / 1e6:.1f} MB; at most {self._max_bytes / 1e6:g} MB",
                status=413,
            )

    def _decode(self, upload: Upload) -> bytes:
        # -I: neither the environment nor the working directory may add code to the child.
        command = [sys.executable, "-I", str(Path(decode.__file__))]
        try:
            done = subprocess.run(
                [*command, str(self._megapixels), str(self._timeout_s)],
                input=upload.data,
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _refusal(upload, f"took longer than {self._timeout_s:g} s to decode") from error
        if done.returncode == decode.REFUSED:
            raise _refusal(upload, done.stderr.decode(errors="replace"))
        if done.returncode != 0:
            raise _refusal(upload, "is damaged, or needs too much memory to decode")
        return done.stdout


def _refusal(upload: Upload, what: str, status: int = 400) -> RequestError:
    return RequestError(
        f"{upload.field}: the picture {upload.filename!r:.80} {what}.",
        param=upload.field,
        code="invalid_image",
        status=status,
    )
