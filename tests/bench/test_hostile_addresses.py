"""Addresses stand in the fields that take them, and the stranger answers as it says."""

import json
import random
import zlib

import httpx

from bench.hostile_addresses import HOSTS, NAMES, ODD, addresses, everywhere, stranger, through
from bench.hostile_case import JSON
from bench.hostile_pictures import sound


def test_each_field_holds_the_address() -> None:
    url = "https://a.example/"
    bodies = {field: (body, kind) for field, body, kind in everywhere(url)}
    assert len(bodies) == 5
    assert all(url.encode() in body for body, _ in bodies.values())
    assert all(json.loads(body) for body, kind in bodies.values() if kind == JSON)


def test_both_gateways_are_asked_the_same() -> None:
    found = list(addresses(random.Random(1)))
    there, here = ([c.name for c in found if c.fetches is f] for f in (True, False))
    assert there == here and len(there) > 250
    assert all(c.must == "refused" for c in found if not c.name.startswith("webhook_url"))
    assert {host for host in HOSTS if host.endswith(".example")} >= {
        "rebinding.example", "mapped.example",
    }  # fmt: skip
    assert len(set(NAMES["rebinding.example"])) == 3


def test_the_stranger() -> None:
    with stranger() as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/to/file%3A%2F%2F%2Fa").headers["location"] == "file:///a"
        assert client.get("/loop").headers["location"] == "/loop"
        assert client.get("/good").content == sound("png")
        assert client.get("/204").status_code == 204
        with client.stream("GET", "/packed") as answer:
            packed = b"".join(answer.iter_raw())
        assert len(zlib.decompress(packed)) == 300_000_000
        for path, size in (("/endless", 200_000), ("/slow", 2)):
            with client.stream("GET", path) as answer:
                read = 0
                for piece in answer.iter_raw():
                    read += len(piece)
                    if read >= size:
                        break
                assert read >= size


def test_every_answer_of_the_stranger_is_asked_for() -> None:
    found = {case.name: case for case in through(9)}
    assert set(ODD) < found.keys() and found["/good"].must == "taken"
    assert {name for name, case in found.items() if case.slow} == {"/endless", "/slow"}
