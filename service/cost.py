"""What a job will take, in GPU-seconds, before any of it is done: `estimate`, a pure function.

FLOPs of the transformer in closed form, because to count them `engine.plan` needs torch: per layer
and forward 2 x (4 M^2 self-attention + 2 M^2 cross-attention + 2 M F MLP) for each video token, and
4 M for each pair of tokens in attention. All else (encoders, decoder, identity stream) is a few
parts in a hundred; like the card's speed it goes into the factor that `service.limits` learns for
each preset from jobs that have ended.

Legend: M model dim, F width of the MLP.
"""

from engine.presets import Preset
from engine.spec import Spec

FLOPS_PER_S = 4e14  # about what published systems sustain on a Hopper card, see `engine.plan`


def estimate(preset: Preset, spec: Spec) -> float:
    """GPU-seconds on that card. A lossy tier counts in full: what it skips is refunded."""
    config = preset.dit
    tokens = _tokens(preset, spec)
    dense = 2 * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)
    attention = 4 * config.dim * (tokens + config.text_len)
    layers = config.num_layers + len(config.vace_layers)
    flops = layers * tokens * (dense + attention)
    return spec.steps * _forwards(preset, spec) * flops / FLOPS_PER_S


def _tokens(preset: Preset, spec: Spec) -> int:
    """Of a forward: the video's, and references' where they are frames of it."""
    _, frames, height, width = preset.latent_shape(spec.width, spec.height, spec.num_frames)
    if preset.family != "identity":
        frames += len(spec.names)
    t, h, w = preset.dit.patch
    return (frames // t) * (height // h) * (width // w)


def _forwards(preset: Preset, spec: Spec) -> int:
    """Of a step within the interval of guidance, see `engine.families`; identity guidance takes one
    more, and a pass back through it."""
    has_subjects = spec.names and (preset.family != "identity" or preset.dit.subject_layers > 0)
    apart = has_subjects and preset.family != "vace"
    moves = 2 if spec.names and spec.guidance.identity_scale else 0
    weighed = sum(bool(apart) or name in ("full", "empty") for name in spec.guidance.weighed)
    return moves + weighed
