"""The console script: one typer application, one module per command, imported only when used."""

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def troupe() -> None:
    """Videos in which your characters stay themselves."""


def main() -> None:
    """Entry point of the console script `troupe`."""
    app()
