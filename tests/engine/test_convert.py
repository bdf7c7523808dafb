"""Published layouts become a model folder that the engine loads, tensor for tensor."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine import upstream
from engine.convert import Sources, convert
from engine.dit import WanDiT
from engine.encodings import Encoders
from engine.errors import CheckpointError
from engine.pipeline import Engine
from engine.presets import WAN_1_3B, Preset
from engine.spec import Spec
from engine.text import TextEncoder, build_text_model
from engine.vae import VAE, build_vae
from engine.vlm import SPECIALS as VLM_SPECIALS
from engine.vlm import build_vlm, special_ids
from tests.engine.conftest import SPECIALS, TOY_PRESET, byte_tokenizer, picture, random_dit

PLAIN_DIT = replace(TOY_PRESET.dit, subject_layers=0, use_vlm=False)
# Wan's own VAE in small: its form decides how its parts are called.
SMALL = replace(
    WAN_1_3B,
    dit=PLAIN_DIT,
    vae=replace(WAN_1_3B.vae, base_dim=8),
    text=TOY_PRESET.text,
    limits=replace(TOY_PRESET.limits, max_subjects=0, size_multiple=16),
)


def differences(preset: Preset) -> dict[str, dict[str, Any]]:
    """What the manifest must say to get from wan-1.3b to this."""
    parts = ("dit", "vae", "text", "limits", "vlm")
    return {
        part: {k: v for k, v in asdict(getattr(preset, part)).items()
               if v != asdict(getattr(WAN_1_3B, part))[k]}
        for part in parts
    }  # fmt: skip


def wan_text(name: str) -> str:
    for ours, theirs in upstream._TEXT_REST.items():
        if name == theirs:
            return ours
    block, rest = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)", name).groups()
    (match,) = [ours for ours, theirs in upstream._TEXT_BLOCK.items() if theirs == rest]
    return f"blocks.{block}.{match}"


def wan_vae(name: str) -> str:
    """diffusers' name -> Wan's, by the structure of Wan2.1 `wan/modules/vae.py`."""
    name = name.replace("post_quant_conv.", "conv2.").replace("quant_conv.", "conv1.")
    name = name.replace("conv_in.", "conv1.").replace("norm_out.", "head.0.")
    name = name.replace("conv_out.", "head.2.").replace("conv_shortcut.", "shortcut.")
    name = name.replace("mid_block.attentions.0.", "middle.1.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)",
                  lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}", name)  # fmt: skip
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0",
                  lambda m: f"upsamples.{4 * int(m[1]) + 3}", name)  # fmt: skip
    name = name.replace("down_blocks.", "downsamples.")
    for theirs, number in (("norm1", 0), ("conv1", 2), ("norm2", 3), ("conv2", 6)):
        if re.search(r"(samples|middle)\.\d+\.", name):
            name = name.replace(f".{theirs}.", f".residual.{number}.")
    return name


def published(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(seed)
    vae = build_vae(SMALL.vae)
    return {
        "dit": random_dit(PLAIN_DIT, seed).state_dict(),
        "vae": {name: torch.randn_like(p) * 0.05 for name, p in vae.state_dict().items()},
        "text": {n: p.detach() for n, p in build_text_model(SMALL.text).named_parameters()},
    }


Rename = Callable[[str], str]


def laid_out(
    folder: Path, models: dict[str, dict[str, Tensor]], rename: dict[str, Rename], pickled: bool
) -> Sources:
    paths = {}
    for part, tensors in models.items():
        named = {rename[part](name): value.contiguous() for name, value in tensors.items()}
        paths[part] = folder / f"{part}{'.pth' if pickled else '.safetensors'}"
        (torch.save if pickled else save_file)(named, paths[part])
    byte_tokenizer(SPECIALS, end="</s>").save(str(folder / "tokenizer.json"))
    return Sources(**paths, tokenizer=folder / "tokenizer.json")


LAYOUTS = {
    "wan": ({"dit": str, "vae": wan_vae, "text": wan_text}, True),
    "diffusers": ({"dit": upstream.diffusers_name, "vae": str, "text": str}, False),
    "comfy": ({"dit": lambda n: upstream.PREFIX + n, "vae": wan_vae, "text": str}, False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_the_same_engine(tmp_path: Path, layout: str) -> None:
    models = published()
    rename, pickled = LAYOUTS[layout]
    sources = laid_out(tmp_path, models, rename, pickled)
    manifest = convert(tmp_path / "model", "wan-1.3b", sources, differences(SMALL))
    assert "/" not in str(manifest.lineage)
    engine = Engine.load(tmp_path / "model")
    for module, part in ((engine.dit, "dit"), (engine.encoders.vae.model, "vae")):
        state = module.state_dict()
        assert all(torch.equal(state[name], value) for name, value in models[part].items())
    text = dict(engine.encoders.text.model.named_parameters())
    assert all(torch.equal(text[name], value) for name, value in models["text"].items())


def test_a_converted_folder_makes_the_video_of_its_parts(tmp_path: Path) -> None:
    models = published()
    sources = laid_out(tmp_path, models, *LAYOUTS["wan"])
    convert(tmp_path / "model", "wan-1.3b", sources, differences(SMALL))
    engine = Engine.load(tmp_path / "model")
    dit, vae, text = WanDiT(SMALL.dit), build_vae(SMALL.vae), build_text_model(SMALL.text)
    for module, part in ((dit, "dit"), (vae, "vae")):
        module.load_state_dict(models[part])
    text.load_state_dict(models["text"], strict=False)  # the tied embedding stands once
    assert float(engine.encoders.vae.mean.flatten()[0]) == pytest.approx(-0.7571)  # Wan's constant
    words = TextEncoder(text, byte_tokenizer(SPECIALS, end="</s>"), SMALL.text)
    own = engine.encoders.vae.mean.flatten(), engine.encoders.vae.std.flatten()
    direct = Engine(dit, Encoders(words, VAE(vae, *own, SMALL.vae), None), engine.preset, "x")
    spec = Spec.of(engine.preset, "a cat", width=48, height=32, num_frames=5, steps=2)
    made, wanted = engine.generate(spec, []), direct.generate(spec, [])
    assert made.frames.tobytes() == wanted.frames.tobytes()


def test_phantoms_weights_take_subjects(tmp_path: Path) -> None:
    """The same file as plain Wan's; the preset says how its references are shown."""
    sources = laid_out(tmp_path, published(), *LAYOUTS["wan"])
    configs = differences(SMALL)
    del configs["limits"]["max_subjects"]
    convert(tmp_path / "model", "phantom-1.3b", sources, configs)
    engine = Engine.load(tmp_path / "model")
    assert engine.preset.family == "phantom" and engine.preset.limits.max_subjects == 4
    spec = Spec.of(
        engine.preset, "@anna waves", ("anna",), width=48, height=32, num_frames=5, steps=2
    )
    assert spec.guidance.mode == "dual"
    assert engine.generate(spec, [picture("anna")]).frames.shape == (5, 32, 48, 3)


def _spoil(models: dict[str, dict[str, Tensor]], part: str, name: str, value: Any) -> None:
    if value is None:
        del models[part][name]
    else:
        models[part][name] = value


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("dit", "head.head.bias", None, r"dit\.safetensors lacks head\.head\.bias"),
        ("dit", "extra", torch.ones(1), "has the unknown extra"),
        ("dit", "head.head.bias", torch.ones(3), r"has another shape: head\.head\.bias"),
        ("dit", "head.head.bias", torch.full((64,), torch.nan), "head.bias holds numbers"),
        ("dit", "head.head.bias", torch.ones(64, dtype=torch.bool), "not a floating type"),
        ("text", "shared.weight", None, r"text\.safetensors lacks shared\.weight"),
        ("vae", "quant_conv.bias", torch.ones(1), "quant_conv.bias is"),
    ],
)
def test_wrong_weights_are_named_and_nothing_is_written(
    tmp_path: Path, part: str, name: str, value: Any, message: str
) -> None:
    models = published()
    _spoil(models, part, name, value)
    plain = {part: str for part in models}
    sources = laid_out(tmp_path, models, plain, pickled=False)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "model", "wan-1.3b", sources, differences(SMALL))
    assert sorted(tmp_path.iterdir()) == before


def test_the_wrong_preset_is_told_by_a_shape(tmp_path: Path) -> None:
    sources = laid_out(tmp_path, published(), *LAYOUTS["diffusers"])
    with pytest.raises(CheckpointError, match=r"lacks blocks\.10\."):
        convert(tmp_path / "model", "wan-1.3b", sources)


def test_a_stream_needs_its_vlm(tmp_path: Path) -> None:
    models = published()
    models["dit"] = random_dit(TOY_PRESET.dit).state_dict()
    sources = laid_out(tmp_path, models, {part: str for part in models}, pickled=False)
    sizes = differences(replace(SMALL, dit=TOY_PRESET.dit, vlm=TOY_PRESET.vlm))
    with pytest.raises(CheckpointError, match="reads a VLM"):
        convert(tmp_path / "model", "wan-1.3b", sources, sizes)


def test_loras_are_melted_in(tmp_path: Path) -> None:
    models = published()
    sources = laid_out(tmp_path, models, *LAYOUTS["wan"])
    rows, columns = models["dit"]["blocks.0.ffn.0.weight"].shape
    down, up = torch.randn(2, columns), torch.randn(rows, 2)
    key = "diffusion_model.blocks.0.ffn.0.lora_{}.weight"
    save_file({key.format("A"): down, key.format("B"): up}, tmp_path / "style.safetensors")
    sources = replace(sources, loras=((tmp_path / "style.safetensors", 0.5),))
    manifest = convert(tmp_path / "model", "wan-1.3b", sources, differences(SMALL))
    assert manifest.lineage["converted"]["loras"] == [["style.safetensors", 0.5]]
    state = Engine.load(tmp_path / "model").dit.state_dict()
    for name, value in models["dit"].items():
        change = 0.5 * up @ down if name == "blocks.0.ffn.0.weight" else 0
        torch.testing.assert_close(state[name], value + change)


def test_fp8_is_read(tmp_path: Path) -> None:
    models = published()
    models["dit"] = {k: v.to(torch.float8_e4m3fn) for k, v in models["dit"].items()}
    sources = laid_out(tmp_path, models, {part: str for part in models}, pickled=False)
    convert(tmp_path / "model", "wan-1.3b", sources, differences(SMALL))
    state = Engine.load(tmp_path / "model").dit.state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in models["dit"].items())


def test_published_names_of_qwen() -> None:
    words = byte_tokenizer(list(VLM_SPECIALS))
    model = build_vlm(TOY_PRESET.vlm, special_ids(words))
    own = {name: value.detach() for name, value in model.named_parameters()}
    published = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for name, value in own.items()
    }
    assert published.keys().isdisjoint(own)
    published["lm_head.weight"] = torch.ones(1)
    for tensors in (published, own):
        renamed = upstream.vlm_names(tensors)
        assert renamed.keys() == own.keys()
        assert all(renamed[name] is value for name, value in own.items())


def test_an_existing_folder_and_a_bad_tokenizer(tmp_path: Path) -> None:
    sources = laid_out(tmp_path, published(), *LAYOUTS["diffusers"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"not a tokenizer\.json"):
        convert(tmp_path / "model", "wan-1.3b", sources, differences(SMALL))
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        convert(tmp_path / "model", "wan-1.3b", sources, differences(SMALL))
