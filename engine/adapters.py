"""Adapters: small folders that change a published model, named by its digest.

    adapter/
      manifest.json            lineage.base: the digest of the model that it changes
      one of  delta.safetensors    see `engine.delta`
              lora.safetensors     see `engine.lora`; with alpha in the file or its header
              stream.safetensors   tensors of the transformer, whole, such as its identity stream

Merged into its base an adapter gives an ordinary model folder. The same two give the same bytes and
so the same digest, whoever merges them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import delta, lora
from engine.change import CHANGE
from engine.checkpoint import BESIDE, open_tensors, read_tensors, tensor_bytes
from engine.errors import CheckpointError
from engine.folders import DIT, Heed, Manifest, drafting, held, read_manifest, save_folder, verify
from engine.registry import Registry, base_of

DELTA, LORA, STREAM = "delta.safetensors", "lora.safetensors", "stream.safetensors"
_merging = threading.Lock()  # of two at once each would hold a transformer in memory
_made: dict[Path, str] = {}  # folders that this process has merged, and their digests


def merge(base: Path, adapter: Path, target: Path) -> Manifest:
    """Write the model folder that an adapter makes of its base; its manifest.

    Files that stay are linked, not copied, where both folders lie on one disk.

    Raises:
        CheckpointError: a folder is damaged, the adapter is for another base or none, or its
            tensors do not fit.
    """
    with held(base) as (own, own_view), held(adapter) as (change, change_view):
        if base_of(change) != own.digest():
            raise CheckpointError(f"{adapter} is no adapter of {base} ({own.digest()[:12]})")
        if len(change.files) != 1 or not set(change.files) <= {DELTA, LORA, STREAM}:
            raise CheckpointError(f"{adapter} must hold one of {DELTA}, {LORA} and {STREAM}")
        (name,) = change.files
        weights = _changed(read_tensors(own_view / DIT), name, change_view / name)
        manifest = Manifest(
            own.preset,
            configs=own.configs,
            lineage=_merged(own.digest(), change.digest()),
            evaluation=change.evaluation,
        )
        with drafting(target) as draft:
            files: dict[str, bytes | Path] = {}
            for kept in own.files.keys() - {DIT}:
                files[kept] = _linked(Path(base) / kept, own_view / kept, draft)
            files[DIT] = tensor_bytes(weights, _width(own_view / DIT))
            return save_folder(target, manifest, files, overwrite=True, moved=draft)


def pull(
    registry: Registry, digest: str, cache: Path, heed: Heed = lambda: None
) -> Path:
    """A published model as a folder below `cache`; an adapter merged into its base.

    Raises RegistryError or CheckpointError, and what `heed` raises.
    """
    folder = registry.pull(digest, cache, heed)
    base = base_of(read_manifest(folder))
    if base is None:
        return folder
    target = Path(cache) / f"{digest}-merged"
    if not _is_merged(target, base, digest, registry.key is not None, heed):
        own = registry.pull(base, cache, heed)
        if base_of(read_manifest(own)) is not None:
            raise CheckpointError(f"{digest[:12]} is an adapter of an adapter: merge it first")
        with _merging:
            heed()
            _made[target] = merge(own, folder, target).digest()
    return target


def _is_merged(target: Path, base: str, adapter: str, signed: bool, heed: Heed) -> bool:
    """Whether an earlier merge of these two lies there, whole.

    signed: only models that somebody vouches for are taken. Nobody signs a merge, and its folder
    says itself what it was made of: then only what this process has made is believed.
    """
    if not target.exists() or (signed and target not in _made):
        return False
    try:
        found = verify(target, heed)
    except CheckpointError:
        return False
    return found.lineage == _merged(base, adapter) and (
        not signed or found.digest() == _made[target]
    )


def _merged(base: str, adapter: str) -> dict[str, Any]:
    return {"merged": {"base": base, "adapter": adapter}}


def save_delta(
    base: Path, tuned: Mapping[str, Tensor], target: Path, about: Manifest, max_bytes: int
) -> Manifest:
    """Write the adapter folder that changes a base's transformer into `tuned`, as near as
    `max_bytes` allow (`engine.delta`). about: lineage and evaluation of it."""
    with held(base) as (own, view):
        content = delta.encode(read_tensors(view / DIT), tuned, max_bytes)
        lineage = {**about.lineage, "base": own.digest()}
        manifest = replace(about, preset=own.preset, configs=own.configs, lineage=lineage)
    return save_folder(target, manifest, {DELTA: content})


def _changed(weights: dict[str, Tensor], name: str, path: Path) -> dict[str, Tensor]:
    if name == DELTA:
        return delta.apply(weights, path)
    tensors = read_tensors(path)
    if name == LORA:
        found = lora.adapters(tensors, weights, path.name, lora.declared_alpha(path))
        return lora.merge(weights, found, label=path.name)
    for key, value in tensors.items():
        if key not in weights or weights[key].shape != value.shape:
            raise CheckpointError(f"{path.name}: {key} is no tensor of this base")
    return weights | tensors


def _width(path: Path) -> torch.dtype:
    """The precision in which what was merged loses nothing that its base had."""
    entries = open_tensors(path)
    if any(name.endswith(CHANGE) for name in entries):
        return torch.float32
    kinds = {x.dtype for name, x in entries.items() if not name.endswith(BESIDE)}
    return torch.bfloat16 if kinds == {torch.bfloat16} else torch.float32


def _linked(path: Path, verified: Path, draft: Path) -> Path:
    """A second name of the verified file, in the draft; where that cannot be, the file itself."""
    link = draft / path.name
    try:
        os.link(path, link)
    except OSError:
        return verified
    if not link.samefile(verified):
        raise CheckpointError(f"{path} was replaced while it was read")
    return link
