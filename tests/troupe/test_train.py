"""`troupe train` knows the recipes by name and nothing else."""

import pytest
from typer.testing import CliRunner

from training import run
from training.recipes import RECIPES
from troupe.main import app


def test_without_a_name_it_lists_the_recipes() -> None:
    told = CliRunner().invoke(app, ["train"])
    assert told.exit_code == 0
    assert told.output.split() == list(RECIPES)


def test_unknown_recipe_is_told_with_those_there_are() -> None:
    told = CliRunner().invoke(app, ["train", "nosuch"])
    assert told.exit_code == 1
    assert "nosuch" in told.output and "miniature_sft" in told.output


def test_a_known_one_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(run, "main", ran.append)
    told = CliRunner().invoke(app, ["train", "miniature_sft"])
    assert told.exit_code == 0 and ran == ["miniature_sft"]
