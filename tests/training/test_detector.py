"""Maps and boxes are each other's inverse; the loss is least where the maps are right."""

import numpy as np
import pytest
import torch

from engine.detector import Detector, decode
from training import detector
from training.detector import loss, overlap, targets
from training.gallery import build
from training.world.scene import sample_scene


def _scene_boxes(num: int, seed: int = 0) -> torch.Tensor:
    scene = sample_scene(np.random.default_rng(seed), num)
    return torch.from_numpy(scene.boxes(5, 64, 96)).transpose(0, 1)


def _right_maps(boxes_NKS: torch.Tensor, present_NK: torch.Tensor) -> torch.Tensor:
    want = targets(boxes_NKS, present_NK, 64, 96)
    logit = torch.where(want.centre_Nhw, 8.0, -8.0)
    return torch.cat([logit[:, None], want.maps_N4hw], 1)


@pytest.mark.parametrize("num", [1, 2, 4])
def test_decoding_right_maps_gives_the_boxes_back(num: int) -> None:
    boxes = _scene_boxes(num)
    found = decode(_right_maps(boxes, torch.ones(boxes.shape[:2], dtype=torch.bool)))
    for t in range(len(boxes)):
        kept = found.boxes_NKS[t][found.score_NK[t] > 0]
        best = overlap(kept, boxes[t]).amax(0)
        assert (best > 0.99).sum() >= num - 1, "two in neighbouring cells may merge"
        assert len(kept) <= num


def test_who_is_not_present_leaves_no_trace() -> None:
    boxes = _scene_boxes(2)
    want = targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.bool), 64, 96)
    assert not want.centre_Nhw.any()
    assert want.heat_Nhw.sum() == 0
    assert (decode(torch.full((1, 5, 16, 24), -9.0)).score_NK == 0).all()


def test_loss_is_nearly_zero_at_the_truth_and_grows_away_from_it() -> None:
    boxes = _scene_boxes(3)
    present = torch.ones(boxes.shape[:2], dtype=torch.bool)
    want, right = targets(boxes, present, 64, 96), _right_maps(boxes, present)
    best = float(loss(right, want)["loss"])
    assert best < 0.01
    moved, unseen = right.clone(), right.clone()
    moved[:, 1:3] += 0.5
    unseen[:, 0] = -8.0
    assert float(loss(moved, want)["box"]) > 0.5
    assert float(loss(unseen, want)["heat"]) > 5


def test_overlap_closed_forms() -> None:
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    b = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0], [8.0, 8.0, 9.0, 9.0]])
    assert torch.allclose(overlap(a, b), torch.tensor([[1.0, 1 / 3, 0.0]]))


def test_batches_mirror_boxes_with_the_frames() -> None:
    gallery = build(6, 0, quiet=True)
    torch.manual_seed(0)
    batch = detector.draw_batch(gallery, 32)
    assert batch.frames_NCHW.shape == (32, 3, 64, 96)
    real = batch.boxes_NKS[batch.present_NK]
    assert (real[:, 2] > real[:, 0]).all()
    known = gallery.boxes_MTKS[gallery.visibility_MTK > detector.SEEN]
    mirrored = torch.stack([96 - known[:, 2], known[:, 1], 96 - known[:, 0], known[:, 3]], -1)
    every = torch.cat([known, mirrored])
    assert (real[:, None] - every).abs().amax(-1).amin(1).max() < 1e-3


def test_learns_to_find_in_a_few_steps() -> None:
    torch.manual_seed(0)
    gallery = build(8, 1, quiet=True)
    net = Detector((16, 16, 24, 32))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        parts = detector.train_loss(net, detector.draw_batch(gallery, 8))
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(float(parts["loss"].detach()))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
