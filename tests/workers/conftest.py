"""Fixtures of the workers's tests; `rig` makes them, so that other packages' tests share them."""

from tests.service.rig import (
    blobs,
    client,
    connection,
    fleet,
    house,
    ledger,
    redis_url,
    roster,
    settings,
)
from tests.workers.following import engine, pushed, registry, reload

__all__ = ["blobs", "client", "connection", "fleet", "house", "ledger", "redis_url", "roster"]
__all__ += ["engine", "pushed", "registry", "reload", "settings"]
