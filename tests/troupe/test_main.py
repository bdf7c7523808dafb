"""The console script knows its commands, and each of them explains itself."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from troupe.main import app

COMMANDS = ("demo", "generate", "up", "doctor", "train", "keys", "tenants", "audit")


def test_help_names_every_command() -> None:
    told = CliRunner().invoke(app, ["--help"])
    assert told.exit_code == 0
    for command in COMMANDS:
        assert command in told.output


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    told = CliRunner().invoke(app, [command, "--help"])
    assert told.exit_code == 0 and "Usage" in told.output


def test_no_command_shows_help_and_is_an_error() -> None:
    told = CliRunner().invoke(app, [])
    assert told.exit_code != 0 and "Usage" in told.output


def test_libraries_that_are_loaded_do_not_talk() -> None:
    """torchao is among the extras of [dev], and diffusers imports it wherever it lies."""
    command = "from troupe.main import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", command, "plan", "--preset", "miniature"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stderr.splitlines() == ["counting on tensors without contents"]
