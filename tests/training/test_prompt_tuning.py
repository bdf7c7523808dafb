"""Prompts that describe their cast by the shipped VLM, of pictures that it has never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.presets import MINIATURE
from engine.spec import text_of
from engine.vlm import VLM
from training.prompt_tuning import tuned, tuned_clip
from training.world.caption import parse
from training.world.clip import sample_clip

MODEL = Path("models/miniature")


@pytest.fixture(scope="module")
def vlm() -> VLM:
    files = MODEL / "vlm.safetensors", MODEL / "vlm_tokenizer.json"
    return VLM.from_files(*files, MINIATURE.vlm)


def test_each_of_the_cast_is_described_behind_its_own_name(vlm: VLM) -> None:
    """Shape and colour, read off pictures of held-out characters, are right for three of four."""
    right = []
    for seed in range(6):
        clip = sample_clip(seed, split="heldout", num_subjects=2, style="names", still=True)
        made = tuned_clip(clip, vlm)
        text, spans = text_of(made.caption.prompt, made.caption.names)
        assert parse(text) == parse(clip.caption.text)  # nothing else is told
        for role, span in zip(clip.scene.cast, spans, strict=True):
            rest = text[span[0][1] :]
            assert rest.startswith(", the "), text
            told = rest[len(", the ") :].split(",")[0].split(" with ")[0].split()
            right.append(role.identity.value("shape") in told)
            right.append(role.identity.value("body") in told)
        stripped = made.caption.prompt
        for name in clip.caption.names:
            assert stripped.count(f"@{name}") == clip.caption.prompt.count(f"@{name}")
    assert np.mean(right) > 0.75


def test_a_name_that_is_described_or_never_said_is_left_alone(vlm: VLM) -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    told = "@anna, the green star, waves"
    assert tuned(told, ["anna"], [grey], vlm) == told
    assert tuned("@annabel waves", ["anna"], [grey], vlm) == "@annabel waves"
