"""Adapters start silent, move alone, come back from disk, and melt in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.dit import WanDiT
from engine.presets import Preset
from engine.stream import SubjectInputs
from training import lora


def model(preset: Preset) -> WanDiT:
    torch.manual_seed(0)
    dit = WanDiT(preset.dit)
    with torch.no_grad():  # the real thing starts silent, which would hide differences
        for parameter in dit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return dit.eval()


def answer(dit: torch.nn.Module, grad: bool = False) -> Tensor:
    torch.manual_seed(1)
    subjects = SubjectInputs(torch.randn(1, 2, 16, 4, 4), torch.randn(1, 2, 128))
    with torch.set_grad_enabled(grad):
        out: Tensor = dit(
            torch.randn(1, 16, 2, 4, 4), torch.tensor([0.5]), torch.randn(1, 64, 128), subjects
        )
    return out


def stir(dit: WanDiT) -> None:
    torch.manual_seed(2)
    for tensor in lora.adapters(dit).values():
        tensor.copy_(0.1 * torch.randn_like(tensor))


def test_fresh_adapters_change_nothing_and_only_they_train(small_preset: Preset) -> None:
    plain, adapted = model(small_preset), model(small_preset)
    lora.add(adapted, rank=4)
    assert torch.equal(answer(plain, grad=True), answer(adapted, grad=True))
    # Without gradients a product that has no adapter takes its GELU inside: other roundings.
    torch.testing.assert_close(answer(plain), answer(adapted), rtol=1e-5, atol=1e-6)
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained == set(lora.adapters(adapted)) and trained
    for part in ("self_attn.q", "cross_attn.o", "ffn.0", "subject_blocks.0.intra.v"):
        assert any(part in name for name in trained)


def test_merging_equals_the_adapter(small_preset: Preset) -> None:
    adapted = model(small_preset)
    lora.add(adapted, rank=4)
    stir(adapted)
    merged = lora.merged(adapted)
    assert merged.state_dict().keys() == model(small_preset).state_dict().keys()
    assert not torch.allclose(answer(merged), answer(model(small_preset)), atol=1e-3)
    torch.testing.assert_close(answer(merged), answer(adapted), rtol=1e-4, atol=1e-4)


def test_saved_and_loaded(small_preset: Preset, tmp_path: Path) -> None:
    one, two = model(small_preset), model(small_preset)
    for dit in (one, two):
        lora.add(dit, rank=4)
    stir(one)
    lora.save(one, tmp_path / "lora.safetensors")
    lora.load(two, tmp_path / "lora.safetensors")
    assert torch.equal(answer(one), answer(two))
    other = model(small_preset)
    lora.add(other, rank=2)
    with pytest.raises(ValueError, match="lora.safetensors"):
        lora.load(other, tmp_path / "lora.safetensors")
