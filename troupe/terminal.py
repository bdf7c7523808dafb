"""What a person sees: one console for answers, one for errors, and one way to fail."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)
# Whether this process is the one that says what went wrong: several may work on one command.
SPEAKS: ContextVar[Callable[[], bool]] = ContextVar("speaks", default=lambda: True)


def fail(message: str, remedy: str | None = None) -> NoReturn:
    """Say what is wrong and, if known, the command that mends it; end with status 1."""
    if SPEAKS.get()():
        err.print("Error:", style="bold red", end=" ")
        err.print(message, markup=False, soft_wrap=True)
        if remedy:
            err.print(f"  {remedy}", style="cyan", markup=False, soft_wrap=True)
    raise typer.Exit(1)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Says what takes a while before there is a bar: a spinner, or a line without a terminal."""
    if not SPEAKS.get()():
        yield
    elif err.is_terminal:
        with err.status(what):
            yield
    else:
        err.print(what, markup=False)
        yield


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """A function that says what is waited for now: beside a spinner, or without a terminal in a
    line for each change."""
    if err.is_terminal:
        with err.status(what) as status:
            yield status.update
        return
    told: list[str] = []

    def tell(line: str) -> None:
        if told[-1:] != [line]:
            told.append(line)
            err.print(line, markup=False)

    tell(what)
    yield tell


def progress_bar(shown: bool = True) -> Progress:
    """Percent, stage and elapsed time; a quiet line per change where there is no terminal."""
    return Progress(
        SpinnerColumn(),
        BarColumn(bar_width=36),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=err,
        transient=False,
        disable=not shown,
    )
