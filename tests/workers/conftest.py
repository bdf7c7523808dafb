"""Fixtures of the workers's tests; `rig` makes them, so that other packages' tests share them."""

from tests.service.rig import blobs, client, house, ledger, redis_url, roster, settings
from tests.workers.following import engine, fleet, pushed, registry, reload

__all__ = ["blobs", "client", "house", "ledger", "redis_url", "roster", "settings"]
__all__ += ["engine", "fleet", "pushed", "registry", "reload"]
