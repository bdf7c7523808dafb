"""What routes depend on, as named types: the house, one per process, made by the lifespan; and who
is calling.

A route that names nobody (Reader, Writer, Operator, or LinkedRef for addresses that are signed) and
is not PUBLIC does not start the service.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute

from engine.presets import Preset
from service.audit import Audit
from service.auth import Caller, Keys
from service.blobs import Blobs
from service.doorbell import Doorbell
from service.durable import Durability
from service.errors import LedgerDown, Unauthenticated
from service.events import Events
from service.fleet import Fleet
from service.front import Front
from service.intake import Intake
from service.lately import Lately
from service.ledger import Ledger
from service.limits import Limits
from service.links import Links
from service.outward import Outward
from service.refs import ref_of
from service.roster import Roster
from service.subjects import Subjects
from service.turns import Turns

PUBLIC = {
    "/",
    "/docs",
    "/docs/oauth2-redirect",
    "/healthz",
    "/openapi.json",
    "/ops",
    "/readyz",
    "/redoc",
    "/static-offline-docs",
    "/studio",
}


@dataclass(frozen=True)
class House:
    """Everything a route may use."""

    ledger: Ledger
    front: Front
    durable: Durability
    roster: Roster
    blobs: Blobs
    store: Lately  # whether the blobs can be written
    doorbell: Doorbell
    intake: Intake
    turns: Turns
    events: Events
    outward: Outward
    keys: Keys
    limits: Limits
    links: Links
    audit: Audit
    subjects: Subjects
    fleet: Fleet
    preset: Preset


async def _house(request: Request) -> House:  # not plain: a thread would be asked for it
    house: House = request.app.state.house
    return house


TheHouse = Annotated[House, Depends(_house)]


async def _caller(request: Request) -> Caller:
    """Raises Unauthenticated."""
    keys = (await _house(request)).keys
    header = request.headers.get("authorization")
    if (known := keys.recall(header)) is not None:
        return known
    return await run_in_threadpool(keys.authenticate, header)


class Allowed:
    """Lets callers pass whose key has a scope. It depends on nothing more by FastAPI's means, each
    of which costs as much as a look at Redis."""

    def __init__(self, scope: str) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Caller:
        """Raises Unauthenticated or Forbidden."""
        caller = await _caller(request)
        caller.need(self.scope)
        request.state.tenant = caller.tenant
        return caller


Reader = Annotated[Caller, Depends(Allowed("read"))]
Writer = Annotated[Caller, Depends(Allowed("write"))]
Operator = Annotated[Caller, Depends(Allowed("admin"))]


class Linked:
    """Lets pass who comes by an address that `service.links` signed."""

    def __call__(
        self,
        house: TheHouse,
        tenant: str,
        video_id: str,
        variant: str,
        expires: int = 0,
        signature: str = "",
    ) -> str:
        """The video's ref. Raises Forbidden."""
        house.links.check(tenant, video_id, variant, expires, signature)
        return ref_of(tenant, video_id)


LinkedRef = Annotated[str, Depends(Linked())]


async def _insider(request: Request) -> bool:
    """Whether whoever asks may see how the service is; nobody is turned away."""
    try:
        caller = await _caller(request)
    except (Unauthenticated, LedgerDown):
        return False
    return "admin" in caller.scopes


Insider = Annotated[bool, Depends(_insider)]


def unguarded(app: FastAPI) -> list[str]:
    """Routes that neither require a scope nor are PUBLIC."""
    return [
        str(getattr(route, "path", route)) for route in _routes(app.routes) if not _guarded(route)
    ]


def _routes(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    for route in routes:
        # What `include_router` adds; a kind of route that is not known counts as unguarded.
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from _routes(inner.routes)


def _guarded(route: BaseRoute) -> bool:
    if getattr(route, "path", None) in PUBLIC:
        return True
    return isinstance(route, APIRoute) and _requires(route.dependant)


def _requires(dependant: Dependant) -> bool:
    asks = isinstance(dependant.call, Allowed | Linked)
    return asks or any(map(_requires, dependant.dependencies))
