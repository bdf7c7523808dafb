"""The fleet's bench: its whole answer on a small day, and what must be true of any."""

import json
from pathlib import Path

import pytest
from PIL import Image

from bench import fleet


def test_a_small_day_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "fleet.png"
    words = ["--cards", "2000", "--jobs", "100000", "--check", "500", "--calls", "20"]
    assert fleet.main(["--small", *words, "--plot", str(plot), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["agreement"]["same"] == told["agreement"]["starts"] >= 500
    rows = told["policies"]
    assert set(rows) == set(fleet.POLICIES)
    fixed, ours, alone = (rows[name] for name in fleet.POLICIES)
    assert ours["card_hours"] < fixed["card_hours"]
    assert ours["utilisation"] > fixed["utilisation"]
    # A scaler that does not see jobs in hand ends workers under them.
    assert alone["handed_back"] > ours["handed_back"]
    for row in rows.values():
        assert 0 < row["utilisation"] < 1 and row["hours"] > 2
        assert row["waiting_most"] <= 1000
    assert told["fairness"]["jain"] > 0.95
    assert {"submit", "claim", "step", "beat", "commit"} <= told["rates"]["us"].keys()
    assert told["limit"]["cards"] > 100
    assert Image.open(plot).width > 800
