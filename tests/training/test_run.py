"""The door to the recipes."""

from __future__ import annotations

import pytest

from training import run
from training.recipes import RECIPES


def test_it_runs_the_named_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setitem(RECIPES, "toy", lambda: called.append("toy"))
    run.main("toy")
    assert called == ["toy"]


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="miniature_vae"):
        run.main("nothing")
