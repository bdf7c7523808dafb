"""`celery -A tests.workers.slow_encoder worker`: the product's worker; encoding never ends."""

import time

from workers import encode
from workers.app import app


def never(*_: object) -> None:
    time.sleep(3600)


encode._encode = never  # type: ignore[assignment]

__all__ = ["app"]
