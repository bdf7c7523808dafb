"""The door outwards against real servers: who is asked, at which address, and who never is.

An audit hook sees every connect of this process; one to the open internet is kept and stopped.
"""

import socket
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from service.errors import AddressError
from service.outward import MAX_REDIRECTS, Outward, is_public, parse_hosts, resolve
from tests.service.receiver import Receiver, certify, receiving, reply

_watching: list[list[str]] = []
METADATA = "http://169.254.169.254/latest/meta-data/"


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _watching and isinstance(arguments[1], tuple):
        address = str(arguments[1][0])
        _watching[-1].append(address)
        if is_public(address):
            raise ConnectionRefusedError(f"no test goes to {address}")


sys.addaudithook(_on_event)  # cannot be taken away again, hence the list


@pytest.fixture(autouse=True)
def connects() -> Iterator[list[str]]:
    """The addresses that were connected to."""
    _watching.append(found := [])
    yield found
    _watching.pop()


def door(hosts: str = "", *, limit_s: float = 5, max_bytes: int = 1000, **names: str) -> Outward:
    """A door whose DNS knows these names (`_` for a dot), each with addresses between spaces."""
    known = {name.replace("_", "."): found.split() for name, found in names.items()}

    def look_up(host: str, port: int) -> list[str]:
        return known[host] if host in known else resolve(host, port)

    return Outward(hosts, max_bytes, look_up, limit_s=limit_s)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "2606:4700:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)
def test_addresses_of_the_open_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "255.255.255.255", "224.0.0.1", "239.1.1.1", "240.0.0.1", "198.18.0.1",
        "192.0.0.8", "192.0.2.1", "192.88.99.1", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "2001::1", "3fff::1", "5f00::1",
        "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "2002:7f00:1::",
        "2002:a00:1::1", "2002:c0a8:101::1",
    ],
)  # fmt: skip
def test_addresses_of_the_inside(address: str) -> None:
    assert not is_public(address)


REFUSED = [
    "", "x", "//example.com/", "https:example.com", "https:///x", "https://", "https://./",
    "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "HTTP://example.com/",
    "http://example.com/", "data:text/plain,x", "javascript:alert(1)", "unix:///run/s",
    "https://a@example.com/", "https://a:b@example.com/", "https://example.com@127.0.0.1/",
    "https://127.0.0.1\\@example.com/", "https://example.com\\@127.0.0.1/", "https:\\\\127.0.0.1",
    "https://example.com/\\..", "https://example.com:8443/", "https://example.com:22/",
    "https://example.com:99999/", "https://example.com:x/",
    "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f000001/",
    "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://017700000001/", "https://127.0.0.1./",
    "https://0/", "https://0x/", "https://127.0.0.0x1/", "https://8.8.8.8.8/", "https://256.1.1.1/",
    "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/",
    "https://[64:ff9b::7f00:1]/", "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/",
    "https://[::1", "https://[x]/", "https://169.254.169.254/", "https://[fd00:ec2::254]/",
    "https://localhost/", "https://localhost./", "https://redis/", "https://example.com./",
    "https://example..com/", "https://.example.com/", "https://exa%6dple.com/",
    "https://%31%32%37.0.0.1/", "https://127。0。0。1/", "https://①②⑦.0.0.1/",
    "https://ex ample.com/", "https://example.com\t/", "https://example.com/\r\nx: y",
    "https://xn--/", f"https://{'a' * 64}.com/", f"https://{'a.' * 130}com/",
    f"https://example.com/{'x' * 2048}",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_refused_unseen(url: str, connects: list[str]) -> None:
    here = door("*")
    for call in (here.check, here.fetch_picture, lambda url: here.post(url, b"", {})):
        with pytest.raises(AddressError):
            call(url)
    assert connects == []


@pytest.mark.parametrize(
    "url",
    ["https://example.com", "HTTPS://Example.COM:443/a?b@c#d", "https://bücher.example/hook",
     "https://8.8.8.8/", "https://[2606:4700:4700::1111]/", "https://a_b.example.com/"],
)  # fmt: skip
def test_what_may_be_asked_for(url: str) -> None:
    assert door().check(url).scheme == "https"


@pytest.mark.parametrize(
    "answer",
    ["127.0.0.1", "10.1.2.3", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "169.254.169.254",
     "8.8.8.8 127.0.0.1", "127.0.0.1 8.8.8.8", "2606:4700:4700::1111 fe80::1", ""],
)  # fmt: skip
def test_every_address_of_a_name_must_be_public(answer: str, connects: list[str]) -> None:
    here = door("*", evil_example=answer)
    for call in (here.fetch_picture, lambda url: here.post(url, b"", {})):
        with pytest.raises(AddressError, match="open internet"):
            call("https://evil.example/")
    assert connects == []


def test_a_second_answer_of_the_dns_leads_nowhere_else(connects: list[str]) -> None:
    answers = [["8.8.8.8"], ["127.0.0.1"], ["127.0.0.1"]]
    here = Outward("*", 1000, lambda host, port: answers.pop(0), limit_s=5)
    with pytest.raises(AddressError, match="does not answer"):
        here.fetch_picture("https://rebind.example/")
    assert connects == ["8.8.8.8"] and len(answers) == 2


def test_every_address_is_tried_in_turn(connects: list[str]) -> None:
    with pytest.raises(AddressError, match="does not answer"):
        door(far_example="8.8.8.8 8.8.4.4").post("https://far.example/", b"", {})
    assert connects == ["8.8.8.8", "8.8.4.4"]


def test_a_name_without_an_address_is_told() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror("unknown")

    with pytest.raises(AddressError, match="has no address"):
        Outward("", 1000, unknown).post("https://nobody.example/", b"", {})


def test_tls_asks_for_the_name_and_not_for_the_address(
    tmp_path: Path, connects: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    serves, trusts = certify("pictures.test", tmp_path)
    with receiving(Receiver(reply(200, body=b"bytes")), serves) as server:
        host = f"pictures.test:{server.port}"
        here = Outward(host, 1000, lambda name, port: ["127.0.0.1"], trusts)
        assert here.fetch_picture(f"HTTPS://Pictures.test:{server.port}/a?b=%20c#d") == b"bytes"
        assert here.post(f"https://{host}/hook", b"{}", {"x-a": "b"}).status == 200
        with pytest.raises(AddressError, match="does not answer"):
            Outward(host, 1000, lambda name, port: ["127.0.0.1"]).post(f"https://{host}/", b"", {})
    get, post = server.seen
    assert server.names[:2] == ["pictures.test"] * 2 and get.headers["host"] == host
    assert (get.method, get.path) == ("GET", "/a?b=%20c")
    assert get.headers["accept-encoding"] == "identity" and "cookie" not in get.headers
    assert (post.method, post.path, post.body) == ("POST", "/hook", b"{}")
    assert post.headers["x-a"] == "b"
    assert set(connects) == {"127.0.0.1"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target",
    [METADATA, "https://169.254.169.254/", "https://[::ffff:a9fe:a9fe]/", "//2852039166/",
     "file:///etc/passwd", "https://evil.example/", "http://127.0.0.1:1/", "\\\\127.0.0.1\\x"],
)  # fmt: skip
def test_a_redirect_is_checked_like_the_first_address(
    status: int, target: str, connects: list[str]
) -> None:
    with receiving(Receiver(reply(status, {"location": target}))) as server:
        here = door(f"localhost:{server.port},*", evil_example="169.254.169.254")
        with pytest.raises(AddressError):
            here.fetch_picture(f"http://localhost:{server.port}/")
    assert len(server.seen) <= 2 and set(connects) <= {"127.0.0.1", "::1"}


def test_redirects_are_followed_as_often_as_allowed_and_carry_no_cookie() -> None:
    hops: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        left = hops.pop()
        headers = {"location": f"/hop{left}", "set-cookie": "a=b"}
        reply(302, headers)(handler) if left else reply(200, body=b"there")(handler)

    with receiving(Receiver(answer)) as server:
        here, url = door(f"localhost:{server.port}"), f"http://localhost:{server.port}/"
        hops[:] = list(range(MAX_REDIRECTS + 1))
        assert here.fetch_picture(url) == b"there"
        hops[:] = list(range(MAX_REDIRECTS + 2))
        with pytest.raises(AddressError, match="more than 3 times"):
            here.fetch_picture(url)
    assert all("cookie" not in one.headers for one in server.seen)


def test_a_post_follows_no_redirect(connects: list[str]) -> None:
    with receiving(Receiver(reply(307, {"location": METADATA}))) as server:
        here = door(f"localhost:{server.port}")
        assert here.post(f"http://localhost:{server.port}/", b"x", {}).status == 307
    assert len(server.seen) == 1 and "169.254.169.254" not in connects


def test_pictures_come_from_listed_hosts_only(connects: list[str]) -> None:
    assert not door().fetches and door("a.example").fetches
    for hosts in ("", "a.example", "b.example:8443"):
        with pytest.raises(AddressError, match="'b.example' is not among the hosts"):
            door(hosts).fetch_picture("https://b.example/x.png")
    assert connects == []
    with pytest.raises(AddressError, match="does not answer"):
        door("b.example", b_example="8.8.8.8").fetch_picture("https://b.example/x.png")
    assert connects == ["8.8.8.8"]


def test_a_listed_name_without_a_port_must_still_be_public(connects: list[str]) -> None:
    with pytest.raises(AddressError, match="open internet"):
        door("in.example", in_example="10.0.0.1").fetch_picture("https://in.example/")
    with pytest.raises(AddressError, match="must begin with https"):
        door("in.example").fetch_picture("http://in.example/")
    assert connects == []


def test_a_listed_port_opens_no_other() -> None:
    with pytest.raises(AddressError):
        door("localhost:8000").check("http://localhost:8001/")
    with pytest.raises(AddressError):
        door("localhost:8000").check("http://localhost.:8000/")
    assert door("[::1]:8000").check("http://[::1]:8000/").host == "::1"
    assert door("localhost:443").check("https://localhost/").host == "localhost"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_is_read_up_to_its_limit(declared: bool) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if declared:
            handler.send_header("content-length", str(10**9))
        handler.end_headers()
        for _ in range(10**5):
            handler.wfile.write(b"x" * 1000)

    with receiving(Receiver(endless)) as server:
        with pytest.raises(AddressError, match="more than 0.001 MB"):
            door(f"localhost:{server.port}").fetch_picture(f"http://localhost:{server.port}/")
    with receiving(Receiver(reply(200, body=b"x" * 1000))) as server:
        here = door(f"localhost:{server.port}")
        assert here.fetch_picture(f"http://localhost:{server.port}/") == b"x" * 1000


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_exchange_ends_in_time_however_it_trickles(part: str) -> None:
    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if part == "body":
            handler.wfile.write(b"content-length: 1000\r\n\r\n")
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    with receiving(Receiver(trickle)) as server:
        here = door(f"localhost:{server.port}", limit_s=1)
        with pytest.raises(AddressError, match="did not answer within 1 s"):
            here.fetch_picture(f"http://localhost:{server.port}/")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(404), "answered 404"),
        (reply(302), "answered 302"),
        (reply(206, body=b"x"), "answered 206"),
        (reply(200, {"content-encoding": "gzip"}, b"x"), "packed"),
        (reply(302, {"location": "http://a:x/"}), "no URL"),
        (lambda handler: handler.wfile.write(b"SSH-2.0-x\r\n"), "does not answer"),
        (lambda handler: None, "does not answer"),
    ],
)
def test_what_is_no_picture_is_told(answer: Any, words: str) -> None:
    with receiving(Receiver(answer)) as server:
        with pytest.raises(AddressError, match=words):
            door(f"localhost:{server.port}").fetch_picture(f"http://localhost:{server.port}/")


@pytest.mark.parametrize("entry", ["http://x", "a b", "a:b", "a:", "**", "a/b", "::1", "x@y"])
def test_an_entry_that_is_none_is_told(entry: str) -> None:
    with pytest.raises(ValueError, match="must be HOST, HOST:PORT or"):
        parse_hosts(f"example.com, {entry}")


def test_entries_are_read_without_case_and_space() -> None:
    assert parse_hosts(" A.example , localhost:80,,") == {"a.example", "localhost:80"}
