"""Recipe `miniature_vae`: the Wan VAE, trained from scratch on the world's clips and pictures.

Loss: weighted L1 of pixels, of their slopes in x, y and t, and of colour differences (grey comes
first and colour late without them), the characters counting three times the background, plus
2e-3 * mean^2 on the latents. The posterior is not sampled: small noise
is added to its mean instead (sampling with std 1 from the start stalled in a prototype).

Legend: B clips, C channels, T frames, H W pixels; pixels in [-1, 1].
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.presets import MINIATURE, VAEConfig
from training import vae_whole
from training.latents import basis, fold, moments, pixel_metric
from training.loop import LoopConfig, Outcome
from training.loop import run as run_loop
from training.world.clip import Clip, sample_clip

CROP = 64
CLIPS_PER_BATCH = 2
PICTURES_PER_BATCH = 2
LATENT_NOISE = 0.05
SUBJECT_WEIGHT = 3.0
METRIC_CLIPS = 6
CONFIG = LoopConfig(
    name="miniature_vae",
    minutes=34,
    lr=3e-3,
    muon_lr=0.02,
    # Muon for the first and last convolutions too: under AdamW their smallest singular directions
    # starve, and one of the three colour axes is not learned for hundreds of steps.
    not_hidden="^$",
    warmup=20,
    ema=0.995,
    sheet_every=150,
    prefetch=1,
)


def build(config: VAEConfig) -> AutoencoderKLWan:
    """A fresh AutoencoderKLWan; latents are normalised only at export, from measured statistics."""
    unit = {"latents_mean": [0.0] * config.z_dim, "latents_std": [1.0] * config.z_dim}
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return AutoencoderKLWan(**arguments, **unit)


def to_pixels(frames: np.ndarray) -> Tensor:
    """uint8 [..., T, H, W, 3] -> float [..., 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -4).float() / 127.5 - 1.0


def batch_fn(index: int) -> dict[str, Tensor]:
    """Two cropped clips with their weights, and two reference pictures as one-frame clips."""
    rng = np.random.default_rng((index, 41))
    seeds = (index * CLIPS_PER_BATCH + i for i in range(CLIPS_PER_BATCH))
    clips = [sample_clip(seed) for seed in seeds]
    crops = [_crop(clip, int(rng.integers(clip.frames.shape[2] - CROP + 1))) for clip in clips]
    pictures = np.concatenate([clip.references for clip in clips])
    chosen = pictures[rng.integers(len(pictures), size=PICTURES_PER_BATCH)]
    return {
        "clips": torch.stack([frames for frames, _ in crops]),
        "weights": torch.stack([weight for _, weight in crops]),
        "pictures": to_pixels(chosen[:, None]),
    }


def _crop(clip: Clip, left: int) -> tuple[Tensor, Tensor]:
    """A CROP-wide column of the clip and its weight map [1, T, H, W] with mean 1."""
    num_frames, height, width = clip.frames.shape[:3]
    weight = torch.ones(1, num_frames, height, width)
    for t in range(num_frames):
        for x0, y0, x1, y1 in np.rint(clip.boxes[:, t]).astype(int):
            weight[0, t, y0:y1, x0:x1] = SUBJECT_WEIGHT
    weight = weight[..., left : left + CROP]
    return to_pixels(clip.frames[:, :, left : left + CROP]), weight / weight.mean()


def _round_trip(vae: AutoencoderKLWan, x_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    z = vae_whole.encode(vae, x_BCTHW)
    return vae_whole.decode(vae, z + LATENT_NOISE * torch.randn_like(z)), z


_compiled_round_trip = torch.compile(_round_trip)


def reconstruction_loss(y_BCTHW: Tensor, x_BCTHW: Tensor, weight_B1THW: Tensor) -> Tensor:
    """Weighted L1 of values, of colour differences, and of slopes along t, y, x (half weight)."""
    error = y_BCTHW.float() - x_BCTHW
    red, green, blue = error.unbind(1)
    chroma = (red - green).abs() + (blue - (red + green) / 2).abs()
    total = (weight_B1THW * error.abs()).mean() + 0.25 * (weight_B1THW[:, 0] * chroma).mean()
    for dim in (2, 3, 4):
        if error.shape[dim] > 1:
            slope = error.diff(dim=dim).abs()
            total = total + 0.5 * (weight_B1THW.narrow(dim, 1, slope.shape[dim]) * slope).mean()
    return total


def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    assert isinstance(model, AutoencoderKLWan)
    video, z = _compiled_round_trip(model, batch["clips"])
    # In fp32: oneDNN's bf16 weight gradient is NaN on AMX for one-frame inputs (torch 2.13).
    with torch.autocast("cpu", enabled=False):
        picture, z_picture = _round_trip(model, batch["pictures"])
    of_video = reconstruction_loss(video, batch["clips"], batch["weights"])
    of_picture = reconstruction_loss(picture, batch["pictures"], torch.ones_like(picture[:, :1]))
    size = z.float().square().mean() + 0.2 * z_picture.float().square().mean()
    return {
        "loss": of_video + 0.3 * of_picture + 2e-3 * size,
        "psnr_video": psnr(video.detach(), batch["clips"]),
        "psnr_picture": psnr(picture.detach(), batch["pictures"]),
        "latent_square": size.detach(),
    }


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """Peak signal to noise in dB for pixels in [-1, 1]."""
    return -10 * torch.log10((y.float().clamp(-1, 1) - x).square().mean() / 4)


def sheet_fn(model: nn.Module, path: Path) -> None:
    """Held-out clips over their reconstructions: every fourth frame, then the references."""
    assert isinstance(model, AutoencoderKLWan)
    rows = []
    for seed in range(5):
        clip = sample_clip(seed, split="heldout", num_subjects=1 + seed % 4)
        x = to_pixels(clip.frames)[None]
        with torch.autocast("cpu", torch.bfloat16):
            y = vae_whole.decode(model, vae_whole.encode(model, x)).float()
            refs = to_pixels(clip.references[:, None])
            refs_y = vae_whole.decode(model, vae_whole.encode(model, refs)).float()
        rows += [_row(x, refs), _row(y, refs_y)]
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(path)


def _row(x_BCTHW: Tensor, refs_SCTHW: Tensor) -> np.ndarray:
    frames = [x_BCTHW[0, :, t] for t in range(0, x_BCTHW.shape[2], 4)]
    pictures = list(refs_SCTHW[:, :, 0])
    blank = torch.full((3, CROP, CROP), -1.0)
    row = torch.cat(frames + pictures + [blank] * (4 - len(pictures)), dim=2)
    return ((row.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def export_fn(model: nn.Module, folder: Path) -> None:
    """Weights in bf16 with the latents in the basis of `training.latents`, measured on 48 clips."""
    assert isinstance(model, AutoencoderKLWan)
    encoded, metrics = [], []
    for seed in range(48):
        clip = sample_clip(seed)
        for pixels in (clip.frames, clip.references[:1]):
            encoded.append(z := vae_whole.encode(model, to_pixels(pixels)[None]))
            if seed < METRIC_CLIPS:
                metrics.append(pixel_metric(partial(vae_whole.decode, model), z, seed=seed))
    mean, covariance = moments(encoded)
    tensors = {name: p.to(torch.bfloat16).contiguous() for name, p in model.state_dict().items()}
    tensors = fold(tensors, mean, basis(torch.stack(metrics).sum(0), covariance))
    num = len(mean)
    tensors["latents_mean"], tensors["latents_std"] = torch.zeros(num), torch.ones(num)
    save_file(tensors, folder / "vae.safetensors")


def run() -> Outcome:
    """Trains, resumes, exports runs/miniature_vae/vae.safetensors."""
    torch.manual_seed(CONFIG.seed)
    model: Any = build(MINIATURE.vae)  # a module, which diffusers' types do not say
    return run_loop(CONFIG, model, loss_fn, batch_fn,
                    sheet_fn=sheet_fn, export_fn=export_fn)
