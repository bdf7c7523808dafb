"""Logs survive kills, curves are pictures, only the first process speaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.report import Report, draw_curves, read_log, smooth


def test_a_line_cut_short_ends_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_log(log) == [{"step": 1, "loss": 2.0}]
    assert read_log(tmp_path / "none.jsonl") == []


def test_what_was_logged_after_the_last_save_is_forgotten(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (5, 10, 15)))
    Report(tmp_path, "toy").begin(10, 20)
    assert [row["step"] for row in read_log(log)] == [5, 10]


def test_lines_hold_means_since_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path, "toy")
    report.begin(0, 4)
    for step, loss in enumerate((1.0, 3.0, 5.0, 7.0), start=1):
        report.add(step, {"loss": loss}, took_s=0.5, every=2, left=4 - step)
    rows = read_log(tmp_path / "log.jsonl")
    assert [(row["step"], row["loss"], row["steps_per_s"]) for row in rows] == [
        (2, 2.0, 2.0),
        (4, 6.0, 2.0),
    ]
    assert "loss 6" in capsys.readouterr().out


def test_other_processes_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path / "run", "toy", active=False)
    report.begin(0, 1)
    report.add(1, {"loss": 1.0}, 0.1, 1, 0)
    report.note(1, {"quality": 1.0})
    report.draw()
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_curves_are_a_png(tmp_path: Path) -> None:
    rows = [{"step": float(s), "loss": 1 / (s + 1), "other": 2.0} for s in range(50)]
    draw_curves(rows, tmp_path / "curves.png", "toy")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_smoothing_keeps_constants_and_follows_the_trend() -> None:
    assert smooth([3.0] * 20, 5) == pytest.approx([3.0] * 20)
    rising = smooth([float(i) for i in range(50)], 10)
    assert all(a < b for a, b in zip(rising, rising[1:], strict=False))
