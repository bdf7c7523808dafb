"""The VAE's door: shapes, normalisation, strict files."""

import pytest
import torch

from engine.checkpoint import tensor_bytes
from engine.errors import CheckpointError
from engine.presets import MINIATURE, WAN_1_3B
from engine.vae import VAE, build_vae, to_frames, to_pixels
from tests.engine.conftest import TOY_PRESET, random_encoders


@pytest.fixture(scope="module")
def vae() -> VAE:
    return random_encoders().vae


@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_four_by_four_by_four(vae, num_frames):
    frames = torch.rand(1, 3, num_frames, 16, 24) * 2 - 1
    latents = vae.encode(frames)
    assert latents.shape == (1, 16, 1 + (num_frames - 1) // 4, 4, 6)
    pixels = vae.decode(latents)
    assert pixels.shape == frames.shape and pixels.abs().max() <= 1


def test_encoding_is_the_normalised_mean_of_the_posterior(vae):
    frames = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    mean = vae.model.encode(frames).latent_dist.mean
    assert torch.equal(vae.encode(frames), (mean - vae.mean) / vae.std)
    assert torch.equal(vae.encode(frames), vae.encode(frames))


def test_decoding_undoes_the_normalisation(vae):
    z = torch.randn(1, 16, 2, 4, 4)
    torch.testing.assert_close(
        vae.decode((z - vae.mean) / vae.std), vae.model.decode(z).sample, rtol=1e-4, atol=1e-4
    )


def test_the_first_latent_frame_decodes_alone(vae):
    """Previews rest on this: the decoder is causal."""
    z = torch.randn(1, 16, 3, 4, 4)
    torch.testing.assert_close(vae.decode(z[:, :, :1]), vae.decode(z)[:, :, :1])


def test_pixels_and_frames_are_inverse():
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    assert torch.equal(to_frames(to_pixels(frames)), frames)


def test_files_keep_weights_and_exact_statistics(vae, tmp_path):
    path = tmp_path / "vae.safetensors"
    path.write_bytes(tensor_bytes(vae.tensors()))
    loaded = VAE.from_files(path, TOY_PRESET.vae)
    assert torch.equal(loaded.mean, vae.mean) and torch.equal(loaded.std, vae.std)
    weight = vae.model.quant_conv.weight
    assert torch.equal(loaded.model.quant_conv.weight, weight.bfloat16().float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents_mean": None}, "lacks latents_mean"),
        ({"latents_std": torch.zeros(16)}, "positive"),
        ({"latents_std": torch.ones(4)}, "16 finite"),
        ({"latents_mean": torch.full((16,), float("nan"))}, "16 finite"),
        ({"quant_conv.weight": None}, "lacks quant_conv.weight"),
        ({"more": torch.ones(1)}, "unknown more"),
        ({"quant_conv.bias": torch.ones(3)}, "quant_conv.bias is"),
    ],
)
def test_other_files_are_refused_by_name(vae, tmp_path, change, message):
    tensors = {k: v for k, v in {**vae.tensors(), **change}.items() if v is not None}
    path = tmp_path / "vae.safetensors"
    path.write_bytes(tensor_bytes(tensors))
    with pytest.raises(CheckpointError, match=message):
        VAE.from_files(path, TOY_PRESET.vae)


def test_full_size_is_wans_vae():
    with torch.device("meta"):
        model = build_vae(WAN_1_3B.vae)
    count = {"encoder": 0, "decoder": 0}
    for name, parameter in model.named_parameters():
        part = "encoder" if name.startswith(("encoder", "quant")) else "decoder"
        count[part] += parameter.numel()
    assert round(count["encoder"] / 1e5) == 536 and round(count["decoder"] / 1e5) == 733
    assert len(model.state_dict()) == 194
    assert WAN_1_3B.vae.spatial_factor == 8 and MINIATURE.vae.spatial_factor == 4
