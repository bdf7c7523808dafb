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
from training.rewards.miniature import Miniature
from training.world.clip import sample_clip

NOTHING = Encodings(*(torch.zeros(0, 0) for _ in range(4)))


@pytest.fixture(scope="module")
def reward() -> Miniature:
    judge = load_judge(Path("models/miniature"))
    assert judge is not None
    return Miniature(judge, composite=Composite(fidelity=1.0))


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


def test_demand_25_true_clips_are_worth_more_than_others(reward: Miniature) -> None:
    """Frames go in as they are decoded; each is judged by its own request."""
    (frames_a, asked_a), (frames_b, asked_b) = task(0), task(3)
    blank = torch.full_like(frames_a, 200)
    frames = torch.stack([frames_a, frames_b, frames_b, frames_a, blank])
    found = reward(frames, [asked_a, asked_b, asked_a, asked_b, asked_a])
    parts = {"face_mean", "face_least", "subject", "aesthetics", "naturalness"}
    assert set(found) == parts | {TOTAL}
    assert not found["naturalness"].any() and float(found["aesthetics"][:4].min()) > 0.8
    assert all(len(x) == 5 and bool(((x >= 0) & (x <= 1)).all()) for x in found.values())
    true, other = found[TOTAL][:2], found[TOTAL][2:4]
    assert float(true.min()) > float(other.max()) + 0.2 and float(found[TOTAL][4]) == 0
    again = reward(frames[:1], [asked_a])
    assert torch.equal(again[TOTAL], found[TOTAL][:1])  # company changes nothing


def test_naturalness_that_has_weight_must_be_there(reward: Miniature) -> None:
    with pytest.raises(ValueError, match="^naturalness:"):
        Miniature(reward.judge)
    Miniature(reward.judge, composite=Composite(beta=0.0))


def test_quality_is_weighed(reward: Miniature) -> None:
    """Grain costs its share of the total: .4 of quality, all of it aesthetics."""
    weighed = Miniature(reward.judge, composite=Composite(beta=0.0))
    frames, asked = task(0)
    noise = 12 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    grainy = (frames + noise).clamp(0, 255).to(torch.uint8)
    found = weighed(torch.stack([frames, grainy]), [asked, asked])
    fidelity = 0.5 * (0.5 * found["face_mean"] + 0.5 * found["face_least"] + found["subject"])
    torch.testing.assert_close(found[TOTAL], 0.6 * fidelity + 0.4 * found["aesthetics"])
    assert float(found["aesthetics"][0] - found["aesthetics"][1]) > 0.5
