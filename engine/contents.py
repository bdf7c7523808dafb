"""What the files of a published model may be: weights as safetensors, and tokenizers' tables.

Nothing that names code, or could be taken for it, is taken in: no Python, no pickle under another
name, no config that asks for a class. Weights are looked at as the format describes them (eight
bytes of length, a JSON header, then numbers without gaps; github.com/huggingface/safetensors,
README, "Format"), without the library, so that whoever only passes a model on needs no torch.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import CheckpointError
from engine.folders import Manifest, check_name

WEIGHTS = ".safetensors"
TABLES = "_tokenizer.json"
MAX_HEADER_BYTES = 100_000_000
MAX_TABLE_BYTES = 100_000_000
# What `tokenizers` writes (its `Tokenizer.to_str`); a config of another library has other keys.
TABLE = {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"} | {
    "post_processor",
    "decoder",
    "model",
}
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16} | {
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


def check_listed(manifest: Manifest) -> None:
    """Raises CheckpointError, naming the first listed file that is of no kind that is taken in."""
    for name in sorted(manifest.files):
        check_name(name)
        if not name.endswith((WEIGHTS, TABLES)):
            raise CheckpointError(
                f"{name} is refused: a published model holds *{WEIGHTS} and *{TABLES} files only;"
                " numbers of a config belong into the manifest"
            )


def check_file(name: str, path: Path) -> None:
    """Looks into a listed file. Raises CheckpointError, naming it and what it is instead."""
    with path.open("rb") as file:
        if name.endswith(WEIGHTS):
            _check_weights(name, file)
        else:
            _check_table(name, file)


def _check_table(name: str, file: BinaryIO) -> None:
    content = file.read(MAX_TABLE_BYTES + 1)
    if len(content) > MAX_TABLE_BYTES:
        raise CheckpointError(f"{name} is refused: more than {MAX_TABLE_BYTES} bytes")
    foreign = _json(name, content).keys() - TABLE
    if foreign:
        raise CheckpointError(f"{name} is refused: {min(foreign)!r:.80} is no part of a tokenizer")


def _check_weights(name: str, file: BinaryIO) -> None:
    start = file.read(8)
    if start.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{name} is refused: it is a pickle, or an archive of one, renamed")
    length = file.seek(0, 2)
    (size,) = struct.unpack("<Q", start) if len(start) == 8 else (length,)
    if not 2 <= size <= min(MAX_HEADER_BYTES, length - 8):
        raise CheckpointError(f"{name} is refused: it is not of the safetensors format")
    file.seek(8)
    tensors = _json(name, file.read(size))
    tensors.pop("__metadata__", None)
    end = 0
    for first, last in sorted(_span(name, key, told) for key, told in tensors.items()):
        if first != end:
            raise CheckpointError(f"{name} is refused: its tensors leave a gap or overlap")
        end = last
    if end != length - 8 - size:
        raise CheckpointError(f"{name} is refused: {length - 8 - size} bytes of numbers, not {end}")


def _span(name: str, key: str, told: Any) -> tuple[int, int]:
    """Where a tensor's numbers begin and end."""
    try:
        first, last = (int(place) for place in told["data_offsets"])
        bits = BITS[told["dtype"]]
        for side in told["shape"]:
            bits *= int(side)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name} is refused: {key:.80} is described wrongly") from error
    if first < 0 or 8 * (last - first) != bits:
        raise CheckpointError(f"{name} is refused: {key:.80} is not as long as its shape")
    return first, last


def _json(name: str, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is refused: it is not JSON where it should be") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{name} is refused: it is not a JSON object")
    return values
