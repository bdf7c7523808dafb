"""The bench from its command line; with trained instruments, the controls come out as they must."""

import json
from pathlib import Path

import pytest

from bench import identity
from engine.detector import Detector
from engine.identity import IdentityEncoder
from training.convnet import save
from training.world.oracle import Oracle

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "miniature"
FILES = ("identity.safetensors", "detector.safetensors", "oracle.safetensors")
trained = pytest.mark.skipif(
    not all((SHIPPED / name).is_file() for name in FILES), reason="no trained instruments"
)


def _last_line(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert identity.main(["--json", *words]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    for name, net in zip(FILES, (IdentityEncoder(), Detector(), Oracle()), strict=True):
        save(net, tmp_path / name)
    return tmp_path


def test_last_line_is_one_object_of_the_promised_shape(
    untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = untrained / "sheet.png"
    words = ("--control", "truth", "--model", str(untrained), "--cases", "2", "--seeds", "1")
    result = _last_line(capsys, *words, "--sheet", str(sheet))
    assert set(result["subjects"]) == {"1", "2", "3"}
    promised = {"similarity", "upper", "lower", "reached", "worst", "swaps", "missing"}
    for row in result["subjects"].values():
        assert promised | {"motion", "background", "copy_paste", "factors"} <= set(row)
    assert (result["cases"], result["seeds"]) == (2, 1)
    assert sheet.stat().st_size > 1000


def test_a_model_generates_what_is_measured(
    untrained: Path, random_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--model",
        str(random_model),
        "--instruments",
        str(untrained),
        "--cases",
        "2",
        "--seeds",
        "1",
        "--subjects",
        "1",
        "--steps",
        "1",
    )
    result = _last_line(capsys, *words)
    assert result["model"] == str(random_model)
    assert set(result["subjects"]) == {"1"}


def test_a_training_can_be_looked_at_on_stills(
    untrained: Path, random_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its transformer among the model's other parts; one that does not fit is told by key."""
    dit = random_model / "dit.safetensors"
    words = ["--model", str(random_model), "--instruments", str(untrained), "--dit", str(dit)]
    words += ["--still", "--cases", "2", "--seeds", "1", "--subjects", "1", "--steps", "1"]
    result = _last_line(capsys, *words)
    assert (result["model"], result["still"]) == (str(dit), True)
    words[words.index("--dit") + 1] = str(random_model / "text.safetensors")
    assert identity.main(words) == 2
    assert "text.safetensors lacks" in capsys.readouterr().err.replace("\n", " ")


def test_missing_instruments_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert identity.main(["--model", str(tmp_path), "--control", "truth"]) == 2
    assert "identity.safetensors" in capsys.readouterr().err.replace("\n", "")


def test_one_case_is_too_few(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(untrained), "--control", "truth", "--cases", "1"]
    assert identity.main(words) == 2
    assert "at least two" in capsys.readouterr().err


@trained
def test_truth_reaches_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", str(SHIPPED), "--cases", "8", "--seeds", "1", "--control", "truth")
    for row in _last_line(capsys, *words)["subjects"].values():
        assert row["reached"] == pytest.approx(1)
        assert row["upper"] > row["lower"] + 0.3
        assert row["swaps"] <= 0.1 and row["missing"] <= 0.1
        assert row["motion"] > 0.8 and row["background"] == 1
        assert row["copy_paste"] == pytest.approx(-1)


@trained
def test_strangers_reach_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", str(SHIPPED), "--cases", "8", "--seeds", "1", "--control", "strangers")
    for row in _last_line(capsys, *words)["subjects"].values():
        assert abs(row["reached"]) < 0.25
        assert row["missing"] <= 0.1


@trained
def test_exchanged_roles_are_swaps_and_an_empty_stage_misses_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--model", str(SHIPPED), "--cases", "12", "--seeds", "1", "--subjects", "2")
    swapped = _last_line(capsys, *words, "--control", "exchange")["subjects"]["2"]
    assert swapped["swaps"] > 0.85
    assert swapped["reached"] > 0.9
    empty = _last_line(capsys, *words, "--control", "blank")["subjects"]["2"]
    assert (empty["missing"], empty["similarity"]) == (1, 0)


@trained
def test_less_strength_keeps_more_of_the_clips_that_it_begins_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--model", str(SHIPPED), "--cases", "4", "--seeds", "1", "--subjects", "1", "--bf16"]
    words += ["--steps", "4", "--control"]

    def reached(control: str, strength: str) -> float:
        told = _last_line(capsys, *words, control, "--strength", strength)
        assert (told["model"], told["strength"]) == (control, float(strength))
        return told["subjects"]["1"]["reached"]

    assert 0.8 < reached("truth", "0") < 1.02
    assert reached("strangers", "0.5") + 0.3 < reached("truth", "0.5")


def test_what_a_strength_cannot_go_with_is_told(
    untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(untrained), "--cases", "2"]
    for more in (["--strength", "0.5"], ["--control", "truth", "--strength", "1.5"]):
        assert identity.main(words + more) == 2
        assert "--strength: from 0 to 1" in capsys.readouterr().err


def test_two_processes_give_the_figures_of_one(
    untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--control", "strangers", "--model", str(untrained), "--cases", "3", "--seeds", "2")
    words = (*words, "--subjects", "2", "--batch", "2")
    one, two = (_last_line(capsys, *words, "--workers", n)["subjects"] for n in ("1", "2"))
    assert one == two
