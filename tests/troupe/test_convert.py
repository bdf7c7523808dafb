"""`troupe convert` hands its files on and says what is wrong with them."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from troupe.convert import read_lora
from troupe.main import app


def told(folder: Path, **changed: str) -> Result:
    given = {
        "out": str(folder / "model"),
        "dit": str(folder / "dit.safetensors"),
        "vae": str(folder / "vae.pth"),
        "text": str(folder / "text.pth"),
        "tokenizer": str(folder / "tokenizer.json"),
    } | changed
    arguments = [f"--{name}={value}" for name, value in given.items()]
    return CliRunner().invoke(app, ["convert", *arguments])


def test_missing_file_is_named(tmp_path: Path) -> None:
    answer = told(tmp_path)
    assert answer.exit_code == 1 and "there is no" in answer.output
    assert not (tmp_path / "model").exists()


def test_weights_of_something_else_are_named(tmp_path: Path) -> None:
    save_file({"patch_embedding.weight": torch.ones(1)}, tmp_path / "dit.safetensors")
    answer = told(tmp_path)
    assert answer.exit_code == 1 and "dit.safetensors lacks blocks.0" in answer.output


def test_unknown_preset_lists_the_known(tmp_path: Path) -> None:
    answer = told(tmp_path, preset="wan-9b")
    assert answer.exit_code == 1 and "wan-14b" in answer.output


def test_target_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert "exists" in told(tmp_path).output


def test_loras_are_files_with_strengths(tmp_path: Path) -> None:
    assert read_lora("a/b.safetensors") == (Path("a/b.safetensors"), 1.0)
    assert read_lora("b.safetensors:-0.5") == (Path("b.safetensors"), -0.5)
    assert read_lora("c:/b.safetensors") == (Path("c:/b.safetensors"), 1.0)
    for wrong in ("b:much", "b:nan"):
        answer = told(tmp_path, lora=wrong)
        assert answer.exit_code == 1 and "strength must be" in answer.output
