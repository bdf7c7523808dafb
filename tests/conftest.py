"""What tests of several packages share: a whole model folder with random weights."""

from pathlib import Path

import pytest


def build_random_model(folder: Path) -> Path:
    """A complete MINIATURE folder, every weight random, seed 0: it loads, runs and knows nothing.

    Imports are inside, so that collecting tests loads no torch.
    """
    import torch

    from engine.checkpoint import tensor_bytes
    from engine.dit import WanDiT
    from engine.folders import Manifest, save_folder
    from engine.presets import MINIATURE
    from engine.reader import FILE, Readers
    from engine.text import build_text_model
    from engine.vae import VAE, build_vae
    from engine.vlm import build_vlm, special_ids
    from training.tokenizers import build_text_tokenizer, build_vlm_tokenizer, grammar_words

    words = grammar_words(200)
    text_words = build_text_tokenizer(MINIATURE.text.vocab_size, words)
    vlm_words = build_vlm_tokenizer(MINIATURE.vlm.vocab_size, words)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = {
            "dit.safetensors": WanDiT(MINIATURE.dit),
            "text.safetensors": build_text_model(MINIATURE.text),
            "vlm.safetensors": build_vlm(MINIATURE.vlm, special_ids(vlm_words)),
        }
        channels = MINIATURE.vae.z_dim
        codec = VAE(
            build_vae(MINIATURE.vae), torch.zeros(channels), torch.ones(channels), MINIATURE.vae
        )
        readers = Readers(channels, MINIATURE.reader)
    files = {
        name: tensor_bytes(dict(module.named_parameters())) for name, module in modules.items()
    }
    files["vae.safetensors"] = tensor_bytes(codec.tensors())
    files[FILE] = tensor_bytes(readers.state_dict())
    files["text_tokenizer.json"] = text_words.to_str().encode()
    files["vlm_tokenizer.json"] = vlm_words.to_str().encode()
    save_folder(folder, Manifest(preset="miniature", lineage={"weights": "random"}), files)
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that loads and generates; its videos are noise."""
    return build_random_model(tmp_path_factory.mktemp("model") / "random")
