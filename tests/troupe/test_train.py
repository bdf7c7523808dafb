"""`troupe train` knows the recipes by name and nothing else."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from training import run
from training.recipes import RECIPES
from troupe.main import app


def test_without_a_name_it_lists_the_recipes() -> None:
    told = CliRunner().invoke(app, ["train"])
    assert told.exit_code == 0
    lines = told.output.strip().splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(recipe.about in told.output for recipe in RECIPES.values())


def test_unknown_recipe_is_told_with_those_there_are() -> None:
    told = CliRunner().invoke(app, ["train", "nosuch"])
    assert told.exit_code == 1
    assert "nosuch" in told.output and "miniature_sft" in told.output


def test_a_known_one_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(run, "main", ran.append)
    told = CliRunner().invoke(app, ["train", "miniature_sft"])
    assert told.exit_code == 0 and ran == ["miniature_sft"]


def test_what_a_recipe_lacks_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["train", "miniature_publish"])
    assert told.exit_code == 1 and isinstance(told.exception, SystemExit)
    assert "is missing: the recipe of" in told.output.replace("\n", " ")
