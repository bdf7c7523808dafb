"""Tables and progress go to stderr, what programs read to stdout."""

import json
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from bench.program import told
from engine.errors import CheckpointError


def table(result: dict[str, Any]) -> Table:
    shown = Table("figure")
    shown.add_row(str(result["figure"]))
    return shown


def test_the_table_is_for_people_and_the_line_for_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert told(lambda _: {"figure": 37}, table, as_json=True) == {"figure": 37}
    said = capsys.readouterr()
    assert json.loads(said.out) == {"figure": 37} and "37" in said.err
    told(lambda _: {"figure": 37}, table, as_json=False)
    assert capsys.readouterr().out == ""


def test_a_model_that_cannot_be_used_is_a_line_and_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure(console: Console) -> dict[str, Any]:
        raise CheckpointError("the folder is empty")

    assert told(measure, table, as_json=True) is None
    said = capsys.readouterr()
    assert said.out == "" and "the folder is empty" in said.err
