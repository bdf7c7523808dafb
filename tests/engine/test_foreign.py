"""Files and folders as others publish them: read whole, or refused with the reason."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine import foreign
from engine.errors import CheckpointError

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype
        for name, value in TENSORS.items()
    )


def sharded(folder: Path) -> Path:
    folder.mkdir()
    place = {"a.weight": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    for name, shard in place.items():
        save_file({name: TENSORS[name]}, folder / shard)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return folder


def test_single_file_and_folder_of_one(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert same(foreign.read(tmp_path / "model.safetensors")) and same(foreign.read(tmp_path))


def test_shards_are_joined(tmp_path: Path) -> None:
    assert same(foreign.read(sharded(tmp_path / "m")))


def test_half_a_shard_set_names_the_missing_one(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "m-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks m-00002-of-00002.safetensors of 2 shards"):
        foreign.read(folder)


def test_a_tensor_of_the_index_that_no_shard_holds(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_file({"other": torch.ones(1)}, folder / "m-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="b is not in the shard"):
        foreign.read(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"a": 1}}', "nonsense"])
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="not an index of shards"):
        foreign.read(tmp_path)


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    content = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "m.index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        foreign.read(tmp_path)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_pickles_of_tensors(tmp_path: Path, wrap: str | None) -> None:
    held = TENSORS if wrap is None else {wrap: TENSORS, "step": 3}
    torch.save(held, tmp_path / "model.pth")
    assert same(foreign.read(tmp_path / "model.pth"))


def test_pickles_of_the_old_kind_and_tensors_that_share_memory(tmp_path: Path) -> None:
    weight = torch.arange(4.0)
    held = {"a": weight, "b": weight, "c": weight.view(2, 2).T}
    torch.save(held, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = foreign.read(tmp_path / "old.pt")
    assert all(torch.equal(found[name], value) for name, value in held.items())


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)

    def __init__(self, mark: Path) -> None:
        self.mark = mark


def test_a_pickle_that_is_a_program_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for save in (torch.save, lambda held, path: path.write_bytes(pickle.dumps(held))):
        save({"a": Hostile(mark)}, tmp_path / "evil.pth")
        with pytest.raises(CheckpointError, match=r"cannot read .*evil\.pth"):
            foreign.read(tmp_path / "evil.pth")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("held", "message"), [([1, 2], "a list, not named"), ({"a": 3}, "'a' is a int, not a tensor")]
)
def test_a_pickle_of_something_else(tmp_path: Path, held: object, message: str) -> None:
    torch.save(held, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=message):
        foreign.read(tmp_path / "model.bin")


def test_what_is_not_there_or_not_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no"):
        foreign.read(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="holds no index, and 0 safetensors"):
        foreign.read(tmp_path)
    for name, message in (("a.txt", "must be one of"), ("a.safetensors", "cannot read")):
        (tmp_path / name).write_text("words")
        with pytest.raises(CheckpointError, match=message):
            foreign.read(tmp_path / name)


def test_code_in_the_folder_where_one_stands_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(TENSORS, tmp_path / "model.pth")
    trap = tmp_path / "trap"
    (trap / "engine").mkdir(parents=True)
    for name in ("engine/__init__.py", "engine/foreign.py", "torch.py", "json.py"):
        (trap / name).write_text("open('ran', 'w')\n")
    monkeypatch.chdir(trap)
    assert same(foreign.read(Path("../model.pth")))
    assert not (trap / "ran").exists()


def test_a_shard_holds_what_the_index_says(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_file({"b": TENSORS["b"], "c": torch.ones(1)}, folder / "m-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="shards hold c, the index does not"):
        foreign.read(folder)
    save_file({"b": TENSORS["b"], "a.weight": torch.ones(1)},
              folder / "m-00002-of-00002.safetensors")  # fmt: skip
    assert same(foreign.read(folder))


def test_an_index_too_deep_or_no_file(tmp_path: Path) -> None:
    index = tmp_path / "m.index.json"
    index.write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="not an index"):
        foreign.read(tmp_path)
    index.unlink()
    index.mkdir()
    with pytest.raises(CheckpointError, match="cannot read"):
        foreign.read(tmp_path)


def test_a_pickle_with_a_number_for_a_name(tmp_path: Path) -> None:
    torch.save({1: torch.ones(1)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="the name 1 is a int"):
        foreign.read(tmp_path / "model.pth")
