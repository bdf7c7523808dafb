"""The bench of tiers on a random model: the shape of its answer, and figures that must be."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import tiers
from engine.detector import Detector
from engine.identity import IdentityEncoder
from tests.bench.test_identity import FILES
from training.convnet import save
from training.world.oracle import Oracle


def test_the_exact_tier_is_its_own_measure(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, net in zip(FILES, (IdentityEncoder(), Detector(), Oracle()), strict=True):
        save(net, tmp_path / name)
    words = ["--model", str(random_model), "--instruments", str(tmp_path), "--cases", "1"]
    words += ["--steps", "3"]
    sheet = tmp_path / "sheet.png"
    assert tiers.main([*words, "--thresholds", "1e9", "--sheet", str(sheet), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    exact, blind = result["thresholds"]["0"], result["thresholds"]["1e+09"]
    assert (exact["skipped"], exact["psnr"], exact["changed"], exact["time"]) == (0, 99, 0, 1)
    # Two of three forwards: each condition's first one is computed.
    assert blind["skipped"] == pytest.approx(2 / 3)
    assert result["videos"] == 6 and sheet.stat().st_size > 1000


def test_psnr_is_that_of_the_pixels() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert tiers.psnr(black, black + 255) == 0
    assert tiers.psnr(black, black + 1) == pytest.approx(48.13, abs=0.01)


@pytest.mark.parametrize("given", ["x", "0", "-1,0.1"])
def test_thresholds_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(SystemExit):
        tiers.arguments(["--thresholds", given])
