"""`troupe models` as an operator runs it: publish, promote, take back, tidy up."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner, Result

from engine.checkpoint import read_tensors, tensor_bytes
from engine.folders import Manifest, save_folder, verify
from engine.registry import Registry
from engine.stores import FolderStore
from service.fleet import Fleet
from service.ledger import connect
from tests import s3
from tests.engine.test_signatures import key_pair
from tests.service.rig import redis_url, settings
from troupe.main import app
from workers.settings import Settings

__all__ = ["redis_url", "settings"]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_MODEL_DIR", f"{tmp_path}/registry#stable")
    monkeypatch.setenv("COLUMNS", "200")


def told(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


def model(folder: Path, number: float, kept: float | None = None, **about: Any) -> Path:
    if kept is not None:
        about["evaluation"] = {"subjects": {"1": {"reached": kept, "reached_se": 0.01}}}
    files = {"dit.safetensors": tensor_bytes({"w": torch.full((4, 4), number)})}
    save_folder(folder / str(number), Manifest("miniature", **about), files)
    return folder / str(number)


def pushed(folder: Path, number: float, kept: float | None = None, **about: Any) -> str:
    done = told("push", str(model(folder, number, kept, **about)))
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def shown(ref: str = "stable") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told("show", ref).stdout)
    return found


def test_from_publication_to_rollback(tmp_path: Path) -> None:
    one, two = pushed(tmp_path, 1.0, 0.5), pushed(tmp_path, 2.0, 0.6)
    assert told("promote", one[:10], "--note", "the first").exit_code == 0
    assert told("canary", two[:10], "--share", "0.1").exit_code == 0
    listed = json.loads(told("list", "--json").stdout)
    assert {row["digest"]: row["channels"] for row in listed} == {one: ["stable"], two: ["canary"]}
    table = told("list").output
    assert one[:12] in table and "canary 10%" in table and "0.60" in table
    assert told("promote").exit_code == 0
    assert shown()["digest"] == two
    assert told("show", "canary").exit_code == 1  # ended by the promotion
    assert told("rollback", "--note", "too bold").exit_code == 0
    history = [(line["digest"], line["why"], line["note"]) for line in shown()["channel"]]
    assert history == [
        (one, "promote", "the first"),
        (two, "promote", ""),
        (one, "rollback", "too bold"),
    ]
    assert "no other model before" in told("rollback").output


def test_a_worse_model_must_be_insisted_on(tmp_path: Path) -> None:
    good, bad, unknown = (pushed(tmp_path, n, k) for n, k in ((1.0, 0.7), (2.0, 0.6), (3.0, None)))
    assert told("promote", good[:8]).exit_code == 0
    for digest in (bad, unknown):
        for command in ("promote", "canary"):
            refused = told(command, digest[:8])
            assert refused.exit_code == 1 and "is worse than stable" in refused.output
    assert shown()["digest"] == good
    assert told("canary", bad[:8], "--worse").exit_code == 0
    assert told("promote", "--worse").exit_code == 0
    assert shown()["digest"] == bad


def test_the_difference_is_told(tmp_path: Path) -> None:
    one = pushed(tmp_path, 1.0, 0.7, lineage={"recipe": "a"})
    two = pushed(tmp_path, 2.0, 0.6, lineage={"recipe": "b"})
    found = told("diff", one[:8], two[:8]).output
    assert "changed: dit.safetensors" in found and "removed" not in found
    assert 'lineage: {"recipe": "a"} -> {"recipe": "b"}' in found
    assert "kept, 1 subjects: 0.700 -> 0.600" in found and "it keeps 1 subjects 0.60" in found


def test_damage_is_found(tmp_path: Path) -> None:
    digest = pushed(tmp_path, 1.0)
    assert f"{digest[:12]}: every file is as published" in told("verify", digest).output
    path = tmp_path / "registry" / "models" / digest / "dit.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    refused = told("verify", digest)
    assert refused.exit_code == 1 and "dit.safetensors is not the file" in refused.output


def test_signed_and_unsigned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = key_pair(tmp_path)
    monkeypatch.setenv("TROUPE_MODEL_DIR", f"{tmp_path}/registry?key={public}#stable")
    plain = pushed(tmp_path, 1.0)
    refused = told("promote", plain)
    assert refused.exit_code == 1 and "is not signed" in refused.output
    signed = told("push", str(model(tmp_path, 2.0)), "--key", str(private)).stdout.strip()
    assert told("promote", signed).exit_code == 0
    assert told("verify").exit_code == 0


def test_a_model_that_cannot_be_used_is_listed_as_such_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = key_pair(tmp_path)
    monkeypatch.setenv("TROUPE_MODEL_DIR", f"{tmp_path}/registry?key={public}#stable")
    good, base = (
        told("push", str(model(tmp_path, number)), "--key", str(private)).stdout.strip()
        for number in (1.0, 2.0)
    )
    assert told("promote", good).exit_code == 0
    broken, unsigned = pushed(tmp_path, 3.0), pushed(tmp_path, 4.0, lineage={"base": base})
    path = tmp_path / "registry" / "models"
    (path / broken / "manifest.json").write_text("{}")
    Registry(FolderStore(tmp_path / "registry")).channels.move("noir", unsigned)
    listed = told("list")
    assert listed.exit_code == 0 and all(one[:12] in listed.output for one in (good, unsigned))
    assert f"{unsigned[:12]} cannot be used: the model is not signed" in listed.output
    told_of = json.loads(told("list", "--json").stdout)
    rows = {one["digest"]: one.get("unusable", "") for one in told_of}
    assert rows.keys() == {good, base, broken, unsigned} and not rows[good]
    assert "manifest.json" in rows[broken] and "not signed" in rows[unsigned]
    for one in rows:
        os.utime(path / one / "manifest.json", (0, 0))
    assert told("prune").output.split(":")[0] == broken[:12]
    assert (path / base).exists()  # that of what is unsigned, too


def test_old_models_that_nobody_needs_are_removed(tmp_path: Path) -> None:
    digests = [pushed(tmp_path, float(n)) for n in range(5)]
    based = pushed(tmp_path, 9.0, lineage={"base": digests[0]})
    for digest in (digests[1], digests[2], digests[3], based):
        assert told("promote", digest, "--worse").exit_code == 0
    registry = Registry(FolderStore(tmp_path / "registry"))
    assert told("prune").output == ""
    assert registry.models().keys() == {*digests, based}
    past = time.time() - 8 * 86400
    for digest in digests:
        os.utime(tmp_path / "registry" / "models" / digest / "manifest.json", (past, past))
    would = told("prune", "--keep", "2", "--dry-run").output
    assert {line[:12] for line in would.splitlines()} == {digests[n][:12] for n in (1, 2, 4)}
    assert registry.models().keys() == {*digests, based}
    assert told("prune", "--keep", "2").output == would
    assert registry.models().keys() == {digests[0], digests[3], based}
    assert told("rollback").exit_code == 0 and shown()["digest"] == digests[3]


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    base = model(tmp_path, 1.0)
    lineage = {"base": verify(base).digest()}
    content = save({"w": torch.full((4, 4), 5.0)})
    adapter = tmp_path / "adapter"
    save_folder(adapter, Manifest("miniature", lineage=lineage), {"stream.safetensors": content})
    done = told("merge", str(base), str(adapter), "--out", str(tmp_path / "m"))
    assert done.exit_code == 0, done.output
    assert read_tensors(tmp_path / "m" / "dit.safetensors")["w"].mean() == 5.0
    again = told("merge", str(base), str(adapter), "--out", str(tmp_path / "m"))
    assert again.exit_code == 1 and "exists" in again.output


def test_a_model_in_quarantine_is_released(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUPE_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("TROUPE_KEY_PREFIX", settings.key_prefix)
    fleet = Fleet(connect(settings), settings)
    for digest in ("ab" * 32, "ac" * 32):
        fleet.quarantine(digest, "flipped bit", "w1")
    assert "2 models in quarantine begin with a" in told("release", "a").output
    assert told("release", "ab").exit_code == 0
    assert fleet.quarantined().keys() == {"ac" * 32}


def test_what_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    for arguments, reason in (
        (("push", str(tmp_path / "none")), "holds no manifest.json"),
        (("promote", "deadbeef00"), "0 models"),
        (("show",), "leads to no model"),
        (("list", "--at", "http://x"), "neither a folder"),
        (("rollback", "--channel", "Nope"), "no channel's name"),
    ):
        found = told(*arguments)
        assert found.exit_code == 1 and reason in found.output and "Traceback" not in found.output


def test_a_store_without_conditions_is_refused_for_channels(tmp_path: Path) -> None:
    with s3.rclone(tmp_path / "rclone"):
        at = f"s3://{s3.new_bucket()}/models"
        digest = told("push", str(model(tmp_path, 1.0)), "--at", at).stdout.strip()
        refused = told("promote", digest, "--at", at)
        assert refused.exit_code == 1 and "does not heed If-None-Match" in refused.output
        assert told("verify", digest, "--at", at).exit_code == 0


def test_a_model_is_fetched_where_workers_look_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUPE_BLOBS_URL", f"{tmp_path}/blobs")
    digest = pushed(tmp_path, 1.0)
    told("promote", digest)
    fetched = tmp_path / "models" / digest
    assert told("pull").stdout.strip() == str(fetched)
    assert verify(fetched).digest() == digest
    (fetched / "dit.safetensors").write_bytes(b"flipped")
    assert told("pull", digest[:10]).exit_code == 0
    assert verify(fetched).digest() == digest


def test_a_damaged_model_of_a_channel_is_passed_over_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUPE_BLOBS_URL", f"{tmp_path}/blobs")
    good, bad = pushed(tmp_path, 1.0), pushed(tmp_path, 2.0)
    for digest in (good, bad):
        assert told("promote", digest).exit_code == 0
    for path in (tmp_path / "registry").rglob(f"{bad}/dit.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    found = told("pull")
    assert found.exit_code == 0 and good in found.output.replace("\n", "")
    assert f"{bad[:12]} is passed over" in found.output
    assert told("pull", bad[:10]).exit_code == 1  # asked for by name, it is that or nothing
