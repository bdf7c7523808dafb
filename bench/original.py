"""Against the authors' own code: `python -m bench.original --wan FOLDER --phantom FOLDER --json`.

FOLDER is a checkout of Wan-Video/Wan2.1, and one of Phantom's code (`phantom_wan/`). Every figure
is the largest difference over the largest value, fp32 on a CPU, tiny random weights that went
through `engine.upstream`, so that names are compared as well:

    transformer    `wan/modules/model.py` WanModel / ours, one forward
    vace           `wan/modules/vace_model.py` VaceWanModel / ours, one forward
    text           `wan/modules/t5.py` T5Encoder / ours, a prompt of 200 tokens
    vae_encode, vae_decode  `wan/modules/vae.py` WanVAE with its constants / ours
    wan            `wan/text2video.py` WanT2V.generate / ours: pixels of 9 frames, after text
                   encoder, noise, six steps with guidance, decoder
    phantom        `phantom_wan/subject2video.py` Phantom_Wan_S2V.generate / ours, two references

Their files run unchanged. What a CPU lacks is put in from outside: attention is torch's own instead
of FlashAttention, and what no path here needs (torchvision but for `to_tensor`) is stood in
for. Needs einops and ftfy, which they import.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from engine import families, flow, upstream
from engine.checkpoint import load_strict
from engine.convert import with_statistics
from engine.dit import WanDiT
from engine.encodings import EncodingsBatch
from engine.presets import WAN_1_3B, TextConfig
from engine.sample import sample
from engine.spec import Guidance
from engine.text import build_text_model
from engine.vace import VaceDiT, build_dit
from engine.vae import VAE, build_vae, to_pixels

DIT = replace(
    WAN_1_3B.dit, dim=48, ffn_dim=64, freq_dim=32, text_dim=32, text_len=64, num_heads=2,
    num_layers=3, subject_layers=0,
)  # fmt: skip
VACE = replace(DIT, vace_layers=(0, 2), vace_in_dim=96)
TEXT = TextConfig(
    vocab_size=300, d_model=32, num_layers=2, num_heads=2, d_kv=8, d_ff=48, text_len=64
)
PRESET = replace(WAN_1_3B, vae=replace(WAN_1_3B.vae, base_dim=8), text=TEXT, dit=DIT)
WIDTH, HEIGHT, FRAMES, STEPS, SHIFT, SEED = 64, 48, 9, 6, 5.0, 11
PROMPTS = ("a cat walks over the moon", "blurry")


def attention(
    q: Tensor, k: Tensor, v: Tensor, k_lens: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """What their `flash_attention` computes, [B, L, N, D], where no key is padding."""
    assert window_size == (-1, -1)
    assert k_lens is None or bool((k_lens == k.shape[1]).all())
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def opened(folder: Path, package: str, *names: str) -> list[Any]:
    """Modules of their package, without what its `__init__` would import."""
    if not (folder / package).is_dir():
        raise FileNotFoundError(f"{folder} has no {package}/: give a checkout of the original")
    top = types.ModuleType(package)
    top.__path__ = [str(folder / package)]
    sys.modules[package] = top
    pictures: Any = types.ModuleType("torchvision.transforms.functional")
    pictures.to_tensor = lambda image: torch.tensor(np.array(image)).movedim(-1, 0) / 255
    for name in ("torchvision", "torchvision.transforms"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules.setdefault(pictures.__name__, pictures)
    sys.modules["torchvision.transforms"].functional = pictures  # type: ignore[attr-defined]
    torch.cuda.current_device = lambda: 0  # the default of an argument that nobody uses
    model: Any = importlib.import_module(f"{package}.modules.model")
    model.flash_attention = attention
    return [importlib.import_module(f"{package}.{name}") for name in names]


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest value."""
    assert got.shape == want.shape, (got.shape, want.shape)
    return float((got - want).abs().max() / want.abs().max())


def loud(module: nn.Module, seed: int) -> Any:
    """The module with every parameter random; nothing hides behind a zero."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval().requires_grad_(False)


def sizes(config: Any) -> dict[str, Any]:
    """What their classes are built with."""
    same = ("text_len", "dim", "ffn_dim", "freq_dim", "text_dim", "num_heads", "num_layers")
    return {name: getattr(config, name) for name in same} | {"cross_attn_norm": True}


def transformers(module: Any, seed: int = 0) -> tuple[Any, WanDiT]:
    """Theirs, and ours with its weights."""
    theirs = loud(module.WanModel(model_type="t2v", **sizes(DIT)), seed)
    ours = WanDiT(DIT).eval()
    upstream.load_base(ours, theirs.state_dict())
    return theirs, ours


def vaes(module: Any) -> tuple[Any, VAE]:
    config = PRESET.vae
    model = module.WanVAE_(
        dim=config.base_dim, z_dim=config.z_dim, dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temperal_downsample),
    )  # fmt: skip
    module._video_vae = lambda **given: loud(model, 1)
    theirs = module.WanVAE(device="cpu")
    tensors = with_statistics(upstream.vae_names(theirs.model.state_dict()), PRESET)
    mean, std = tensors.pop("latents_mean"), tensors.pop("latents_std")
    ours = build_vae(config)
    load_strict(ours, tensors, "the VAE")
    return theirs, VAE(ours, mean, std, config)


def texts(module: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Features [L, D] of ids [L], by their encoder and by ours."""
    theirs = loud(
        module.T5Encoder(
            TEXT.vocab_size, TEXT.d_model, TEXT.num_heads * TEXT.d_kv, TEXT.d_ff, TEXT.num_heads,
            TEXT.num_layers, num_buckets=32, shared_pos=False,
        ),
        2,
    )  # fmt: skip
    ours: Any = build_text_model(TEXT).eval()
    named = upstream.text_names(theirs.state_dict())
    assert set(named) == {name for name, _ in ours.named_parameters()}
    ours.load_state_dict(named, strict=False)  # the tied embedding stands once

    def original(ids_L: Tensor) -> Tensor:
        # Theirs pads before it encodes.
        ids = F.pad(ids_L, (0, 16))[None]
        features: Tensor = theirs(ids, (torch.arange(len(ids[0])) < len(ids_L)).long()[None])
        return features[0, : len(ids_L)]

    def own(ids_L: Tensor) -> Tensor:
        features: Tensor = ours(input_ids=ids_L[None]).last_hidden_state
        return features[0]

    return original, own


def ids_of(prompt: str) -> Tensor:
    return torch.tensor([*prompt.encode(), 1])


def one_forward(module: Any) -> float:
    theirs, ours = transformers(module)
    torch.manual_seed(3)
    x, text = torch.randn(16, 3, 6, 10), torch.randn(17, DIT.text_dim)
    want = theirs([x], torch.tensor([321.0]), [text], 45)[0]
    padded = F.pad(text, (0, 0, 0, DIT.text_len - len(text)))[None]
    return error(ours(x[None], torch.tensor([0.321]), padded)[0], want)


def one_vace_forward(module: Any) -> float:
    theirs = loud(
        module.VaceWanModel(
            vace_layers=list(VACE.vace_layers), vace_in_dim=VACE.vace_in_dim, **sizes(VACE)
        ),
        4,
    )
    ours = build_dit(VACE).eval()
    assert isinstance(ours, VaceDiT)
    upstream.load_base(ours, theirs.state_dict())
    torch.manual_seed(5)
    x, context = torch.randn(16, 3, 6, 10), torch.randn(VACE.vace_in_dim, 3, 6, 10)
    text = torch.randn(1, VACE.text_len, VACE.text_dim)
    want = theirs([x], torch.tensor([321.0]), [context], [text[0]], 45)[0]
    condition = ours.condition(text)._replace(context=ours.context(context[None], text))
    return error(ours.denoise(x[None], torch.tensor([0.321]), condition)[0], want)


def loop(
    original: Any, modules: Sequence[Any], family: str, pictures: Sequence[Image.Image]
) -> float:
    """Pixels of a whole run by the method `generate` of their class, and by our sampler."""
    model, vae, t5 = modules
    (theirs, ours), (their_vae, our_vae), (encode, own) = transformers(model), vaes(vae), texts(t5)
    run = original.__new__(original)
    run.device, run.rank, run.t5_cpu, run.sp_size = torch.device("cpu"), 0, True, 1
    run.num_train_timesteps, run.param_dtype, run.sample_neg_prompt = 1000, torch.float32, ""
    run.vae_stride, run.patch_size, run.model, run.vae = (4, 8, 8), (1, 2, 2), theirs, their_vae
    run.text_encoder = lambda prompts, device: [encode(ids_of(prompt)) for prompt in prompts]
    given: dict[str, Any] = {"ref_images": list(pictures)} if pictures else {}
    want = run.generate(
        PROMPTS[0], size=(WIDTH, HEIGHT), frame_num=FRAMES, shift=SHIFT, sampling_steps=STEPS,
        n_prompt=PROMPTS[1], seed=SEED, offload_model=False, **given,
    )  # fmt: skip

    refs = [our_vae.encode(to_pixels(torch.tensor(np.array(p))[None, None])) for p in pictures]
    batch, negative = (
        _encodings(own(ids_of(prompt)), refs if prompt == PROMPTS[0] else [])
        for prompt in PROMPTS
    )
    guidance = Guidance("dual") if pictures else Guidance(scale=5.0)
    found = families.conditions(family, ours, batch, negative, guidance)
    shape = (16, (FRAMES - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    start = families.noise(family, [SEED], shape, len(pictures))
    plan = flow.schedule("unipc", STEPS, SHIFT)
    latents = sample(ours.denoise, start, found, plan, guidance)
    return error(our_vae.decode(latents)[0].clamp(-1, 1), want)


def _encodings(features_LD: Tensor, refs: Sequence[Tensor]) -> EncodingsBatch:
    num = len(refs)
    none = torch.zeros(1, 0, 16, HEIGHT // 8, WIDTH // 8)
    return EncodingsBatch(
        text_BTM=F.pad(features_LD, (0, 0, 0, DIT.text_len - len(features_LD)))[None],
        refs_BSCHW=torch.cat(list(refs), dim=2).transpose(1, 2) if num else none,
        tags_BSM=torch.zeros(1, num, DIT.text_dim),
        subject_mask_BS=torch.ones(1, num, dtype=torch.bool),
        vlm_BVM=torch.zeros(1, 0, 0),
        vlm_mask_BV=torch.zeros(1, 0, dtype=torch.bool),
    )


def against_wan(folder: Path) -> dict[str, float]:
    """All of Wan 2.1."""
    names = ("modules.model", "modules.vae", "modules.t5", "modules.vace_model", "text2video")
    model, vae, t5, vace, text2video = opened(folder, "wan", *names)
    theirs, ours = vaes(vae)
    torch.manual_seed(6)
    frames, z = torch.rand(3, FRAMES, HEIGHT, WIDTH) * 2 - 1, torch.randn(16, 3, 6, 8)
    ids = torch.randint(2, TEXT.vocab_size, (200,))
    encode, own = texts(t5)
    return {
        "transformer": one_forward(model),
        "vace": one_vace_forward(vace),
        "text": error(own(ids), encode(ids)),
        "vae_encode": error(ours.encode(frames[None])[0], theirs.encode([frames])[0]),
        "vae_decode": error(ours.decode(z[None])[0].clamp(-1, 1), theirs.decode([z])[0]),
        "wan": loop(text2video.WanT2V, (model, vae, t5), "identity", []),
    }


def against_phantom(folder: Path) -> dict[str, float]:
    """Phantom's loop with its own copies of Wan's modules; two references."""
    names = ("modules.model", "modules.vae", "modules.t5", "subject2video")
    *modules, subject2video = opened(folder, "phantom_wan", *names)
    rng = np.random.default_rng(7)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)) for _ in range(2)
    ]
    return {"phantom": loop(subject2video.Phantom_Wan_S2V, modules, "phantom", pictures)}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.original",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--wan", type=Path, help="a checkout of Wan-Video/Wan2.1")
    parser.add_argument("--phantom", type=Path, help="a checkout of Phantom's code")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    asked = parser.parse_args(given)
    if asked.wan is None and asked.phantom is None:
        parser.error("--wan, --phantom: at least one")
    return asked


@torch.no_grad()
def main(given: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    asked = arguments(given)
    warnings.simplefilter("ignore")  # theirs: torch.cuda.amp without a card
    result: dict[str, float] = {}
    try:
        if asked.wan is not None:
            result |= against_wan(asked.wan)
        if asked.phantom is not None:
            result |= against_phantom(asked.phantom)
    except (FileNotFoundError, ModuleNotFoundError) as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    for name, value in result.items():
        sys.stderr.write(f"{name:12s} {value:.2g}\n")
    if asked.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
