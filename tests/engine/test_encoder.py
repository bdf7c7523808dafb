"""Encodings made elsewhere: the same bits, and no encoder loaded where none is needed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from engine import loading, reader
from engine.encoder import Encoder, digest_of, from_bytes, to_bytes
from engine.encodings import Encoded
from engine.errors import BackendError, CheckpointError, SpecError
from engine.folders import DIT, read_manifest
from engine.pipeline import Engine
from engine.runtime import Runtime
from tests.engine.conftest import alter, picture
from tests.engine.test_placement import asked

ONLY = Runtime(device="cpu", encoders="only")
REMOTE = Runtime(device="cpu", encoders="remote")


def same(one: Encoded, other: Encoded) -> bool:
    return all(
        torch.equal(x, getattr(b, name))
        for a, b in zip(one, other, strict=True)
        for name, x in a.tensors().items()
    )


@pytest.fixture(scope="module")
def encoder(loud_model) -> Encoder:
    return Encoder.load(loud_model, runtime=ONLY)


def test_a_video_from_encodings_made_elsewhere_is_the_same(loud_model, encoder):
    here, there = (Engine.load(loud_model, runtime=r) for r in (Runtime(device="cpu"), REMOTE))
    assert (there.encoders.text, there.encoders.vlm) == (None, None)
    assert there.encoder.digest == here.encoder.digest == encoder.digest != here.digest
    spec, cast = asked(here)
    encoded = from_bytes(to_bytes(encoder.encode(spec, cast)))
    wanted = here.generate(spec, cast)
    assert (there.generate(spec, cast, encoded=encoded).frames == wanted.frames).all()
    # They are used, not made again.
    other = from_bytes(to_bytes(encoder.encode(replace(spec, prompt="@bob and @anna"), cast)))
    assert (here.generate(spec, cast, encoded=other).frames != wanted.frames).any()


def test_a_photo_is_encoded_once_whatever_is_asked_of_it(loud_model, monkeypatch):
    """Its latents are kept by what it shows; what depends on the prompt is made for each."""
    encoder, fresh = (Encoder.load(loud_model, runtime=ONLY) for _ in range(2))
    spec, cast = asked(Engine.load(loud_model, runtime=Runtime(device="cpu")))
    vae, seen = encoder.encoders.vae, []
    real = vae.encode
    monkeypatch.setattr(vae, "encode", lambda x: seen.append(x) or real(x))
    encoder.encode(spec, cast, "t", "job 1")
    assert len(seen) == len(cast)
    other = replace(spec, prompt="@bob and @anna", names=("bob", "anna"))
    again = encoder.encode(other, cast, "t", "job 2")
    assert len(seen) == len(cast)
    assert same(again, fresh.encode(other, cast))
    encoder.encode(spec, cast, "somebody else's", "job 3")  # a tenant learns nothing by the time
    assert len(seen) == 2 * len(cast)
    encoder.cache.forget({"job 1", "job 2"})
    encoder.encode(spec, cast, "t", "job 4")
    assert len(seen) == 3 * len(cast)


def test_files_keep_every_bit(encoder):
    spec, cast = asked(encoder)
    encoded = encoder.encode(spec, cast)
    assert same(from_bytes(to_bytes(encoded)), encoded)
    nobody = encoder.encode(replace(spec, prompt="a place", names=()), [])
    assert len(nobody.full.refs_SCHW) == 0 and same(from_bytes(to_bytes(nobody)), nobody)


@pytest.mark.parametrize("change", ["cut", "text", "missing", "extra"])
def test_other_files_are_refused(encoder, change):
    spec, cast = asked(encoder)
    data = to_bytes(encoder.encode(spec, cast))
    tensors = load(data)
    broken = {
        "cut": data[:-3],
        "text": b"no such file",
        "missing": save({k: x for k, x in tensors.items() if k != "negative.text_TM"}),
        "extra": save(tensors | {"full.more": torch.ones(1)}),
    }[change]
    with pytest.raises(CheckpointError, match="these are no encodings"):
        from_bytes(broken)


def test_without_encoders_nothing_is_encoded(loud_model):
    there = Engine.load(loud_model, runtime=REMOTE)
    spec, cast = asked(there)
    with pytest.raises(BackendError, match="encoders=remote: no text encoder is here"):
        there.generate(spec, cast)


def test_an_encoder_is_no_engine_and_the_other_way_round(loud_model):
    with pytest.raises(BackendError, match="encoders=only makes no videos"):
        Engine.load(loud_model, runtime=ONLY)
    with pytest.raises(BackendError, match="loaded with encoders=only, not local"):
        Encoder.load(loud_model, runtime=Runtime())


@pytest.mark.parametrize(
    ("runtime", "opened"),
    [
        (Runtime(device="cpu"), {"dit", "text", "vae", "vlm"}),
        (REMOTE, {"dit", "vae"}),
        (ONLY, {"text", "vae", "vlm"}),
    ],
)
def test_what_is_not_needed_is_neither_loaded_nor_counted(loud_model, monkeypatch, runtime, opened):
    counted: set[str] = set()
    footprint = loading.footprint

    def watch(tables, runtime, itemsize):  # noqa: ANN001, ANN202
        for name in tables:
            alone = {key: (table if key == name else {}) for key, table in tables.items()}
            part = footprint(alone, runtime, itemsize)
            if part.resident + sum(part.visiting.values()):
                counted.add(name)
        return footprint(tables, runtime, itemsize)

    monkeypatch.setattr(loading, "footprint", watch)
    if runtime.encoders == "only":
        encoders = Encoder.load(loud_model, runtime=runtime).encoders
        found = {"vae"}
    else:
        encoders = Engine.load(loud_model, runtime=runtime).encoders
        found = {"dit", "vae"}
    found |= {name for name in ("text", "vlm") if getattr(encoders, name) is not None}
    assert found == counted == opened


def test_work_that_is_not_done_needs_no_memory(loud_model, monkeypatch):
    monkeypatch.setattr(loading, "free_bytes", lambda device: 60_000_000)
    work = [("text", 10**6), ("vlm", 10**6), ("vae", 10**6), ("dit", 10**9), ("vae", 10**9)]
    monkeypatch.setattr(loading, "work_of", lambda preset, tile: work)
    Encoder.load(loud_model, runtime=ONLY)
    with pytest.raises(BackendError, match="0.06 GB are free"):
        Engine.load(loud_model, runtime=REMOTE)


def test_a_wrong_text_encoder_is_found_where_it_is_loaded(loud_model, tmp_path):
    folder = Path(shutil.copytree(loud_model, tmp_path / "model"))
    alter(folder, "text.safetensors", {"shared.weight": torch.full((1, 1), float("nan"))})
    with pytest.raises(CheckpointError, match="shared.weight"):
        Encoder.load(folder, runtime=ONLY)
    Engine.load(folder, runtime=REMOTE)


def test_pictures_must_fit_the_names(encoder):
    spec, _ = asked(encoder)
    with pytest.raises(SpecError, match="one picture for each name"):
        encoder.encode(spec, [picture("anna")])


def test_models_that_differ_in_the_transformer_share_encodings(loud_model: Path) -> None:
    manifest = read_manifest(loud_model)
    own = digest_of(manifest)
    for name in manifest.files:
        changed = replace(manifest, files={**manifest.files, name: "0" * 64})
        assert (digest_of(changed) == own) == (name in (DIT, reader.FILE)), name
    assert digest_of(replace(manifest, lineage={"step": 2}, evaluation={"x": 1})) == own
    configs = {**manifest.configs, "limits": {"max_frames": 5}}
    assert digest_of(replace(manifest, configs=configs)) != own
