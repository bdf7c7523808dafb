"""Supervised fine-tuning of the generator: rectified flow on precomputed encodings.

The recipe first encodes clips of the world into shards (skipping what is there), then trains the
DiT on them in one process or several, with sheets of held-out casts sampled by the engine itself.

Legend: B batch, C channels, F H W latents, S subjects, T frames or text tokens, V VLM tokens.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from engine import checkpoint, flow, upstream
from engine.dit import STREAM_PARAMETERS, WanDiT
from engine.pipeline import Engine
from engine.presets import MINIATURE, Preset
from engine.stream import SubjectInputs
from engine.weights import shapes
from training import dist, lora, losses
from training.data.loader import Batch, Dropout, Loader, drop_conditions
from training.data.precompute import Sources, load_sources, precompute
from training.data.shards import COLUMNS, ShardFolder, Table
from training.grid import near, origin, rounded, with_changes
from training.latent_reader import LatentReader, certainty, identity_loss, load_reader
from training.loop import Around, LoopConfig, Outcome
from training.loop import run as run_loop
from training.masked import Kept, kept_cells, kept_tokens
from training.sheets import generate, sheet

SHEET_CASES = 8
Change = tuple[Path, float]


@dataclass(frozen=True)
class DataConfig:
    """shards: folder of the table. encoders: folder with vae, text and vlm weights.

    plan: (from batch index, number of shards), see `Loader`. rows: clips per shard. first: the
    number of the first clip.
    mixed, alike: see `Loader`. still: one frame of each clip. reference: as in `sample_clip`.
    height, width, reference_size: px of the clips and of the references.
    """

    shards: Path
    encoders: Path
    plan: tuple[tuple[int, int], ...]
    rows: int = 256
    first: int = 0
    batch_size: int = 16
    mixed: bool = False
    alike: int = 1
    still: bool = False
    reference: str = "cross"
    height: int = 64
    width: int = 96
    reference_size: int = 64

    def folder(self, split: str = "train") -> ShardFolder:
        if split == "train":
            rows, path = self.rows, self.shards
        else:
            rows, path = SHEET_CASES, self.shards / split
        size = (self.height, self.width, self.reference_size)
        first = self.first if split == "train" else 0
        return ShardFolder(path, rows, split, self.reference, *size, self.still, first)


@dataclass(frozen=True)
class SftConfig:
    """region_gain: weight of errors in subjects' boxes. shift: of the training times.
    identity_gain: weight of the identity loss; reader: the file of the latent reader behind it.
    grid: steps to the root mean square of the grid on which the weights will ship; while the rate
    decays the matrices are rounded to it (`training.grid`). 0: never.
    change: spacing of the change to `base` as which the weights will ship; while the rate decays
    they are rounded to it (`engine.change`). 0: they ship whole.
    frozen: pattern of the parameters that stay as they are in `base`; "" trains all.
    draws: times and noises for each clip of a batch, which share its conditions' K and V.
    kept: share of the video's tokens that an update computes, subjects' first; while the rate
    decays all are (`training.masked`).
    base: weights to start from, with the identity stream or without; None for fresh ones.
    use_vlm_tokens: False trains without them though the model could read them (they may come
    later). lora: rank of adapters, 0: all weights.
    compile: the repeated blocks, see `compiled`.
    fsdp: parameters in slices over the processes instead of whole in each.

    Raises:
        ValueError: two of these do not go together; the message names them.
    """

    loop: LoopConfig
    data: DataConfig
    preset: Preset = MINIATURE
    dropout: Dropout = field(default_factory=Dropout)
    region_gain: float = 2.5
    identity_gain: float = 0.0
    reader: Path | None = None
    grid: int = 0
    change: float = 0.0
    frozen: str = ""
    shift: float = 1.0
    draws: int = 1
    kept: float = 1.0
    base: Path | None = None
    use_vlm_tokens: bool = True
    lora: int = 0
    compile: bool = False
    fsdp: bool = False
    num_processes: int = 1

    def __post_init__(self) -> None:
        if self.fsdp and (self.lora or self.compile or self.loop.muon_lr is not None):
            raise ValueError("fsdp goes with AdamW on all weights: no lora, compile or muon_lr")
        # One subject alone skips stage 2: then one process would gather what others do not.
        if self.fsdp and not self.data.mixed:
            raise ValueError("fsdp needs mixed batches: every process must run the same parts")
        if self.grid and (self.lora or self.fsdp):
            raise ValueError("grid goes with all weights, whole in each process: no lora or fsdp")
        if self.change and (self.grid or self.lora or self.fsdp or self.base is None):
            raise ValueError("change goes with a base, and without grid, lora or fsdp")
        if self.frozen and (self.lora or self.fsdp or self.base is None):
            raise ValueError("frozen goes with a base, and without lora or fsdp")
        if not 0 < self.kept <= 1:
            raise ValueError(f"kept is a share of the tokens, in (0, 1], not {self.kept}")
        if self.identity_gain and self.reader is None:
            raise ValueError("identity_gain needs a reader: the file of a latent reader")

    @property
    def columns(self) -> tuple[str, ...]:
        """What the model reads: without a VLM its column need not exist."""
        has_vlm = self.preset.dit.use_vlm and self.use_vlm_tokens
        return COLUMNS if has_vlm else tuple(c for c in COLUMNS if c != "vlm")

    @property
    def change_to(self) -> Change | None:
        """The base's file and the spacing of the change to it; None: the weights ship whole."""
        return (self.base, self.change) if self.change and self.base is not None else None


def subject_inputs(batch: Batch) -> SubjectInputs:
    """The identity stream's input; without VLM tokens in the batch, none."""
    has_vlm = batch.vlm_BVM.shape[1] > 0
    return SubjectInputs(
        refs_BSCHW=batch.refs_BSCHW,
        tags_BSM=batch.tags_BSM,
        subject_mask_BS=batch.subject_mask_BS,
        vlm_BVM=batch.vlm_BVM if has_vlm else None,
        vlm_mask_BV=batch.vlm_mask_BV if has_vlm else None,
    )


def velocity_loss(
    velocity: Callable[..., Tensor],
    batch: Batch,
    config: SftConfig,
    reader: LatentReader | None = None,
    share: float = 1.0,
) -> dict[str, Tensor]:
    """Rectified-flow loss of one batch with dropped conditions and weighted regions, and with a
    reader its identity loss. share: of the tokens that are computed; the others count as right."""
    factor = config.preset.vae.spatial_factor
    grid = (batch.x0_BCFHW.shape[2], batch.x0_BCFHW.shape[3], batch.x0_BCFHW.shape[4])
    weight_BFHW = losses.region_weight(
        batch.boxes_BSTX, batch.subject_mask_BS, grid, factor, config.region_gain
    )
    batch = drop_conditions(batch, config.dropout)
    batch, weight_BFHW = moved(batch, config.loop.device), weight_BFHW.to(config.loop.device)
    x0_BCFHW = batch.x0_BCFHW.repeat_interleave(config.draws, dim=0)
    x_BCFHW, t_B, target_BCFHW = losses.noised(x0_BCFHW, config.shift)
    subjects = subject_inputs(batch) if config.preset.dit.subject_layers else None
    weight_BFHW = weight_BFHW.repeat_interleave(config.draws, dim=0)
    patch = config.preset.dit.patch
    kept_BK = kept_tokens(weight_BFHW, patch, share) if share < 1 else None
    v_BCFHW = velocity(x_BCFHW, t_B, batch.text_BTM, subjects, kept_BK)
    if kept_BK is not None:
        seen_BFHW = kept_cells(kept_BK, grid, patch)
        v_BCFHW = torch.where(seen_BFHW[:, None], v_BCFHW, target_BCFHW.to(v_BCFHW.dtype))
        weight_BFHW = weight_BFHW * seen_BFHW
    loss_B = losses.flow_matching(v_BCFHW, target_BCFHW, weight_BFHW)
    told = losses.by_time(loss_B.detach(), t_B)
    if reader is not None:
        clean_BCFHW = flow.predict_x0(x_BCFHW, v_BCFHW.float(), t_B)
        boxes_BSTX, shown_BS = (
            x.repeat_interleave(config.draws, dim=0)
            for x in (batch.boxes_BSTX, batch.subject_mask_BS)
        )
        identity_B = identity_loss(reader, clean_BCFHW, x0_BCFHW, boxes_BSTX, shown_BS, factor)
        loss_B = loss_B + config.identity_gain * certainty(t_B) * identity_B
        told["loss_identity"] = identity_B.detach().mean()
    return {"loss": loss_B.mean(), **told}


def moved(batch: Batch, device: str) -> Batch:
    """The batch on a device; conditions are dropped before, where the seeded generator is."""
    return batch if device == "cpu" else Batch(*(tensor.to(device) for tensor in batch))


def build(config: SftConfig) -> WanDiT:
    """The model to train, with its starting weights, frozen but for the adapters under LoRA."""
    torch.manual_seed(config.loop.seed)
    dit = WanDiT(config.preset.dit)
    if config.base is not None:
        load_start(dit, config.base)
    if config.change_to is not None:  # a change is to a whole model; else the decay would find out
        checkpoint.check_names(dict(dit.named_parameters()), shapes(config.change_to[0]), "base")
    if config.lora:
        lora.add(dit, config.lora)
    if config.frozen:
        freeze(dit, config.frozen)
    return dit


def freeze(dit: WanDiT, pattern: str) -> None:
    """Parameters with such names learn nothing. Raises ValueError: none has, or all have."""
    frozen = [p for name, p in dit.named_parameters() if re.search(pattern, name)]
    if not 0 < len(frozen) < len(list(dit.parameters())):
        raise ValueError(f"frozen: {pattern!r} fits {len(frozen)} parameters of the model")
    for parameter in frozen:
        parameter.requires_grad_(False)


def load_start(dit: WanDiT, path: Path) -> None:
    """A whole model; or a base without any identity stream, which then starts silent.

    Raises:
        CheckpointError: naming the keys that are missing, unknown or of another shape.
    """
    tensors = checkpoint.read_tensors(path)
    if any(name.startswith(STREAM_PARAMETERS) for name in tensors):
        checkpoint.load_strict(dit, tensors, path.name)
    else:
        upstream.load_base(dit, tensors, path.name)


def train(config: SftConfig, folder: Path | None = None) -> Outcome:
    """One process's part of a run whose shards are (being) written. See `launch`."""
    dit = build(config)
    table = Table(config.data.folder(), config.columns)
    loader = Loader(
        table, config.data.batch_size, config.data.plan, config.loop.seed, config.data.mixed,
        config.data.alike,
    )  # fmt: skip
    if config.compile:
        dit = compiled(dit)
    reader = None
    if config.identity_gain and config.reader is not None:
        reader = load_reader(config.reader, config.preset.dit.latent_dim).to(config.loop.device)

    kept = Kept(config.kept)

    def loss_fn(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return velocity_loss(model, batch, config, reader, kept.share)

    group = dist.current()
    sheet = Sheet(config) if config.loop.sheet_every and group.is_first else None
    shard = partial(sharded, config=config) if config.fsdp and group.size > 1 else None
    outcome = run_loop(
        config.loop,
        dit,
        loss_fn,
        loader.batch,
        sheet_fn=sheet,
        export_fn=None if config.change else partial(export, adapters=config.lora > 0),
        folder=folder,
        shard=shard,
        around=kept.all_while(shipped_form(config)),
    )
    if config.change:  # what decayed rounded; the average of exact weights, rounded, is worse
        best = outcome.model if outcome.finished else outcome.ema
        export(best, folder or Path("runs") / config.loop.name, False, config.change_to)
    return outcome


def shipped_form(config: SftConfig) -> Around | None:
    """What the loop puts around its updates while the rate decays: the form that will ship."""
    if config.change_to is not None:
        base, spacing = config.change_to
        tensors = {n: x.to(config.loop.device) for n, x in origin(base)[1].items()}
        return partial(near, base=tensors, spacing=spacing)
    return partial(rounded, steps=config.grid) if config.grid else None


def sharded(dit: nn.Module, config: SftConfig) -> None:
    """Spreads the weights over the processes, in place."""
    dist.shard(dit, dist.large_parts(dit), config.loop.bf16)


def compiled(dit: WanDiT) -> WanDiT:
    """The same model with its repeated blocks compiled: two graphs in all per batch shape."""
    torch._dynamo.config.recompile_limit = 64
    for block in (*dit.blocks, *getattr(dit, "subject_blocks", ())):  # ablations have none
        block.compile(dynamic=False)
    return dit


@torch.no_grad()
def export(model: nn.Module, folder: Path, adapters: bool, change: Change | None = None) -> None:
    """dit.safetensors: bf16, or the file of a base with a change beside each tensor; with adapters
    both they alone and the model with them merged."""
    if adapters:
        lora.save(model, folder / "lora.safetensors")
        model = lora.merged(model)
    tensors = {name: dist.whole(tensor) for name, tensor in model.state_dict().items()}
    if not dist.current().is_first:
        return
    temporary = folder / ".dit.safetensors.tmp"
    if change is None:
        temporary.write_bytes(checkpoint.tensor_bytes(tensors))
    else:  # each entry in the precision that it has in the base's file
        temporary.write_bytes(save(with_changes(*change, tensors)))
    temporary.replace(folder / "dit.safetensors")


@dataclass
class Sheet:
    """Held-out casts sampled by the engine: references, true frames, generated frames."""

    config: SftConfig
    sources: Sources | None = None

    def __call__(self, ema: nn.Module, path: Path) -> None:
        assert isinstance(ema, WanDiT)
        sources = self._sources()
        engine = Engine(ema, sources.encoders, self.config.preset, "training")
        folder = self.config.data.folder("heldout")
        table = Table(folder, self.config.columns)
        table.extend(1)
        loader = Loader(table, SHEET_CASES, ((0, 1),), mixed=True)
        batch = loader.rows(range(SHEET_CASES))
        latents = generate(engine, batch, seeds=range(SHEET_CASES))
        clips = [folder.clip(number) for number in range(SHEET_CASES)]
        sheet(engine.decode(latents), clips).save(path)

    def _sources(self) -> Sources:
        """Encoders and the held-out shard, once."""
        if self.sources is None:
            data, columns = self.config.data, self.config.columns
            self.sources = load_sources(data.encoders, self.config.preset, columns)
            precompute(data.folder("heldout"), self.sources, 1, columns)
        return self.sources


def say(line: str) -> None:
    """A line of progress, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def precompute_part(config: SftConfig, num_shards: int) -> None:
    """This process's share of the shards; under `dist.launch` the processes divide them."""
    group = dist.current()
    sources = load_sources(config.data.encoders, config.preset, config.columns)
    precompute(
        config.data.folder(), sources, num_shards, config.columns,
        rank=group.rank, num_processes=group.size, tell=say,
    )  # fmt: skip


def run_config(
    config: SftConfig, folder: Path | None = None, *, encode: bool = True, backend: str = "gloo"
) -> None:
    """The whole recipe: shards (unless `encode` is off), then training, in its processes."""
    most = max(num for _, num in config.data.plan)
    if config.identity_gain and config.reader is not None and not config.reader.is_file():
        # Before hours of work, not after.
        raise FileNotFoundError(
            f"{config.reader} is missing: run `troupe train miniature_latent_reader` first"
        )
    if encode:
        dist.launch(partial(precompute_part, config, most), config.num_processes)
    dist.launch(partial(_train_quietly, config, folder), config.num_processes, backend)


def _train_quietly(config: SftConfig, folder: Path | None) -> None:
    train(config, folder)
