"""Addresses of a video's files that need no API key, for a short while.

S3 checks such addresses itself (`Blobs.lend`). For a folder the gateway does: HMAC-SHA256 over
tenant, video, variant and the time of expiry, under a secret that Redis keeps
(`<prefix>:link-secret`), made at first use and the same for all gateways.
"""

import hmac
import secrets
import time
from typing import Any

import redis

from service.errors import Forbidden
from service.ledger import answering
from service.settings import Settings


class Links:
    """Signs and checks. Raises LedgerDown when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._key = f"{settings.key_prefix}:link-secret"

    def sign(self, tenant: str, video_id: str, variant: str, expires: int) -> str:
        """The signature, in hex. expires: seconds since 1970."""
        told = "\n".join((tenant, video_id, variant, str(expires)))
        return hmac.digest(self._secret(), told.encode(), "sha256").hex()

    def check(self, tenant: str, video_id: str, variant: str, expires: int, signature: str) -> None:
        """Raises Forbidden unless this was signed and is not over."""
        right = self.sign(tenant, video_id, variant, expires)
        if not hmac.compare_digest(right.encode(), signature.encode()) or expires < time.time():
            raise Forbidden("This address does not count, or no more: ask for another one.")

    def _secret(self) -> bytes:
        fresh = secrets.token_hex(32)
        with answering():
            kept: Any = self._redis.set(self._key, fresh, nx=True, get=True)
        return str(kept or fresh).encode()
