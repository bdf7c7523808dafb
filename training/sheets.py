"""Pictures of what a generator makes of precomputed conditions, through the engine's own sampler.

Legend: B batch, C channels, F H W latents, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from engine import flow
from engine.encodings import EncodingsBatch
from engine.pipeline import Engine
from engine.spec import Guidance, Reference
from engine.video import Video
from training.data.loader import Batch
from training.world.clip import Clip


def generate(engine: Engine, batch: Batch, seeds: Sequence[int]) -> Tensor:
    """Latents [B, C, F, H, W] of a batch's prompts and subjects, with the preset's defaults."""
    inputs = EncodingsBatch(
        text_BTM=batch.text_BTM,
        refs_BSCHW=batch.refs_BSCHW,
        tags_BSM=batch.tags_BSM,
        subject_mask_BS=batch.subject_mask_BS,
        vlm_BVM=batch.vlm_BVM,
        vlm_mask_BV=batch.vlm_mask_BV,
    )
    none = torch.zeros(1, 0, *batch.refs_BSCHW.shape[2:])
    negative = EncodingsBatch(
        text_BTM=batch.null_TM[None],
        refs_BSCHW=none,
        tags_BSM=torch.zeros(1, 0, batch.tags_BSM.shape[2]),
        subject_mask_BS=torch.zeros(1, 0, dtype=torch.bool),
        vlm_BVM=torch.zeros(1, 0, batch.vlm_BVM.shape[2]),
        vlm_mask_BV=torch.zeros(1, 0, dtype=torch.bool),
    )
    defaults = engine.preset.defaults
    plan = flow.schedule(defaults.solver, defaults.steps, defaults.shift)
    shape = tuple(batch.x0_BCFHW.shape[1:])
    guidance = Guidance.assumed(engine.preset, engine.readers is not None)
    device = batch.x0_BCFHW.device.type
    with torch.autocast(device, torch.bfloat16):
        return engine.sample(inputs, negative, list(seeds), shape, plan, guidance)  # type: ignore


def sheet(frames_BTHWC: Tensor, clips: Sequence[Clip], num_frames: int = 5) -> Image.Image:
    """One row per clip: its references with true frames, then the generated frames."""
    rows = []
    for clip, frames in zip(clips, frames_BTHWC.numpy(), strict=True):
        references = [
            Reference.from_image(name, Image.fromarray(picture))
            for name, picture in zip(clip.caption.names, clip.references, strict=True)
        ]
        truth = Video(clip.frames, 8).contact_sheet(references, num_frames)
        rows.append((truth, Video(frames, 8).contact_sheet((), num_frames)))
    left = max(truth.width for truth, _ in rows)
    heights = [max(truth.height, made.height) for truth, made in rows]
    page = Image.new("RGB", (left + max(made.width for _, made in rows), sum(heights)), "white")
    top = 0
    for (truth, made), height in zip(rows, heights, strict=True):
        page.paste(truth, (left - truth.width, top))
        page.paste(made, (left, top))
        top += height
    return page.resize((page.width // 2, page.height // 2), Image.Resampling.BOX)
