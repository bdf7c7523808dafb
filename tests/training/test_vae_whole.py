import pytest
import torch

from engine.presets import MINIATURE, VAEConfig
from training import vae_whole
from training.vae import build

TINY = VAEConfig(8, 4, (1, 2, 2), 1, (True, True), True)


@pytest.fixture(scope="module", params=[TINY, MINIATURE.vae], ids=["tiny", "miniature"])
def vae(request: pytest.FixtureRequest):
    torch.manual_seed(0)
    return build(request.param)


@pytest.mark.parametrize("num_frames", [1, 5, 13])
def test_equals_the_chunked_passes(vae, num_frames: int):
    x = torch.rand(1, 3, num_frames, 16, 24) * 2 - 1
    with torch.no_grad():
        mean = vae.encode(x).latent_dist.mean
        whole = vae_whole.encode(vae, x)
        assert torch.allclose(mean, whole, atol=3e-6)
        pixels = vae.decode(mean * 3).sample
        assert torch.allclose(pixels, vae_whole.decode(vae, mean * 3).clamp(-1, 1), atol=1e-5)


def test_gradients_equal_the_chunked_passes(vae):
    x = torch.rand(1, 3, 5, 16, 16) * 0.2
    grads = []
    for encode in (lambda v: vae.encode(v).latent_dist.mean, lambda v: vae_whole.encode(vae, v)):
        vae.zero_grad()
        encode(x).square().sum().backward()
        grads.append([p.grad.clone() for p in vae.encoder.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max()) + 1e-7)


def test_the_future_does_not_change_the_past(vae):
    x = torch.rand(1, 3, 9, 16, 16)
    y = x.clone()
    y[:, :, 5:] = 0
    with torch.no_grad():
        a, b = vae_whole.encode(vae, x), vae_whole.encode(vae, y)
    assert torch.allclose(a[:, :, :2], b[:, :, :2], atol=1e-6)
    assert not torch.allclose(a[:, :, 2], b[:, :, 2], atol=1e-3)
