"""A pulled model is verified once, held, and taken from what was verified."""

from pathlib import Path

import pytest
import torch

from engine.errors import CheckpointError
from engine.folders import DIT, read_manifest
from engine.pipeline import Engine
from tests.engine.test_swap import louder, spoil, variant
from workers.ready import Ready


def test_what_was_checked_is_what_is_taken(random_model: Path, tmp_path: Path) -> None:
    engine = Engine.load(random_model)
    folder = variant(random_model, tmp_path / "v", louder)
    ready = Ready("d", folder, read_manifest(folder))
    ready.check(engine)
    held = ready.held
    ready.check(engine)
    assert ready.held is held is not None
    (folder / DIT).unlink()  # whoever takes the file away comes too late
    ready.take(engine)
    assert engine.digest == ready.weights
    ready.close()
    assert ready.held is None
    with pytest.raises(CheckpointError):
        ready.take(engine)


def test_wrong_numbers_are_found_beside_the_jobs(random_model: Path, tmp_path: Path) -> None:
    engine = Engine.load(random_model)
    before = {name: x.clone() for name, x in engine.dit.state_dict().items()}
    folder = variant(random_model, tmp_path / "v", spoil(float("nan")))
    with pytest.raises(CheckpointError, match="not finite"):
        Ready("d", folder, read_manifest(folder)).check(engine)
    assert all(torch.equal(x, before[name]) for name, x in engine.dit.state_dict().items())


def test_another_model_in_its_folder_is_not_taken(random_model: Path, tmp_path: Path) -> None:
    engine = Engine.load(random_model)
    ready = Ready("d", random_model, read_manifest(random_model))
    ready.folder = variant(random_model, tmp_path / "other", louder)
    with pytest.raises(CheckpointError, match="another model"):
        ready.check(engine)
    assert ready.held is None
