"""`troupe tenants` as an operator runs it, over a real Redis."""

import json

import pytest
from typer.testing import CliRunner, Result

from service.ledger import connect
from service.tenants import Tenant, Tenants
from tests.service.rig import operator, redis_url, settings
from troupe.main import app
from workers.settings import Settings

__all__ = ["operator", "redis_url", "settings"]

pytestmark = pytest.mark.usefixtures("operator")


def told(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["tenants", *arguments])


def test_bounds_are_set_and_taken_away(settings: Settings) -> None:
    told("set", "acme", "--weight", "0.5", "--max-running", "2", "--gpu-seconds-per-hour", "3600")
    told("set", "acme", "--max-running", "none", "--requests-per-minute", "60")
    found = Tenants(connect(settings), settings).read("acme")
    assert found == Tenant("acme", 0.5, None, None, 60, 3600)
    (listed,) = json.loads(told("list", "--json").stdout)
    assert Tenant(**listed) == found
    assert "3600" in told("list").output and "none" in told("list").output


def test_what_is_no_number_is_refused() -> None:
    for value, words in (("many", "must be a number or none"), ("-1", "from 0 to")):
        said = told("set", "acme", f"--max-running={value}")
        assert said.exit_code == 1 and words in said.output
    assert json.loads(told("list", "--json").stdout) == []
