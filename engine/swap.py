"""Other weights in a running engine, between two requests: over the same tensors, one after the
other, so that the peak is the weights and one file.

    checked     every file verified and held; names, shapes and numbers of the transformer's file
                looked at; so far nothing is touched, and requests may run
    take        one tensor after the other, of the very handles that were verified; meanwhile the
                engine has no digest

Whether it makes the publisher's pictures afterwards, `engine.golden` tells.

What stands beside the transformer stays, and must be the same files; so encodings stay right, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from engine import folders
from engine.checkpoint import check_names
from engine.encoder import needed_files
from engine.errors import BackendError
from engine.folders import DIT
from engine.weights import check_finite, opened, read, refill, shapes

if TYPE_CHECKING:
    from engine.pipeline import Engine


@contextmanager
def checked(
    engine: Engine, folder: Path, heed: folders.Heed = lambda: None
) -> Iterator[folders.Held]:
    """A folder whose weights an engine can take over, held until they are, so that it need not be
    verified again. Touches nothing; may run beside a request.

    Raises:
        CheckpointError: the folder is damaged, its transformer does not fit or holds numbers that
            are not finite.
        BackendError: only a new engine can take it: more than the transformer differs, or the
            weights that serve are not plain tensors on one device.
    """
    with folders.hold(folder, heed=heed) as found:
        _check_kind(engine, found.manifest)
        own = dict(engine.dit.named_parameters())
        check_names(dict(own), shapes(found.view / DIT), DIT)
        with opened(found.view / DIT) as file:
            names = set(file.keys())
            for name in own:
                heed()
                check_finite(read(file, name, DIT, names), name, DIT)
        yield found


def swap(engine: Engine, folder: Path) -> None:
    """Take over the weights of a folder, verified now, as `take` does."""
    with folders.hold(folder) as found:
        take(engine, found)


def take(engine: Engine, found: folders.Held) -> None:
    """Take over the weights of a held folder. No request may run meanwhile.

    Raises:
        CheckpointError, BackendError: as `checked`, and where a file was written to since it was
            verified. Where `Engine.digest` is empty afterwards, the engine must not be used before
            another swap.
    """
    _check_kind(engine, found.manifest)
    check_names(dict(engine.dit.named_parameters()), shapes(found.view / DIT), DIT)
    found.require_unchanged()
    rename(engine, "")
    refill(engine.dit, found.view / DIT)
    found.require_unchanged()
    engine.files = dict(found.manifest.files)
    rename(engine, found.manifest.digest())


def rename(engine: Engine, digest: str) -> None:
    """What its weights are called from now on; empty: nothing, it must not be used."""
    engine.digest = digest


def _check_kind(engine: Engine, manifest: folders.Manifest) -> None:
    if manifest.resolve() != engine.preset:
        raise BackendError("the model is of another preset or size")
    folders.require(manifest, needed_files(engine.preset))
    for name in needed_files(engine.preset):
        if name != DIT and manifest.files[name] != engine.files.get(name):
            raise BackendError(f"the model has another {name}")
    plain = all(
        type(p) is nn.Parameter and type(p.data) is torch.Tensor and p.device == engine.device
        for p in engine.dit.parameters()
    )
    if not plain or engine.team is not None:
        raise BackendError("the weights that serve are not plain tensors on one device")
