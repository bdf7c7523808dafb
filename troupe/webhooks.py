"""`troupe webhooks`: what webhooks are signed with, and those that could not be delivered."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from service.auth import check_tenant
from service.refs import id_of
from service.webhooks import Dead, Outbox, Secrets
from troupe.access import note, operating
from troupe.terminal import fail, out

webhooks = typer.Typer(
    no_args_is_help=True, help="Signing secrets and dead letters: secret, dead, replay."
)
Tenant = Annotated[str, typer.Option(help="Whose; local: of a service without keys.")]


@webhooks.command()
def secret(
    tenant: Tenant = "local",
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new one; the old one signs for a day more.")
    ] = False,
) -> None:
    """Print the tenant's secret, which is made at first use."""
    with operating() as (client, settings):
        check_tenant(tenant)
        keys = Secrets(client, settings)
        found = keys.rotate(tenant) if rotate else keys.valid(tenant)[0]
        note(client, settings, tenant, f"webhook.{'rotate' if rotate else 'show'}", tenant)
    print(found)


@webhooks.command()
def dead(
    tenant: Tenant = "local",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List what was given up, and why."""
    with operating() as (client, settings):
        found = Outbox(client, settings).dead(tenant)
    if as_json:
        print(json.dumps([{**asdict(one), "id": one.letter.id} for one in found]))
        return
    _print(found)


@webhooks.command()
def replay(
    videos: Annotated[list[str] | None, typer.Argument(help="Their ids; none: all.")] = None,
    tenant: Tenant = "local",
) -> None:
    """Deliver dead letters again, with the same ids."""
    with operating() as (client, settings):
        again = Outbox(client, settings).replay(tenant, *(videos or ()))
        note(client, settings, tenant, "webhook.replay", tenant)
    if not again and videos:
        fail(f"No dead letter of {', '.join(videos)}.", f"troupe webhooks dead --tenant {tenant}")
    print(f"{len(again)} to be delivered again")


def _print(found: list[Dead]) -> None:
    table = Table("video", "end", "given up", "tries", "why", box=None)
    for one in found:
        at = datetime.fromtimestamp(one.at_ms / 1000, UTC).isoformat(" ", "seconds")
        table.add_row(id_of(one.letter.ref), one.letter.kind, at, str(one.letter.tries), one.error)
    out.print(table)
