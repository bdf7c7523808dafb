"""A folder of encoders with random weights, small enough to be made in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine import checkpoint
from engine.presets import MINIATURE, Preset
from engine.text import build_text_model
from engine.vae import VAE, build_vae
from engine.vlm import build_vlm, special_ids
from training import sft
from training.data.shards import ShardFolder
from training.loop import LoopConfig
from training.tokenizers import build_text_tokenizer, build_vlm_tokenizer, grammar_words


@pytest.fixture(scope="session")
def small_preset() -> Preset:
    """The miniature with a DiT of two narrow blocks and thin encoders."""
    dit = replace(
        MINIATURE.dit, dim=48, ffn_dim=64, num_heads=2, num_layers=2, subject_layers=2,
        subject_dim=48, subject_ffn_dim=48,
    )  # fmt: skip
    vae = replace(MINIATURE.vae, base_dim=8)
    text = replace(MINIATURE.text, num_layers=1)
    vlm = replace(MINIATURE.vlm, num_layers=1, vision_depth=1, full_attention_blocks=(0,))
    limits = replace(MINIATURE.limits, max_identity_scale=0.0)
    defaults = replace(MINIATURE.defaults, steps=2, identity_scale=0.0)
    parts = {"dit": dit, "vae": vae, "text": text, "vlm": vlm}
    return replace(MINIATURE, limits=limits, defaults=defaults, **parts)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory, small_preset: Preset) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    words = grammar_words(200)
    z_dim = small_preset.vae.z_dim
    vae = VAE(
        build_vae(small_preset.vae), torch.zeros(z_dim), torch.ones(z_dim), small_preset.vae
    )
    (folder / "vae.safetensors").write_bytes(checkpoint.tensor_bytes(vae.tensors()))
    tokenizer = build_text_tokenizer(small_preset.text.vocab_size, words)
    tokenizer.save(str(folder / "text_tokenizer.json"))
    save_file(dict(build_text_model(small_preset.text).named_parameters()),
              folder / "text.safetensors")  # fmt: skip
    tokenizer = build_vlm_tokenizer(small_preset.vlm.vocab_size, words)
    tokenizer.save(str(folder / "vlm_tokenizer.json"))
    vlm = build_vlm(small_preset.vlm, special_ids(tokenizer))
    save_file(dict(vlm.named_parameters()), folder / "vlm.safetensors")
    return folder


@pytest.fixture(scope="session")
def shards(
    tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, small_preset: Preset
) -> tuple[ShardFolder, ShardFolder]:
    """Two shards of stills and two of clips, eight each; who writes there takes a copy."""
    found = []
    for still in (True, False):
        path = tmp_path_factory.mktemp("shards")
        data = sft.DataConfig(path, encoder_folder, ((0, 2),), rows=8, still=still)
        sft.precompute_part(sft.SftConfig(LoopConfig("x", steps=1), data, small_preset), 2)
        found.append(data.folder())
    return found[0], found[1]
