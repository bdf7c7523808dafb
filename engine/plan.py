"""What a request costs, before anybody rents a GPU: FLOPs, memory and seconds of every stage.

What can be counted is counted, not modelled: the engine's own modules are built on meta tensors
(shapes without contents) and run once for each kind of work, while a meter adds up FLOPs (2 per
multiply-add) and the bytes alive. Seconds are not: they follow from rates that published systems
reach.

Memory is that of eager execution in bf16 (the VAE: fp32), with an attention kernel that never holds
all scores; what of the weights is on the card meanwhile is `engine.memory`'s to say.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from engine import families, flow
from engine.dit import WanDiT
from engine.encodings import EncodingsBatch
from engine.errors import BackendError
from engine.memory import footprint, work_here
from engine.meter import Cost, metered
from engine.plan_vlm import read, vlm_tokens
from engine.presets import Preset
from engine.runtime import STANDARD, Runtime
from engine.spec import Guidance, Spec
from engine.text import build_text_model
from engine.vace import build_dit
from engine.vae import VAE, build_vae
from engine.vae_stream import TURN, grid, reach, work
from engine.vlm import SPECIALS, build_vlm

TERA = 1e12
TILES = (8192, 4096, 2048)  # latent cells


@dataclass(frozen=True)
class Card:
    """A GPU. tflops: dense bf16, as its maker says, in 1e12 / s; memory in 1e9 bytes."""

    name: str
    tflops: float
    memory_gb: float


CARDS = {
    card.name: card
    for card in (
        Card("h200", 989, 141),
        Card("h100", 989, 80),
        Card("a100", 312, 80),
        Card("h20", 148, 96),
        Card("l40s", 362, 48),
        Card("rtx-5090", 210, 32),
        Card("rtx-4090", 165, 24),
        Card("l4", 121, 24),
    )
}
# Shares of the maker's figure. Large products on an H200 were measured at 790 of 989: no program
# is faster. Wan 1.3B at 480p in published systems sustains 460 to 545 (58 s LightX2V, 61.6 s
# SGLang, 52 s FlashDreams), Wan's VAE decoder 97 to 147 (SGLang pull requests 27875, 38650).
FLOOR_SHARE, PRODUCT_SHARE, CONVOLUTION_SHARE = 0.8, 0.5, 0.106


def seconds(cost: Cost, card: Card) -> float:
    """Expected time of one run."""
    slow = cost.flops["convolution"]
    rate = card.tflops * TERA
    return (cost.total - slow) / (PRODUCT_SHARE * rate) + slow / (CONVOLUTION_SHARE * rate)


@dataclass(frozen=True)
class Stage:
    """A kind of work and how often a request does it."""

    name: str
    runs: int
    cost: Cost

    @property
    def flops(self) -> float:
        return self.runs * self.cost.total

    def seconds(self, card: Card) -> float:
        """Expected time of all runs."""
        return self.runs * seconds(self.cost, card)


@dataclass(frozen=True)
class Decoding:
    """A way to decode. work: how often the decoder reads each latent cell, on the mean."""

    name: str
    peak_bytes: int
    work: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What a request takes. weights: bytes of each model; memory: bytes on the card at once under
    each of `RUNTIMES` and the runtime asked for, by its words; options: the number of forwards
    (full, empty, image) of each kind of guidance; decodings: ways to decode, the engine's own too.
    """

    preset: str
    card: Card
    stages: tuple[Stage, ...]
    weights: dict[str, int]
    memory: dict[str, int]
    options: dict[str, tuple[int, int, int]]
    decodings: tuple[Decoding, ...]

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    @property
    def floor_s(self) -> float:
        """No program on this card is faster."""
        return self.flops / (FLOOR_SHARE * self.card.tflops * TERA)

    @property
    def expected_s(self) -> float:
        return sum(stage.seconds(self.card) for stage in self.stages)


ENCODER_STAGES = ("prompts: text encoder", "prompt and pictures: VLM")
RUNTIMES = (
    "offload=none",
    "offload=encoders",
    "weights=int8,offload=encoders",
    "offload=group",
    "weights=int8,offload=group",
)


def plan(preset: Preset, spec: Spec, card: Card, runtime: Runtime = STANDARD) -> Plan:
    """Counts a whole request; its prompt and names say only how many subjects there are.

    Args:
        runtime: one to count memory for beside `RUNTIMES`, as all is counted: eager, and in bf16
            unless it says fp32. A card that its device names is this one.

    Raises:
        SpecError: the preset cannot serve such a request; the message names the field.
        BackendError: the runtime is for a CPU, or its tiles are too small for the decoder.
    """
    spec.validate(preset.limits)
    if runtime.device == "cpu":
        raise BackendError(f"device=cpu is not the card that is planned for, {card.name}")
    return _counted(preset, spec, card, TILES, runtime)


def _counted(
    preset: Preset, spec: Spec, card: Card, tiles: tuple[int, ...], runtime: Runtime = STANDARD
) -> Plan:
    with torch.device("meta"):
        dit = build_dit(preset.dit).bfloat16()
        text = build_text_model(preset.text).bfloat16()
        vae = _vae(preset)
        vlm = build_vlm(preset.vlm, _token_ids()).bfloat16() if preset.dit.use_vlm else None
    models = {"dit": dit, "text": text, "vae": vae.model} | ({} if vlm is None else {"vlm": vlm})
    tables = {name: dict(model.named_parameters()) for name, model in models.items()}
    weights = {name: sum(p.nbytes for p in table.values()) for name, table in tables.items()}
    options = {mode: forwards(preset, spec, mode) for mode in ("off", "single", "dual")}
    runs = options["off" if spec.guidance.is_off else spec.guidance.mode]
    stages = _encoding(preset, spec, text, vae, vlm)
    stages += _denoising(preset, spec, dit, runs)
    shape = preset.latent_shape(spec.width, spec.height, spec.num_frames)
    stages.append(Stage("video: VAE decoder", 1, decoding(vae, shape)))
    if runtime.max_cells:
        grid(*shape[2:], reach(vae.config), runtime.max_cells)
        tiles = tuple(sorted({*tiles, runtime.max_cells}, reverse=True))
    ways = decodings(vae, shape, tiles)
    memory = {}
    for each in (*map(Runtime.parse, RUNTIMES), runtime):
        itemsize = 4 if each.dtype == "fp32" else 2
        work = work_here(_work(stages, ways, each.tile), each, itemsize)
        memory[str(each) or RUNTIMES[0]] = footprint(tables, each, itemsize).peak(work)
    return Plan(preset.name, card, tuple(stages), weights, memory, options, ways)


def work_of(preset: Preset, tile: str = "none") -> list[tuple[str, int]]:
    """The model at work and the bytes of its work, of each stage of the preset's default video with
    as many subjects as it takes, decoded in such tiles. Where limits forbid the default, the
    largest that they allow below it counts."""
    names = tuple(f"s{number}" for number in range(preset.limits.max_subjects))
    spec = Spec.of(preset, " ".join(f"@{name}" for name in names) or "a place", names)
    spec = replace(spec, **_allowed(preset))
    tiles = () if tile == "none" else (int(tile),)
    found = _counted(preset, spec, next(iter(CARDS.values())), tiles)
    return _work(found.stages, found.decodings, tile)


def _work(
    stages: Sequence[Stage], ways: Sequence[Decoding], tile: str
) -> list[tuple[str, int]]:
    """The model at work and the bytes of its work, decoded in such tiles; one that holds the whole
    frame is no other way to decode."""
    tiled = {way.name: way.peak_bytes for way in ways}
    *found, (vae, whole) = [(_model(stage), stage.cost.peak_bytes) for stage in stages]
    return [*found, (vae, tiled.get(f"tile={tile}", whole))]


def _allowed(preset: Preset) -> dict[str, Any]:
    """Width, height and frames of the default video, no larger than the limits say."""
    limits, usual = preset.limits, preset.defaults
    step = limits.size_multiple
    low = -(-limits.min_side // step) * step
    widths, heights = (
        range(low, max(low, min(side, limits.max_side)) + 1, step)
        for side in (usual.width, usual.height)
    )
    sizes = [(w, h) for w in widths for h in heights if w * h <= limits.max_pixels]
    width, height = max(sizes, key=math.prod, default=(low, low))
    frames = min(usual.num_frames, limits.max_frames)
    frames = max(frames - (frames - 1) % 4, limits.min_frames + (1 - limits.min_frames) % 4)
    return {"width": width, "height": height, "num_frames": frames}


def _model(stage: Stage) -> str:
    """The one whose weights a stage needs."""
    if stage.name in ENCODER_STAGES:
        return ("text", "vlm")[ENCODER_STAGES.index(stage.name)]
    return "vae" if "VAE" in stage.name else "dit"


def forwards(preset: Preset, spec: Spec, mode: str) -> tuple[int, int, int]:
    """How many forwards see everything, no pictures, and pictures only, over all steps."""
    table = flow.schedule(spec.solver, spec.steps, preset.defaults.shift)
    inside = sum(spec.guidance.covers(float(t)) for t in table.door[: spec.steps])
    apart = _has_subjects(preset, spec) and preset.family != "vace"
    alone = inside if apart and mode == "dual" else 0
    # The prompt without pictures costs what the negative prompt does.
    twice = apart and mode == "single" and spec.guidance.subject_scale > 0
    return spec.steps, 0 if mode == "off" else inside * (1 + twice), alone


def _vae(preset: Preset) -> VAE:
    config = preset.vae
    statistic = torch.empty(config.z_dim)
    return VAE(build_vae(config), statistic, statistic, config)


def _token_ids() -> dict[str, int]:
    return {name: number for number, name in enumerate(SPECIALS)}


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _stage(name: str, runs: int, work: Callable[[], object], held: int = 0) -> list[Stage]:
    """The stage, or nothing where the request has no such work. held: bytes of its inputs."""
    if not runs:
        return []
    cost = metered(work)
    return [Stage(name, runs, replace(cost, peak_bytes=cost.peak_bytes + held))]


def _encoding(preset: Preset, spec: Spec, text: Any, vae: VAE, vlm: Any) -> list[Stage]:
    """Everything that is done once: none of it on a warm cache."""
    width, height = preset.reference_size(spec.width, spec.height)
    num = len(spec.names)
    ids = torch.zeros(1, preset.text.text_len, dtype=torch.long, device="meta")
    picture = _meta(1, 3, 1, height, width, dtype=torch.float32)
    stages = _stage(ENCODER_STAGES[0], 2, lambda: text(ids))
    seeing = int(vlm is not None and num > 0)
    stages += _stage(ENCODER_STAGES[1], seeing, lambda: read(vlm, preset.vlm, num, height, width))
    stages += _stage("pictures: VAE encoder", num, lambda: vae.encode(picture))
    if preset.family == "vace":
        # What stays and what is made anew, each a whole video.
        shape = 1, 3, spec.num_frames, spec.height, spec.width
        video = _meta(*shape, dtype=torch.float32)
        stages += _stage("context: VAE encoder", 2, lambda: vae.encode(video))
    return stages


def _denoising(
    preset: Preset, spec: Spec, dit: WanDiT, runs: tuple[int, int, int]
) -> list[Stage]:
    batch = _encodings(preset, spec)
    negative = _encodings(preset, replace(spec, names=()))
    words = negative.text_BTM
    context = _context(preset, spec)
    given = preset.family, dit, batch, negative
    found = families.conditions(*given, Guidance("dual"), context)
    full, empty = found.full, found.empty
    assert empty is not None
    channels, frames, *sides = preset.latent_shape(spec.width, spec.height, spec.num_frames)
    frames += families.num_leading(preset.family, len(spec.names))
    x, t = _meta(1, channels, frames, *sides, dtype=torch.float32), _meta(1, dtype=torch.float64)
    held = sum(x.nbytes for x in tree_leaves((full, empty)) if isinstance(x, Tensor))
    num_full, num_empty, num_image = runs
    seen = "prompt and subjects" if _has_subjects(preset, spec) else "prompt"
    alone = Guidance(scale=1.0)
    denoising = _stage(f"denoising: {seen}", num_full, lambda: dit.denoise(x, t, full), held)
    stages = [
        *_stage(
            f"K and V: {seen}",
            1,
            lambda: families.conditions(*given, alone, context),
        ),
        *_stage("K and V: negative prompt", min(1, num_empty), lambda: dit.text_kv(words)),
        *denoising,
    ]
    if num_image:
        # The same forward as the one that sees all: only the contents of the text differ.
        stages.append(Stage("denoising: subjects alone", num_image, denoising[0].cost))
    return stages + _stage(
        "denoising: negative prompt", num_empty, lambda: dit.denoise(x, t, empty), held
    )


def _has_subjects(preset: Preset, spec: Spec) -> bool:
    return bool(spec.names) and (preset.family != "identity" or preset.dit.subject_layers > 0)


def _context(preset: Preset, spec: Spec) -> Tensor | None:
    """VACE's context without contents."""
    if preset.family != "vace":
        return None
    _, frames, *sides = preset.latent_shape(spec.width, spec.height, spec.num_frames)
    return _meta(1, preset.dit.vace_in_dim, frames + len(spec.names), *sides)


def _encodings(preset: Preset, spec: Spec) -> EncodingsBatch:
    """Encodings without contents, of the request's shapes."""
    config = preset.dit
    num = len(spec.names) if _has_subjects(preset, spec) else 0
    width, height = preset.reference_size(spec.width, spec.height)
    num_vlm = vlm_tokens(preset.vlm, num, height, width) if num and config.use_vlm else 0
    channels, _, rows, columns = preset.latent_shape(width, height, num_frames=1)
    return EncodingsBatch(
        text_BTM=_meta(1, config.text_len, config.text_dim),
        refs_BSCHW=_meta(1, num, channels, rows, columns),
        tags_BSM=_meta(1, num, config.text_dim),
        # What is real is asked of the masks, so these have contents.
        subject_mask_BS=torch.ones(1, num, dtype=torch.bool),
        vlm_BVM=_meta(1, num_vlm, config.vlm_dim),
        vlm_mask_BV=torch.ones(1, num_vlm, dtype=torch.bool),
    )


def decoding(vae: VAE, shape: tuple[int, int, int, int]) -> Cost:
    """A stream of latents [C, F, H, W], counted for up to four latent frames: from the third on
    each computes the same, and holds no more than the one before it."""
    channels, num, *sides = shape

    def decode(frames: int) -> Cost:
        z = _meta(1, channels, frames, *sides, dtype=torch.float32)
        return metered(lambda: deque(vae.stream(z), maxlen=0))

    if num <= 4:
        return decode(num)
    three, four = decode(3), decode(4)
    each = {kind: four.flops[kind] - three.flops[kind] for kind in four.flops}
    flops = Counter({kind: three.flops[kind] + (num - 3) * each[kind] for kind in each})
    return Cost(flops, four.peak_bytes)


def decodings(
    vae: VAE, shape: tuple[int, int, int, int], limits: tuple[int, ...] = TILES
) -> tuple[Decoding, ...]:
    """The whole video at once, the stream, and the stream in tiles of at most so many cells, from
    the largest limit to the smallest."""
    channels, num, height, width = shape
    frames = 1 + vae.config.temporal_factor * (num - 1)
    streamed = decoding(vae, shape).peak_bytes
    # fp32 pixels of the whole video stay, and are there twice while they are joined.
    picture = 4 * 3 * height * width * vae.config.spatial_factor**2
    found = [
        Decoding("whole", max(streamed + frames * picture, 2 * frames * picture)),
        Decoding("stream", streamed),
    ]
    for max_cells in limits:
        try:
            tiles = grid(height, width, reach(vae.config), max_cells)
        except BackendError:
            break
        if len(tiles) == 1:
            continue
        sides = max(((a.stop - a.start, b.stop - b.start) for a, b in tiles), key=math.prod)
        # One tile at work; of the whole frame, features and pixels of a turn.
        features = 4 * vae.model.decoder.conv_in.out_channels * height * width
        held = TURN * (features + vae.config.temporal_factor * picture)
        peak = decoding(vae, (channels, num, *sides)).peak_bytes + held
        found.append(Decoding(f"tile={max_cells}", peak, work(tiles) / (height * width)))
    return tuple(found)
