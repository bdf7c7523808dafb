"""int8 and fp8 weights: which matrices, how near, how small; with torchao itself where it is."""

import importlib

import pytest
import torch

from engine.dit import WanDiT
from engine.errors import BackendError
from engine.quantize import is_large, quantizer, stored_bytes
from engine.weights import fill
from tests.engine.conftest import TOY, random_dit, random_inputs
from tests.engine.test_weights import saved

# Largest difference to bf16 over the largest value; one scale per row, 8 bits and 4.
NEAR = {"int8": 0.05, "fp8": 0.15}


def test_large_are_the_matrices_of_the_blocks_and_nothing_else():
    dit = random_dit(TOY)
    large = {name for name, weight in dit.named_parameters() if is_large(name, weight)}
    assert {name.split(".")[0] for name in large} == {"blocks", "subject_blocks"}
    ends = {".".join(name.split(".")[2:]) for name in large if name.startswith("blocks")}
    parts = {f"{a}_attn.{b}.weight" for a in ("self", "cross") for b in "qkvo"}
    assert ends == parts | {"ffn.0.weight", "ffn.2.weight"}
    assert not any("norm" in name or "modulation" in name for name in large)
    assert is_large("vace_blocks.3.before_proj.weight", torch.ones(2, 2))


@pytest.mark.parametrize("kind", NEAR)
def test_absent_torchao_is_told_with_the_command(kind, monkeypatch):
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(BackendError, match=rf"weights={kind} needs torchao .*pip install"):
        quantizer(kind)


@pytest.mark.parametrize("kind", NEAR)
def test_a_row_of_zeros_stays_what_it_is(kind):
    """As the stream's values are before they have learned anything."""
    pytest.importorskip("torchao")
    weight = torch.ones(4, 8)
    weight[2] = 0
    assert quantizer(kind)("subject_blocks.0.v.weight", weight) is weight


@pytest.mark.parametrize("kind", NEAR)
def test_a_quantized_dit_is_near_the_full_one_and_half_its_size(kind, tmp_path):
    pytest.importorskip("torchao")
    whole, given = random_dit(TOY), random_inputs(batch=2)
    path = saved(whole, tmp_path / "dit.safetensors")
    models = []
    for options in ({}, {"shrink": quantizer(kind)}):
        made = WanDiT(TOY)
        fill(made, path, dtype_of=lambda name: torch.bfloat16, **options)
        models.append(made)
    wanted, got = (m(given["x"], given["t"], given["text"], given["subjects"]) for m in models)
    assert 0 < (got - wanted).abs().max() < NEAR[kind] * wanted.abs().max()
    small = dict(models[1].named_parameters())
    for name, weight in models[0].named_parameters():
        size = stored_bytes(small[name])
        if is_large(name, weight):
            assert size == weight.numel() + 4 * len(weight)
        else:
            assert size == weight.nbytes and torch.equal(small[name], weight), name
