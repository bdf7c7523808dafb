"""Adapters that lie ready beside their base: of each only the tensors that it changes, in the
precision of the engine that serves, in host memory.

To go from one to another, or back to the base, those tensors are written over; nothing is read from
a disk, verified or multiplied. What lies there are numbers of merged folders that were verified, so
an engine with an adapter is, bit for bit, one that has loaded the merged folder.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine import swap
from engine.checkpoint import check_names
from engine.errors import BackendError
from engine.folders import DIT, Held
from engine.weights import opened, read, shapes

if TYPE_CHECKING:
    from engine.pipeline import Engine


class Resident:
    """Adapters of one base for one engine. base: the base's folder, checked (`engine.swap`)."""

    def __init__(self, base: Held) -> None:
        self.base = base.manifest.digest()
        self._view = base
        self._own: dict[str, Tensor] = {}  # the base's numbers, of what any of them changes
        self._changed: dict[str, dict[str, Tensor]] = {self.base: {}}
        self._files = {self.base: dict(base.manifest.files)}

    def __contains__(self, digest: str) -> bool:
        """Whether the base, or the model that it and an adapter make, can be had."""
        return digest in self._changed

    @property
    def num_bytes(self) -> int:
        """What all of them take."""
        kept = (self._own, *self._changed.values())
        return sum(x.numel() * x.element_size() for part in kept for x in part.values())

    def add(self, engine: Engine, merged: Held) -> None:
        """Keep what an adapter changes. May run beside a request.

        Args:
            merged: the folder that it and the base make, checked.
        """
        digest, own = merged.manifest.digest(), dict(engine.dit.named_parameters())
        check_names(dict(own), shapes(merged.view / DIT), DIT)
        changed = {}
        with opened(self._view.view / DIT) as before, opened(merged.view / DIT) as after:
            names = [set(file.keys()) for file in (before, after)]
            for name, parameter in own.items():
                pair = [
                    read(file, name, DIT, there).to(parameter.dtype)
                    for file, there in zip((before, after), names, strict=True)
                ]
                if not torch.equal(*pair):
                    self._own.setdefault(name, pair[0].clone())
                    changed[name] = pair[1].clone()
        self._view.require_unchanged()
        merged.require_unchanged()
        self._files[digest], self._changed[digest] = dict(merged.manifest.files), changed

    def keep(self, digests: Collection[str]) -> None:
        """Forget all others; the base stays."""
        for digest in self._changed.keys() - {self.base, *digests}:
            del self._changed[digest], self._files[digest]

    @torch.no_grad()
    def take(self, engine: Engine, digest: str) -> None:
        """Between two requests: from the one that the engine has now to another.

        Raises BackendError where either is none of these; then nothing was touched.
        """
        if engine.digest not in self or digest not in self:
            raise BackendError(f"{digest[:12]} does not lie ready for what is loaded")
        wanted, own = self._changed[digest], dict(engine.dit.named_parameters())
        names = self._changed[engine.digest].keys() | wanted.keys()
        swap.rename(engine, "")
        for name in names:
            own[name].copy_(wanted.get(name, self._own[name]))
        engine.files = self._files[digest]
        swap.rename(engine, digest)
