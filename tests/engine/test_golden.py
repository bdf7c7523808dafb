"""The publisher's picture is found again by weights that are the publisher's, and by no others."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from engine import golden
from engine.errors import CheckpointError
from engine.folders import Manifest, read_manifest, save_folder
from engine.pipeline import Engine
from engine.runtime import Runtime
from tests.engine.test_swap import louder, variant


@pytest.fixture
def engine(random_model: Path) -> Engine:
    return Engine.load(random_model)


def test_the_picture_tells_models_apart(
    engine: Engine, random_model: Path, tmp_path: Path
) -> None:
    wanted = golden.told(random_model)[golden.KEY]
    assert len(wanted) == 3 * golden.PARTS**2 and golden.picture(engine) == wanted
    golden.check(engine, {golden.KEY: wanted})
    golden.check(engine, {})
    golden.check(engine, {golden.KEY: [value + 1.0 for value in wanted]})
    with pytest.raises(CheckpointError, match="grey levels from the publisher's"):
        golden.check(engine, {golden.KEY: [value + 5.0 for value in wanted]})
    for wrong in ("x", [1.0], [float("nan")] * len(wanted)):
        with pytest.raises(CheckpointError, match="golden must be|grey levels"):
            golden.check(engine, {golden.KEY: wrong})
    golden.check(Engine.load(random_model, runtime=Runtime(dtype="bf16")), {golden.KEY: wanted})
    other = Engine.load(variant(random_model, tmp_path / "other", louder))
    with pytest.raises(CheckpointError, match="grey levels from the publisher's"):
        golden.check(other, {golden.KEY: wanted})


def test_one_even_colour_is_no_picture(
    engine: Engine, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "picture", lambda *_: [7.0] * 48)
    for tried in (lambda: golden.check(engine, {}), lambda: golden.told(random_model)):
        with pytest.raises(CheckpointError, match="one even colour"):
            tried()


def test_an_adapters_picture_is_that_of_its_base_with_it(
    engine: Engine, random_model: Path, tmp_path: Path
) -> None:
    name = "head.head.weight"
    own = dict(engine.dit.named_parameters())[name]
    about = Manifest("miniature", lineage={"base": read_manifest(random_model).digest()})
    files = {"stream.safetensors": save({name: torch.full_like(own, 0.05)})}
    save_folder(tmp_path / "adapter", about, files)
    found = golden.told(tmp_path / "adapter", random_model)[golden.KEY]
    assert found != golden.picture(engine)
    own.data.fill_(0.05)
    assert found == golden.picture(engine)
