"""What the benches with a table have in common: one thread, progress and table on stderr, and one
line of JSON on stdout for who asks."""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from engine.errors import TroupeError

UNUSABLE = 2  # exit status where a model folder cannot be used


def told(
    measure: Callable[[Console], dict[str, Any]],
    table: Callable[[dict[str, Any]], Table],
    as_json: bool,
    width: int | None = None,
) -> dict[str, Any] | None:
    """What was measured; None, after a line that says why, where a model folder cannot be used.

    width: of the console, columns; None: the terminal's.
    """
    torch.set_num_threads(1)
    console = Console(stderr=True, width=width)
    try:
        result = measure(console)
    except TroupeError as error:
        console.print(f"[red]{error}[/red]")
        return None
    console.print(table(result))
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    return result
