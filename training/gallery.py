"""The pictures that the measuring instruments learn from: thousands of characters, many views each.

Every character comes with a near-twin that differs in one factor; both are drawn as reference
pictures and cut out of scenes with other characters around and in front of them. Deterministic by
seed; kept as one safetensors file, because drawing takes minutes.

Legend: I identities, R reference pictures, V views cut from scenes, M scenes, T frames of a scene,
F factors (10), K characters of a scene (4, padded).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from engine.crops import cut, squares, to_unit
from training.world.identity import (
    FACTOR_NAMES,
    FACTORS,
    Identity,
    is_held_out,
    near_twin,
    sample_identity,
)
from training.world.render import random_pose, render_clip, render_reference
from training.world.scene import MAX_SUBJECTS, POSE, Role, Scene, sample_scene

HEIGHT, WIDTH, FRAMES, KEPT_FRAMES = 64, 96, 6, 3
REFERENCES, VIEWS, SCENES_PER_IDENTITY = 6, 10, 2
VIEW = 56
"""Side of a stored view, pixels: a quarter wider than a crop, room for jitter."""
SLACK = 1.25
SIZES = tuple(len(FACTORS[name]) for name in FACTOR_NAMES)
TILT = POSE.index("tilt")
_SEEN = 0.45


@dataclass(frozen=True)
class Gallery:
    """factors_IF uint8; references_IRHWC uint8 64x64 with tilt_IR (radians); views_IVHWC uint8
    56x56 with view_tilt_IV; frames_MTHWC uint8 64x96 with boxes_MTKS (pixels, unclipped),
    visibility_MTK (0 for padding) and background_M, light_M."""

    factors_IF: Tensor
    references_IRHWC: Tensor
    tilt_IR: Tensor
    views_IVHWC: Tensor
    view_tilt_IV: Tensor
    frames_MTHWC: Tensor
    boxes_MTKS: Tensor
    visibility_MTK: Tensor
    background_M: Tensor
    light_M: Tensor


def full_boxes(
    scene: Scene, num_frames: int, height: int = HEIGHT, width: int = WIDTH
) -> np.ndarray:
    """`Scene.boxes` before clipping to the frame, float32 [S, T, 4]: all of a body."""
    x, y, r = np.moveaxis(scene.tracks(num_frames, width / height)[..., :3] * height, -1, 0)
    return np.stack([x - 1.1 * r, y - 1.45 * r, x + 1.1 * r, y + 1.25 * r], -1).astype(np.float32)


def sample_identities(rng: np.random.Generator, num: int, *, held_out: bool) -> list[Identity]:
    """`num` different identities of one split; 2i and 2i+1 are near-twins."""
    found: dict[Identity, None] = {}
    while len(found) < num:
        first = sample_identity(rng)
        pair = (first, near_twin(first, rng))
        if all(is_held_out(p) == held_out and p not in found for p in pair):
            found.update(dict.fromkeys(pair))
    return list(found)[:num]


def many_values(factors_IF: Tensor) -> Tensor:
    """Factor values [I, F] -> [I, V], one 1 per factor; none for the colour of an absent thing."""
    parts = [F.one_hot(factors_IF[:, i].long(), n).float() for i, n in enumerate(SIZES)]
    for item in ("hat", "accessory"):
        worn = factors_IF[:, FACTOR_NAMES.index(item)] > 0
        parts[FACTOR_NAMES.index(f"{item}_color")] *= worn[:, None]
    return torch.cat(parts, 1)


def build(num: int, seed: int, *, held_out: bool = False, quiet: bool = False) -> Gallery:
    """Draws a gallery of `num` identities (about 25 ms each on one core)."""
    rng = np.random.default_rng((seed, held_out, 23))
    identities = sample_identities(rng, num, held_out=held_out)
    references = [_portraits(i, rng) for i in track(identities, "portraits", disable=quiet)]
    views: list[list[tuple[np.ndarray, float]]] = [[] for _ in identities]
    scenes = []
    groups = list(_groups(rng, num))
    for group in track(groups, "scenes", disable=quiet):
        scenes.append(_play(group, identities, rng, views))
    kept = [_choose(v, references[i], rng) for i, v in enumerate(views)]
    return Gallery(
        torch.tensor([astuple(i) for i in identities], dtype=torch.uint8),
        torch.from_numpy(np.stack([r[0] for r in references])),
        torch.from_numpy(np.stack([r[1] for r in references])),
        torch.from_numpy(np.stack([[v[0] for v in k] for k in kept])),
        torch.tensor([[v[1] for v in k] for k in kept], dtype=torch.float32),
        *(torch.from_numpy(np.stack(column)) for column in zip(*scenes, strict=True)),
    )


def load_or_build(path: Path, num: int, seed: int, *, held_out: bool = False) -> Gallery:
    """The gallery kept at `path`, drawn and written first if it is not there."""
    if not path.exists():
        gallery = build(num, seed, held_out=held_out)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({f.name: getattr(gallery, f.name) for f in fields(Gallery)}, partial)
        partial.replace(path)
    gallery = Gallery(**load_file(path))
    if len(gallery.factors_IF) != num:
        held = len(gallery.factors_IF)
        raise ValueError(f"{path}: holds {held} identities, not {num}; remove it")
    return gallery


def _portraits(identity: Identity, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    poses = [random_pose(rng) for _ in range(REFERENCES)]
    pictures = [render_reference(identity, rng, 64, pose) for pose in poses]
    return np.stack(pictures), np.array([p[TILT] for p in poses], np.float32)


def _groups(rng: np.random.Generator, num: int) -> Iterator[list[int]]:
    """Every identity in two scenes of one to four; the first round keeps twins together."""
    for round_ in range(SCENES_PER_IDENTITY):
        order = np.arange(num) if round_ == 0 else rng.permutation(num)
        start = 0
        while start < num:
            size = int(rng.choice(4, p=(0.2, 0.3, 0.3, 0.2))) + 1
            yield [int(i) for i in order[start : start + size]]
            start += size


def _play(
    group: list[int],
    identities: list[Identity],
    rng: np.random.Generator,
    views: list[list[tuple[np.ndarray, float]]],
) -> tuple[Any, ...]:
    """Draws one scene, adds the views of its cast; returns frames, boxes, visibility and place."""
    scene = sample_scene(rng, len(group), twins=False)
    cast = tuple(
        Role(identities[i], r.motion, r.place, r.partner)
        for i, r in zip(group, scene.cast, strict=True)
    )
    scene = replace(scene, cast=cast)
    frames = render_clip(scene, FRAMES, HEIGHT, WIDTH)
    boxes = full_boxes(scene, FRAMES)
    seen = scene.visibility(FRAMES, HEIGHT, WIDTH)
    tilts = scene.tracks(FRAMES)[..., TILT]
    pixels = to_unit(torch.from_numpy(frames))
    for k, i in enumerate(group):
        wide = squares(torch.from_numpy(boxes[k])) * torch.tensor([1, 1, SLACK])
        crops = cut(pixels, wide, VIEW)
        crops_THWC = ((crops + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
        clear = [t for t in range(FRAMES) if seen[k, t] > _SEEN]
        views[i] += [(crops_THWC[t], float(tilts[k, t])) for t in clear]
    keep = np.sort(rng.choice(FRAMES, KEPT_FRAMES, replace=False))
    pad = ((0, 0), (0, MAX_SUBJECTS - len(group)))
    return (
        frames[keep],
        np.pad(boxes[:, keep].swapaxes(0, 1), (*pad, (0, 0))),
        np.pad(seen[:, keep].T, pad),
        np.uint8(scene.background),
        np.uint8(scene.light),
    )


def _choose(
    views: list[tuple[np.ndarray, float]],
    portraits: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, float]]:
    """`VIEWS` of the views; whoever was hidden in all scenes is shown by portraits instead."""
    if not views:
        pictures = cut(
            to_unit(torch.from_numpy(portraits[0])),
            torch.tensor([[32.0, 32.0, 64.0 * SLACK]] * REFERENCES),
            VIEW,
        )
        shown = ((pictures + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
        views = list(zip(shown, portraits[1].tolist(), strict=True))
    picked = rng.choice(len(views), VIEWS, replace=len(views) < VIEWS)
    return [views[int(j)] for j in picked]
