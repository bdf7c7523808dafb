"""Other weights in a running engine, between two requests: into the same modules, one tensor after
the other, so that the peak is the weights and one file.

    check       every file verified and held; names, shapes and numbers of the transformer's file
                looked at; so far nothing is touched, and requests may run
    fill        one tensor after the other; meanwhile the engine has no digest
    golden      a small request, compared with what the publisher got

What stands beside the transformer stays, and must be the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from engine import folders
from engine.checkpoint import check_names
from engine.encoder import needed_files
from engine.errors import BackendError, CheckpointError
from engine.spec import Spec
from engine.weights import check_finite, fill, opened, read, shapes

if TYPE_CHECKING:
    from engine.pipeline import Engine

DIT = "dit.safetensors"
GOLDEN = "golden"  # of a manifest's evaluation
GOLDEN_PROMPT = "a red ball"
GOLDEN_STEPS = 2
PARTS = 4  # of the picture's sides
# Of grey levels: other machines and precisions differ by less, other weights by more.
TOLERANCE = 4.0


def check(engine: Engine, folder: Path) -> None:
    """Whether an engine could take over a folder's weights. Touches nothing; may run beside a
    request.

    Raises:
        CheckpointError: the folder is damaged, its transformer does not fit or holds numbers that
            are not finite.
        BackendError: only a new engine can take it: more than the transformer differs, or the
            weights that serve are not plain tensors on one device.
    """
    with folders.held(folder) as (manifest, view):
        _check_kind(engine, manifest)
        own = dict(engine.dit.named_parameters())
        check_names(dict(own), shapes(view / DIT), DIT)
        with opened(view / DIT) as file:
            names = set(file.keys())
            for name in own:
                check_finite(read(file, name, DIT, names), name, DIT)


def swap(engine: Engine, folder: Path) -> None:
    """Take over the weights of a folder that `check` has passed. No request may run meanwhile.

    Raises:
        CheckpointError: as `check`, and where a file was written to while it was read. Where
            `Engine.digest` is empty afterwards, the engine must not be used before another swap.
    """
    dtypes = {name: p.dtype for name, p in engine.dit.named_parameters()}
    with folders.held(folder) as (manifest, view):
        _check_kind(engine, manifest)
        check_names(dict(engine.dit.named_parameters()), shapes(view / DIT), DIT)
        rename(engine, "")
        fill(engine.dit, view / DIT, engine.device, dtypes.__getitem__)
    engine.files = dict(manifest.files)
    engine.encoder.cache.drop()
    rename(engine, manifest.digest())


def rename(engine: Engine, digest: str) -> None:
    """What its weights are called from now on; empty: nothing, it must not be used."""
    engine.digest = engine.encoder.digest = digest


def golden(engine: Engine) -> list[float]:
    """What a small request looks like: means of parts of its frames, R, G and B, grey levels."""
    side, frames = engine.preset.limits.min_side, engine.preset.limits.min_frames
    usual = Spec.of(engine.preset, GOLDEN_PROMPT, steps=GOLDEN_STEPS)
    spec = replace(usual, width=side, height=side, num_frames=frames)
    frame_HWC = engine.generate(spec, ()).frames.mean(0)
    parts = [
        part.mean((0, 1))
        for lines in np.array_split(frame_HWC, PARTS, 0)
        for part in np.array_split(lines, PARTS, 1)
    ]
    return [float(value) for value in np.concatenate(parts)]


def check_golden(engine: Engine, wanted: object) -> None:
    """Runs the small request. wanted: a manifest's, None where its publisher has none: then it only
    has to be a picture.

    Raises CheckpointError.
    """
    if engine.encoders.text is None:
        return  # it gets its encodings from elsewhere; its first job will tell
    found = golden(engine)
    if max(found) - min(found) == 0.0:
        raise CheckpointError("its small request gives one even colour")
    if wanted is None:
        return
    if not isinstance(wanted, Sequence) or len(wanted) != len(found):
        raise CheckpointError(f"evaluation.{GOLDEN} must be {len(found)} numbers")
    off = max(abs(one - other) for one, other in zip(found, wanted, strict=True))
    if not off <= TOLERANCE:
        raise CheckpointError(f"its small request is {off:.1f} grey levels from the publisher's")


def _check_kind(engine: Engine, manifest: folders.Manifest) -> None:
    if manifest.resolve() != engine.preset:
        raise BackendError("the model is of another preset or size")
    folders.require(manifest, needed_files(engine.preset))
    for name in needed_files(engine.preset):
        if name != DIT and manifest.files[name] != engine.files.get(name):
            raise BackendError(f"the model has another {name}")
    plain = all(
        type(p) is nn.Parameter and type(p.data) is torch.Tensor and p.device == engine.device
        for p in engine.dit.parameters()
    )
    if not plain or engine.team is not None:
        raise BackendError("the weights that serve are not plain tensors on one device")
