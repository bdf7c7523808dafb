"""The only door outwards: opens connections to addresses that clients give, and to nothing inside.

A name is resolved once, when the socket is opened, every address of the answer must be public,
and the socket goes to one of those that were looked at, so that a second answer of the DNS server's
cannot lead elsewhere. One parser reads a URL, and the connection is made of what it read. Nothing
comes from the environment (proxies), nothing is kept between calls (cookies, connections).

The operator's `fetch_hosts` is a comma list:

    name         pictures may be fetched from this host, over https
    name:port    the same at this port, over http too, and wherever the name may lead: tests and
                 private networks; webhooks may go there as well
    *            pictures may be fetched from every public host, over https

Left empty, no picture is ever fetched, and webhooks go to public https addresses only.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpcore
import httpx

from service.errors import AddressError

MAX_REDIRECTS = 3
MAX_URL = 2048
LIMIT_S = 10.0
FETCHES = 8  # at the same time, over all requests of a process

Resolve = Callable[[str, int], list[str]]
_Options = Iterable[httpcore.SOCKET_OPTION]

_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})+", re.ASCII)
_LISTED = re.compile(r"\*|[a-z0-9_.-]{1,253}(:\d{1,5})?|\[[0-9a-f:.]+\]:\d{1,5}", re.ASCII)
_NUMBER = re.compile(r"(.*\.)?(0x[0-9a-f]*|\d+)", re.ASCII)
_FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError)
_UNICAST = ipaddress.ip_network("2000::/3")  # the only IPv6 space that is given out (RFC 4291)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Of the IANA special-purpose registries, what `is_global` of Python 3.11 does not know yet.
_SPECIAL = [ipaddress.ip_network(n) for n in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")]


@dataclass(frozen=True)
class Answer:
    """What came back. Header names are in lower case; `body` is empty where none was asked for."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


def is_public(address: str) -> bool:
    """Whether an IP address lies in the open internet, also in its IPv4-in-IPv6 spellings."""
    ip = ipaddress.ip_address(address)
    if ip.is_multicast or not ip.is_global or any(ip in net for net in _SPECIAL):
        return False
    if ip.version == 4:
        return True
    inner = ip.ipv4_mapped or ip.sixtofour
    if ip in _NAT64:
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(str(inner))
    return ip in _UNICAST


def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, by the system's resolver, which bounds its own time.

    Raises:
        OSError: there is none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


class Outward:
    """Fetches pictures and posts webhooks. Every method raises AddressError, with the reason.

    `hosts` is the setting `fetch_hosts`; a picture may have `max_bytes`, an exchange `limit_s`.
    """

    def __init__(
        self,
        hosts: str,
        max_bytes: int,
        resolve: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._hosts = parse_hosts(hosts)
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._tls = tls or httpx.create_ssl_context(trust_env=False)
        self._limit_s = limit_s
        self._pool = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")

    @property
    def fetches(self) -> bool:
        """Whether pictures may be given as addresses at all."""
        return bool(self._hosts)

    def check(self, url: str) -> httpx.URL:
        """What can be said of a URL without asking the DNS; the rest is checked at each connect."""
        if len(url) > MAX_URL:
            raise AddressError(f"is longer than {MAX_URL} characters")
        if "\\" in url:
            raise AddressError("holds a backslash")
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError) as error:  # IDNAError is a ValueError
            raise AddressError(f"is no URL ({error!s:.80})") from error
        if parsed.userinfo:
            raise AddressError("must not hold a user or a password")
        trusted = self._is_trusted(parsed)
        if parsed.scheme != "https" and not (trusted and parsed.scheme == "http"):
            raise AddressError("must begin with https://")
        if not trusted:
            _check_host(parsed)
        return parsed

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One POST. No redirect is followed, and what the answer says is not read."""
        parsed = self.check(url)
        return self._send("POST", parsed, time.monotonic() + self._limit_s, body, headers, 0)

    def fetch_picture(self, url: str) -> bytes:
        """The bytes behind a URL, as many as a picture may have; whether they are one is not
        looked at. Up to three redirects, each of which must itself be allowed."""
        end = time.monotonic() + self._limit_s
        for _ in range(MAX_REDIRECTS + 1):
            parsed = self.check(url)
            self._check_listed(parsed)
            headers = {"accept": "image/*", "accept-encoding": "identity"}
            answer = self._send("GET", parsed, end, None, headers, self._max_bytes)
            if answer.status == 200:
                return _plain(answer)
            if answer.status not in {301, 302, 303, 307, 308} or "location" not in answer.headers:
                raise AddressError(f"answered {answer.status}")
            try:
                url = str(parsed.join(answer.headers["location"]))
            except (httpx.InvalidURL, ValueError) as error:
                raise AddressError("redirects to what is no URL") from error
        raise AddressError(f"redirects more than {MAX_REDIRECTS} times")

    async def fetch(self, url: str) -> bytes:
        """`fetch_picture` on one of a few threads of its own: slow hosts stop nobody else."""
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, self.fetch_picture, url
        )

    def close(self) -> None:
        """Fetch nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _is_trusted(self, url: httpx.URL) -> bool:
        """Whether the operator named this very host and port."""
        host = _host(url)
        return f"{f'[{host}]' if ':' in host else host}:{_port(url)}" in self._hosts

    def _check_listed(self, url: httpx.URL) -> None:
        host = _host(url)
        if not (self._is_trusted(url) or "*" in self._hosts or host in self._hosts):
            raise AddressError(f"{host!r:.80} is not among the hosts this server fetches from")

    def _send(
        self,
        method: str,
        url: httpx.URL,
        end: float,
        body: bytes | None,
        headers: Mapping[str, str],
        max_bytes: int,
    ) -> Answer:
        """One exchange on a connection of its own, over at `end`; a body is read up to its size
        if `max_bytes` says that one is wanted."""
        door = _Door(self._resolve, end, self._is_trusted(url))
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        fields = {"host": url.netloc.decode(), "user-agent": "troupe", **headers}
        try:
            with (
                httpcore.ConnectionPool(ssl_context=self._tls, network_backend=door) as pool,
                pool.stream(method, target, headers=list(fields.items()), content=body) as got,
            ):
                told = {k.decode().lower(): v.decode("latin-1") for k, v in got.headers}
                data = _read(got, max_bytes) if got.status == 200 and max_bytes else b""
                return Answer(got.status, told, data)
        except httpcore.TimeoutException as error:
            raise AddressError(f"did not answer within {self._limit_s:g} s") from error
        except _FAILURES as error:
            raise AddressError(f"does not answer ({type(error).__name__})") from error


class _Door(httpcore.NetworkBackend):
    """Resolves, looks at every address, and opens the socket to one of those."""

    def __init__(self, resolve: Resolve, end: float, trusted: bool) -> None:
        self._resolve = resolve
        self._end = end
        self._trusted = trusted
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _Options | None = None,
    ) -> httpcore.NetworkStream:
        """httpcore's door to the network; TLS later asks for `host`, not for the address."""
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise AddressError(f"{host!r:.80} has no address") from error
        if not addresses or not (self._trusted or all(map(is_public, addresses))):
            raise AddressError(f"{host!r:.80} does not lie in the open internet")
        for address in addresses[:-1]:
            try:
                return self._connect(address, port)
            except httpcore.ConnectError:
                continue  # the next one may be reachable, as IPv4 often is where IPv6 is not
        return self._connect(addresses[-1], port)

    def _connect(self, address: str, port: int) -> httpcore.NetworkStream:
        options: _Options = ()
        stream = self._sockets.connect_tcp(address, port, _left(self._end), None, options)
        return _Timed(stream, self._end)


class _Timed(httpcore.NetworkStream):
    """A connection that ends at `end`, however many small pieces come before."""

    def __init__(self, stream: httpcore.NetworkStream, end: float) -> None:
        self._stream = stream
        self._end = end

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._end))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._end))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._end))
        return _Timed(stream, self._end)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def parse_hosts(text: str) -> frozenset[str]:
    """The entries of `fetch_hosts`.

    Raises:
        ValueError: an entry is neither a host, nor host:port, nor an asterisk.
    """
    entries = [entry.strip().lower() for entry in text.split(",") if entry.strip()]
    for entry in entries:
        if not _LISTED.fullmatch(entry):
            raise ValueError(f"fetch_hosts: {entry!r} must be HOST, HOST:PORT or *")
    return frozenset(entries)


def _host(url: httpx.URL) -> str:
    """As the DNS is asked for it; `url.host` would give letters beyond ASCII back."""
    return url.raw_host.decode("ascii")


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _check_host(url: httpx.URL) -> None:
    """A full name without tricks, or a public address, at the usual port."""
    host = _host(url)
    if _port(url) != 443:
        raise AddressError("must use port 443")
    if ":" in host or _NUMBER.fullmatch(host):
        try:
            public = is_public(host)
        except ValueError as error:
            raise AddressError(f"{host!r:.80} is no address") from error
        if not public:
            raise AddressError(f"{host!r:.80} does not lie in the open internet")
    elif len(host) > 253 or not _NAME.fullmatch(host):
        raise AddressError(f"{host!r:.80} is no full name of a host")


def _left(end: float) -> float:
    """Seconds until then. Raises what httpcore raises for a read that took too long."""
    left = end - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time for the whole exchange is over")
    return left


def _read(got: httpcore.Response, max_bytes: int) -> bytes:
    data = bytearray()
    for piece in got.iter_stream():
        data += piece
        if len(data) > max_bytes:
            raise AddressError(f"sends more than {max_bytes / 1e6:g} MB")
    return bytes(data)


def _plain(answer: Answer) -> bytes:
    """The body, unless it is packed: unpacking is a bomb's way in, and nobody asked for it."""
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        raise AddressError("sends a packed body")
    return answer.body
