"""A small request that tells whether weights make the pictures that their publisher saw.

The publisher runs it once and writes what it looks like under `golden` in the manifest's
evaluation; a worker runs it after each exchange of weights, before a job sees them. Damage that no
digest shows (another kernel, a card that computes wrongly) is found so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import CheckpointError
from engine.spec import Spec

if TYPE_CHECKING:
    from engine.encodings import Encoded
    from engine.pipeline import Engine
    from engine.presets import Preset

KEY = "golden"  # in a manifest's evaluation
PROMPT = "a red ball"
STEPS = 2
PARTS = 4  # of the picture's sides
# Of grey levels: other machines and precisions differ by less, other weights by more.
TOLERANCE = 4.0


def request(preset: Preset) -> Spec:
    """The small request: no pictures, and as few and small frames as the model makes."""
    side, frames = preset.limits.min_side, preset.limits.min_frames
    usual = Spec.of(preset, PROMPT, steps=STEPS)
    return replace(usual, width=side, height=side, num_frames=frames)


def picture(engine: Engine, encoded: Encoded | None = None) -> list[float]:
    """What the small request looks like: means of 4 x 4 parts of its frames, R, G and B, grey
    levels to one place. encoded: as `Engine.generate`."""
    frame_HWC = engine.generate(request(engine.preset), (), encoded=encoded).frames.mean(0)
    parts = [
        part.mean((0, 1))
        for lines in np.array_split(frame_HWC, PARTS, 0)
        for part in np.array_split(lines, PARTS, 1)
    ]
    return [round(float(value), 1) for value in np.concatenate(parts)]


def told(folder: Path, base: Path | None = None) -> dict[str, Any]:
    """What a publisher adds to the evaluation of a model folder: its picture, made here.

    Args:
        base: of an adapter's folder, the model that it changes.

    Raises:
        CheckpointError: the folder cannot be loaded, or it gives one even colour.
    """
    from tempfile import TemporaryDirectory

    from engine.adapters import merge
    from engine.pipeline import Engine

    with TemporaryDirectory(prefix="troupe-golden-") as place:
        whole = Path(folder)
        if base is not None:
            whole = Path(place) / "merged"
            merge(base, folder, whole)
        found = picture(Engine.load(whole))
    _check_contrast(found)
    return {KEY: found}


def check(
    engine: Engine, evaluation: Mapping[str, Any], encoded: Encoded | None = None
) -> None:
    """Runs the small request and compares it with a manifest's evaluation; where its publisher made
    none, it only has to be a picture.

    Args:
        encoded: of `request`, where the engine has no encoders of its own.

    Raises:
        CheckpointError: it is another picture, or none.
    """
    found, wanted = picture(engine, encoded), evaluation.get(KEY)
    _check_contrast(found)
    if wanted is None:
        return
    if not isinstance(wanted, Sequence) or len(wanted) != len(found):
        raise CheckpointError(f"evaluation.{KEY} must be {len(found)} numbers")
    off = max(abs(one - other) for one, other in zip(found, wanted, strict=True))
    if not off <= TOLERANCE:
        raise CheckpointError(f"its small request is {off:.1f} grey levels from the publisher's")


def _check_contrast(found: Sequence[float]) -> None:
    if max(found) - min(found) == 0.0:
        raise CheckpointError("its small request gives one even colour")
