"""Unit vectors, of crops and of whole reference pictures."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.detector import Found
from engine.identity import IdentityEncoder, embed, load_identity, reference_crops


def test_embeddings_are_unit_vectors() -> None:
    unit = IdentityEncoder((8, 16, 24))(torch.randn(4, 3, 48, 48))
    assert unit.shape == (4, 128)
    assert torch.allclose(unit.norm(dim=-1), torch.ones(4), atol=1e-5)


def test_a_reference_is_looked_at_whole() -> None:
    left = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    left[:, :, :32] = 255
    crops = reference_crops(left)
    assert crops.shape == (2, 3, 48, 48)
    assert (crops[..., :23] == 1).all() and (crops[..., 25:] == -1).all()


def test_a_loaded_encoder_only_reads(tmp_path: Path) -> None:
    net = IdentityEncoder()
    save_file(net.state_dict(), tmp_path / "identity.safetensors")
    again = load_identity(tmp_path / "identity.safetensors")
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    crops = torch.randn(3, 3, 48, 48)
    assert torch.allclose(again(crops), net.eval()(crops), atol=1e-6)


def test_what_is_read_of_a_crop_stands_where_its_detection_is() -> None:
    real = torch.tensor([[True, False], [True, True]])
    found = Found(torch.zeros(2, 2, 4), real, torch.randn(3, 3, 48, 48))
    encoder = IdentityEncoder().eval()
    unit = embed(encoder, found)
    assert torch.equal(unit[real], encoder(found.crops_NCHW))
    assert (unit[~real] == 0).all()
    empty = Found(torch.zeros(1, 1, 4), torch.tensor([[False]]), torch.zeros(0, 3, 48, 48))
    assert (embed(encoder, empty) == torch.zeros(1, 1, 128)).all()
