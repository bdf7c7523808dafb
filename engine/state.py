"""A run between two steps, as bytes: another process takes it on and ends in the same video.

    Engine.generate(on_state=) ─▶ DenoiseState ─ to_bytes ─▶ … ─ from_bytes ─▶ generate(resume=)

Stored is what a run has made: latents, the solver's history, counts, and in a lossy tier the
latents of its last full forwards (`engine.tiers`). What goes into it (weights, encodings, a known
clip) is there again when it goes on, and stored as digests only: an `Origin`. A state whose origin
is not that of the run at hand is refused, for it could end in other bytes.

The bytes are a safetensors file, with JSON in its metadata and therein the sha256 of all the rest.
They hold no prompt, no name and no pixel of a reference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from engine import encoder, flow
from engine.attention import NATIVE, backend_of
from engine.compile import machine
from engine.encodings import Encoded
from engine.errors import StateError
from engine.sample import Source, Step
from engine.spec import Spec
from engine.tiers import Moment, Tally

FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """Whatever decides the bits of a run's latents.

    weights: the model's digest. request, encodings: of the Spec and of what the encoders made of
    it, so of the references too. clip: of an edited video as latents and of VACE's context; empty
    without. computing: see `computing`.
    """

    weights: str
    request: str
    encodings: str
    clip: str
    computing: str


@dataclass(frozen=True, eq=False)
class DenoiseState:
    """Where a run of one request stands. Holds the run's own tensors, which nobody writes to."""

    origin: Origin
    step: Step
    tally: Tally

    def check(self, origin: Origin, shape: Sequence[int], spec: Spec) -> None:
        """Raises StateError unless it is of a run of this origin, of this request, with latents of
        this shape."""
        ours, theirs = asdict(self.origin), asdict(origin)
        others = [name for name in theirs if ours[name] != theirs[name]]
        if others:
            raise StateError(f"resume: the state is of a run with other {', '.join(others)}")
        for x in self._latents():
            if tuple(x.shape) != tuple(shape) or x.dtype != torch.float32:
                raise StateError(
                    f"resume: latents must be float32 {list(shape)}, not {x.dtype} {list(x.shape)}"
                )
        step, history = self.step, self.step.history
        if step.num_steps != spec.steps or not 0 < step.done <= spec.steps:
            raise StateError(f"resume: {step.done} of {step.num_steps} is no step of {spec.steps}")
        wanted = ((1, True), (2, True)) if spec.solver == "unipc" else ((0, False),)
        if (len(history.x0s), history.last is not None) not in wanted:
            raise StateError(f"resume: the history is not one of {spec.solver}")

    def to(self, device: torch.device) -> DenoiseState:
        """The same on another device."""
        history, moments = self.step.history, self.tally.moments
        moved = flow.History(
            tuple(x.to(device) for x in history.x0s),
            None if history.last is None else history.last.to(device),
        )
        step = self.step._replace(x=self.step.x.to(device), history=moved, x0=None)
        there = tuple(Moment(m.x_BCFHW.to(device), m.t_B.to(device)) for m in moments)
        return replace(self, step=step, tally=self.tally._replace(moments=there))

    def to_bytes(self) -> bytes:
        """As a safetensors file; a tensor that stands in several places is in it once."""
        kept: dict[int, Tensor] = {}

        def number(x: Tensor) -> int:
            kept.setdefault(id(x), x)
            return list(kept).index(id(x))

        step, tally = self.step, self.tally
        last = step.history.last
        about = {
            "format": FORMAT,
            "origin": asdict(self.origin),
            "done": step.done,
            "num_steps": step.num_steps,
            "asked": tally.asked,
            "computed": tally.computed,
            "x": number(step.x),
            "x0s": [number(x) for x in step.history.x0s],
            "last": None if last is None else number(last),
            "moments": [[number(m.x_BCFHW), float(m.t_B)] for m in tally.moments],
        }
        tensors = {str(n): x.cpu().contiguous() for n, x in enumerate(kept.values())}
        # One entry: safetensors writes several in any order, and the same state is the same bytes.
        return save(tensors, {"state": json.dumps(about | {"sha256": _digest(about, tensors)})})

    @classmethod
    def from_bytes(cls, data: bytes) -> DenoiseState:
        """What `to_bytes` wrote, on the CPU. Raises StateError if it is anything else."""
        try:
            tensors = load(data)
            about = _about(data, tensors)
            # Cloned: products may round otherwise where memory is aligned otherwise.
            kept = [tensors[str(n)].clone() for n in range(len(tensors))]
            last = None if about["last"] is None else kept[about["last"]]
            history = flow.History(tuple(kept[n] for n in about["x0s"]), last)
            moments = tuple(
                Moment(kept[n], torch.tensor([t], dtype=torch.float64)) for n, t in about["moments"]
            )
            step = Step(about["done"], about["num_steps"], kept[about["x"]], history)
            tally = Tally(about["asked"], about["computed"], moments)
            return cls(Origin(**about["origin"]), step, tally)
        except (SafetensorError, LookupError, TypeError, ValueError) as error:
            raise StateError(f"resume: these bytes are no state of a run: {error}") from error

    def _latents(self) -> list[Tensor]:
        history, moments = self.step.history, self.tally.moments
        last = [] if history.last is None else [history.last]
        return [self.step.x, *history.x0s, *last, *(moment.x_BCFHW for moment in moments)]


def _about(data: bytes, tensors: Mapping[str, Tensor]) -> Any:
    """The JSON of a state whose digest is right. Raises StateError if it is not."""
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    if about.pop("sha256") != _digest(about, tensors):
        raise StateError("resume: the state has been altered: its sha256 is another")
    if about["format"] != FORMAT:
        raise StateError(f"resume: the state is of format {about['format']}, not {FORMAT}")
    return about


def origin(
    weights: str,
    spec: Spec,
    encoded: Encoded,
    source: Source | None,
    context_BCFHW: Tensor | None,
    computing: str,
) -> Origin:
    """What a run of one request comes from; its arguments are those of the run."""
    clip: dict[str, Tensor | None] = {"context": context_BCFHW}
    if source is not None:
        clip |= {f"{source.first} x0": source.x0_BCFHW, "mask": source.mask_BCFHW}
    known = {name: x.cpu() for name, x in clip.items() if x is not None}
    return Origin(
        weights,
        _digest(spec.to_json(), {}),
        hashlib.sha256(encoder.to_bytes(encoded)).hexdigest(),
        _digest({}, known) if known else "",
        computing,
    )


def computing(dit: nn.Module, mode: str, device: torch.device) -> str:
    """How a step is computed here, as far as it changes bits: torch, the card or the processor's
    instructions (and threads), compile mode, attention kernel, precisions, this package's code."""
    on_card = device.type == "cuda"
    kernel = backend_of(device.index or 0) if on_card else NATIVE
    kinds = sorted({f"{type(w).__name__} {w.dtype}" for w in dit.parameters()})
    parts = [
        f"torch {torch.__version__}",
        machine(device).partition(" ")[2],  # without the card's number
        mode if on_card else f"{mode} {torch.get_num_threads()} threads",
        kernel,
        *kinds,
        f"code {_code()}",
    ]
    return ", ".join(parts)


@cache
def _code() -> str:
    """A release that may compute otherwise goes on from no other's states."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 of plain values and of tensors on the CPU with their names, kinds and shapes."""
    found = hashlib.sha256(json.dumps(about).encode())
    for name in sorted(tensors):
        x = tensors[name]
        found.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        found.update(x.contiguous().numpy().data)
    return found.hexdigest()
