"""Other weights in a running engine: all of them, or those that were there."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import swap
from engine.checkpoint import tensor_bytes
from engine.errors import BackendError, CheckpointError
from engine.folders import Manifest, read_manifest, save_folder, verify
from engine.pipeline import Engine
from engine.runtime import Runtime
from engine.spec import Spec

DIT = "dit.safetensors"


@pytest.fixture
def engine(random_model: Path) -> Engine:
    return Engine.load(random_model)


def variant(
    base: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None], **about: object
) -> Path:
    """The model with another transformer."""
    tensors = load_file(base / DIT)
    change(tensors)
    files: dict[str, bytes | Path] = {n: base / n for n in read_manifest(base).files}
    files[DIT] = tensor_bytes(tensors)
    save_folder(target, replace(read_manifest(base), **about), files)
    return target


def louder(tensors: dict[str, torch.Tensor]) -> None:
    """Every number is another, those that begin as zero too."""
    generator = torch.Generator().manual_seed(0)
    for name, x in tensors.items():
        tensors[name] = (1.5 * x + 0.05 * torch.randn(x.shape, generator=generator)).to(x.dtype)


def picture(engine: Engine) -> np.ndarray:
    small = {"steps": 1, "num_frames": 5, "width": 32, "height": 32}
    return engine.generate(Spec.of(engine.preset, "a ball", **small), ()).frames


def test_a_swapped_engine_is_a_loaded_one(
    engine: Engine, random_model: Path, tmp_path: Path
) -> None:
    other = variant(random_model, tmp_path / "other", louder)
    before, dit = picture(engine), engine.dit
    with swap.checked(engine, other) as found:
        assert (picture(engine) == before).all()
        swap.take(engine, found)
    assert engine.dit is dit
    assert engine.digest == verify(other).digest()
    fresh = Engine.load(other)
    assert all(
        torch.equal(x, fresh.dit.state_dict()[n]) for n, x in engine.dit.state_dict().items()
    )
    after = picture(engine)
    assert (after == picture(fresh)).all() and not (after == before).all()
    swap.swap(engine, random_model)
    assert (picture(engine) == before).all()


def test_precision_stays(random_model: Path, tmp_path: Path) -> None:
    runtime = Runtime(dtype="bf16")
    engine = Engine.load(random_model, runtime=runtime)
    swap.swap(engine, variant(random_model, tmp_path / "other", louder))
    fresh = Engine.load(tmp_path / "other", runtime=runtime).dit.state_dict()
    for name, x in engine.dit.state_dict().items():
        assert x.dtype == fresh[name].dtype and torch.equal(x, fresh[name])


def spoil(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[sorted(tensors)[-1]].view(-1)[-1] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spoil(float("nan")), "not finite"),
        (spoil(float("inf")), "not finite"),
        (lambda tensors: tensors.pop(sorted(tensors)[0]), "lacks"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "unknown more"),
        (lambda tensors: tensors.update({sorted(tensors)[0]: torch.ones(3, 3)}), "another shape"),
    ],
)
def test_what_does_not_fit_touches_nothing(
    engine: Engine,
    random_model: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], None],
    reason: str,
) -> None:
    other = variant(random_model, tmp_path / "other", change)
    before, digest = {n: x.clone() for n, x in engine.dit.state_dict().items()}, engine.digest
    with pytest.raises(CheckpointError, match=reason):
        with swap.checked(engine, other):
            pass
    assert engine.digest == digest
    assert all(torch.equal(x, before[n]) for n, x in engine.dit.state_dict().items())


def test_a_swap_that_breaks_off_leaves_no_name(
    engine: Engine, random_model: Path, tmp_path: Path
) -> None:
    """Its weights are of two models: it is called neither, until another swap."""
    other = variant(random_model, tmp_path / "other", spoil(float("nan")))
    with pytest.raises(CheckpointError, match="not finite"):
        swap.swap(engine, other)
    assert engine.digest == ""
    swap.swap(engine, random_model)
    assert engine.digest == verify(random_model).digest()
    assert (picture(engine) == picture(Engine.load(random_model))).all()


@pytest.mark.parametrize("how", ["replaced", "overwritten"])
def test_what_was_verified_is_what_is_taken(
    engine: Engine, random_model: Path, tmp_path: Path, how: str
) -> None:
    """Somebody puts other weights in the place of a file that has been verified."""
    other = variant(random_model, tmp_path / "other", louder)
    evil = variant(random_model, tmp_path / "evil", lambda tensors: None, lineage={"of": "evil"})
    wanted, before = picture(Engine.load(other)), picture(engine)
    with swap.checked(engine, other) as found:
        if how == "replaced":
            (evil / DIT).replace(other / DIT)
            swap.take(engine, found)
            assert (picture(engine) == wanted).all()
            return
        (other / DIT).write_bytes((evil / DIT).read_bytes())
        with pytest.raises(CheckpointError, match="was written to"):
            swap.take(engine, found)
    assert engine.digest == verify(random_model).digest() and (picture(engine) == before).all()


def test_what_needs_a_new_engine_is_told(
    engine: Engine, random_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(random_model, other)
    tensors = load_file(other / "vae.safetensors")
    save_file({n: x + 1 for n, x in tensors.items()}, other / "vae.safetensors")
    manifest = read_manifest(other)
    files: dict[str, bytes | Path] = {name: other / name for name in manifest.files}
    save_folder(tmp_path / "vae", Manifest("miniature"), files)
    with pytest.raises(BackendError, match="another vae.safetensors"):
        with swap.checked(engine, tmp_path / "vae"):
            pass
    configs = {"limits": {"max_frames": 5}}
    small = variant(random_model, tmp_path / "small", louder, configs=configs)
    with pytest.raises(BackendError, match="another preset or size"):
        with swap.checked(engine, small):
            pass


def test_encodings_stay_where_the_encoders_are_the_same(
    engine: Engine, random_model: Path, tmp_path: Path
) -> None:
    """They are kept under the digest of the encoders, so nobody need encode again."""
    picture(engine)
    kept, name = dict(engine.encoder.cache._memory), engine.encoder.digest
    swap.swap(engine, variant(random_model, tmp_path / "other", louder))
    after = picture(engine)
    assert kept and engine.encoder.cache._memory.keys() == kept.keys()
    assert engine.encoder.digest == name != engine.digest
    assert (after == picture(Engine.load(tmp_path / "other"))).all()
