"""The console script: one typer application, one module per command.

Nothing here or in the commands' own imports loads torch: `troupe --help` answers at once.
"""

import typer

from troupe.convert import convert
from troupe.demo import demo
from troupe.doctor import doctor
from troupe.generate import generate
from troupe.plan import plan
from troupe.train import train
from troupe.up import up

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for _command in (demo, generate, plan, up, doctor, train, convert):
    app.command()(_command)


@app.callback()
def troupe() -> None:
    """Videos in which your characters stay themselves."""


def main() -> None:
    """Entry point of the console script `troupe`."""
    app()
