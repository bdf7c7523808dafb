import torch

from training.world.backgrounds import paint_background
from training.world.scene import BACKGROUNDS, LIGHTS


def test_every_place_is_a_picture_of_its_own():
    pictures = [paint_background(b, 0, 3, 32, 48) for b in range(len(BACKGROUNDS))]
    for picture in pictures:
        assert picture.shape == (3, 32, 48)
        assert float(picture.min()) >= 0 and float(picture.max()) <= 1
    for i, a in enumerate(pictures):
        for b in pictures[i + 1 :]:
            assert float((a - b).abs().mean()) > 0.04


def test_the_seed_varies_a_place_a_little():
    a, b, again = (paint_background(0, 0, seed, 32, 48) for seed in (1, 2, 1))
    assert torch.equal(a, again)
    assert 0 < float((a - b).abs().mean()) < 0.15


def test_night_is_darker_than_dusk_and_dusk_than_day():
    means = [float(paint_background(4, light, 1, 32, 48).mean()) for light in range(len(LIGHTS))]
    assert means[0] > means[1] > means[2]
