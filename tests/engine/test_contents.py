"""What may be published: weights and tokenizers, looked at, and nothing that could be code."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from engine.contents import check_file, check_listed
from engine.errors import CheckpointError
from engine.folders import Manifest, verify
from tests.service.rig import ROOT

KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.int64)


def weights(header: object, numbers: int = 0) -> bytes:
    """A file of this header and so many zero bytes."""
    told = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(told)) + told + bytes(numbers)


def tensor(first: int, last: int, kind: str = "F32", shape: tuple[int, ...] = (1,)) -> object:
    return {"dtype": kind, "shape": shape, "data_offsets": [first, last]}


def test_the_shipped_model_is_taken() -> None:
    folder = ROOT / "models" / "miniature"
    manifest = verify(folder)
    check_listed(manifest)
    for name in manifest.files:
        check_file(name, folder / name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_library_writes_is_taken(tmp_path: Path, kind: torch.dtype) -> None:
    tensors = {"a": torch.zeros(3, 4), "b": torch.zeros(()), "none": torch.zeros(0, 2)}
    path = tmp_path / "w"
    path.write_bytes(save({k: v.to(kind) for k, v in tensors.items()}, {"about": "it"}))
    check_file("w.safetensors", path)


@pytest.mark.parametrize(
    "name", ["extra.py", "config.json", "model_index.json", "dit.bin", "dit.pt", "safetensors.py"]
)
def test_other_files_are_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is refused"):
        check_listed(Manifest("miniature", {"dit.safetensors": "0" * 64, name: "0" * 64}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not of the safetensors format"),
        (b"\x00" * 7, "not of the safetensors format"),
        (struct.pack("<Q", 2**40) + b"{}", "not of the safetensors format"),
        (weights(b"[]"), "not a JSON object"),
        (weights(b"import os"), "not JSON"),
        (weights({"a": tensor(0, 4)}, 3), "3 bytes of numbers, not 4"),
        (weights({"a": tensor(0, 4)}, 400), "400 bytes of numbers, not 4"),
        (weights({"a": tensor(4, 8)}, 8), "gap or overlap"),
        (weights({"a": tensor(0, 4), "b": tensor(0, 4)}, 4), "gap or overlap"),
        (weights({"a": tensor(0, 4, shape=(2,))}, 4), "not as long as its shape"),
        (weights({"a": tensor(0, 4, "OBJECT")}, 4), "described wrongly"),
        (weights({"a": "__reduce__"}, 4), "described wrongly"),
        (weights({"a": tensor(-4, 0)}, 0), "not as long|gap"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "w"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"w.safetensors is refused.*{reason}"):
        check_file("w.safetensors", path)


def test_a_pickle_under_another_name_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "w"
    for write in (
        lambda: torch.save({"a": torch.ones(2)}, path),
        lambda: torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps({"a": 1})),
    ):
        write()
        with pytest.raises(CheckpointError, match="it is a pickle"):
            check_file("w.safetensors", path)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"model": {}, "auto_map": {"AutoTokenizer": "x.y"}}, "auto_map"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ([], "not a JSON object"),
    ],
)
def test_a_table_is_a_tokenizers(tmp_path: Path, table: object, reason: str) -> None:
    path = tmp_path / "t"
    path.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=f"text_tokenizer.json is refused.*{reason}"):
        check_file("text_tokenizer.json", path)
