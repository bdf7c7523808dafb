"""From a run that trained adapters to the folder that `troupe models push` publishes.

    runs/<name>/lora.safetensors ─▶ target/{manifest.json, lora.safetensors} ─▶ registry ─▶ workers

The manifest names the base by its digest, the run and its length, and holds the evaluation of the
base with these adapters, and the picture that workers compare (`engine.golden`). As for whole
models, what was not evaluated, or keeps characters less far than the base, is refused unless that
is insisted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engine import golden
from engine.adapters import LORA, merge
from engine.errors import CheckpointError
from engine.evaluation import shortfalls
from engine.folders import DIT, Manifest, read_manifest, save_folder, sha256
from training.publish import code_version


def publish(
    base: Path,
    adapters: Path,
    target: Path,
    evaluation: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    anyway: bool = False,
) -> Manifest:
    """Writes the adapter folder `target`; its manifest.

    Args:
        base: the model folder that was trained from.
        adapters: what `training.lora.save` wrote.
        evaluation: of the base with the adapters, see `bench.identity`; its `dit` is the sha256 of
            the merged transformer's file.
        recipe: what is told of the run.
        anyway: also without an evaluation, or with one that is worse than the base's.

    Raises:
        CheckpointError: the evaluation is missing, of other weights or worse; the adapters do not
            fit the base; `target` is there already.
    """
    told, manifest = dict(evaluation or {}), read_manifest(base)
    about = {**(recipe or {}), "base": manifest.digest(), "code": code_version()}
    draft = Manifest(manifest.preset, configs=manifest.configs, lineage=about)
    with TemporaryDirectory(prefix="troupe-adapter-") as place:
        folder, whole = Path(place) / "adapter", Path(place) / "merged"
        save_folder(folder, draft, {LORA: adapters})
        merge(base, folder, whole)
        if not anyway:
            _check(told, sha256(whole / DIT), manifest.evaluation)
        told |= golden.told(whole)
        return save_folder(target, replace(draft, evaluation=told), {LORA: adapters})


def _check(own: Mapping[str, Any], dit: str, base: Mapping[str, Any]) -> None:
    if own.get("dit") != dit:
        raise CheckpointError("there is no evaluation of the base with these adapters")
    if worse := shortfalls(own, base):
        raise CheckpointError(f"worse than its base: {'; '.join(worse)}")
