"""`troupe keys`: API keys of strangers. A secret is shown once, when it is made."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from service.auth import SCOPES, Key, Keys
from troupe.access import note, operating
from troupe.terminal import err, out

keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, rotate, revoke.")
DAY_S = 86400
USUAL = ("read", "write")


@keys.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Whom it is for: a-z, 0-9 and -.")],
    name: Annotated[str, typer.Option(help="What it is for, to tell keys apart.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"Of {', '.join(SCOPES)}; repeated. Without: read and write."),
    ] = None,
    days: Annotated[float | None, typer.Option(help="Life; without, it never expires.")] = None,
) -> None:
    """Make a key and print it, this once."""
    with operating() as (client, settings):
        life_s = None if days is None else days * DAY_S
        token = Keys(client, settings, required=True).create(tenant, name, scope or USUAL, life_s)
        note(client, settings, tenant, "key.created", _id(token))
    _show(token)


@keys.command(name="list")
def listing(
    tenant: Annotated[str | None, typer.Option(help="Only this one's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """All keys, without their secrets."""
    with operating() as (client, settings):
        found = Keys(client, settings, required=True).listing(tenant)
    now_ms = int(time.time() * 1000)
    if as_json:
        print(json.dumps([{**asdict(key), "state": key.state(now_ms)} for key in found]))
        return
    table = Table("key", "tenant", "name", "scopes", "state", "expires", "last used", box=None)
    for key in found:
        table.add_row(*_row(key, now_ms))
    out.print(table)


@keys.command()
def rotate(
    key: Annotated[str, typer.Argument(help="Id of the old key, as `troupe keys list` shows it.")],
    hours: Annotated[float, typer.Option(help="How long the old key still counts.")] = 24.0,
) -> None:
    """Make a new key like an old one, which ends after a while."""
    with operating() as (client, settings):
        store = Keys(client, settings, required=True)
        token = store.rotate(key, hours * 3600)
        note(client, settings, store.read(key).tenant, "key.rotated", key)
    _show(token)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key, as `troupe keys list` shows it.")],
) -> None:
    """End a key now. Gateways that know it hear of that within five seconds."""
    with operating() as (client, settings):
        store = Keys(client, settings, required=True)
        store.revoke(key)
        note(client, settings, store.read(key).tenant, "key.revoked", key)
    err.print(f"Revoked {key}.", markup=False)


def _id(token: str) -> str:
    return token.split("_")[1]


def _show(token: str) -> None:
    """The key alone on standard output, so that a script can take it."""
    err.print(f"Key {_id(token)}. Keep what follows: it is not shown again.", markup=False)
    print(token)


def _row(key: Key, now_ms: int) -> list[str]:
    texts = [key.id, key.tenant, key.name, " ".join(key.scopes), key.state(now_ms)]
    return [escape(text) for text in (*texts, _day(key.expires_ms), _day(key.used_ms))]


def _day(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ms / 1000)) if at_ms else "never"
