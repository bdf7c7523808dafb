"""Published weights into a model folder that `Engine.load` takes: checked name by name.

    transformer   Wan 2.1, Phantom-Wan, VACE: original, diffusers or ComfyUI names
    VAE           Wan's: original or diffusers names
    text          umT5: original or transformers names, with its tokenizer.json
    LoRA          any of the spellings in `engine.lora`, merged into the transformer
    VLM           Qwen2.5-VL: transformers names, with its tokenizer.json; needed where the
                  transformer has an identity stream that reads it

A transformer without an identity stream becomes a folder that takes no subjects, except under the
presets of Phantom and VACE. Precision stays as published. Drafts lie beside the folder while it is
made; it appears whole or not at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from engine import checkpoint, folders, foreign, lora, upstream
from engine.dit import STREAM_PARAMETERS
from engine.errors import CheckpointError
from engine.folders import Manifest
from engine.presets import Preset
from engine.text import build_text_model
from engine.vace import build_dit
from engine.vae import build_vae
from engine.vlm import build_vlm, special_ids
from engine.weights import check_finite

Configs = Mapping[str, Mapping[str, Any]]
PLAIN: Configs = {
    "dit": {"subject_layers": 0, "use_vlm": False},
    "limits": {"max_subjects": 0},
}


@dataclass(frozen=True)
class Sources:
    """Where the published files lie; see `engine.foreign` for what each may be.

    loras: files with their strengths.
    """

    dit: Path
    vae: Path
    text: Path
    tokenizer: Path
    vlm: Path | None = None
    vlm_tokenizer: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()


def convert(
    target: Path,
    preset: str,
    sources: Sources,
    configs: Configs | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Writes the model folder `target`.

    Args:
        preset: name of the preset whose sizes the weights have. configs: numbers that differ.
        tell: called with what is being done.

    Raises:
        CheckpointError: a file is missing or unreadable, `target` exists, a tensor is missing,
            unknown, of another shape or not finite; the message names it.
    """
    folders.check_new(target)
    tell("reading the transformer")
    dit = foreign.read(sources.dit)
    manifest = Manifest(preset, configs=configs or {}, lineage={"converted": _names(sources)})
    if manifest.resolve().family == "identity" and not _has_stream(dit):
        manifest = replace(manifest, configs=_merged(manifest.configs, PLAIN))
    sizes = manifest.resolve()
    with folders.drafting(target) as draft:
        files = _models(sizes, sources, dit, draft, tell)
        tell("writing")
        return folders.save_folder(target, manifest, files, moved=draft)


def _models(
    sizes: Preset,
    sources: Sources,
    dit: dict[str, Tensor],
    draft: Path,
    tell: Callable[[str], None],
) -> dict[str, bytes | Path]:
    """Every file of the folder, checked and written to `draft`."""
    files: dict[str, bytes | Path] = {}
    with torch.device("meta"):
        own = build_dit(sizes.dit).state_dict()
    base = [name for name in own if not name.startswith(STREAM_PARAMETERS)]
    dit = upstream.original_names(dit, base)
    for path, strength in sources.loras:
        tell(f"merging {path.name}")
        alpha = lora.declared_alpha(path)
        found = lora.adapters(foreign.read(path), dit, str(path), alpha)
        dit = lora.merge(dit, found, strength, str(path))
    files["dit.safetensors"] = _checked(own, dit, sources.dit, draft / "dit")
    tell("reading the VAE")
    vae = upstream.vae_names(foreign.read(sources.vae))
    files["vae.safetensors"] = _checked(_vae_table(sizes), with_statistics(vae, sizes),
                                        sources.vae, draft / "vae")  # fmt: skip
    tell("reading the text encoder")
    text = upstream.text_names(foreign.read(sources.text))
    with torch.device("meta"):
        table = dict(build_text_model(sizes.text).named_parameters())
    files["text.safetensors"] = _checked(table, text, sources.text, draft / "text")
    files["text_tokenizer.json"] = _tokenizer(sources.tokenizer)
    if sizes.dit.use_vlm:
        files |= _vlm(sizes, sources, draft, tell)
    return files


def _vlm(
    sizes: Preset, sources: Sources, draft: Path, tell: Callable[[str], None]
) -> dict[str, bytes | Path]:
    if sources.vlm is None or sources.vlm_tokenizer is None:
        raise CheckpointError("the transformer reads a VLM: its weights and tokenizer are needed")
    tell("reading the VLM")
    tensors = upstream.vlm_names(foreign.read(sources.vlm))
    words = _tokenizer(sources.vlm_tokenizer)
    with torch.device("meta"):
        model = build_vlm(sizes.vlm, special_ids(Tokenizer.from_file(str(words))))
    table = dict(model.named_parameters())
    path = _checked(table, tensors, sources.vlm, draft / "vlm")
    return {"vlm.safetensors": path, "vlm_tokenizer.json": words}


def _checked(
    own: Mapping[str, Tensor], tensors: dict[str, Tensor], source: Path, draft: Path
) -> Path:
    """The tensors as a safetensors file, if they are those of the model and all finite."""
    checkpoint.check_names(own, tensors, str(source))
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{source}: {name} is {value.dtype}, not a floating type")
        check_finite(value.float(), name, str(source))  # fp8 knows no extremes of its own
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, draft)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{draft.parent.parent} cannot be written: {error}") from error
    return draft


def _vae_table(sizes: Preset) -> dict[str, Tensor]:
    with torch.device("meta"):
        table: dict[str, Tensor] = build_vae(sizes.vae).state_dict()
        statistic = torch.empty(sizes.vae.z_dim)
    return table | {"latents_mean": statistic, "latents_std": statistic}


def with_statistics(vae: dict[str, Tensor], sizes: Preset) -> dict[str, Tensor]:
    """Mean and deviation of each latent channel: Wan's constants, where the file has none.

    The weights do not hold them; they stand in Wan2.1 `wan/modules/vae.py`, and as defaults of
    diffusers' class.
    """
    if "latents_mean" in vae:
        return vae
    defaults = inspect.signature(AutoencoderKLWan.__init__).parameters
    added = {}
    for name in ("latents_mean", "latents_std"):
        values = torch.tensor(defaults[name].default)
        if len(values) != sizes.vae.z_dim:
            raise CheckpointError(f"the VAE needs {name}: {sizes.vae.z_dim} numbers, one a channel")
        added[name] = values
    return vae | added


def _tokenizer(path: Path) -> Path:
    """A tokenizer.json, or the folder that holds one."""
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer.json: {error}") from error
    return path


def _has_stream(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.removeprefix(upstream.PREFIX).startswith(STREAM_PARAMETERS) for name in tensors)


def _merged(configs: Configs, more: Configs) -> Configs:
    parts = configs.keys() | more.keys()
    return {part: {**configs.get(part, {}), **more.get(part, {})} for part in sorted(parts)}


def _names(sources: Sources) -> dict[str, Any]:
    """File names without their folders: a published folder tells no paths."""
    names: dict[str, Any] = {
        part: path.name for part, path in vars(sources).items() if isinstance(path, Path)
    }
    return names | {"loras": [[path.name, strength] for path, strength in sources.loras]}
