"""A worker process's place: what it announces, and that a broken checkpoint ends nothing."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.runtime import Runtime
from service.cost import FLOPS_PER_S
from service.ledger import connect
from service.limits import Limits
from service.roster import Roster
from tests.service.rig import wait_for
from tests.workers.scripted import load_scripted
from workers import boot
from workers.boot import Station
from workers.settings import Settings
from workers.signing import KEY, make


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(boot, "load_engine", load_scripted)
    monkeypatch.setattr(boot, "load_judge", lambda folder: None)
    found = tmp_path / "model"
    found.mkdir()
    return found


@pytest.fixture
def station(settings: Settings, folder: Path) -> Iterator[Station]:
    found = Station(settings.model_copy(update={"model_dir": folder, "lease_s": 3.0}))
    yield found
    found.leave()


def test_it_says_idle_then_busy_then_nothing(station: Station, roster: Roster) -> None:
    assert station.state.state == "starting"
    station.load()
    (seen,) = roster.present()
    assert (seen.state, seen.digest, seen.preset) == ("idle", "scripted", "miniature")
    assert seen.tiers == ("exact", "fast")
    station.take("video_1")
    (seen,) = roster.present()
    assert (seen.state, seen.job) == ("busy", "video_1")
    station.leave()
    assert roster.present() == []


def test_the_first_estimate_is_by_the_speed_here(
    settings: Settings, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = Station(settings.model_copy(update={"model_dir": random_model}))
    limits = Limits(connect(settings), settings)
    on_the_card = limits.reserve("acme/before", "miniature", 1.0).cost_s
    station.load()
    here = limits.reserve("acme/after", "miniature", 1.0).cost_s
    assert station.engine is not None and on_the_card == 1.0
    assert here != 1.0
    assert 0.05 < here / (FLOPS_PER_S / station.engine.speed()) < 20  # others may be busy on it


def test_a_refused_checkpoint_is_announced_with_its_reason_and_tried_again(
    station: Station, roster: Roster, folder: Path
) -> None:
    (folder / "broken").write_text("dit.safetensors: sha256 differs")
    station.open()
    (seen,) = roster.present()
    assert (seen.state, seen.message) == ("unhealthy", "dit.safetensors: sha256 differs")
    assert station.engine is None
    (folder / "broken").unlink()
    wait_for(lambda: station.engine is not None)
    wait_for(lambda: [worker.state for worker in roster.present()] == ["idle"])


def test_without_a_key_to_sign_with_it_does_not_serve(
    settings: Settings, folder: Path, tmp_path: Path
) -> None:
    """And serves as soon as there is one."""
    wanted = {"model_dir": folder, "signing_dir": tmp_path / "keys"}
    station = Station(settings.model_copy(update=wanted))
    station.load()
    assert station.engine is None and station.state.state == "unhealthy"
    assert str(tmp_path / "keys") in station.state.message
    make(tmp_path / "keys")
    (tmp_path / "keys" / KEY).chmod(0o644)
    station.load()
    assert "chmod 600" in station.state.message
    (tmp_path / "keys" / KEY).chmod(0o600)
    station.load()
    assert station.state.state == "idle"


def test_a_bug_in_loading_is_announced_too(
    station: Station, roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(folder: Path, encodings: Path | None, runtime: Runtime) -> None:
        raise KeyError("dim")

    monkeypatch.setattr(boot, "load_engine", bug)
    station.load()
    (seen,) = roster.present()
    assert (seen.state, seen.message) == ("unhealthy", "KeyError: 'dim'")


def test_the_engine_is_loaded_as_the_settings_say(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Runtime] = []

    def load(folder: Path, encodings: Path | None, runtime: Runtime) -> object:
        asked.append(runtime)
        return load_scripted(folder)

    monkeypatch.setattr(boot, "load_engine", load)
    found = Station(settings.model_copy(update={"runtime": "dtype=bf16,compile=inductor"}))
    found.load()
    assert asked == [Runtime(dtype="bf16", compile="inductor")]
    assert found.state.state == "idle"


def test_a_runtime_that_cannot_be_had_is_announced(
    settings: Settings, random_model: Path
) -> None:
    wanted = {"model_dir": random_model, "runtime": "device=cuda:99"}
    found = Station(settings.model_copy(update=wanted))
    found.load()
    assert found.state.state == "unhealthy"
    assert found.state.message.startswith("device=cuda:99 is not there; torch sees cpu")


def test_a_runtime_says_which_tiers_it_serves(
    settings: Settings, random_model: Path, roster: Roster
) -> None:
    """A package is one program, of which nothing can be skipped."""
    wanted = {"model_dir": random_model, "runtime": "device=cpu,compile=aoti"}
    Station(settings.model_copy(update=wanted)).load()
    (seen,) = roster.present()
    assert (seen.state, seen.tiers) == ("idle", ("exact",))


def test_what_serves_goes_on_when_a_later_load_is_refused(
    station: Station, folder: Path
) -> None:
    station.load()
    serving = station.engine
    (folder / "broken").write_text("dit.safetensors: blocks.0 holds numbers that are not finite")
    station.load()
    assert station.engine is serving and station.state.state == "idle"


def test_a_flipped_byte_is_found_by_the_real_loader(settings: Settings, tmp_path: Path) -> None:
    from engine.folders import Manifest, save_folder

    model = tmp_path / "model"
    files = {name: name.encode() * 50 for name in ("dit.safetensors", "vae.safetensors")}
    save_folder(model, Manifest(preset="miniature"), files)
    changed = bytearray((model / "vae.safetensors").read_bytes())
    changed[100] ^= 1
    (model / "vae.safetensors").write_bytes(changed)
    station = Station(settings.model_copy(update={"model_dir": model}))
    station.load()
    assert station.engine is None and station.state.state == "unhealthy"
    assert "vae.safetensors is not the file that the manifest lists" in station.state.message


def test_without_redis_it_keeps_its_place(settings: Settings, tmp_path: Path, folder: Path) -> None:
    lost = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none", "model_dir": folder})
    station = Station(lost)
    station.load()
    station.leave()
    assert station.state.state == "idle"


def test_sigterm_during_a_job_is_heard_and_does_not_kill(station: Station) -> None:
    before = signal.getsignal(signal.SIGTERM)
    station.leaving.set()  # a former job's
    with station.heeding_sigterm():
        assert not station.leaving.is_set()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        wait_for(station.leaving.is_set)
    assert signal.getsignal(signal.SIGTERM) == before
