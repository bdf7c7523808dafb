"""Attention, norms and RoPE against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import layers
from engine.layers import (
    EPS,
    GELU,
    KV,
    MLP,
    Attention,
    LayerNorm,
    RMSNorm,
    Rope,
    attention,
    rotate,
    sigmoid_gelu,
)


def heads(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_softmax_over_keys():
    q, k, v = heads(2, 5, 3, 4), heads(2, 7, 3, 4, seed=1), heads(2, 7, 3, 4, seed=2)
    weights = torch.einsum("blnd,bknd->bnlk", q, k).div(4**0.5).softmax(-1)
    expected = torch.einsum("bnlk,bknd->blnd", weights, v).flatten(2)
    torch.testing.assert_close(attention(q, KV(k, v)), expected)


@pytest.mark.parametrize("grad", [False, True])
def test_masked_keys_are_as_if_they_were_not_there(grad):
    q, k, v = heads(2, 5, 3, 4), heads(2, 7, 3, 4, seed=1), heads(2, 7, 3, 4, seed=2)
    mask = torch.arange(7).expand(2, 7) < 4
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(
            attention(q, KV(k, v, mask)), attention(q, KV(k[:, :4], v[:, :4]))
        )


def test_both_kernels_agree():
    q, k, v = heads(2, 5, 3, 4), heads(2, 7, 3, 4, seed=1), heads(2, 7, 3, 4, seed=2)
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[..., 0] = True
    plain = attention(q, KV(k, v, mask))
    with torch.enable_grad():
        torch.testing.assert_close(attention(q, KV(k, v, mask)), plain)


def test_gelu_is_the_tanh_form():
    x = torch.linspace(-30, 30, 2001, dtype=torch.float64)
    expected = F.gelu(x, approximate="tanh")
    assert torch.equal(GELU()(x), expected)
    assert torch.allclose(sigmoid_gelu(x), expected, atol=1e-12)


def test_rope_sees_only_distances():
    """The product of a turned query and a turned key depends on where they stand to each other."""
    rope = Rope(24)
    cos, sin = rope.at(4, 5, 6)
    q, k = heads(1, 1, 1, 24), heads(1, 1, 1, 24, seed=1)

    def score(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        turned = []
        for x, (f, h, w) in ((q, a), (k, b)):
            at = (f * 5 + h) * 6 + w
            turned.append(rotate(x, (cos[at : at + 1], sin[at : at + 1])))
        return float((turned[0] * turned[1]).sum())

    assert score((0, 0, 0), (1, 2, 3)) == pytest.approx(score((2, 1, 2), (3, 3, 5)), abs=1e-5)
    assert score((0, 0, 0), (1, 2, 3)) != pytest.approx(score((0, 0, 0), (1, 3, 3)), abs=1e-3)


def test_rope_can_begin_later():
    rope = Rope(24)
    cos, _ = rope.at(5, 2, 3)
    later, _ = rope.at(2, 2, 3, first=3)
    assert torch.equal(later, cos[3 * 6 :])


def test_norms_work_in_fp32_and_give_back_what_they_should():
    x = heads(3, 8).bfloat16()
    rms = RMSNorm(8)
    expected = x.float() / (x.float().square().mean(-1, keepdim=True) + EPS).sqrt()
    assert rms.bfloat16()(x).dtype is torch.bfloat16
    torch.testing.assert_close(rms(x).float(), expected, rtol=1e-2, atol=1e-2)
    assert LayerNorm(8, affine=True).bfloat16()(x).dtype is torch.float32
    torch.testing.assert_close(
        LayerNorm(8, affine=False)(x), F.layer_norm(x.float(), (8,), eps=EPS)
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_modulation_is_its_formula_however_many_rows(rows):
    x, shift, scale = heads(rows, 5, 8), heads(rows, 1, 8, seed=1), heads(rows, 1, 8, seed=2)
    norm = LayerNorm(8, affine=False)
    torch.testing.assert_close(norm.modulated(x, shift, scale), norm(x) * (1 + scale) + shift)
    assert norm.modulated(x.bfloat16(), shift, scale).dtype is torch.float32


def test_queries_and_keys_are_normed_over_the_full_width():
    torch.manual_seed(0)
    layer = Attention(8, 2, inner=4)
    with torch.no_grad():
        q = layer.query(heads(1, 3, 8))
    assert q.shape == (1, 3, 2, 2)
    torch.testing.assert_close(q.flatten(2).square().mean(-1), torch.ones(1, 3), atol=1e-4, rtol=0)


def test_rotation_is_the_same_in_complex_numbers_and_compiled():
    torch.manual_seed(0)
    x, rope = torch.randn(2, 12, 3, 16), Rope(16).at(2, 2, 3)
    cos, sin = (turn[None, :, None, :] for turn in rope)
    even, odd = x[..., ::2], x[..., 1::2]
    pairs = [even * cos - odd * sin, even * sin + odd * cos]
    want = torch.stack(pairs, dim=-1).flatten(-2)
    assert torch.equal(rotate(x, rope), want)
    assert rotate(x.bfloat16(), rope).dtype == torch.float32
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, rope), want)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 18, 8), (1, 5, 8), (40, 8)])
def test_mlp_in_pieces_is_the_mlp(monkeypatch, shape):
    torch.manual_seed(0)
    mlp, x = MLP(8, 24), heads(*shape)
    expected = nn.Sequential.forward(mlp, x)
    monkeypatch.setattr(layers, "MLP_TOKENS", 7)  # pieces cross rows
    torch.testing.assert_close(mlp(x), expected, rtol=1e-6, atol=1e-6)
    seen: list[int] = []
    mlp[0].register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    torch.testing.assert_close(mlp(x), expected, rtol=1e-6, atol=1e-6)
    assert sum(seen) == x.shape[:-1].numel() and max(seen) <= 7


@torch.no_grad()
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_mlp_fuses_only_a_plain_first_product():
    """What stands between product and GELU, or watches, must not be passed over."""

    def products(mlp: MLP, x: torch.Tensor) -> list[str]:
        with torch.profiler.profile() as profile:
            mlp(x)
        return [event.key for event in profile.key_averages()]

    fused = "mkldnn::_linear_pointwise"
    x = heads(3, 8)
    assert fused in products(MLP(8, 24), x)
    assert fused not in products(MLP(8, 24).bfloat16(), x.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused not in products(MLP(8, 24), x)
    with torch.enable_grad():
        assert fused not in products(MLP(8, 24), x)
    hooked = MLP(8, 24)
    hooked[0].register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    assert fused not in products(hooked, x)
    torch.testing.assert_close(hooked(x), nn.Sequential.forward(hooked, x))
    adapted = MLP(8, 24)
    adapted[0] = nn.Sequential(adapted[0], nn.Linear(24, 24))
    torch.testing.assert_close(adapted(x), nn.Sequential.forward(adapted, x))
