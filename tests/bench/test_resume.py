"""The bench of states on a random model: the shape of its answer, and figures that must be."""

import json
from pathlib import Path

import pytest

from bench import resume


def test_it_answers_and_what_goes_on_is_equal(
    random_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(random_model), "--rounds", "2", "--steps", "3", "--json"]
    assert resume.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["equal"] and (result["solver"], result["steps"]) == ("unipc", 3)
    for name in ("save_s", "save_of_step", "save_of_job", "paced", "load_s"):
        row = result[name]
        assert 0 <= row["least"] <= row["median"] <= row["most"]
    assert result["save_of_job"]["most"] < result["save_of_step"]["most"]
    latents = 16 * 5 * 16 * 24 * 4
    assert 4 * latents < result["bytes"] < 4 * latents + 4000
    euler, unipc = (result["full"]["wan-14b"][key]["bytes"] for key in ("euler", "unipc"))
    assert euler == 16 * 21 * 60 * 104 * 4 == 8_386_560 and unipc == 4 * euler
    assert result["full"]["wan-1.3b"]["euler"]["bytes"] == euler


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    assert resume.main(["--model", str(tmp_path)]) == 2


def test_rounds_that_are_none_are_refused() -> None:
    with pytest.raises(SystemExit):
        resume.arguments(["--rounds", "0"])
