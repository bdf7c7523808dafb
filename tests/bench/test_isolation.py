"""The bench finds nothing where nobody gets what is not his, and finds it where somebody does."""

import io
import json
from collections.abc import Iterator

import pytest
from fastapi import Request
from rich.console import Console

from bench.isolation import CALLERS, Stage, cell, left_after_delete, main, measure, staged
from service.auth import Caller
from service.deps import Allowed
from service.errors import NotFound
from service.jobs import Job
from service.routes import content, videos


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


def test_everybody_gets_what_is_his_at_every_route(stage: Stage) -> None:
    result, cells = measure(stage, Console(file=io.StringIO()))
    assert [one for one in cells if one.wrong or one.leaked] == []
    operations = {one.operation for one in cells}
    assert result == {
        "cells": len(operations) * len(CALLERS),
        "as_expected": len(cells),
        "cross_tenant_bytes": 0,
        "left_after_delete": 0,
    }
    assert {"DELETE /v1/videos/{video_id}", "GET /v1/videos/{video_id}/content"} <= operations


def test_a_route_that_forgets_the_tenant_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (content, videos):
        monkeypatch.setattr(module, "ref_of", lambda tenant, video_id: f"owner/{video_id}")
    for tail in ("", "/content", "/references/{name}"):
        found = cell(stage, "get", "/v1/videos/{video_id}" + tail, "other")
        assert found.wrong.startswith("404") and found.leaked > 0


def test_a_listing_of_anothers_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stage.house.ledger.page
    monkeypatch.setattr(stage.house.ledger, "page", lambda _, *rest: real("owner", *rest))
    assert cell(stage, "get", "/v1/videos", "other").leaked > 0


def test_an_answer_that_betrays_anothers_video_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage.house.front.read

    async def read(ref: str) -> Job:
        try:
            return await real(ref)
        except NotFound as error:
            if stage.house.ledger.page("owner", None, 1, True)[0][0].id in ref:
                raise NotFound("It is not yours.") from error
            raise

    monkeypatch.setattr(stage.house.front, "read", read)
    assert cell(stage, "get", "/v1/videos/{video_id}", "other").wrong.startswith("404, as for")


@pytest.mark.parametrize("caller", ["reader", "admin"])
def test_a_scope_that_nobody_checks_is_found(
    stage: Stage, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pass_all(self: Allowed, request: Request) -> Caller:
        return stage.house.keys.authenticate(request.headers.get("authorization"))

    monkeypatch.setattr(Allowed, "__call__", pass_all)
    assert cell(stage, "delete", "/v1/videos/{video_id}", caller).wrong == "403"


def test_what_a_deletion_leaves_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_after_delete(stage) == 0
    monkeypatch.setattr(stage.house.blobs, "delete", lambda prefix: None)
    assert left_after_delete(stage) > 0


def test_it_ends_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cross_tenant_bytes"] == 0
