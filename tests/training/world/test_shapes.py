import math

import pytest
import torch

from training.world.identity import FACTORS
from training.world.shapes import PATTERNS, SHAPES, box, ellipse, polygon, segment

AXIS = torch.linspace(-1.6, 1.6, 65)
V, U = torch.meshgrid(AXIS, AXIS, indexing="ij")


def test_a_circle_is_exact():
    radius = torch.sqrt(U**2 + V**2)
    off_centre = radius > 0.02  # the formula divides by the radius
    distance = ellipse(U, V, 0.8, 0.8)
    assert torch.allclose(distance[off_centre], (radius - 0.8)[off_centre], atol=1e-4)


def test_an_ellipse_is_zero_on_its_rim():
    turn = torch.linspace(0, 2 * math.pi, 50)
    assert float(ellipse(0.7 * turn.cos(), 1.1 * turn.sin(), 0.7, 1.1).abs().max()) < 1e-5


def test_a_box_by_hand():
    u, v = torch.tensor([0.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 3.0])
    assert torch.allclose(box(u, v, 1.0, 1.0), torch.tensor([-1.0, 1.0, math.hypot(1, 2)]))


def test_a_segment_is_round_at_its_ends():
    u, v = torch.tensor([0.5, 2.0]), torch.tensor([0.3, 0.0])
    assert torch.allclose(segment(u, v, (0, 0, 1, 0), 0.1), torch.tensor([0.2, 0.9]), atol=1e-6)


def test_a_square_as_polygon_equals_the_box():
    corners = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    assert torch.allclose(polygon(U, V, corners, 0.0), box(U, V, 1.0, 1.0), atol=1e-5)


@pytest.mark.parametrize("name", FACTORS["shape"])
def test_bodies_are_closed_and_of_about_one_size(name: str):
    distance = SHAPES[name](U, V)
    inside = (distance < 0).float().mean() * (3.2**2)
    assert 1.2 < float(inside) < 3.6
    assert float(distance[0].min()) > 0 and float(distance[:, 0].min()) > 0


@pytest.mark.parametrize("name", [p for p in FACTORS["pattern"] if p != "plain"])
def test_patterns_colour_part_of_the_body(name: str):
    body = SHAPES["ball"](U, V) < 0
    share = ((PATTERNS[name](U, V) < 0) & body).float().sum() / body.float().sum()
    assert 0.1 < float(share) < 0.7
