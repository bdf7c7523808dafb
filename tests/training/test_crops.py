"""Cutting is exact where the pixels line up, and wear leaves the picture recognisable."""

import torch

from training.crops import CONTEXT, cut, jitter, occlude, squares, to_unit, wear


def test_cut_of_aligned_square_is_the_pixels_themselves() -> None:
    pictures = torch.rand(2, 3, 20, 30) * 2 - 1
    square = torch.tensor([[12.0, 10.0, 8.0]]).expand(2, 3)
    crop = cut(pictures, square, 8)
    assert torch.allclose(crop, pictures[:, :, 6:14, 8:16], atol=1e-6)


def test_cut_repeats_the_edge_outside_the_picture() -> None:
    picture = torch.full((1, 3, 16, 16), 0.25)
    crop = cut(picture, torch.tensor([[0.0, 0.0, 12.0]]), 6)
    assert torch.allclose(crop, torch.full_like(crop, 0.25))


def test_square_holds_the_box_with_context() -> None:
    x, y, side = squares(torch.tensor([[10.0, 20.0, 30.0, 60.0]]))[0]
    assert (float(x), float(y)) == (20.0, 40.0)
    assert torch.isclose(side, torch.tensor(40 * CONTEXT))


def test_jitter_stays_within_its_amount() -> None:
    square = torch.tensor([[50.0, 40.0, 20.0]]).expand(500, 3)
    moved = jitter(square, 0.1, torch.Generator().manual_seed(0))
    assert float((moved - square)[:, :2].abs().max()) <= 2.0
    assert float((moved[:, 2] / 20 - 1).abs().max()) <= 0.15 + 1e-6
    assert torch.equal(jitter(square, 0.0, torch.Generator()), square)


def test_to_unit_spans_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    unit = to_unit(pixels)
    assert unit.shape == (1, 3, 1, 2)
    assert unit[0, 0, 0].tolist() == [-1.0, 1.0]


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
