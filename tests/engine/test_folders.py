"""Model folders: whole or refused, and never a file opened that is not vouched for."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine import folders
from engine.errors import CheckpointError
from engine.folders import Manifest, drafting, held, save_folder, verify
from engine.presets import MINIATURE

ROOT = Path(__file__).resolve().parents[2]
FILES = {"a.safetensors": b"weights", "b.json": b"{}"}


@pytest.fixture
def folder(tmp_path):
    save_folder(tmp_path / "model", Manifest("miniature", lineage={"seed": 1}), FILES)
    return tmp_path / "model"


def test_what_is_saved_verifies(folder):
    manifest = verify(folder)
    assert set(manifest.files) == set(FILES) and manifest.lineage == {"seed": 1}
    assert (folder / "a.safetensors").read_bytes() == b"weights"
    assert verify(folder).digest() == manifest.digest()


def test_digest_changes_with_any_byte(folder, tmp_path):
    other = save_folder(
        tmp_path / "other",
        Manifest("miniature", lineage={"seed": 1}),
        {**FILES, "b.json": b"{ }"},
    )
    assert other.digest() != verify(folder).digest()


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        verify(folder)


def test_missing_unlisted_and_linked_files_are_named(folder, tmp_path):
    (folder / "c.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="c.bin"):
        verify(folder)
    (folder / "c.bin").unlink()
    (tmp_path / "same").write_bytes(b"{}")
    (folder / "b.json").unlink()
    with pytest.raises(CheckpointError, match="b.json is missing"):
        verify(folder)
    (folder / "b.json").symlink_to(tmp_path / "same")
    with pytest.raises(CheckpointError, match="b.json is missing"):
        verify(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "format"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format": 2}', "format"),
        (b'{"format": 1, "preset": "miniature"}', "lacks"),
        (
            b'{"format": 1, "preset": [], "files": {}, "configs": {}, "lineage": {},'
            b' "evaluation": {}}',
            "preset",
        ),
        (
            b'{"format": 1, "preset": "miniature", "files": [], "configs": {}, "lineage": {},'
            b' "evaluation": {}}',
            "files",
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder, content, message):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


def test_no_manifest_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="manifest.json"):
        verify(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".hidden", "manifest.json"])
def test_a_manifest_cannot_point_outside(folder, name):
    values = json.loads((folder / "manifest.json").read_text())
    values["files"] = {name: "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="plain file name"):
        verify(folder)
    with pytest.raises(CheckpointError, match="plain file name"):
        save_folder(folder.parent / "new", Manifest("miniature"), {name: b""})


def test_a_published_folder_is_not_overwritten_by_accident(folder):
    with pytest.raises(CheckpointError, match="exists"):
        save_folder(folder, Manifest("miniature"), {"new": b"1"})
    assert set(verify(folder).files) == set(FILES)
    save_folder(folder, Manifest("miniature"), {"new": b"1"}, overwrite=True)
    assert set(verify(folder).files) == {"new"}


def test_a_failed_save_leaves_the_old_folder_and_no_rubbish(folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "_write", full)
    with pytest.raises(OSError, match="No space"):
        save_folder(folder, Manifest("miniature"), {"new": b"1"}, overwrite=True)
    monkeypatch.undo()
    assert set(verify(folder).files) == set(FILES)
    assert os.listdir(folder.parent) == ["model"]


def test_configs_override_numbers_of_the_preset():
    configs = {"dit": {"dim": 96, "patch": [1, 2, 2]}, "defaults": {"guidance": 3}}
    preset = Manifest("miniature", configs=configs).resolve()
    assert preset.dit == replace(MINIATURE.dit, dim=96)
    assert preset.defaults.guidance == 3 and preset.vae == MINIATURE.vae


@pytest.mark.parametrize(
    "configs",
    [
        {"dit": {"dim": "96"}},
        {"dit": {"dim": True}},
        {"dit": {"depth": 3}},
        {"dit": {"__class__": "x"}},
        {"dit": {"patch": ["1", 2, 2]}},
        {"wheels": {"n": 4}},
        {"name": {"x": 1}},
        {"dit": 3},
    ],
)
def test_configs_of_another_kind_are_refused(configs):
    with pytest.raises(CheckpointError, match="configs"):
        Manifest("miniature", configs=configs).resolve()


@pytest.mark.parametrize("tiers", [["exact", "turbo"], ["fast"], []])
def test_tiers_are_those_that_there_are_and_exact_is_among_them(tiers):
    with pytest.raises(CheckpointError, match=r"configs\.limits\.tiers must be"):
        Manifest("miniature", configs={"limits": {"tiers": tiers}}).resolve()
    preset = Manifest("miniature", configs={"limits": {"tiers": ["exact"]}}).resolve()
    assert preset.limits.tiers == ("exact",)


def test_unknown_preset_is_refused():
    with pytest.raises(CheckpointError, match="giant"):
        Manifest("giant").resolve()


def test_drafts_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from engine.folders import drafting\n"
        "with drafting(Path(sys.argv[1])) as draft:\n"
        "    (draft / 'half').write_bytes(b'x'); print(draft.name, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    children = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    killed, alive = (child.stdout.readline().strip() for child in children)
    children[0].kill()
    children[0].wait()
    (tmp_path / ".other.draft-x").mkdir()
    try:
        with drafting(tmp_path / "model") as draft:
            found = {path.name for path in tmp_path.iterdir()}
            assert found == {draft.name, alive, ".other.draft-x"} and killed not in found
            with drafting(tmp_path / "model") as inner:
                assert draft.is_dir() and inner.is_dir()
    finally:
        children[1].kill()
        for child in children:
            child.wait()
            child.stdout.close()
    assert {path.name for path in tmp_path.iterdir()} == {alive, ".other.draft-x"}


def test_files_of_a_draft_are_moved_and_others_copied(tmp_path):
    """Written once; the caller's own files stay where they are and share nothing."""
    (tmp_path / "own.json").write_bytes(b"own")
    with drafting(tmp_path / "model") as draft:
        (draft / "dit").write_bytes(b"dit")
        number = (draft / "dit").stat().st_ino
        files = {"dit.safetensors": draft / "dit", "own.json": tmp_path / "own.json"}
        save_folder(tmp_path / "model", Manifest(preset="miniature"), files, moved=draft)
        assert not (draft / "dit").exists()
    verify(tmp_path / "model")
    assert (tmp_path / "model" / "dit.safetensors").stat().st_ino == number
    (tmp_path / "own.json").write_bytes(b"changed")
    verify(tmp_path / "model")


def test_what_was_verified_is_what_is_read(folder):
    """A file put in the place of a verified one, or the loss of it, changes nothing."""
    with held(folder) as (manifest, view):
        (folder / "new").write_bytes(b"planted")
        (folder / "new").rename(folder / "a.safetensors")
        (folder / "b.json").unlink()
        assert {name: (view / name).read_bytes() for name in manifest.files} == FILES
    assert not view.exists()


def test_a_file_overwritten_after_it_was_verified_is_found(folder):
    with pytest.raises(CheckpointError, match="a.safetensors was written to"), held(folder):
        with (folder / "a.safetensors").open("r+b") as file:
            file.write(b"planted")
            os.fsync(file.fileno())


def test_some_of_the_files_are_held_alone(folder):
    (folder / "b.json").unlink()
    with held(folder, ["a.safetensors"]) as (_, view):
        assert [path.name for path in view.iterdir()] == ["a.safetensors"]


def test_no_handle_outlives_a_refused_folder(folder):
    (folder / "b.json").write_bytes(b"{ }")
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(CheckpointError, match=r"b\.json is not the file"):
        verify(folder)
    assert len(os.listdir("/dev/fd")) == before


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder):
    (folder / "b.json").unlink()
    os.mkfifo(folder / "b.json")
    with pytest.raises(CheckpointError, match=r"b\.json is missing"):
        verify(folder)
