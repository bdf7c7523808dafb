"""Cutting is exact where the pixels line up."""

import torch

from engine.crops import CONTEXT, cut, squares, to_unit


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


def test_to_unit_spans_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    unit = to_unit(pixels)
    assert unit.shape == (1, 3, 1, 2)
    assert unit[0, 0, 0].tolist() == [-1.0, 1.0]
