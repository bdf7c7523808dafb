"""`troupe webhooks` as an operator runs it, over a real Redis."""

import json

import pytest
from typer.testing import CliRunner, Result

from service.audit import Audit
from service.ledger import Ledger, connect
from service.webhooks import Outbox, Secrets
from tests.service.letters import ended
from tests.service.rig import ledger, operator, redis_url, settings
from troupe.main import app
from workers.settings import Settings

__all__ = ["ledger", "operator", "redis_url", "settings"]

pytestmark = pytest.mark.usefixtures("operator")


def told(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["webhooks", *arguments])


def test_the_secret_is_shown_and_rotated(settings: Settings) -> None:
    keys = Secrets(connect(settings), settings)
    old = told("secret", "--tenant", "acme").stdout.strip()
    assert keys.valid("acme") == [old]
    fresh = told("secret", "--tenant", "acme", "--rotate").stdout.strip()
    assert keys.valid("acme") == [fresh, old] and told("secret").stdout.strip() != fresh
    assert told("secret", "--tenant", "Not a name").exit_code == 1


def test_the_dead_are_listed_and_replayed(settings: Settings, ledger: Ledger) -> None:
    outbox = Outbox(connect(settings), settings)
    for name in "ab":
        ended(ledger, name, "https://example.com/", tenant="acme")
        letter = outbox.take()
        assert letter is not None
        outbox.give_up(letter, "The receiver answered 404.")
    listed = json.loads(told("dead", "--tenant", "acme", "--json").stdout)
    assert [one["letter"]["ref"] for one in listed] == ["acme/a", "acme/b"]
    assert listed[1]["id"] == letter.id
    assert "The receiver answered 404." in told("dead", "--tenant", "acme").output
    refused = told("replay", "nobody", "--tenant", "acme")
    assert refused.exit_code == 1 and "No dead letter of nobody" in refused.output
    assert "1 to be delivered" in told("replay", "b", "--tenant", "acme").output
    assert "1 to be delivered" in told("replay", "--tenant", "acme").output
    assert json.loads(told("dead", "--tenant", "acme", "--json").stdout) == []


def test_what_an_operator_does_is_in_the_audit_chain(settings: Settings) -> None:
    told("secret", "--tenant", "acme", "--rotate")
    entries = list(Audit(connect(settings), settings).entries())
    assert [one.action for one in entries] == ["webhook.rotate"]
