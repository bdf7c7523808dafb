"""The scripted engine: its chain shows whether every step was made once, and its picture tells."""

import io
from typing import Any

import pytest
from PIL import Image

from bench import scripted
from bench.scripted import ScriptedEngine, State, end, order, seen
from engine.errors import StateError
from engine.presets import MINIATURE
from engine.spec import Reference, Spec


def spec_of(prompt: str = "somebody waves", steps: int = 5, seed: int = 3) -> Spec:
    return Spec.of(MINIATURE, prompt, (), steps=steps, seed=seed)


def test_the_picture_tells_the_seed_the_steps_and_the_references() -> None:
    face = Reference.from_image("anna", Image.new("RGB", (8, 8), "teal"))
    video = ScriptedEngine().generate(spec_of(), [face], lambda progress: None)
    assert seen(video.thumbnail()) == end(3, 5, [face.rgb])
    assert len({end(3, 5), end(3, 4), end(4, 5), end(3, 5, [face.rgb])}) == 4


def test_the_picture_survives_a_codec() -> None:
    video = ScriptedEngine().generate(spec_of(), [], lambda progress: None)
    frame = scripted.Video.from_mp4(video.mp4(video.view_scale())).frames[0]
    small = io.BytesIO()
    Image.fromarray(frame).save(small, "JPEG", quality=60)
    assert seen(small.getvalue()) == end(3, 5)


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_taken_on_ends_like_an_undisturbed_one(at: int) -> None:
    states: list[State] = []
    ScriptedEngine().generate(spec_of(), [], lambda progress: None, on_state=states.append)
    told: list[Any] = []
    state = ScriptedEngine.state_of(states[at - 1].to_bytes())
    video = ScriptedEngine().generate(spec_of(), [], told.append, resume=state)
    assert seen(video.thumbnail()) == end(3, 5)
    assert [one.step for one in told if one.stage == "denoise"] == list(range(at, 6))


def test_a_state_of_another_request_is_refused() -> None:
    states: list[State] = []
    ScriptedEngine().generate(spec_of(), [], lambda progress: None, on_state=states.append)
    with pytest.raises(StateError, match="another request"):
        ScriptedEngine().generate(spec_of(seed=4), [], lambda progress: None, resume=states[0])
    with pytest.raises(StateError, match="no state"):
        ScriptedEngine.state_of(b"[1]")


def test_orders_stand_in_the_prompt() -> None:
    assert order("waves step_ms=20 store_ms=5", "step_ms") == 20
    assert order("waves", "step_ms") == 0
