"""The console script: one typer application, one module per command.

Nothing here or in the commands' own imports loads torch: `troupe --help` answers at once.
"""

import typer

from troupe.audit import audit
from troupe.convert import convert
from troupe.demo import demo
from troupe.doctor import doctor
from troupe.generate import generate
from troupe.keys import keys
from troupe.models import models
from troupe.plan import plan
from troupe.tenants import tenants
from troupe.train import train
from troupe.up import up
from troupe.verify import verify
from troupe.webhooks import webhooks

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for _command in (demo, generate, verify, plan, up, doctor, train, convert):
    app.command()(_command)
_groups = {
    "models": models,
    "keys": keys,
    "tenants": tenants,
    "webhooks": webhooks,
    "audit": audit,
}
for _name, _group in _groups.items():
    app.add_typer(_group, name=_name)


@app.callback()
def troupe() -> None:
    """Videos in which your characters stay themselves."""


def main() -> None:
    """Entry point of the console script `troupe`."""
    app()
