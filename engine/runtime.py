"""How a model is placed and run, as one small value. Importable without torch.

    device=cuda:1,dtype=bf16,weights=int8,offload=encoders,compile=inductor,attention=flash3

What is left out stays as in `STANDARD`. The words are checked here, all at once; whether this
machine can do what they ask is found out when a model is loaded (`engine.placement`).
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, fields

from engine.errors import BackendError

DTYPES = ("auto", "fp32", "bf16")
WEIGHTS = ("full", "int8", "fp8")
OFFLOADS = ("none", "encoders", "group")
ENCODERS = ("local", "remote", "only")
MODES = ("eager", "inductor", "aoti", "tensorrt")
ATTENTIONS = ("auto", "native", "flash3", "flash2", "xformers", "sage")
OF_THE_DIT = ("weights", "compile", "tile", "attention")
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
TILE = re.compile(r"none|[1-9]\d{0,6}")


@dataclass(frozen=True)
class Runtime:
    """Where and how a model computes. `parse` reads what `str` writes.

    device: "cpu", "cuda" or "cuda:1"; "auto" is the first card, or the CPU where there is none.
    dtype: of the weights and of what is computed with them, see `engine.placement`; "auto" is bf16
    on a card, fp32 on a CPU.
    weights: of the DiT's large matrices: "full", as `dtype` says, or "int8" or "fp8", rounded by
    torchao and computed with in `dtype`.
    offload: "none", all models lie on the device; "encoders", text encoder and VLM lie on the CPU
    and go to the device for each use; "group", the DiT's blocks do so as well, one by one.
    encoders: "local", text encoder and VLM are loaded with the DiT; "remote", they are not, and
    encodings come from a worker that has "only" them, with the VAE (`engine.encoder`).
    compile: how a step is computed, see `engine.compile`.
    tile: the most latent cells that a tile of the VAE's decoder reads, such as "4096", see
    `engine.vae_stream`; "none" decodes whole frames.
    attention: the kernel, see `engine.attention`; "auto" is the fastest exact one.

    Raises:
        BackendError: a value is none of those that there are, or two do not go together.
    """

    device: str = "auto"
    dtype: str = "auto"
    weights: str = "full"
    offload: str = "none"
    encoders: str = "local"
    compile: str = "eager"
    tile: str = "none"
    attention: str = "auto"

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, str):
                told = f"{f.name} must be text such as {f.default!r}, not {value!r:.60}"
                raise BackendError(told)
        if not DEVICE.fullmatch(self.device):
            raise _unknown("device", self.device, ("auto", "cpu", "cuda", "cuda:1, …"))
        if not TILE.fullmatch(self.tile):
            raise _unknown("tile", self.tile, ("none", "any number of latent cells, such as 4096"))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise _unknown(name, getattr(self, name), known)
        self._check_together()

    def _check_together(self) -> None:
        if self.offload == "group" and self.compile != "eager":
            raise BackendError(f"offload=group goes with compile=eager, not {self.compile}")
        if self.weights != "full" and self.compile not in ("eager", "inductor"):
            # Packages read weights by their address, and these are pairs of tensors.
            raise BackendError(
                f"weights={self.weights} goes with compile=eager or inductor, not {self.compile}"
            )
        if self.offload == "encoders" and self.encoders == "remote":
            raise BackendError("offload=encoders moves what encoders=remote does not load")
        if self.encoders == "only":
            idle = [f.name for f in fields(self) if f.name in OF_THE_DIT and not self._is_usual(f)]
            idle += ["offload=group"] if self.offload == "group" else []
            if idle:
                raise BackendError(f"{idle[0]} means nothing with encoders=only: it loads no DiT")

    def _is_usual(self, f: Field[str]) -> bool:
        return bool(getattr(self, f.name) == f.default)

    @classmethod
    def parse(cls, text: str) -> Runtime:
        """Reads `key=value,key=value`; nothing is `STANDARD`.

        Raises:
            BackendError: a key is unknown or there twice, a pair is none, a value is unknown.
        """
        known = tuple(f.name for f in fields(cls))
        given: dict[str, str] = {}
        for pair in filter(None, (part.strip() for part in text.split(","))):
            key, sign, value = (part.strip() for part in pair.partition("="))
            if not sign:
                raise BackendError(f"{pair!r:.60} must be KEY=VALUE, as in dtype=bf16")
            if key not in known:
                raise _unknown("key", key, known)
            if key in given:
                raise BackendError(f"{key} is there twice")
            given[key] = value
        return cls(**given)

    @property
    def max_cells(self) -> int:
        """The limit of a tile, as a number; 0 is none."""
        return 0 if self.tile == "none" else int(self.tile)

    def __str__(self) -> str:
        """What differs from `STANDARD`, as `parse` reads it."""
        unusual = (f.name for f in fields(self) if not self._is_usual(f))
        return ",".join(f"{name}={getattr(self, name)}" for name in unusual)


CHOICES = {
    "dtype": DTYPES,
    "weights": WEIGHTS,
    "offload": OFFLOADS,
    "encoders": ENCODERS,
    "compile": MODES,
    "attention": ATTENTIONS,
}
STANDARD = Runtime()


def _unknown(what: str, value: str, known: tuple[str, ...]) -> BackendError:
    return BackendError(f"unknown {what} {value!r:.60}; there are {', '.join(known)}")
