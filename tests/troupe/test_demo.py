"""The demo's parts: the example as a request, the service's words as ours."""

import json
from pathlib import Path

import httpx
import pytest
import typer

from troupe.demo import DemoFailed, _checked, _words, read_examples

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_example_becomes_a_request_in_the_prompts_order() -> None:
    fields, pictures = read_examples(EXAMPLES)
    subjects = json.loads(fields["subjects"])
    assert [subject["name"] for subject in subjects] == ["anna", "bob"]
    assert [subject["image"] for subject in subjects] == [name for name, _ in pictures]
    assert all(data.startswith(b"\x89PNG") for _, data in pictures)
    assert "@anna" in fields["prompt"]


def test_folder_without_an_example_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        read_examples(tmp_path)
    assert "no example" in capsys.readouterr().err


def test_refusal_is_told_in_the_services_words() -> None:
    body = {"error": {"message": "prompt: must not be empty.", "param": "prompt"}}
    with pytest.raises(DemoFailed, match="prompt: must not be empty"):
        _checked(httpx.Response(400, json=body))
    with pytest.raises(DemoFailed, match="answers 502"):
        _checked(httpx.Response(502, text="<html>"))


def test_progress_tells_stage_step_and_time_to_go() -> None:
    running = {"stage": "denoise", "step": 6, "steps": 24, "eta_s": 3.2}
    assert _words(running) == "denoise 6/24 about 3 s to go"
    assert _words({"stage": "queued", "step": None, "steps": 24, "eta_s": None}) == "queued"
