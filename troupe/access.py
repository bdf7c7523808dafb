"""The operator's way to the service's Redis, for `troupe keys`, `tenants` and `audit`."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from pydantic import ValidationError

from service.audit import Audit
from service.errors import LedgerDown, ServiceError
from service.ledger import connect
from service.settings import Settings
from troupe.stack import bundled_url
from troupe.terminal import fail
from troupe.up import STATE, own_redis_url

OPERATOR = "operator"  # in the audit chain, where requests have the id of a key


@contextmanager
def operating() -> Iterator[tuple[redis.Redis, Settings]]:
    """The Redis that the environment names, else that of a `troupe up` in this folder.

    Every error of the service ends the command with its words.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"TROUPE_{str(first['loc'][0]).upper()}: {first['msg']}")
    if own_redis_url() is None and (bundled := bundled_url(STATE)) is not None:
        settings = settings.model_copy(update={"redis_url": bundled})
    client = connect(settings)
    try:
        yield client, settings
    except LedgerDown:
        fail(
            f"No Redis answers at {_shown(settings.redis_url)}.",
            "Start the service (troupe up), or set TROUPE_REDIS_URL to its Redis.",
        )
    except ServiceError as error:
        fail(str(error))
    finally:
        client.close()


def note(client: redis.Redis, settings: Settings, tenant: str, action: str, name: str) -> None:
    """Write into the audit chain what the operator did."""
    Audit(client, settings).append(tenant, OPERATOR, action, name)


def _shown(url: str) -> str:
    """An address without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
