"""Fixtures of the gateway's tests; `rig` makes them, so that other packages' tests share them."""

from tests.service.rig import (
    blobs,
    client,
    connection,
    house,
    ledger,
    redis_url,
    roster,
    settings,
)

__all__ = ["blobs", "client", "connection", "house", "ledger", "redis_url", "roster", "settings"]
