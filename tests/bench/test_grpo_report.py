"""Arms are compared case by case, and what is not known is not told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bench.grpo_report import ALL, difference, table, told


def result(arm: str, seed: int, values: list[float]) -> dict[str, Any]:
    rows = {name: values for name in ALL}
    figures = {name: float(np.mean(values)) for name in ALL}
    common = {"arm": arm, "seed": seed, "cpu_s": 10.0, "updates": 4}
    return common | {"rows": rows, "figures": figures}


BASE = [result("sft", 0, [0.1, 0.5, 0.9]), result("sft", 1, [0.3, 0.5, 0.7])]


def test_a_gain_that_every_case_has_is_certain_however_much_cases_differ() -> None:
    """Seed 0: +.1 +.1 +.1, seed 1: +.1 +.2 +.0; cases' means .1 .15 .05, seeds' means .1 .1."""
    arm = [result("grpo", 0, [0.2, 0.6, 1.0]), result("grpo", 1, [0.4, 0.7, 0.7])]
    found = told([*BASE, *arm])["arms"]["grpo"]["minus_sft"]["worst"]
    assert found["difference"] == pytest.approx(0.1)
    assert found["se"] == pytest.approx(0.05 / 3**0.5)
    assert found["se_seeds"] == pytest.approx(0, abs=1e-12)
    assert found["t"] == pytest.approx(0.1 / (0.05 / 3**0.5))


def test_only_seeds_that_both_have_are_compared() -> None:
    arm = {1: result("grpo", 1, [0.4, 0.6, 0.8]), 2: result("grpo", 2, [9.0, 9.0, 9.0])}
    found = difference(arm, {r["seed"]: r for r in BASE}, "worst")
    assert found is not None and found["difference"] == pytest.approx(0.1)
    assert np.isnan(found["se_seeds"])
    assert difference({2: arm[2]}, {0: BASE[0]}, "worst") is None


def test_the_object_is_json_and_the_table_has_a_column_for_each_arm() -> None:
    results = [*BASE, result("grpo", 0, [0.2, 0.6, 1.0])]
    found = json.loads(json.dumps(told(results), allow_nan=False))
    assert set(found["arms"]) == {"sft", "grpo"} and found["cases"] == 3
    assert set(found["arms"]["grpo"]["seeds"]["0"]) == set(ALL)
    assert "minus_sft" not in found["arms"]["sft"]
    lines = table(results).splitlines()
    assert lines[0] == "| figure | sft (2) | grpo (1) |" and len(lines) == 2 + len(ALL)
    assert lines[3].startswith("| worst | 0.500 | 0.600 (+0.100")
