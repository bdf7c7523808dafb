"""The miniature's own scorers: the shipped judge on drawn clips, whose cast is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.encodings import Encoded, Encodings
from engine.likeness import load_judge
from engine.presets import MINIATURE
from engine.spec import Reference, Spec
from training.policy import Task
from training.rewards.composite import Composite
from training.rewards.door import TOTAL
from training.rewards.miniature import Fidelity
from training.world.clip import sample_clip

NOTHING = Encodings(*(torch.zeros(0, 0) for _ in range(4)))


@pytest.fixture(scope="module")
def reward() -> Fidelity:
    judge = load_judge(Path("models/miniature"))
    assert judge is not None
    return Fidelity(judge)


def task(seed: int) -> tuple[torch.Tensor, Task]:
    """A clip of two held-out characters, and the request for it."""
    clip = sample_clip(seed, split="heldout", num_subjects=2, style="names")
    names = clip.caption.names
    cast = tuple(
        Reference.from_image(name, Image.fromarray(picture))
        for name, picture in zip(names, clip.references, strict=True)
    )
    spec = Spec.of(MINIATURE, clip.caption.prompt, names)
    return torch.from_numpy(clip.frames), Task(spec, cast, Encoded(NOTHING, NOTHING))


def test_demand_25_true_clips_are_worth_more_than_others(reward: Fidelity) -> None:
    """Frames go in as they are decoded; each is judged by its own request."""
    (frames_a, asked_a), (frames_b, asked_b) = task(0), task(3)
    blank = torch.full_like(frames_a, 200)
    frames = torch.stack([frames_a, frames_b, frames_b, frames_a, blank])
    found = reward(frames, [asked_a, asked_b, asked_a, asked_b, asked_a])
    assert set(found) == {"face_mean", "face_least", "subject", TOTAL}
    assert all(len(x) == 5 and bool(((x >= 0) & (x <= 1)).all()) for x in found.values())
    true, other = found[TOTAL][:2], found[TOTAL][2:4]
    assert float(true.min()) > float(other.max()) + 0.2 and float(found[TOTAL][4]) == 0
    again = reward(frames[:1], [asked_a])
    assert torch.equal(again[TOTAL], found[TOTAL][:1])  # company changes nothing


def test_without_scorers_of_quality_the_composite_must_leave_it_out(reward: Fidelity) -> None:
    with pytest.raises(ValueError, match="^fidelity:"):
        Fidelity(reward.judge, Composite())
