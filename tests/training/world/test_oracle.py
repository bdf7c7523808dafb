"""What the oracle reads: factors by vote, motions by geometry."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from training.gallery import build, full_boxes, many_values
from training.world import oracle
from training.world.identity import FACTOR_NAMES, Identity, sample_identity
from training.world.oracle import Oracle, Track, agreement, decide, motions
from training.world.scene import MOTIONS, POSE, sample_scene

TILT = POSE.index("tilt")


def _tracks(seed: int, num: int, noise: float = 0.0) -> tuple[list[Track], list[int]]:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, num)
    boxes = full_boxes(scene, 17)[:, ::2].astype(float)
    boxes += rng.normal(0, 1, boxes.shape) * noise
    tilts = scene.tracks(17)[:, ::2, TILT].astype(float)
    tilts += rng.normal(0, 0.15, tilts.shape) * noise
    hidden = scene.visibility(17, 64, 96)[:, ::2] < 0.3
    boxes[hidden] = np.nan
    tracks = [Track(b, t) for b, t in zip(boxes, tilts, strict=True)]
    return tracks, [role.motion for role in scene.cast]


@pytest.mark.parametrize("noise", [0.0, 0.8], ids=["exact", "as a detector sees it"])
def test_every_motion_is_read_from_its_geometry(noise: float) -> None:
    right: dict[int, list[bool]] = {m: [] for m in range(len(MOTIONS))}
    for seed in range(160):
        tracks, told = _tracks(seed, 1 + seed % 4, noise)
        for seen, wanted in zip(motions(tracks), told, strict=True):
            right[wanted].append(seen == wanted)
    for motion, rows in right.items():
        assert np.mean(rows) > 0.95, MOTIONS[motion]


def test_played_backwards_left_is_right() -> None:
    left, right = MOTIONS.index("walks left"), MOTIONS.index("walks right")
    for seed in range(60):
        tracks, told = _tracks(seed, 1)
        if told[0] in (left, right):
            back = Track(tracks[0].boxes_TS[::-1], tracks[0].tilt_T[::-1])
            assert motions([back]) == [left + right - told[0]]


def test_a_track_of_three_frames_says_nothing() -> None:
    boxes = np.full((9, 4), np.nan)
    boxes[:3] = (10, 10, 30, 40)
    assert motions([Track(boxes, np.zeros(9))]) == [-1]


def test_decide_is_the_inverse_of_many_values() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        identity = sample_identity(rng)
        logits = many_values(torch.tensor([astuple(identity)]))[0]
        assert decide(logits) == identity
        assert all(agreement(decide(logits), identity).values())


def test_unseen_colours_are_not_judged() -> None:
    bare = Identity(0, 1, 2, 3, 4, 0, 0, 0, 0, 0)
    assert set(FACTOR_NAMES) - set(agreement(bare, bare)) == {"hat_color", "accessory_color"}
    dressed = Identity(0, 1, 2, 3, 4, 0, 1, 5, 2, 7)
    told = agreement(bare, dressed)
    assert set(told) == set(FACTOR_NAMES)
    assert not told["hat"] and not told["accessory_color"] and told["shape"]


def test_readers_have_a_logit_for_every_value() -> None:
    reader = Oracle().eval()
    reading = oracle.read(reader, torch.zeros(2, 3, 48, 48))
    assert reading.logits_NV.shape == (2, sum(oracle.SIZES))
    assert reading.tilt_N.abs().max() <= torch.pi
    frames = torch.zeros(3, 64, 96, 3, dtype=torch.uint8)
    background, light = oracle.read_place(reader, frames)
    assert 0 <= background < 8 and 0 <= light < 3


def test_loss_ignores_the_colour_of_an_absent_hat() -> None:
    torch.manual_seed(0)
    batch = oracle.draw_batch(build(6, 0, quiet=True), 12)
    factors = batch.factors_NF.clone()
    for item in ("hat", "accessory"):
        factors[:, FACTOR_NAMES.index(item)] = 0
    reader = Oracle().eval()
    values = []
    for colour in (0, 7):
        factors = factors.clone()
        for item in ("hat", "accessory"):
            factors[:, FACTOR_NAMES.index(f"{item}_color")] = colour
        changed = oracle.Batch(
            batch.crops_NCHW,
            factors,
            batch.tilt_N,
            batch.frames_NCHW,
            batch.background_N,
            batch.light_N,
        )
        parts = [p for p in oracle.loss(reader, changed).values() if torch.isfinite(p)]
        values.append([float(p) for p in parts])
    assert values[0] == values[1]
