"""What a clip shows, against what its script says: similarity, swaps, missing, motion, place.

Nothing is read at the boxes of the ground truth: a generated character may stand anywhere, so crops
come from the detector, frame by frame, and are matched to the references by the best permutation.
The truth's boxes serve one question only: whose place is this (`swapped`).

Legend: T observed frames, D detections of a frame (padded), S subjects, E embedding, V factor
values, K box corners (left, top, right, bottom, pixels).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.detector import Detector, find, load_detector
from engine.identity import IdentityEncoder, embed, load_identity, reference_crops
from engine.matching import (
    NOBODY,
    SMOOTH,
    Floats,
    Seen,
    assign,
    centres,
    copy_paste,
    matched,
    portrait,
)
from training.world import oracle as oracle_
from training.world.clip import Clip
from training.world.identity import FACTOR_NAMES
from training.world.render import render_clip

EVERY = 2
"""Every second frame is observed: 9 of 17."""
VISIBLE = 0.4
"""Frames in which the script shows less of a character than this do not count for it."""
GATE = 0.3
CROWD = 0.16
"""Frame heights: how far from its place a character may stand, and how near another one's place
makes the frame say nothing about who stands where."""


@dataclass(frozen=True)
class Instruments:
    """The three readers, in eval mode."""

    identity: IdentityEncoder
    detector: Detector
    oracle: oracle_.Oracle

    @classmethod
    def load(cls, folder: Path) -> Instruments:
        """From identity.safetensors, detector.safetensors and oracle.safetensors of a folder."""
        return cls(
            load_identity(folder / "identity.safetensors"),
            load_detector(folder / "detector.safetensors"),
            oracle_.load_oracle(folder / "oracle.safetensors"),
        )


@dataclass(frozen=True)
class Observation(Seen):
    """One clip as the instruments see it: logits_TDV and tilt_TD (radians) by the oracle;
    background, light indices."""

    logits_TDV: Floats
    tilt_TD: Floats
    background: int
    light: int


@dataclass(frozen=True)
class Score:
    """One generated clip. Per subject: similarity_S (cosine to its reference, mean over frames),
    missing_S, swapped_S, motion_S (as told), factors_SF (share of factors read right; NaN where it
    cannot be seen), copy_S (copy-paste score). Of the clip: background, light (as told)."""

    similarity_S: Floats
    missing_S: NDArray[np.bool_]
    swapped_S: NDArray[np.bool_]
    motion_S: NDArray[np.bool_]
    factors_SF: Floats
    copy_S: Floats
    background: bool
    light: bool


@torch.no_grad()
def embed_references(tools: Instruments, references: NDArray[np.uint8]) -> Floats:
    """Reference pictures uint8 [S, 64, 64, 3] -> unit vectors [S, E]."""
    return tools.identity(reference_crops(torch.from_numpy(references))).double().numpy()


@torch.no_grad()
def observe(tools: Instruments, frames: NDArray[np.uint8], most: int = 6) -> Observation:
    """uint8 frames [T, H, W, 3] of one clip, every second of them; at most `most` per frame."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames[::EVERY]))
    found = find(tools.detector, pixels, most)
    real_TD = found.real_TD
    logits, tilt = torch.zeros(*real_TD.shape, sum(oracle_.SIZES)), torch.zeros(real_TD.shape)
    if real_TD.any():
        reading = oracle_.read(tools.oracle, found.crops_NCHW)
        logits[real_TD], tilt[real_TD] = reading.logits_NV, reading.tilt_N
    background, light = oracle_.read_place(tools.oracle, pixels)
    return Observation(
        _array(found.boxes_TDK),
        real_TD.numpy(),
        _array(embed(tools.identity, found)),
        frames.shape[1],
        _array(logits),
        _array(tilt),
        background,
        light,
    )


def _array(x: Tensor) -> Floats:
    return x.double().numpy()


def shown(clip: Clip) -> NDArray[np.bool_]:
    """Observed frames in which the script shows each character, bool [T, S]."""
    visible = clip.visibility[:, ::EVERY].T > VISIBLE
    return np.where(visible.any(0), visible, True)


def similarity(seen: Observation, clip: Clip, references_SE: Floats) -> Floats:
    """Mean cosine [S] to the references, best permutation per frame, over the frames that show the
    subject; a frame without a match counts as 0 (leaving it out would reward losing a subject)."""
    _, cosine_TS = matched(seen, references_SE)
    counts = shown(clip)
    return (cosine_TS * counts).sum(0) / counts.sum(0)


def missing(seen: Observation, clip: Clip, references_SE: Floats) -> NDArray[np.bool_]:
    """Subjects [S] without a match in more than half of the frames that show them."""
    who_TS, _ = matched(seen, references_SE)
    counts = shown(clip)
    return ((who_TS == NOBODY) & counts).sum(0) > 0.5 * counts.sum(0)


def swapped(seen: Observation, clip: Clip, references_SE: Floats) -> NDArray[np.bool_]:
    """Roles [S] in whose place somebody stands who looks more like another subject of the cast.

    In each frame the detections are matched to the places of the script by distance (less than
    `GATE`); frames in which a place is hidden or another is near are left out; cosines to all
    references are averaged over the rest. A place without two such frames (a still: its one) is
    not judged.
    """
    num_subjects = len(references_SE)
    place_TS2 = centres(clip.boxes[:, ::EVERY].astype(float)).swapaxes(0, 1) / seen.height
    centre_TD2 = centres(seen.boxes_TDK) / seen.height
    way_TDS = np.linalg.norm(centre_TD2[:, :, None] - place_TS2[:, None], axis=-1)
    who_TS = assign(-way_TDS, seen.real_TD, centre_TD2, 0.0)
    apart_TSS = np.linalg.norm(place_TS2[:, :, None] - place_TS2[:, None], axis=-1)
    alone_TS = (apart_TSS + 9 * np.eye(num_subjects)).min(-1) > CROWD
    way_TS = np.take_along_axis(way_TDS, np.maximum(who_TS, 0)[:, None, :], axis=1)[:, 0]
    counts_TS = shown(clip) & alone_TS & (who_TS != NOBODY) & (way_TS < GATE)
    cosine_TDS = seen.embedding_TDE @ references_SE.T
    needed = min(2, len(counts_TS))
    verdict = np.zeros(num_subjects, bool)
    for k in range(num_subjects):
        rows = counts_TS[:, k].nonzero()[0]
        if num_subjects > 1 and len(rows) >= needed:
            verdict[k] = cosine_TDS[rows, who_TS[rows, k]].mean(0).argmax() != k
    return verdict


def tracks(seen: Observation, references_SE: Floats) -> list[oracle_.Track]:
    """One track per subject: who it is by likeness, smoothed by where it was."""
    who_TS, _ = matched(seen, references_SE, SMOOTH)
    rows = np.arange(len(who_TS))
    found = []
    for who_T in who_TS.T:
        boxes = np.where((who_T == NOBODY)[:, None], np.nan, seen.boxes_TDK[rows, who_T])
        found.append(oracle_.Track(boxes, seen.tilt_TD[rows, who_T]))
    return found


def _factors(seen: Observation, clip: Clip, references_SE: Floats) -> Floats:
    """1 where the oracle reads a factor of a subject right, 0 where wrong, NaN where unseen."""
    who_TS, _ = matched(seen, references_SE, SMOOTH)
    rows = np.full((len(references_SE), len(FACTOR_NAMES)), np.nan)
    for k, role in enumerate(clip.scene.cast):
        frames = (who_TS[:, k] != NOBODY).nonzero()[0]
        if len(frames) == 0:
            rows[k] = 0.0
            continue
        logits = torch.from_numpy(seen.logits_TDV[frames, who_TS[frames, k]].sum(0))
        told = oracle_.agreement(oracle_.decide(logits), role.identity)
        rows[k] = [told.get(name, np.nan) for name in FACTOR_NAMES]
    return rows


def score(seen: Observation, clip: Clip, references_SE: Floats, truth_SE: Floats) -> Score:
    """Everything about one clip. `truth_SE`: `portrait` of the ground truth."""
    told = [role.motion for role in clip.scene.cast]
    motion = oracle_.motions(tracks(seen, references_SE), seen.height)
    return Score(
        similarity_S=similarity(seen, clip, references_SE),
        missing_S=missing(seen, clip, references_SE),
        swapped_S=swapped(seen, clip, references_SE),
        motion_S=np.array(motion) == np.array(told),
        factors_SF=_factors(seen, clip, references_SE),
        copy_S=copy_paste(portrait(seen, references_SE), truth_SE, references_SE),
        background=seen.background == clip.scene.background,
        light=seen.light == clip.scene.light,
    )


def exchanged(clip: Clip) -> NDArray[np.uint8]:
    """The clip's frames with its first two characters in each other's role; for controls."""
    first, second, *rest = clip.scene.cast
    pair = (
        replace(first, identity=second.identity),
        replace(second, identity=first.identity),
    )
    scene = replace(clip.scene, cast=(*pair, *rest))
    return render_clip(scene, *clip.frames.shape[:3])
