"""The same fixtures, for the routes' tests."""

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
