"""Identity guidance: a step of known size down a known gradient, there where somebody stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine import likeness_guidance
from engine.crops import cut
from engine.encodings import EncodingsBatch
from engine.errors import BackendError
from engine.likeness_guidance import LikenessGuidance, moving, read_references
from engine.presets import ReaderConfig
from engine.reader import CROP, Readers, divergence
from engine.spec import Guidance
from tests.engine.conftest import Spots

CONFIG = ReaderConfig((3, 4), (8, 16), 8, (8, 16))
C, F, H, W = 4, 2, 12, 24
SIDE = 8.0  # of every square that is read, in cells, see `Spots`


@pytest.fixture
def readers() -> Readers:
    """Random weights; two spots whose squares are cells 0 to 8 and 12 to 20 of rows 2 to 10."""
    torch.manual_seed(0)
    found = Readers(C, CONFIG).eval().requires_grad_(False)
    found.where = Spots([(4, 6), (16, 6)])  # type: ignore[assignment]
    return found


def asking(refs_BSCHW: Tensor, mask_BS: Tensor | None = None) -> EncodingsBatch:
    """Requests of which nothing but the references matters."""
    num, subjects = refs_BSCHW.shape[:2]
    nothing = torch.zeros(num, 0, 0)
    shown = torch.ones(num, subjects, dtype=torch.bool) if mask_BS is None else mask_BS
    no_vlm = torch.zeros(num, 0, dtype=torch.bool)
    return EncodingsBatch(nothing, refs_BSCHW, nothing, shown, nothing, no_vlm)


def squares(centres: Sequence[tuple[float, float]]) -> Tensor:
    return torch.tensor([[x, y, SIDE] for x, y in centres])


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops that are not worn."""
    monkeypatch.setattr(likeness_guidance, "NOISE", 0.0)
    monkeypatch.setattr(likeness_guidance, "JITTER", 0.0)


def test_it_is_a_step_of_its_strength_down_the_divergence(readers: Readers, still: None) -> None:
    torch.manual_seed(1)
    x0, refs = torch.randn(1, C, F, H, W), torch.randn(1, 1, C, 8, 8)
    readers.where = Spots([(4, 6)])  # type: ignore[assignment]
    moved = LikenessGuidance(readers, asking(refs), 0.3, 4)(x0, x0, 0.5, 0.5)
    wanted = read_references(readers, refs)[0].expand(F, -1)
    with torch.enable_grad():
        leaf = x0.clone().requires_grad_()
        crops = cut(leaf[0].transpose(0, 1), squares([(4, 6)] * F), CROP)
        loss = divergence(wanted, readers.who(crops), CONFIG.groups).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
    size = (gradient.square().sum() / (C * F * SIDE**2)).sqrt()
    torch.testing.assert_close(moved, x0 - 0.3 * gradient / size)
    assert (moved - x0)[..., 9:].abs().max() == 0  # nobody stands there


def test_through_the_transformer_it_is_the_gradient_by_what_the_guess_was_made_of(
    readers: Readers, still: None
) -> None:
    """Of KL(reference || reading of x - t v(x, told)) by x, of the same size in the squares."""
    torch.manual_seed(8)
    x, refs = torch.randn(1, C, F, H, W), torch.randn(1, 1, C, 8, 8)
    mixing = torch.randn(C, C)
    readers.where = Spots([(4, 6)])  # type: ignore[assignment]

    def full(x: Tensor, told_B: Tensor) -> Tensor:
        return told_B.float().view(-1, 1, 1, 1, 1) * torch.einsum(
            "cd,bdfhw->bcfhw", mixing, torch.tanh(x)
        )

    t, told = 0.5, 0.25
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        guess = leaf - t * full(leaf, torch.tensor([told]))
        crops = cut(guess[0].transpose(0, 1), squares([(4, 6)] * F), CROP)
        wanted = read_references(readers, refs)[0].expand(F, -1)
        loss = divergence(wanted, readers.who(crops), CONFIG.groups).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
    x0 = guess.detach()

    def pullback(x: Tensor, told_B: Tensor, gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.functional.vjp(lambda x: full(x, told_B), x, gradient)[1]

    moved = LikenessGuidance(readers, asking(refs), 0.3, 4, pullback)(x0, x, t, told)
    size = (gradient.square().sum() / (C * F * SIDE**2)).sqrt()
    torch.testing.assert_close(moved, x0 - 0.3 * gradient / size)
    plain = LikenessGuidance(readers, asking(refs), 0.3, 4)(x0, x, t, told)
    assert (moved - plain).abs().max() > 0.01


def test_the_worn_reading_comes_nearer(readers: Readers) -> None:
    """With noise and jitter the divergence falls as well, as the reader sees the clip unworn."""
    torch.manual_seed(2)
    x0, refs = torch.randn(1, C, F, H, W), torch.randn(1, 1, C, 8, 8)
    readers.where = Spots([(4, 6)])  # type: ignore[assignment]
    wanted = read_references(readers, refs)[0].expand(F, -1)

    def away(clip: Tensor) -> float:
        seen = readers.who(cut(clip[0].transpose(0, 1), squares([(4, 6)] * F), CROP))
        return float(divergence(wanted, seen, CONFIG.groups).sum())

    move = LikenessGuidance(readers, asking(refs), 0.1, 4)
    nearer = move(move(x0, x0, 0.6, 0.6), x0, 0.5, 0.5)
    assert away(nearer) < 0.9 * away(x0)


@pytest.mark.parametrize("t", [0.19, 0.0])
def test_at_the_end_it_leaves_a_clip_alone(readers: Readers, t: float) -> None:
    x0 = torch.randn(1, C, F, H, W)
    assert LikenessGuidance(readers, asking(torch.randn(1, 1, C, 8, 8)), 0.3, 4)(x0, x0, t, t) is x0


def test_where_nobody_is_found_it_leaves_a_clip_alone(readers: Readers) -> None:
    x0 = torch.randn(1, C, F, H, W)
    readers.where = Spots([])  # type: ignore[assignment]
    move = LikenessGuidance(readers, asking(torch.randn(1, 2, C, 8, 8)), 0.3, 4)
    assert move(x0, x0, 0.5, 0.5) is x0


def test_who_is_who_is_found_by_likeness(readers: Readers) -> None:
    """The second subject stands left and the first one right, pixel by pixel as in the pictures."""
    torch.manual_seed(3)
    refs = 3 * torch.randn(1, 2, C, 8, 8)
    x0 = torch.zeros(1, C, F, H, W)
    x0[:, :, :, 2:10, 0:8], x0[:, :, :, 2:10, 12:20] = refs[:, 1, :, None], refs[:, 0, :, None]
    guidance = LikenessGuidance(readers, asking(refs), 0.3, 4)
    clip_N, subject_N, frame_N, boxes_NX = guidance._found(x0)
    middle = ((boxes_NX[:, 0] + boxes_NX[:, 2]) / 8).round().tolist()
    told = sorted(zip(frame_N.tolist(), subject_N.tolist(), middle, strict=True))
    assert told == [(f, s, x) for f in range(F) for s, x in ((0, 16.0), (1, 4.0))]
    assert clip_N.eq(0).all()
    # And they are as like already as they can be: the order of the subjects says nothing.
    other = LikenessGuidance(readers, asking(refs.flip(1)), 0.3, 4)
    noisy = x0 + torch.randn_like(x0)
    given = (noisy, noisy, 0.5, 0.5)
    torch.testing.assert_close(guidance(*given), other(*given), rtol=1e-4, atol=1e-5)


def test_however_unlike_somebody_is_it_is_found(readers: Readers) -> None:
    """Hundreds of nats away from every reference: those need it most."""
    torch.manual_seed(6)
    with torch.no_grad():
        readers.who.head.weight.mul_(1e5)
    x0, refs = torch.randn(1, C, F, H, W), torch.randn(1, 2, C, 8, 8)
    guidance = LikenessGuidance(readers, asking(refs), 0.3, 4)
    crops = cut(x0[0].transpose(0, 1), squares([(4, 6)] * F), CROP)
    seen_NV = readers.who(crops)
    guidance.wanted_BSV = -seen_NV[None]  # both subjects are what is seen least
    assert divergence(guidance.wanted_BSV[0], seen_NV, CONFIG.groups).min() > 100
    assert sorted(guidance._found(x0)[1].tolist()) == [0] * F + [1] * F


def test_half_out_of_the_frame_the_step_is_as_large(readers: Readers) -> None:
    """Its size is that of the cells which there are."""
    torch.manual_seed(7)
    x0, refs = torch.randn(1, C, F, H, W), torch.randn(1, 1, C, 8, 8)
    readers.where = Spots([(0, 6)])  # type: ignore[assignment]
    moved = LikenessGuidance(readers, asking(refs), 0.3, 4)(x0, x0, 0.5, 0.5) - x0
    torch.testing.assert_close((moved.square().sum() / (C * F * 8 * 4)).sqrt(), torch.tensor(0.3))


def test_clips_of_a_batch_know_nothing_of_each_other(readers: Readers) -> None:
    torch.manual_seed(4)
    x0, refs = torch.randn(3, C, F, H, W), torch.randn(3, 2, C, 8, 8)
    shown = torch.tensor([[True, True], [True, False], [False, False]])
    together = LikenessGuidance(readers, asking(refs, shown), 0.3, 4)(x0, x0, 0.5, 0.5)
    assert torch.equal(together[2], x0[2])  # nobody was shown
    for row in range(2):
        own = slice(row, row + 1)
        move = LikenessGuidance(readers, asking(refs[own], shown[own]), 0.3, 4)
        alone = move(x0[own], x0[own], 0.5, 0.5)
        torch.testing.assert_close(together[own], alone, rtol=1e-4, atol=1e-5)


def test_the_same_clip_at_the_same_time_moves_to_the_same_bits(readers: Readers) -> None:
    """No state and no dice but the time's: a run that is resumed makes the same clip."""
    x0, refs = torch.randn(1, C, F, H, W), torch.randn(1, 1, C, 8, 8)
    move = LikenessGuidance(readers, asking(refs), 0.3, 4)
    once = move(x0, x0, 0.5, 0.5)
    move(x0, x0, 0.7, 0.7)
    torch.rand(3)
    assert torch.equal(move(x0, x0, 0.5, 0.5), once)
    assert torch.equal(LikenessGuidance(readers, asking(refs), 0.3, 4)(x0, x0, 0.5, 0.5), once)
    assert not torch.equal(move(x0, x0, 0.51, 0.51), once)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(move(x0, x0, 0.5, 0.5), once)


def test_who_asks_for_it_must_have_readers(readers: Readers) -> None:
    refs, asked = torch.randn(1, 1, C, 8, 8), Guidance(identity_scale=0.3)
    assert moving(None, asking(refs), replace(asked, identity_scale=0.0), 4) is None
    assert moving(None, asking(refs, torch.tensor([[False]])), asked, 4) is None
    with pytest.raises(BackendError, match="identity_scale"):
        moving(None, asking(refs), asked, 4)
    move = moving(readers, asking(refs), asked, 4)
    assert isinstance(move, LikenessGuidance) and move.strength == 0.3
