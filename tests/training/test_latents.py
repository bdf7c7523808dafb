import torch

from engine.presets import VAEConfig
from engine.vae import VAE, build_vae
from training import latents, vae_whole

TINY = VAEConfig(8, 4, (1, 2, 2), 1, (True, True), True)


def test_metric_of_a_linear_decoder_is_its_gram_matrix():
    torch.manual_seed(0)
    weight = torch.randn(12, 4)

    def decode(z):
        return torch.einsum("pc,bcfhw->bpfhw", weight, z)

    gram = weight.T @ weight
    metric = latents.pixel_metric(decode, torch.randn(2, 4, 1, 64, 64), probes=8)
    metric = metric / metric.trace()
    assert torch.allclose(metric, gram / gram.trace(), atol=0.01)


def test_in_the_basis_an_error_counts_as_in_pixels_and_variances_have_mean_one():
    torch.manual_seed(1)
    jacobian = torch.randn(48, 6, dtype=torch.float64)
    metric = jacobian.T @ jacobian
    metric = metric / metric.trace()
    covariance = torch.cov(torch.randn(6, 500, dtype=torch.float64) * torch.arange(1, 7)[:, None])
    a = latents.basis(metric, covariance)
    assert torch.allclose(torch.diagonal(a @ covariance @ a).mean(), torch.ones((), dtype=a.dtype))
    errors = torch.randn(6, 100, dtype=torch.float64)
    ratio = (a @ errors).square().sum(0) / (jacobian @ errors).square().sum(0)
    assert torch.allclose(ratio, ratio[:1].expand(100))


def test_a_direction_without_pixels_keeps_an_inverse():
    metric = torch.diag(torch.tensor([0.7, 0.3, 0.0]))
    a = latents.basis(metric, torch.eye(3))
    values = torch.linalg.eigvalsh(a)
    assert torch.isclose(values.min() / values.max(), torch.tensor(latents.FLOOR**0.5).double())


def test_folding_moves_the_latents_and_no_pixel():
    torch.manual_seed(2)
    model = build_vae(TINY)
    before = VAE(model, torch.zeros(4), torch.ones(4), TINY)
    x = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    z, y = before.encode(x), before.decode(before.encode(x))
    mean, covariance = latents.moments([z])
    a = latents.basis(latents.pixel_metric(lambda z: vae_whole.decode(model, z), z), covariance)
    folded = build_vae(TINY)
    folded.load_state_dict(latents.fold(model.state_dict(), mean, a))
    after = VAE(folded, torch.zeros(4), torch.ones(4), TINY)
    moved = torch.einsum("ij,bjfhw->bifhw", a.float(), z - mean.float().view(-1, 1, 1, 1))
    assert torch.allclose(after.encode(x), moved, atol=1e-4)
    assert torch.allclose(after.decode(after.encode(x)), y, atol=1e-4)


def test_folding_leaves_the_log_variances_alone():
    model = build_vae(TINY)
    tensors = model.state_dict()
    folded = latents.fold(tensors, torch.ones(4), 2 * torch.eye(4))
    assert torch.equal(folded["quant_conv.weight"][4:], tensors["quant_conv.weight"][4:])
    assert not torch.equal(folded["quant_conv.weight"][:4], tensors["quant_conv.weight"][:4])
