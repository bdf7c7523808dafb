"""The report says what is true: means, spreads, differences paired by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.ablation_report import write_report


def result(arm: str, seed: int, reached: float) -> dict[str, Any]:
    figures = {"reached": reached, "worst": 0.3, "swaps": 0.1, "missing": 0.0}
    kinds = {kind: dict(figures) for kind in ("twins", "four")}
    return {"arm": arm, "seed": seed, "steps": 10, "minutes": 1.0, "kinds": kinds}


def test_the_report_has_means_spreads_and_paired_differences(tmp_path: Path) -> None:
    results = [result("full", 0, 0.5), result("full", 1, 0.7)]
    results += [result("no tag", 0, 0.4), result("no tag", 1, 0.6)]
    write_report(results, "What was done.", tmp_path)
    text = (tmp_path / "ablation.md").read_text()
    assert "What was done." in text and "0.600 ± 0.141" in text and "0.500 ± 0.141" in text
    assert "| no tag | -0.100" in text
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"
