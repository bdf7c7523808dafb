"""The VLM's mark: true clips agree with their own prompt better than with another one's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.encodings import Encoded, Encodings
from engine.presets import MINIATURE
from engine.spec import Reference, Spec
from engine.vlm import VLM
from training.policy import Task
from training.rewards.door import RewardError
from training.rewards.naturalness import Naturalness
from training.world.clip import Clip, sample_clip

MODEL = Path("models/miniature")
NOTHING = Encodings(*(torch.zeros(0, 0) for _ in range(4)))


@pytest.fixture(scope="module")
def judge() -> Naturalness:
    files = MODEL / "vlm.safetensors", MODEL / "vlm_tokenizer.json"
    return Naturalness(VLM.from_files(*files, MINIATURE.vlm))


def task(clip: Clip, prompt: str | None = None) -> Task:
    names = clip.caption.names
    cast = tuple(
        Reference.from_image(name, Image.fromarray(picture))
        for name, picture in zip(names, clip.references, strict=True)
    )
    spec = Spec.of(MINIATURE, prompt or clip.caption.prompt, names)
    return Task(spec, cast, Encoded(NOTHING, NOTHING))


@pytest.mark.parametrize(("still", "num"), [(True, 24), (False, 10)])
def test_true_frames_agree_with_their_own_prompt(
    judge: Naturalness, still: bool, num: int
) -> None:
    """Against a neighbour's prompt: .2 more on the mean, and more for most."""
    clips = [
        sample_clip(seed, split="heldout", num_subjects=1 + seed % 3, style="names", still=still)
        for seed in range(num)
    ]
    frames, tasks = torch.from_numpy(np.stack([c.frames for c in clips])), [task(c) for c in clips]
    own, other = judge(frames, tasks), judge(frames, tasks[1:] + tasks[:1])
    assert own.dtype == torch.float64 and bool(((own > 0) & (own < 1)).all())
    assert float((own - other).mean()) > 0.15
    assert float((own > other).double().mean()) > 0.7
    torch.testing.assert_close(judge(frames[:2], tasks[:2]), own[:2], rtol=1e-3, atol=1e-4)


def test_a_prompt_of_another_grammar_cannot_be_judged(judge: Naturalness) -> None:
    clip = sample_clip(0, num_subjects=1, style="names", still=True)
    asked = task(clip, f"@{clip.caption.names[0]} dances")
    with pytest.raises(RewardError, match="no background"):
        judge(torch.from_numpy(clip.frames)[None], [asked])
