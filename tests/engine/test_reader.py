"""The convnets that read latents: what they give, how they are opened, when a model has none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoint import on_grid, tensor_bytes
from engine.crops import whole_picture
from engine.encoder import needed_files
from engine.errors import CheckpointError
from engine.presets import MINIATURE, WAN_1_3B, ReaderConfig
from engine.reader import CROP, FILE, Readers, cells, readers_of

SMALL = ReaderConfig((3, 4), (8, 16), 8, (8, 16))
WITH = replace(
    MINIATURE, reader=SMALL, limits=replace(MINIATURE.limits, max_identity_scale=1.0)
)
CPU = torch.device("cpu")


def test_logits_of_all_groups_and_a_map_of_every_frame():
    readers = Readers(16, SMALL).eval()
    assert readers.who(torch.randn(5, 16, CROP, CROP)).shape == (5, 7)
    assert readers.where(torch.randn(2, 16, 8, 12)).shape == (2, 5, 8, 12)
    assert readers.where(torch.zeros(1, 16, 8, 12))[:, 0].sigmoid().max() < 0.1  # a rare foreground


def test_squares_are_in_cells():
    assert cells(torch.tensor([[8.0, 8.0, 32.0, 48.0]]), 4).tolist() == [[5.0, 7.0, 12.0]]
    assert whole_picture(torch.zeros(2, 16, 8, 12)).tolist() == [[6.0, 4.0, 12.0]] * 2


def test_a_folder_of_a_model_that_reads_must_bring_its_readers(tmp_path: Path):
    assert FILE in needed_files(WITH) and FILE not in needed_files(WAN_1_3B)
    assert readers_of(tmp_path, WAN_1_3B, CPU) is None
    with pytest.raises(CheckpointError, match=FILE):
        readers_of(tmp_path, WITH, CPU)
    wan = replace(WAN_1_3B, limits=replace(WAN_1_3B.limits, max_identity_scale=1.0))
    odd = replace(WITH, limits=replace(WITH.limits, size_multiple=4))
    for other in (wan, odd, replace(WITH, family="vace")):
        with pytest.raises(CheckpointError, match="max_identity_scale: must be 0, .*no readers"):
            readers_of(tmp_path, other, CPU)


def test_they_are_opened_frozen_from_the_form_in_which_they_ship(tmp_path: Path):
    torch.manual_seed(0)
    made, stored = Readers(16, SMALL), {}
    for name, tensor in made.state_dict().items():
        stored |= on_grid(name, tensor, 20)
    (tmp_path / FILE).write_bytes(tensor_bytes(stored, torch.float32))
    readers = readers_of(tmp_path, WITH, CPU)
    assert readers is not None and not readers.training
    assert not any(p.requires_grad for p in readers.parameters())
    for name, tensor in readers.state_dict().items():
        own = made.state_dict()[name].float()
        assert (tensor - own).abs().max() <= 0.06 * own.square().mean().sqrt() + 1e-6, name
    del stored["who.head.bias"]
    (tmp_path / FILE).write_bytes(tensor_bytes(stored))
    with pytest.raises(CheckpointError, match=f"{FILE}.*lacks who.head.bias"):
        readers_of(tmp_path, WITH, CPU)
