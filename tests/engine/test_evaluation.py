"""Worse is worse beyond chance, or not measured."""

import json

from engine.evaluation import reached, shortfalls
from tests.service.rig import ROOT


def told(**rows: tuple[float, float]) -> dict[str, object]:
    """An evaluation: n1=(reached, its standard error)."""
    return {"subjects": {n[1:]: {"reached": v, "reached_se": se} for n, (v, se) in rows.items()}}


def test_the_shipped_evaluation_is_read() -> None:
    manifest = json.loads((ROOT / "models" / "miniature" / "manifest.json").read_text())
    found = reached(manifest["evaluation"])
    assert found.keys() == {"1", "2", "3"}
    assert all(0 < value < 1 and 0 < se < 0.1 for value, se in found.values())
    assert shortfalls(manifest["evaluation"], manifest["evaluation"]) == []


def test_what_is_no_evaluation_has_no_figures() -> None:
    for evaluation in ({}, {"subjects": 3}, {"subjects": {"1": {}}}, {"subjects": {"1": None}}):
        assert reached(evaluation) == {}


def test_less_within_chance_is_not_worse() -> None:
    parent = told(n1=(0.70, 0.01), n2=(0.60, 0.01))
    assert shortfalls(told(n1=(0.68, 0.01), n2=(0.9, 0.01)), parent) == []
    (word,) = shortfalls(told(n1=(0.66, 0.01), n2=(0.9, 0.01)), parent)
    assert word == "it keeps 1 subjects 0.66 (± 0.01) of the way, the other 0.70 (± 0.01)"


def test_what_was_not_measured_is_worse() -> None:
    parent = told(n1=(0.70, 0.01), n2=(0.60, 0.01))
    assert shortfalls(told(n1=(0.9, 0.0)), parent) == ["it was not measured with 2 subjects"]
    assert len(shortfalls(told(n1=(float("nan"), 0.0), n2=(1.0, 0.0)), parent)) == 1
    assert shortfalls(told(n1=(0.9, 0.0)), {}) == []
