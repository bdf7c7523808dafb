"""`troupe keys` as an operator runs it, over a real Redis."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.auth import Keys
from service.errors import Unauthenticated
from service.ledger import connect
from tests.service.rig import operator, redis_url, settings
from troupe.main import app
from workers.settings import Settings

__all__ = ["operator", "redis_url", "settings"]

pytestmark = pytest.mark.usefixtures("operator")


def told(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def listed() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(told("list", "--json").stdout)
    return found


def test_a_key_is_made_shown_once_and_listed(settings: Settings) -> None:
    made = told("create", "acme", "--name", "ci", "--scope", "read", "--days", "90")
    token = made.stdout.strip()
    caller = Keys(connect(settings), settings, required=True).authenticate(f"Bearer {token}")
    assert (caller.tenant, caller.scopes) == ("acme", {"read"})
    (key,) = listed()
    assert key["id"] == caller.key_id and key["state"] == "live" and key["used_ms"] > 0
    assert key["expires_ms"] - key["created_ms"] == 90 * 86400 * 1000
    table = told("list").output
    assert key["id"] in table and "ci" in table and token.split("_")[2] not in table
    assert told("list", "--tenant", "zeta", "--json").stdout.strip() == "[]"


def test_without_scopes_it_reads_and_writes() -> None:
    told("create", "acme")
    assert listed()[0]["scopes"] == ["read", "write"] and listed()[0]["expires_ms"] == 0


def test_a_key_is_rotated_and_revoked(settings: Settings) -> None:
    old = told("create", "acme").stdout.strip()
    new = told("rotate", old.split("_")[1], "--hours", "0").stdout.strip()
    keys = Keys(connect(settings), settings, required=True)
    with pytest.raises(Unauthenticated, match="expired"):
        keys.authenticate(f"Bearer {old}")
    assert told("revoke", new.split("_")[1]).exit_code == 0
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.authenticate(f"Bearer {new}")


def test_each_act_is_in_the_audit_chain() -> None:
    key = told("create", "acme").stdout.split("_")[1]
    told("rotate", key)
    told("revoke", key)
    chain = CliRunner().invoke(app, ["audit", "list", "--about", key, "--json"]).stdout
    entries = [json.loads(line) for line in chain.splitlines()]
    assert [entry["action"] for entry in entries] == ["key.created", "key.rotated", "key.revoked"]
    assert {(entry["tenant"], entry["actor"]) for entry in entries} == {("acme", "operator")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "Acme"], "is not a name"),
        (["create", "acme", "--scope", "all"], "one or more of read, write, admin"),
        (["rotate", "none"], "There is no key 'none'"),
        (["revoke", "none"], "There is no key 'none'"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], words: str) -> None:
    said = told(*arguments)
    assert said.exit_code == 1 and words in said.output
