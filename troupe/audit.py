"""`troupe audit`: what was done to whom, and whether anybody altered that record."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from service.audit import Audit
from troupe.access import operating
from troupe.terminal import fail, out

audit = typer.Typer(no_args_is_help=True, help="The audit chain: list, verify, head.")


@audit.command(name="list")
def listing(
    tenant: Annotated[str | None, typer.Option(help="Only this one's.")] = None,
    about: Annotated[str | None, typer.Option(help="A name such as acme/video_…")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The entries, the oldest first."""
    with operating() as (client, settings):
        found = list(Audit(client, settings).entries(tenant, about))
    if as_json:
        for entry in found:
            print(json.dumps(asdict(entry)))
        return
    table = Table("", "time", "tenant", "by", "action", "about", "", box=None)
    for entry in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at_ms / 1000))
        detail = json.dumps(entry.detail) if entry.detail else ""
        texts = [str(entry.seq), when, entry.tenant, entry.actor, entry.action, entry.about[:12]]
        table.add_row(*(escape(text) for text in (*texts, detail)))
    out.print(table)


@audit.command()
def verify(
    head: Annotated[
        str | None, typer.Option(help="What `troupe audit head` said earlier, kept elsewhere.")
    ] = None,
) -> None:
    """Check every entry. Ends with status 1 where the chain was altered.

    Without --head, an end that was cut off together with its head, or a chain that was written anew
    from some entry on, looks whole.
    """
    with operating() as (client, settings):
        verdict = Audit(client, settings).verify(head)
    if verdict.fault:
        fail(f"The audit chain was altered: {verdict.fault}.")
    told = f"{verdict.entries} entries, each follows the one before. Head: {verdict.head}"
    out.print(told, soft_wrap=True)  # to be copied whole


@audit.command()
def head() -> None:
    """The last entry's number and hash: keep it elsewhere, for `troupe audit verify --head`."""
    with operating() as (client, settings):
        print(Audit(client, settings).head())
