"""The margin's closed forms, what the figures mean, and that learning separates identities."""

import math

import pytest
import torch
from torch.nn import functional as F

from engine.identity import IdentityEncoder
from training import identity
from training.gallery import Gallery, build, many_values
from training.identity import ArcMargin, Trainer, draw_batch, separation


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return build(12, 5, quiet=True)


def test_without_margin_the_loss_is_cross_entropy_of_scaled_cosines(gallery: Gallery) -> None:
    torch.manual_seed(0)
    margin = ArcMargin(gallery.factors_IF)
    unit, labels = F.normalize(torch.randn(6, 128), dim=-1), torch.arange(6)
    centres = F.normalize(margin.values_IV @ margin.value_embedding, dim=-1)
    plain = F.cross_entropy(28.0 * unit @ centres.T, labels)
    assert torch.allclose(margin(unit, labels, 0.0), plain, atol=1e-3)


def test_margin_adds_to_the_angle_of_the_true_identity_only(gallery: Gallery) -> None:
    torch.manual_seed(0)
    margin = ArcMargin(gallery.factors_IF)
    unit, labels = F.normalize(torch.randn(6, 128), dim=-1), torch.arange(6)
    cos = unit @ F.normalize(margin.values_IV @ margin.value_embedding, dim=-1).T
    own = torch.cos(torch.acos(cos[labels, labels]) + 0.3)
    others = (28 * cos).exp().sum(1) - (28 * cos[labels, labels]).exp()
    wanted = -torch.log((28 * own).exp() / ((28 * own).exp() + others)).mean()
    assert torch.allclose(margin(unit, labels, 0.3), wanted, rtol=1e-3)


def test_loss_never_falls_as_the_angle_grows(gallery: Gallery) -> None:
    margin = ArcMargin(gallery.factors_IF)
    centre = F.normalize(margin.values_IV @ margin.value_embedding, dim=-1)[0].detach()
    side = F.normalize(torch.randn(128), dim=0)
    side = F.normalize(side - (side @ centre) * centre, dim=0)
    angles = torch.linspace(0.01, math.pi - 0.01, 40)
    own = [float(28 * torch.cos((a + 0.25).clamp_max(math.pi))) for a in angles]
    assert own == sorted(own, reverse=True)
    at_end = centre * math.cos(3.1) + side * math.sin(3.1)
    assert torch.isfinite(margin(at_end[None], torch.tensor([0]), 0.25))


def test_colour_of_an_absent_hat_is_no_part_of_a_class() -> None:
    rows = torch.tensor([[0, 1, 2, 3, 4, 0, 0, 0, 1, 5], [0, 1, 2, 3, 4, 0, 2, 5, 0, 0]])
    values = many_values(rows)
    assert values.sum(1).tolist() == [9.0, 9.0]


def test_half_a_batch_is_the_other_half_s_twins(gallery: Gallery) -> None:
    torch.manual_seed(0)
    batch = draw_batch(gallery, 1000, 8)
    assert torch.equal(batch.labels_N[:4] ^ 1, batch.labels_N[4:])
    assert batch.crops_NCHW.shape == (8, 3, 48, 48)
    assert batch.margin == identity.MARGIN
    assert draw_batch(gallery, 0, 8).margin == 0


def test_separation_of_perfect_and_of_blind_encoders() -> None:
    others = torch.zeros(50, 48)
    perfect = separation(torch.ones(50), torch.zeros(50), others)
    assert (perfect["rank1"], perfect["tar_at_1_far"], perfect["beats_twin"]) == (1, 1, 1)
    torch.manual_seed(0)
    blind = separation(torch.randn(2000), torch.randn(2000), torch.randn(2000, 98))
    assert blind["rank1"] < 0.03
    assert abs(blind["beats_twin"] - 0.5) < 0.05
    assert blind["tar_at_1_far"] < 0.03


def test_a_few_steps_tell_a_dozen_identities_apart(gallery: Gallery) -> None:
    torch.manual_seed(0)
    trainer = Trainer(gallery.factors_IF)
    trainer.encoder = IdentityEncoder((8, 16, 32))
    optimizer = torch.optim.Adam(trainer.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        value = identity.loss(trainer, draw_batch(gallery, 0, 24))["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
