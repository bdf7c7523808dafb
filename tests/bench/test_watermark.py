"""The bench from its command line, and that its attacks do what their names say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import watermark
from engine.watermark import mark, payload_of
from training.convnet import save
from training.detector import Detector
from training.identity import IdentityEncoder
from training.world.oracle import Oracle


def frames(num: int = 9) -> watermark.Frames:
    """A bright square that walks over a gradient."""
    made = np.full((num, 256, 384, 3), 90, np.uint8)
    made[..., 2] = np.linspace(0, 200, 384, dtype=np.uint8)
    for number, frame in enumerate(made):
        frame[60:120, 20 + 20 * number : 80 + 20 * number] = (220, 220, 40)
    return made


def test_last_line_is_one_object_of_the_promised_shape(
    random_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, net in (("identity", IdentityEncoder()), ("detector", Detector())):
        save(net, tmp_path / f"{name}.safetensors")
    save(Oracle(), tmp_path / "oracle.safetensors")
    few = ("crf 20", "cut by 10 %", "mirrored")
    monkeypatch.setattr(watermark, "ATTACKS", {name: watermark.ATTACKS[name] for name in few})
    monkeypatch.setattr(watermark, "UNMARKED", ("crf 20",))
    sheet = tmp_path / "sheet.png"
    words = ["--model", str(random_model), "--instruments", str(tmp_path), "--sheet", str(sheet)]
    assert watermark.main(["--json", "--videos", "1", "--steps", "1", *words]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(result["attacks"]) == set(few) and result["videos"] == 1
    assert set(result["attacks"]["mirrored"]) == set(watermark.COLUMNS)
    assert result["unmarked"]["found"] == 0 and result["unmarked"]["looked_at"] == 1
    assert result["psnr_least"] >= 42.1
    assert Image.open(sheet).size == (3 * 384, 256)


def test_a_model_that_is_none_is_told(tmp_path: Path) -> None:
    assert watermark.main(["--model", str(tmp_path)]) == 2


def test_a_trial_tells_marked_from_unmarked() -> None:
    payload = payload_of("a")
    served = np.stack(list(mark(frames(), payload)))
    row = watermark.trial(served, payload)
    assert (row["found"], row["read"], row["wrong"], row["bits"]) == (True, True, False, 1.0)
    other = watermark.trial(served, payload_of("b"))
    assert other["wrong"] and not other["read"] and other["bits"] < 1
    idle = watermark.trial(frames(), payload)
    assert not idle["found"] and idle["score"] < idle["need"] < row["score"]


@pytest.mark.parametrize("name", watermark.ATTACKS)
def test_an_attack_changes_the_video_and_is_repeatable(name: str) -> None:
    video = frames()
    once = watermark.ATTACKS[name](video)
    assert once.dtype == np.uint8 and once.ndim == 4
    assert (once == watermark.ATTACKS[name](video)).all()
    if name != "as served (crf 12)":
        assert once.shape != video.shape or (once != video).any()
    shape = {
        "cut by 10 %": (9, 230, 346, 3),
        "scaled by .75": (9, 192, 288, 3),
        "scaled by 1.5": (9, 384, 576, 3),
        "two frames of three dropped": (3, 256, 384, 3),
        "back to the model's size": (9, 64, 96, 3),
    }.get(name, once.shape)
    assert once.shape == shape
