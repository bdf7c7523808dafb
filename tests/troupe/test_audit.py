"""`troupe audit` as an operator runs it, over a real Redis."""

import json

import pytest
import redis
from typer.testing import CliRunner, Result

from service.audit import Audit
from tests.service.rig import connection, operator, redis_url, settings
from troupe.main import app
from workers.settings import Settings

__all__ = ["connection", "operator", "redis_url", "settings"]

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture(autouse=True)
def _chain(connection: redis.Redis, settings: Settings) -> None:
    audit = Audit(connection, settings)
    for number in range(4):
        audit.append("acme", "key0", "x.done", f"acme/{number}", {"n": number})


def told(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments])


def test_it_is_listed_whole_or_about_one_name() -> None:
    assert told("list").output.count("x.done") == 4
    (line,) = told("list", "--about", "acme/2", "--json").stdout.splitlines()
    assert json.loads(line)["detail"] == {"n": 2}
    assert told("list", "--tenant", "zeta", "--json").stdout == ""


def test_a_whole_chain_is_said_to_be_whole_and_an_altered_one_not(
    connection: redis.Redis, settings: Settings
) -> None:
    head = told("head").stdout.strip()
    assert told("verify", "--head", head).exit_code == 0
    assert f"4 entries, each follows the one before. Head: {head}" in told("verify").output
    chain = f"{settings.key_prefix}:audit"
    connection.lrem(chain, 1, str(connection.lindex(chain, 1)))
    said = told("verify")
    assert said.exit_code == 1 and "entry 2 is missing" in said.output


def test_a_head_that_is_none_is_refused() -> None:
    assert "is not SEQ:HASH" in told("verify", "--head", "4").output
