"""`troupe convert`: published weights into a model folder, names and shapes checked."""

import math
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import CheckpointError
from engine.presets import PRESETS
from troupe.terminal import err, fail, out


def convert(
    target: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    dit: Annotated[Path, typer.Option(help="Transformer: file, or folder of shards.")],
    vae: Annotated[Path, typer.Option(help="VAE, such as Wan2.1_VAE.pth.")],
    text: Annotated[Path, typer.Option(help="umT5, such as models_t5_umt5-xxl-enc-bf16.pth.")],
    tokenizer: Annotated[Path, typer.Option(help="umT5's tokenizer.json.")],
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "wan-1.3b",
    lora: Annotated[
        list[str] | None, typer.Option(help="FILE or FILE:STRENGTH of a LoRA to merge; repeat.")
    ] = None,
    vlm: Annotated[
        Path | None, typer.Option(help="Qwen2.5-VL, where the transformer has an identity stream.")
    ] = None,
    vlm_tokenizer: Annotated[Path | None, typer.Option(help="Its tokenizer.json.")] = None,
) -> None:
    """Make a model folder of Wan 2.1, Phantom or VACE weights, original or diffusers layout."""
    if preset not in PRESETS:
        fail(f"--preset {preset}: must be one of {', '.join(PRESETS)}")
    from engine.convert import Sources
    from engine.convert import convert as run

    loras = tuple(read_lora(given) for given in lora or [])
    sources = Sources(dit, vae, text, tokenizer, vlm, vlm_tokenizer, loras)
    try:
        with err.status("reading") as status:
            manifest = run(target, preset, sources, tell=status.update)
    except CheckpointError as error:
        fail(str(error))
    except OSError as error:
        fail(f"--out {target} cannot be written: {error.strerror}")
    out.print(f"{target}: {len(manifest.files)} files, {manifest.digest()[:12]}", markup=False)


def read_lora(given: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH; a colon in a path is no strength."""
    path, sign, strength = given.rpartition(":")
    if not sign or "/" in strength:
        return Path(given), 1.0
    if not path:
        fail(f"--lora {given}: must be FILE or FILE:STRENGTH")
    try:
        value = float(strength)
    except ValueError:
        fail(f"--lora {given}: the strength must be a number, as in {path}:0.8")
    if not math.isfinite(value):
        fail(f"--lora {given}: the strength must be finite")
    return Path(path), value
