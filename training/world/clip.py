"""One training example: frames, a picture of each character, the caption, and the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.world.caption import Caption, caption
from training.world.render import render_clip, render_reference
from training.world.scene import Scene, sample_scene

NUM_SUBJECTS_P = (0.25, 0.35, 0.25, 0.15)
REFERENCE_SIZE = 64
NUM_FRAMES = 17


@dataclass(frozen=True)
class Clip:
    """frames uint8 [T, H, W, 3]; references uint8 [S, 64, 64, 3]; boxes float32 [S, T, 4] pixels
    (x0, y0, x1, y1); visibility float32 [S, T] in [0, 1]."""

    frames: np.ndarray
    references: np.ndarray
    caption: Caption
    scene: Scene
    boxes: np.ndarray
    visibility: np.ndarray


def sample_clip(
    seed: int,
    *,
    split: str = "train",
    num_subjects: int | None = None,
    reference: str = "cross",
    style: str | None = None,
    twins: bool | None = None,
    num_frames: int = NUM_FRAMES,
    height: int = 64,
    width: int = 96,
    reference_size: int = REFERENCE_SIZE,
    still: bool = False,
) -> Clip:
    """Clip number `seed` of a split, the same on every call.

    `reference="cross"` draws pose, expression and light of the pictures anew; `"same"` copies them
    from the clip's middle frame (what a model can solve by copying). `still` keeps one frame of
    the clip, at a moment of its own: pictures come before videos in training.
    """
    if reference not in ("cross", "same"):
        raise ValueError(f"reference={reference!r}: must be 'cross' or 'same'")
    scene, words, rng = sample_script(seed, split, num_subjects, style, twins)
    moment = still_moment(seed, num_frames) if still else None
    shown = slice(None) if moment is None else slice(moment, moment + 1)
    return Clip(
        frames=render_clip(scene, num_frames, height, width, moment),
        references=references_of(scene, rng, reference, num_frames, reference_size),
        caption=words,
        scene=scene,
        boxes=scene.boxes(num_frames, height, width)[:, shown],
        visibility=scene.visibility(num_frames, height, width)[:, shown],
    )


def still_moment(seed: int, num_frames: int = NUM_FRAMES) -> int:
    """The frame that `sample_clip(seed, still=True)` keeps."""
    return int(np.random.default_rng((seed, 13)).integers(num_frames))


def sample_script(
    seed: int,
    split: str = "train",
    num_subjects: int | None = None,
    style: str | None = None,
    twins: bool | None = None,
) -> tuple[Scene, Caption, np.random.Generator]:
    """Who, where and in which words, of clip number `seed`; and the generator for what follows.

    A hundredth of the time of `sample_clip`, for whoever looks for clips of a kind.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r}: must be 'train' or 'heldout'")
    rng = np.random.default_rng((seed, split == "heldout", 11))
    num = num_subjects or int(rng.choice(4, p=NUM_SUBJECTS_P)) + 1
    scene = sample_scene(rng, num, split=split, twins=twins)
    return scene, caption(scene, rng, style), rng


def references_of(
    scene: Scene,
    rng: np.random.Generator,
    kind: str,
    num_frames: int = NUM_FRAMES,
    size: int = REFERENCE_SIZE,
) -> np.ndarray:
    """A picture of each character of the cast, uint8 [S, size, size, 3]."""
    tracks = scene.tracks(num_frames) if kind == "same" else None
    pictures = [
        render_reference(
            role.identity, rng, size, None if tracks is None else tracks[k, num_frames // 2]
        )
        for k, role in enumerate(scene.cast)
    ]
    return np.stack(pictures)
