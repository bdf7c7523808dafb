"""Model folders of the miniature's classes at a size at which hundreds are made and tried: random
weights, so their videos are noise, but another noise for each.

    base       every part of the stack, seed 0
    variant    the same but for its transformer, which is its seed's
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import read_tensors, tensor_bytes
from engine.dit import WanDiT
from engine.folders import DIT, Manifest, read_manifest, save_folder
from engine.text import build_text_model
from engine.vae import VAE, build_vae
from engine.vlm import build_vlm, special_ids
from training.tokenizers import build_text_tokenizer, build_vlm_tokenizer, grammar_words

WIDTH = 48
CONFIGS: dict[str, dict[str, Any]] = {
    "dit": {
        "dim": WIDTH,
        "ffn_dim": 64,
        "freq_dim": 32,
        "text_dim": 32,
        "num_heads": 2,
        "num_layers": 3,
        "vlm_dim": 32,
        "subject_layers": 2,
        "subject_dim": 24,
        "subject_ffn_dim": 40,
    },
    "vae": {"base_dim": 8},
    "text": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 32},
    "vlm": {
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "intermediate_size": 32,
        "vision_depth": 1,
        "vision_hidden_size": 32,
        "vision_num_heads": 2,
        "vision_intermediate_size": 32,
        "full_attention_blocks": [0],
        "mrope_section": [2, 3, 3],
    },
    "limits": {"max_identity_scale": 0.0},
    "defaults": {"identity_scale": 0.0},
}


def base(folder: Path, dit: Mapping[str, Any] | None = None) -> Path:
    """A whole model folder. dit: other numbers of its transformer's config."""
    configs = {**CONFIGS, "dit": {**CONFIGS["dit"], **(dit or {})}}
    draft = Manifest("miniature", configs=configs, lineage={"weights": "random"})
    preset, words = draft.resolve(), grammar_words(200)
    text_words = build_text_tokenizer(preset.text.vocab_size, words)
    vlm_words = build_vlm_tokenizer(preset.vlm.vocab_size, words)
    channels = preset.vae.z_dim
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = {
            DIT: WanDiT(preset.dit),
            "text.safetensors": build_text_model(preset.text),
            "vlm.safetensors": build_vlm(preset.vlm, special_ids(vlm_words)),
        }
        codec = VAE(
            build_vae(preset.vae), torch.zeros(channels), torch.ones(channels), preset.vae
        )
    files: dict[str, bytes | Path] = {
        name: tensor_bytes(dict(module.named_parameters())) for name, module in modules.items()
    }
    files["vae.safetensors"] = tensor_bytes(codec.tensors())
    files["text_tokenizer.json"] = text_words.to_str().encode()
    files["vlm_tokenizer.json"] = vlm_words.to_str().encode()
    save_folder(folder, draft, files)
    return folder


def variant(
    own: Path,
    target: Path,
    seed: int,
    change: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
) -> Path:
    """A folder whose transformer has every number moved by its seed's noise. change: what else."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: x + 0.1 * torch.randn(x.shape, generator=generator)
        for name, x in sorted(read_tensors(own / DIT).items())
    }
    change(tensors)
    manifest = read_manifest(own)
    files: dict[str, bytes | Path] = {name: own / name for name in manifest.files}
    about = replace(manifest, lineage={"weights": "random", "seed": seed})
    save_folder(target, about, files | {DIT: tensor_bytes(tensors)})
    return target
