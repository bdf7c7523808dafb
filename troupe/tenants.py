"""`troupe tenants`: what each tenant may use."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from service.tenants import BOUNDS, Tenant, Tenants
from troupe.access import note, operating
from troupe.terminal import fail, out

tenants = typer.Typer(no_args_is_help=True, help="What each tenant may use: set, list.")
Bound = Annotated[str | None, typer.Option(help="A whole number, or none.")]


@tenants.command(name="set")
def change(
    tenant: Annotated[str, typer.Argument(help="Its name: a-z, 0-9 and -.")],
    weight: Annotated[str | None, typer.Option(help="Share against others; usual: 1.")] = None,
    max_running: Bound = None,
    max_queued: Bound = None,
    requests_per_minute: Bound = None,
    gpu_seconds_per_hour: Bound = None,
) -> None:
    """Change some of a tenant's bounds; those not given stay. It counts from the next job on."""
    given = {
        "weight": weight,
        "max_running": max_running,
        "max_queued": max_queued,
        "requests_per_minute": requests_per_minute,
        "gpu_seconds_per_hour": gpu_seconds_per_hour,
    }
    bounds = {name: _number(name, text) for name, text in given.items() if text is not None}
    with operating() as (client, settings):
        found = Tenants(client, settings).set(tenant, **bounds)
        note(client, settings, tenant, "tenant.set", tenant)
    _print([found])


@tenants.command(name="list")
def listing(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """All tenants whose bounds were ever set."""
    with operating() as (client, settings):
        found = Tenants(client, settings).listing()
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
        return
    _print(found)


def _print(found: list[Tenant]) -> None:
    table = Table("tenant", *(name.replace("_", " ") for name in BOUNDS), box=None)
    for one in found:
        values = one.bounds().values()
        table.add_row(one.name, *("none" if value is None else f"{value:g}" for value in values))
    out.print(table)


def _number(name: str, text: str) -> float | int | None:
    if text == "none":
        return None
    try:
        return float(text) if name == "weight" else int(text)
    except ValueError:
        fail(f"--{name.replace('_', '-')}: must be a number or none, not {text!r:.40}.")
