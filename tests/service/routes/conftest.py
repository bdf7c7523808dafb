"""The same fixtures, for the routes' tests."""

from tests.service.rig import blobs, client, house, ledger, redis_url, roster, settings

__all__ = ["blobs", "client", "house", "ledger", "redis_url", "roster", "settings"]
