"""Addresses that lead where they should not, for a gateway that fetches nothing and for one that
does; and the server that this one may ask, which means no good either.

Names under `.example` are answered by `bench.hostile_gateway`, so nothing ever asks a real DNS.
"""

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

from bench.hostile_case import FORM, JSON, Case, Must, form, part, text
from bench.hostile_pictures import sound, zeros

PUBLIC = ("93.184.215.14", "2606:2800:21f::1")
# Answers of the DNS, one list a question, in turn.
NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "rebinding.example": ((PUBLIC[0],), ("169.254.169.254",), ("127.0.0.1",)),
    "mixed.example": ((PUBLIC[0], "10.0.0.1"),),
    "public.example": ((PUBLIC[0],),),
    "inside.example": (("10.0.0.1",),),
    "mapped.example": (("::ffff:127.0.0.1",),),
    "six.example": (("fd00::1",),),
    "local.six.example": (("fe80::1%1",),),
    "nowhere.example": ((),),
    "127.0.0.1.nip.io": (("127.0.0.1",),),
    "localhost.localdomain": (("127.0.0.1",),),
    "localtest.me": (("::1",),),
    "metadata.google.internal": (("169.254.169.254",),),
    "kubernetes.default.svc": (("10.96.0.1",),),
}

HOSTS = (
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1",
    "017700000001", "127.0.0.1.", "00000127.0.0.1", "127.0.0.01", "0", "0.0.0.0", "localhost",
    "localhost.", "LOCALHOST", "localhost.localdomain", "127.0.0.1.nip.io", "localtest.me",
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.169.254.",
    "metadata.google.internal", "metadata", "100.100.100.200", "192.168.0.1", "10.0.0.1",
    "172.16.0.1", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.88.99.1", "[::1]", "[::]",
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]", "[::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[64:ff9b::169.254.169.254]", "[64:ff9b:1::1]", "[2002:7f00:1::]",
    "[2001:0:7f00:1::]", "[fe80::1]", "[fe80::1%25eth0]", "[fd00::1]", "[fc00::1]", "[ff02::1]",
    "[2001:db8::1]", "[3fff::1]", "[100::1]", "[0:0:0:0:0:0:0:1]", "[::1", "[]", "[v1.a]",
    "１２７.0.0.1", "127。0。0。1", "①②⑦.⓪.⓪.①", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "ｌｏｃａｌｈｏｓｔ",
    "127.0.0.1%00.example.com",
    "inside.example", "mapped.example", "six.example", "local.six.example", "mixed.example",
    "rebinding.example", "nowhere.example", "kubernetes.default.svc", "xn--a", "-a.example",
    "a_b", "a..example", ".example", "a" * 300 + ".example", "%31%32%37.0.0.1",
)  # fmt: skip

URLS = (
    *(f"{scheme}://127.0.0.1/a.png" for scheme in ("http", "ftp", "gopher", "dict", "ldap", "jar")),
    *(f"{scheme}:///etc/passwd" for scheme in ("file", "FILE", "https", "http", "unix", "smb")),
    "file:/etc/passwd", "file://localhost/etc/passwd", "netdoc:/etc/passwd", "php://filter/a",
    "javascript:alert(1)", "view-source:https://127.0.0.1", "blob:https://127.0.0.1/a",
    "https://public.example@127.0.0.1/", "https://127.0.0.1@public.example/",
    "https://a:b@127.0.0.1:443/", "https://public.example\\@127.0.0.1/",
    "https://127.0.0.1\\.public.example/", "https:127.0.0.1/a", "https:/127.0.0.1/a",
    "https:\\\\127.0.0.1\\a", "https://127.0.0.1:80/", "https://public.example:22/",
    "https://public.example:99999/", "https://public.example:-1/", "https://public.example:0443/",
    "https://public.example:4 43/", "https://127.0.0.1#@public.example/",
    "https://127.0.0.1?@public.example/", "https://public.example%2f@127.0.0.1/",
    "https://[::1]%2fpublic.example/", "https://127.0.0.1%09/", "https://127.0.0.1\r\nhost: a/",
    "https://127.0.0.1\t/", " https://127.0.0.1/", "https:// 127.0.0.1/", "https://", "://", ":",
    "https://" + "a" * 3000 + ".example/", "https://public.example/" + "a" * 3000,
    "http://public.example/a.png", "HTTPS://127.0.0.1/", "//127.0.0.1/a", "https://\ud800/",
    "https://127.0.0.1\x00.example/", "https://\u202e1.0.0.721/",
)  # fmt: skip

DATA = (
    "data:", "data:,", "data:image/png", "data:image/png;base64", "data:image/png;base64,",
    "data:image/png;base64,!!!!", "data:image/png;base64,aaa", "data:image/png;base64,YQ==",
    "data:text/html;base64,PHNjcmlwdD4=", "data:image/svg+xml,<svg/>", "data:;base64,YQ==",
    "data:image/png;charset=utf-7;base64,YQ==", "data:image/png;base64;base64,YQ==", "DATA:,a",
    "data:image/png;base64,\u00ff", "data:image/png;base64," + "A" * 1_000_001, "aGk=", "=", "====",
    "data:https://127.0.0.1/", "data:image/png;base64,data:image/png;base64,YQ==",
)  # fmt: skip


def everywhere(url: str) -> Iterator[tuple[str, bytes, str]]:
    """(field, body, its type) for every field that takes an address."""
    prompt = {"prompt": "@anna waves"}
    one = {"name": "anna", "image_url": url}
    yield "subjects[0].image_url", text(prompt | {"subjects": [one]}), JSON
    yield "images[0]", text(prompt | {"images": [url]}), JSON
    yield "image_reference", text(prompt | {"image_reference": {"image_url": url}}), JSON
    words = part("prompt", b"@anna waves")
    named = part("input_reference[image_url]", url.encode(errors="surrogatepass"))
    yield "input_reference[image_url]", form([words, named]), FORM
    yield "webhook_url", text({"prompt": "a meadow", "webhook_url": url}), JSON


def addresses(dice: random.Random) -> Iterator[Case]:
    """Each in two fields in turn, at a gateway that fetches and at one that does not."""
    del dice
    urls = [*(f"https://{host}/a.png" for host in HOSTS), *URLS]
    for number, url in enumerate(urls):
        rows = list(everywhere(url))
        for fetches in (False, True):
            for turn in (number, number + 2):
                field, body, kind = rows[turn % len(rows)]
                # A webhook's name is only looked up when there is something to tell it.
                must: Must = "" if field == "webhook_url" else "refused"
                yield _case(url, field, body, kind, must, fetches)
    for url, fetches in itertools.product(DATA, (False, True)):
        for field, body, kind in list(everywhere(url))[:2]:
            yield _case(url, field, body, kind, "refused", fetches)


def _case(url: str, field: str, body: bytes, kind: str, must: Must, fetches: bool) -> Case:
    name, make = f"{field}: {url[:60]!r}", partial(bytes, body)
    return Case("addresses", name, make, kind, must=must, fetches=fetches)


def through(port: int) -> Iterator[Case]:
    """What the server at this port, which the gateway may ask, makes of it."""
    targets = [
        *(f"https://{host}/a.png" for host in HOSTS[:60:2]), *URLS[:24:2],
        "http://127.0.0.1:22/", "//127.0.0.1/a", "/loop", "\\\\127.0.0.1\\a", "",
    ]  # fmt: skip
    sent = [f"/to/{quote(target, safe='')}" for target in targets]
    for path in (*sent, *ODD, "/good"):
        _, body, _ = next(everywhere(f"http://127.0.0.1:{port}{path}"))
        must: Must = "taken" if path == "/good" else "refused"
        slow = path in {"/slow", "/endless"}
        yield Case(
            "redirects", path[:60], partial(bytes, body), JSON, must=must, fetches=True, slow=slow
        )


ODD = ("/loop", "/packed", "/lies", "/heads", "/html", "/204", "/endless", "/slow")


class Stranger(BaseHTTPRequestHandler):
    """Answers every GET in a way that the client may regret."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802, the library's name
        """By the path."""
        if self.path.startswith("/to/"):
            self._tell(302, [("location", unquote(self.path[4:], errors="replace"))])
        elif self.path == "/loop":
            self._tell(302, [("location", "/loop")])
        elif self.path == "/packed":
            self._tell(200, [("content-encoding", "deflate")], zeros(300_000_000))
        elif self.path == "/lies":
            self._tell(200, [("content-length", str(2**60))], b"few", count=False)
        elif self.path == "/heads":
            self._tell(200, [("x", "a" * 60_000)] * 40, sound("png"))
        elif self.path == "/endless":
            self._pour(b"a" * 65536, 0.0)
        elif self.path == "/slow":
            self._pour(b"a", 0.5)
        elif self.path == "/204":
            self._tell(204, [])
        else:
            self._tell(200, [], sound("png") if self.path == "/good" else b"<html>")

    def _tell(
        self, status: int, headers: list[tuple[str, str]], body: bytes = b"", count: bool = True
    ) -> None:
        self.send_response(status)
        self.send_header("connection", "close")
        for name, value in headers:
            self.send_header(name, value.encode("ascii", "replace").decode())
        if count:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self._write(body)

    def _pour(self, piece: bytes, pause_s: float) -> None:
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        while self._write(piece):
            time.sleep(pause_s)

    def _write(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
            return True
        except OSError:  # it has had enough
            return False

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def stranger() -> Iterator[int]:
    """The server; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
