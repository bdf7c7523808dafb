"""Recipes are names; listing them loads no model."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from training.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_leads_to_a_function(name: str) -> None:
    recipe = RECIPES[name]
    assert callable(getattr(import_module(f"training.{recipe.module}"), recipe.function))


def test_listing_recipes_needs_no_torch() -> None:
    code = "import sys, training.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
