"""The stack refuses early and in words; what it starts is as durable as the ledger asks for."""

import json
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import redis

from service.settings import Settings
from troupe.processes import Supervisor
from troupe.stack import (
    Plan,
    Stack,
    StackError,
    _commands,
    _environment,
    _free_port,
    _preset_of,
    _reasons,
    _socket_path,
    _start_redis,
)


def _plan(tmp_path: Path, port: int = 0) -> Plan:
    return Plan("127.0.0.1", port, tmp_path / "state", tmp_path / "model")


def _answer(status: int, body: object) -> httpx.Response:
    return httpx.Response(status, text=json.dumps(body))


def _readiness(state: str, message: str = "") -> httpx.Response:
    worker = {"state": state, "message": message}
    checks = {"redis": {"ok": True, "message": "ok"}, "workers": {"ok": False, "message": "no"}}
    return _answer(503, {"checks": checks, "workers": [worker]})


def test_missing_model_is_told_before_anything_starts(tmp_path: Path) -> None:
    with Supervisor(lambda _: None) as supervisor:
        with pytest.raises(StackError, match="no manifest.json") as told:
            Stack.start(_plan(tmp_path), supervisor)
        assert supervisor.children == ()
    assert told.value.remedy is not None and not (tmp_path / "state").exists()


def test_port_in_use_is_told_with_a_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"Port {port}") as told:
            _free_port("127.0.0.1", port)
    assert "--port" in str(told.value.remedy)


def test_port_0_is_any_free_one() -> None:
    assert _free_port("127.0.0.1", 0) > 0


def test_redis_is_durable_and_private(tmp_path: Path) -> None:
    with Supervisor(lambda _: None) as supervisor:
        url = _start_redis(_plan(tmp_path), supervisor)
        assert url.startswith("unix://")
        with redis.Redis.from_url(url) as client:
            config = client.config_get()
            assert config["appendonly"] == "yes" and config["appendfsync"] == "always"
            assert config["maxmemory-policy"] == "noeviction" and config["port"] == "0"
            client.set("kept", "yes")
        with Supervisor(lambda _: None) as second, pytest.raises(StackError, match="Another"):
            _start_redis(_plan(tmp_path), second)
    with Supervisor(lambda _: None) as supervisor:
        with redis.Redis.from_url(_start_redis(_plan(tmp_path), supervisor)) as client:
            assert client.get("kept") == b"yes", "jobs outlive a restart"


def test_socket_path_is_never_too_long_for_the_kernel(tmp_path: Path) -> None:
    first, other = (_socket_path(tmp_path / name / ("long" * 30)) for name in ("a", "b"))
    assert first.parent.name.startswith("troupe-") and len(str(first)) < 100
    assert first != other, "two services do not meet"
    assert first == _socket_path(tmp_path / "a" / ("long" * 30)), "a second one finds the first"


def test_a_temporary_folder_that_is_too_deep_itself_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert len(str(_socket_path(deep / ("long" * 30)))) < 100


@pytest.mark.parametrize(
    ("text", "words"), [("{", "cannot be read"), ("{}", "cannot be read"), ("[]", "cannot be read")]
)
def test_a_manifest_that_is_none_is_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StackError, match=words):
        _preset_of(tmp_path)


def test_the_gateway_asks_for_what_the_worker_can_make(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"preset": "wan-1.3b"}')
    env = _environment(_plan(tmp_path), "unix:///r.sock", _preset_of(tmp_path))
    assert Settings.model_validate({"preset": env["TROUPE_PRESET"]}).preset == "wan-1.3b"


def test_worker_that_cannot_use_its_model_ends_the_waiting() -> None:
    with pytest.raises(StackError, match="dit.safetensors is not the file"):
        _reasons(_readiness("unhealthy", "dit.safetensors is not the file"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_readiness("starting"), "loading the model"),
        (
            _answer(503, {"checks": {"workers": {"ok": False, "message": "x"}}}),
            "worker is starting",
        ),
        (_answer(503, {"checks": {"redis": {"ok": False, "message": "Redis is away."}}}), "away"),
        (httpx.Response(502, text="<html>"), "answers 502"),
    ],
)
def test_what_is_missing_is_told_in_words(answer: httpx.Response, words: str) -> None:
    assert words in _reasons(answer)


def test_encoders_apart_get_what_they_need_of_the_runtime(tmp_path: Path) -> None:
    plan = replace(_plan(tmp_path), encoders=2)
    env = {"TROUPE_RUNTIME": "device=cpu,dtype=bf16,compile=inductor"}
    commands = {c.name: c for c in _commands(plan, env, 8000)}
    assert list(commands) == ["worker", "encoder-1", "encoder-2", "reaper", "courier", "gateway"]
    runtimes = {name: command.env["TROUPE_RUNTIME"] for name, command in commands.items()}
    assert runtimes["worker"] == "device=cpu,dtype=bf16,encoders=remote,compile=inductor"
    assert runtimes["encoder-1"] == runtimes["encoder-2"] == "device=cpu,dtype=bf16,encoders=only"
    on_card = _commands(plan, {"TROUPE_RUNTIME": "device=cuda:1"}, 8000)
    assert on_card[1].env["TROUPE_RUNTIME"] == "device=cpu,encoders=only"  # the card is not shared
    alone = _commands(replace(plan, encoders=0), env, 8000)
    assert [c.env["TROUPE_RUNTIME"] for c in alone] == [env["TROUPE_RUNTIME"]] * 4


@pytest.mark.parametrize("runtime", ["offload=encoders", "colour=red"])
def test_a_runtime_that_does_not_go_with_encoders_apart_is_told(
    tmp_path: Path, runtime: str
) -> None:
    plan = replace(_plan(tmp_path), encoders=1)
    with pytest.raises(StackError, match=f"TROUPE_RUNTIME={runtime}: "):
        _commands(plan, {"TROUPE_RUNTIME": runtime}, 8000)


@pytest.mark.parametrize("runtime", ["encoders=remote", "encoders=only", "colour=red"])
def test_what_could_never_be_ready_is_refused_at_once(tmp_path: Path, runtime: str) -> None:
    with pytest.raises(StackError, match=f"TROUPE_RUNTIME={runtime}: "):
        _commands(_plan(tmp_path), {"TROUPE_RUNTIME": runtime}, 8000)
