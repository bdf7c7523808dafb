"""What a run must remember to go on exactly: weights, EMA, optimizer moments, and a position.

One file, replaced atomically: tensors as safetensors, the position as JSON in its header, so a
kill at any moment leaves either the old state or the new one. There is no random state and no
loader position to keep, because every draw of a run is a function of (seed, batch index).
Frozen parameters are not state: the recipe that froze them loads them again.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.dist import local
from training.optim import OptimConfig, Optimizer


@dataclass
class Position:
    """step: updates done. decay_*: where the final decay of the learning rate began, if it did."""

    step: int = 0
    elapsed_s: float = 0.0
    decay_start: int | None = None
    decay_steps: int = 0


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters (tied ones once) and persistent buffers, by name; views, not copies."""
    tensors: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    kept = model.state_dict(keep_vars=True)
    tensors.update({n: b for n, b in model.named_buffers() if n in kept})
    return {name: tensor.detach() for name, tensor in tensors.items()}


@dataclass
class TrainState:
    """The live objects of a run; `save` and `resume` move them to and from one file."""

    model: nn.Module
    ema: nn.Module
    optimizer: Optimizer
    position: Position = field(default_factory=Position)

    @classmethod
    def begin(
        cls,
        model: nn.Module,
        config: OptimConfig,
        shard: Callable[[nn.Module], object] | None = None,
    ) -> TrainState:
        """`shard` spreads model and EMA over the processes; a sharded module cannot be copied."""
        ema = copy.deepcopy(model).eval().requires_grad_(False)
        if shard is not None:
            shard(model)
            shard(ema)
        return cls(model, ema, Optimizer(model, config))

    def _ema_tensors(self) -> dict[str, Tensor]:
        everything = self.ema.state_dict()
        return {name: everything[name] for name in trained_tensors(self.model)}

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """ema <- decay * ema + (1 - decay) * model, slower decay at the start (1+n)/(10+n)."""
        step = self.position.step
        weight = 1 - min(decay, (1 + step) / (10 + step))
        source = trained_tensors(self.model)
        target = self._ema_tensors()
        moving = [n for n, tensor in source.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([target[n] for n in moving], [source[n] for n in moving], weight)
        for name in source.keys() - set(moving):
            target[name].copy_(source[name])

    def save(self, path: Path) -> None:
        """Write to a temporary name in the same folder, flush to disk, rename over `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = _prefixed("model", trained_tensors(self.model))
        tensors |= _prefixed("ema", self._ema_tensors())
        tensors |= _prefixed("optimizer", self.optimizer.state_tensors())
        header = {"position": json.dumps(asdict(self.position))}
        write_safetensors(path, tensors, header)

    @torch.no_grad()
    def resume(self, path: Path) -> bool:
        """Load `path` into the live objects; False when there is no such file."""
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as file:
            self.position = Position(**json.loads(file.metadata()["position"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _fill(trained_tensors(self.model), _under("model", tensors), path)
        _fill(self._ema_tensors(), _under("ema", tensors), path)
        self.optimizer.load_state_tensors(_under("optimizer", tensors))
        return True


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None
) -> None:
    """safetensors file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    slices = {name: local(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}
    save_file(slices, temporary, metadata=header)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def _fill(live: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    if live.keys() != saved.keys():
        odd = sorted(live.keys() ^ saved.keys())[:5]
        raise ValueError(f"{path} is the state of another model: {odd} are not in both")
    for name, tensor in live.items():
        mine = local(tensor)
        if mine.shape != saved[name].shape:
            raise ValueError(f"{path}: {name} is {saved[name].shape}, not {tuple(mine.shape)}")
        mine.copy_(saved[name])
