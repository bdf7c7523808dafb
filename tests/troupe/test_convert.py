"""`troupe convert` hands its files on and says what is wrong with them."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

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
