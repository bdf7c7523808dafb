"""Jitter keeps its bounds, and wear leaves the picture recognisable."""

import torch

from training.crops import jitter, occlude, wear


def test_jitter_stays_within_its_amount() -> None:
    square = torch.tensor([[50.0, 40.0, 20.0]]).expand(500, 3)
    moved = jitter(square, 0.1, torch.Generator().manual_seed(0))
    assert float((moved - square)[:, :2].abs().max()) <= 2.0
    assert float((moved[:, 2] / 20 - 1).abs().max()) <= 0.15 + 1e-6
    assert torch.equal(jitter(square, 0.0, torch.Generator()), square)


def test_wear_keeps_shape_range_and_most_of_the_picture() -> None:
    torch.manual_seed(0)
    crops = torch.rand(64, 3, 12, 12).repeat_interleave(4, -1).repeat_interleave(4, -2) * 2 - 1
    worn = wear(crops, torch.Generator().manual_seed(1))
    assert worn.shape == crops.shape
    assert float(worn.abs().max()) <= 1
    assert float((worn - crops).square().mean()) < 0.2 * float(crops.var())
    assert not torch.equal(worn, crops)


def test_wear_is_a_function_of_its_generator() -> None:
    crops = torch.rand(8, 3, 16, 16)
    a, b = (wear(crops, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)


def test_occluded_crops_show_a_side_of_their_neighbour() -> None:
    crops = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 24, 24)
    covered = occlude(crops, torch.Generator().manual_seed(0), share=1.0)
    for i, crop in enumerate(covered):
        assert set(crop.unique().tolist()) == {float(i), float((i - 1) % 6)}
        assert (crop[:, :, 12] == i).all(), "the middle stays"
    assert torch.equal(occlude(crops, torch.Generator(), share=0.0), crops)
