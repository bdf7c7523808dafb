"""Clips of the world through the encoders, into shards. Any number of processes may share the work.

Each process takes every `num_processes`-th shard and skips the files that are there; after a kill,
the same call goes on with the first file that is missing. A column whose encoder has changed since
(another weights digest) is written anew.

Legend: B clips, S subjects (padded to 4), T frames, V VLM tokens, and as in `engine.encodings`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from engine.encodings import Encoders
from engine.presets import Preset
from engine.text import TextEncoder
from engine.vae import VAE, to_pixels
from engine.vlm import VLM
from training import vae_whole, vlm_batch
from training.data.shards import COLUMNS, ShardFolder
from training.world.clip import Clip

NULL = "null.safetensors"


@dataclass(frozen=True)
class Sources:
    """Loaded encoders and, for each column, the digest of the weights that make it."""

    encoders: Encoders
    digests: dict[str, str]
    max_subjects: int
    vlm_len: int


def load_sources(folder: Path, preset: Preset, columns: Sequence[str] = COLUMNS) -> Sources:
    """Encoders from vae.safetensors, text.safetensors, text_tokenizer.json, vlm… in `folder`.

    Only what the columns need is read; the other doors hold fresh weights and are not used.
    """
    from engine.vae import build_vae

    vae_file, text_file, vlm_file = (folder / f"{n}.safetensors" for n in ("vae", "text", "vlm"))
    digests: dict[str, str] = {}
    z_dim = preset.vae.z_dim
    vae = VAE(build_vae(preset.vae), torch.zeros(z_dim), torch.ones(z_dim), preset.vae)
    if {"video", "refs"} & set(columns):
        vae = VAE.from_files(vae_file, preset.vae)
        digests["video"] = digests["refs"] = digest(vae_file)
    words = folder / "text_tokenizer.json"
    text = TextEncoder.from_files(text_file, words, preset.text)
    digests["text"] = digest(text_file, words)
    vlm = None
    if "vlm" in columns:
        words = folder / "vlm_tokenizer.json"
        vlm = VLM.from_files(vlm_file, words, preset.vlm)
        digests["vlm"] = digest(vlm_file, words)
    return Sources(Encoders(text, vae, vlm), digests, preset.dit.max_subjects, preset.vlm.vlm_len)


def digest(*paths: Path) -> str:
    """sha256 over the files' bytes, 16 hex digits."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def precompute(
    folder: ShardFolder,
    sources: Sources,
    num_shards: int,
    columns: Sequence[str] = COLUMNS,
    *,
    rank: int = 0,
    num_processes: int = 1,
    batch_size: int = 16,
    tell: Callable[[str], None] = lambda line: None,
) -> int:
    """Writes the missing files of this process's shards; returns how many it wrote."""
    if rank == 0:
        write_null(folder, sources)
    num_written = 0
    for shard in range(rank, num_shards, num_processes):
        missing = [c for c in columns if not folder.has(c, shard, sources.digests[c])]
        if not missing:
            continue
        begun = time.monotonic()
        for column, tensors in encode_shard(folder, sources, shard, missing, batch_size).items():
            folder.write(column, shard, tensors, sources.digests[column])
            num_written += 1
        rate = folder.rows / (time.monotonic() - begun)
        tell(f"shard {shard} of {num_shards}: {', '.join(missing)}; {rate:.1f} clips/s")
    return num_written


def write_null(folder: ShardFolder, sources: Sources) -> None:
    """Features of the empty prompt, which stand in where training drops the text."""
    from training.state import write_safetensors

    folder.path.mkdir(parents=True, exist_ok=True)
    features_BTM = sources.encoders.words.encode([""])
    header = {"weights": sources.digests["text"]}
    write_safetensors(folder.path / NULL, {"text": features_BTM[0].bfloat16()}, header)


def encode_shard(
    folder: ShardFolder, sources: Sources, shard: int, columns: Sequence[str], batch_size: int
) -> dict[str, dict[str, Tensor]]:
    """All rows of a shard, by column and tensor name."""
    parts: dict[str, list[dict[str, Tensor]]] = {column: [] for column in columns}
    seeds = folder.seeds(shard)
    for start in range(seeds.start, seeds.stop, batch_size):
        numbers = range(start, min(start + batch_size, seeds.stop))
        clips = [folder.clip(n) for n in numbers]
        for column in columns:
            parts[column].append(ENCODE[column](clips, sources))
    return {
        column: {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
        for column, rows in parts.items()
    }


@torch.no_grad()
def _latents(vae: VAE, frames_BTHWC: Tensor) -> Tensor:
    """As `VAE.encode`, but whole clips at once and in bf16 products: [B, C, F, H, W] bf16."""
    model = vae.model
    assert isinstance(model, AutoencoderKLWan)
    with torch.autocast(frames_BTHWC.device.type, torch.bfloat16):
        mean = vae_whole.encode(model, to_pixels(frames_BTHWC))
    return ((mean.float() - vae.mean) / vae.std).bfloat16()


def encode_video(clips: Sequence[Clip], sources: Sources) -> dict[str, Tensor]:
    """latents [B, C, F, H, W] bf16, boxes [B, S, T, 4] px."""
    frames = torch.stack([torch.from_numpy(clip.frames) for clip in clips])
    boxes = [_padded(torch.from_numpy(clip.boxes), sources.max_subjects) for clip in clips]
    return {"latents": _latents(sources.encoders.vae, frames), "boxes": torch.stack(boxes)}


def encode_refs(clips: Sequence[Clip], sources: Sources) -> dict[str, Tensor]:
    """refs [B, S, C, H, W] bf16, num_subjects [B]."""
    counts = [len(clip.references) for clip in clips]
    pictures = torch.cat([torch.from_numpy(clip.references) for clip in clips])
    latents = _latents(sources.encoders.vae, pictures[:, None])[:, :, 0]
    refs = [_padded(of_one, sources.max_subjects) for of_one in latents.split(counts)]
    return {"refs": torch.stack(refs), "num_subjects": torch.tensor(counts)}


def encode_text(clips: Sequence[Clip], sources: Sources) -> dict[str, Tensor]:
    """text [B, T, M] and tags [B, S, M], bf16."""
    texts = [clip.caption.text for clip in clips]
    spans = [clip.caption.spans for clip in clips]
    text_BTM, tags = sources.encoders.words.encode_with_tags(texts, spans)
    padded = [_padded(tags_SM, sources.max_subjects) for tags_SM in tags]
    return {"text": text_BTM.bfloat16(), "tags": torch.stack(padded).bfloat16()}


def encode_vlm(clips: Sequence[Clip], sources: Sources) -> dict[str, Tensor]:
    """vlm [B, V, M] bf16, num_vlm [B]."""
    vlm = sources.encoders.vlm
    assert vlm is not None
    rows: Any = [
        (vlm.cut(clip.caption.text, len(clip.references)), clip.references, clip.caption.names)
        for clip in clips
    ]
    with torch.no_grad():
        tokens_BVM, real_BV = vlm_batch.tokens_batch(vlm.model, vlm.tokenizer, vlm.config, rows)
    rows_real = zip(tokens_BVM, real_BV, strict=True)
    kept = [_padded(row_VM[real_V], sources.vlm_len) for row_VM, real_V in rows_real]
    return {"vlm": torch.stack(kept).bfloat16(), "num_vlm": real_BV.sum(1)}


def _padded(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])


ENCODE: dict[str, Callable[[Sequence[Clip], Sources], dict[str, Tensor]]] = {
    "video": encode_video,
    "refs": encode_refs,
    "text": encode_text,
    "vlm": encode_vlm,
}
