"""Closed forms of the losses."""

from __future__ import annotations

import pytest
import torch

from training import losses


def test_flow_matching_of_the_truth_is_zero_and_of_zero_is_its_square() -> None:
    target = torch.randn(3, 4, 2, 5, 6)
    assert losses.flow_matching(target, target, None).eq(0).all()
    zero = losses.flow_matching(torch.zeros_like(target), target, None)
    torch.testing.assert_close(zero, target.square().mean((1, 2, 3, 4)))


def test_weights_move_attention_but_not_scale() -> None:
    error = torch.ones(2, 4, 2, 5, 6)
    weight = torch.rand(2, 2, 5, 6) + 0.5
    loss = losses.flow_matching(error, torch.zeros_like(error), weight)
    torch.testing.assert_close(loss, torch.ones(2))
    only_left = torch.zeros(2, 2, 5, 6)
    only_left[..., :3] = 1
    error[..., 3:] = 100
    loss = losses.flow_matching(error, torch.zeros_like(error), only_left)
    torch.testing.assert_close(loss, torch.ones(2))


def test_noised_lies_on_the_straight_path() -> None:
    x0 = torch.randn(5, 2, 3, 4, 4)
    torch.manual_seed(0)
    x, t, v = losses.noised(x0, shift=1.0)
    torch.testing.assert_close(x - t.view(-1, 1, 1, 1, 1) * v, x0)
    assert ((t > 0) & (t < 1)).all()
    torch.manual_seed(0)
    again = losses.noised(x0, shift=1.0)
    assert torch.equal(again[0], x)


def test_region_weight_covers_the_box_in_space_and_time() -> None:
    boxes = torch.zeros(1, 2, 9, 4)
    boxes[0, 0, 3] = torch.tensor([8.0, 4.0, 16.0, 12.0])  # in pixel frame 3 only
    boxes[0, 1, :] = torch.tensor([0.0, 0.0, 24.0, 16.0])  # belongs to no subject
    mask = torch.tensor([[True, False]])
    weight = losses.region_weight(boxes, mask, (3, 4, 6), factor=4, gain=3.0)
    want = torch.ones(1, 3, 4, 6)
    want[0, 1, 1:3, 2:4] = 3  # frames 1 to 4 make latent frame 1
    torch.testing.assert_close(weight, want)


def test_region_weight_of_a_still() -> None:
    boxes = torch.tensor([[[[4.0, 4.0, 8.0, 8.0]]]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    weight = losses.region_weight(boxes, mask, (1, 4, 6), factor=4, gain=3.0)
    assert weight.shape == (1, 1, 4, 6)
    assert (weight > 1).nonzero().tolist() == [[0, 0, 1, 1]]


def test_by_time_splits_the_mean() -> None:
    parts = losses.by_time(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.9, 0.2, 0.4]))
    assert parts["loss_noisy"] == 1.0 and parts["loss_clean"] == 4.0
    alone = losses.by_time(torch.tensor([1.0]), torch.tensor([0.9]))
    assert alone["loss_clean"] == pytest.approx(0.0)
