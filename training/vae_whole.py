"""The Wan VAE over a whole clip at once, for training: the same maths as its chunked passes.

diffusers' `AutoencoderKLWan` encodes 1 + 4 + 4 + … frames and decodes latent frame by latent frame
with a cache of past features, which is right for long videos and wasteful for 17 frames. Causal
convolutions over the whole clip give the same numbers; only temporal resampling needs care:
- downsample: the first frame passes, windows (0,1,2), (2,3,4), … are convolved with stride 2;
- upsample: the first latent frame passes, the later ones see zeros before them, not the first.
`decode` does not clamp: upstream clamps to [-1, 1] inside, where gradients would die.

Legend: B batch, C channels, T frames, H W height, width. Tensors are channels_last_3d.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from torch import Tensor, nn

_MIN_CHANNELS = 16


def encode(vae: Any, x_BCTHW: Tensor) -> Tensor:
    """Posterior mean of an AutoencoderKLWan, not normalised: [B, 3, 1+4n, H, W] in [-1, 1] ->
    [B, z, 1+n, H/s, W/s]."""
    net = vae.encoder
    x = _conv(net.conv_in, x_BCTHW.contiguous(memory_format=torch.channels_last_3d))
    for block in net.down_blocks:
        x = _down(block, x)
    x = _conv(net.conv_out, F.silu(_norm(net.norm_out, _mid(net.mid_block, x))))
    return _conv(vae.quant_conv, x)[:, : vae.config.z_dim]


def decode(vae: Any, z_BCTHW: Tensor) -> Tensor:
    """Pixels, not clamped: the inverse shapes of `encode`."""
    net = vae.decoder
    z = z_BCTHW.contiguous(memory_format=torch.channels_last_3d)
    x = _mid(net.mid_block, _conv(net.conv_in, _conv(vae.post_quant_conv, z)))
    for block in net.up_blocks:
        x = _up(block, x)
    return _conv(net.conv_out, F.silu(_norm(net.norm_out, x)))


def _down(block: Any, x: Tensor) -> Tensor:
    y = x
    for resnet in block.resnets:
        y = _residual(resnet, y)
    if block.downsampler is not None:
        y = _downsample(block.downsampler, y)
    return y + block.avg_shortcut(x)


def _up(block: Any, x: Tensor) -> Tensor:
    y = x
    for resnet in block.resnets:
        y = _residual(resnet, y)
    if block.upsampler is not None:
        y = _upsample(block.upsampler, y)
    return y if block.avg_shortcut is None else y + block.avg_shortcut(x, first_chunk=True)


def _mid(block: Any, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, _attention(attention, x))
    return x


def _residual(block: wan.WanResidualBlock, x: Tensor) -> Tensor:
    shortcut = x if isinstance(block.conv_shortcut, nn.Identity) else _conv(block.conv_shortcut, x)
    y = _conv(block.conv1, F.silu(_norm(block.norm1, x)))
    return shortcut + _conv(block.conv2, F.silu(_norm(block.norm2, y)))


def _norm(norm: wan.WanRMS_norm, x: Tensor) -> Tensor:
    scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-12)
    return (x * scale * norm.gamma).to(x.dtype)


def _attention(block: wan.WanAttentionBlock, x: Tensor) -> Tensor:
    """Single-head attention within each frame."""
    b, c, t, h, w = x.shape
    rows = _norm_rows(block.norm, x.permute(0, 2, 3, 4, 1).reshape(b * t, h * w, c))
    qkv = F.linear(rows, block.to_qkv.weight.flatten(1), block.to_qkv.bias)
    q, k, v = (part.unsqueeze(1) for part in qkv.chunk(3, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v).squeeze(1)
    y = F.linear(y, block.proj.weight.flatten(1), block.proj.bias)
    return x + y.view(b, t, h, w, c).permute(0, 4, 1, 2, 3)


def _norm_rows(norm: wan.WanRMS_norm, rows: Tensor) -> Tensor:
    scale = torch.rsqrt(rows.float().square().mean(-1, keepdim=True) + 1e-12)
    return (rows * scale * norm.gamma.flatten()).to(rows.dtype)


def _downsample(block: Any, x: Tensor) -> Tensor:
    y = _per_frame(block.resample[1], F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
    if block.mode == "downsample2d" or y.shape[2] == 1:
        return y
    conv = block.time_conv
    later = F.conv3d(y, conv.weight, conv.bias, stride=conv.stride)
    return torch.cat([y[:, :, :1], later.to(y.dtype)], dim=2)


def _upsample(block: Any, x: Tensor) -> Tensor:
    if block.mode == "upsample3d" and x.shape[2] > 1:
        later = _conv(block.time_conv, x[:, :, 1:])
        b, c, t, h, w = later.shape
        later = later.view(b, 2, c // 2, t, h, w).permute(0, 2, 3, 1, 4, 5)
        x = torch.cat([x[:, :, :1], later.reshape(b, c // 2, 2 * t, h, w)], dim=2)
    x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    return _per_frame(block.resample[1], x, stride=1, padding=1)


def _per_frame(conv: nn.Conv2d, x: Tensor, stride: int, padding: int) -> Tensor:
    """A 2-D convolution of every frame, as a 3-D one with a depth of 1: no reshuffling."""
    x = x.contiguous(memory_format=torch.channels_last_3d)
    weight = conv.weight.unsqueeze(2)
    return F.conv3d(x, weight, conv.bias, (1, stride, stride), (0, padding, padding))


def _conv(conv: wan.WanCausalConv3d, x: Tensor) -> Tensor:
    """Causal 3-D convolution.

    Pointwise ones run as matrix products and few-channel ones are widened with zeros: oneDNN's
    bf16 backward on AMX corrupts the heap for both (seen with torch 2.13), and this is faster.
    """
    if conv.kernel_size == (1, 1, 1):
        y = F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias)
        return y.movedim(-1, 1)
    weight, bias = conv.weight, cast(Tensor, conv.bias)
    missing_in = max(_MIN_CHANNELS - conv.in_channels, 0)
    missing_out = max(_MIN_CHANNELS - conv.out_channels, 0)
    if missing_in or missing_out:
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing_in, 0, missing_out))
        bias = F.pad(bias, (0, missing_out))
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing_in))
    depth, height, width = conv.kernel_size
    x = F.pad(x, (width // 2, width // 2, height // 2, height // 2, depth - 1, 0))
    x = x.contiguous(memory_format=torch.channels_last_3d)
    y = F.conv3d(x, weight, bias)
    return y[:, : conv.out_channels] if missing_out else y
