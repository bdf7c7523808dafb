"""Weights as others publish them: single files, sharded folders and pickles, read as tensors.

    model.safetensors                      mapped into memory
    folder/*.index.json + its shards       all of them, or an error that names the missing one
    folder/one.safetensors
    model.pth, .pt, .bin                   by a child process that unpickles nothing but tensors

Names and precision stay as they are; `engine.upstream` knows what ours are called elsewhere.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint import open_tensors
from engine.errors import CheckpointError

PICKLES = (".pth", ".pt", ".bin")
# Under which key trainers put the weights, where a pickle holds more than them.
WRAPPERS = ("state_dict", "model", "module")


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a published model.

    Raises:
        CheckpointError: the path, a shard, or a tensor of the index is missing or unreadable.
    """
    path = Path(path)
    try:
        return _read(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise CheckpointError(f"there is no {path}")
    if path.suffix == ".safetensors":
        return open_tensors(path)
    if path.suffix in PICKLES:
        return _read_pickle(path)
    kinds = ", ".join((".safetensors", *PICKLES))
    raise CheckpointError(f"{path} must be one of {kinds}, or a folder of safetensors")


def _read_folder(folder: Path) -> dict[str, Tensor]:
    indices = sorted(folder.glob("*.index.json"))
    if not indices:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise CheckpointError(f"{folder} holds no index, and {len(files)} safetensors files")
        return open_tensors(files[0])
    if len(indices) > 1:
        raise CheckpointError(f"{folder} holds {len(indices)} indices: name one model's folder")
    return _read_shards(indices[0])


def _read_shards(index: Path) -> dict[str, Tensor]:
    place = _weight_map(index)
    names = sorted(set(place.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks {', '.join(missing)} of {len(names)} shards")
    tensors: dict[str, Tensor] = {}
    strange: list[str] = []
    for name in names:
        held = open_tensors(index.parent / name)
        tensors |= {key: value for key, value in held.items() if place.get(key) == name}
        strange += sorted(held.keys() - place.keys())
    lost = sorted(place.keys() - tensors.keys())
    if lost:
        raise CheckpointError(f"{index.parent}: {lost[0]} is not in the shard of the index")
    if strange:
        raise CheckpointError(f"{index.parent}: its shards hold {strange[0]}, the index does not")
    return {name: tensors[name] for name in place}


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard, each shard a plain file name beside the index."""
    try:
        place = json.loads(index.read_bytes())["weight_map"]
        plain = all(Path(shard).name == shard for shard in place.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of shards") from error
    if not plain:
        raise CheckpointError(f"{index} names a shard outside of its folder")
    return dict(place)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Unpickles in a child, for a pickle is a program; what comes back is safetensors."""
    with tempfile.TemporaryDirectory(prefix="troupe-convert-") as folder:
        target = Path(folder) / "weights.safetensors"
        # -P and the path: modules come from where this one came from, never from the folder in
        # which somebody happens to stand.
        command = [sys.executable, "-P", "-m", "engine.foreign", str(path.resolve()), str(target)]
        found = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        child = subprocess.run(command, capture_output=True, text=True, check=False, env=found)
        if child.returncode:
            told = child.stderr.strip().splitlines()[-1:] or [f"status {child.returncode}"]
            raise CheckpointError(f"cannot read {path}: {told[0]}")
        return {name: tensor.clone() for name, tensor in open_tensors(target).items()}


def unpickle(source: Path, target: Path) -> None:
    """The child's work: tensors of a pickle as safetensors.

    Raises:
        CheckpointError: the pickle holds something else than named tensors.
    """
    try:
        held: Any = torch.load(
            source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source)
        )
    except pickle.UnpicklingError as error:
        told = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        what = f"it holds code, such as {told[1]}" if told else "it is no pickle of tensors"
        raise CheckpointError(what) from error
    except Exception as error:  # noqa: BLE001 - whatever a hostile file provokes, in one line
        raise CheckpointError(str(error).strip().splitlines()[0]) from error
    for key in WRAPPERS:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not held:
        raise CheckpointError(f"it holds a {type(held).__name__}, not named tensors")
    for name, value in held.items():
        if not isinstance(name, str):
            raise CheckpointError(f"the name {name!r} is a {type(name).__name__}, not a text")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name!r} is a {type(value).__name__}, not a tensor")
    # Tensors that share memory cannot be written as they are.
    try:
        save_file({name: value.contiguous().clone() for name, value in held.items()}, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"its copy {target} cannot be written: {error}") from error


if __name__ == "__main__":
    try:
        unpickle(Path(sys.argv[1]), Path(sys.argv[2]))
    except CheckpointError as error:
        sys.exit(str(error))
