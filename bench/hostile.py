"""`python -m bench.hostile`: what strangers send to break it, at real gateways over a real ledger.

Bombs, two files in one, pictures cut short and with bits turned, some eighty formats, odd EXIF and
file names; forms and JSON taken apart, every field with values that it cannot have; addresses of
what lies inside, for a gateway that fetches nothing and one that does; broken HTTP. Whatever comes,
a gateway must refuse in the standard's shape and name the field, keep nothing of it, and go on.

The last line is a JSON object (of gateways, decoders and what became of the cases):

    cases, kinds        in all, and of each kind
    accepted, refused   answers below 400, and below 500
    server_errors, unanswered, misshapen, unnamed, mistaken     must be 0: answers of 5xx; none;
                        not of the standard's shape; that name no field though there is one; taken
                        where they had to be refused, or the other way round
    crashes             gateways that ended
    decoders_lost       children that died of a picture, which is what they are for
    left                ids, keys and files of refused requests; files with what hid in a picture
    forbidden_connects  sockets to anything but the bench and the open internet
    growth_mb           a gateway's resident memory at its most, over that before the first case
    settled_mb          the same of both with all children, when all was over
    decoder_mb          the largest child's, at its most
    slowest_s           the longest answer
    faults              the first of what is wrong, in words
"""

import argparse
import itertools
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from bench.hostile_addresses import PUBLIC, addresses, stranger, through
from bench.hostile_bodies import doors, films, forms, json_bodies, values
from bench.hostile_case import FORM, JSON, Case, form, inline, part, with_picture
from bench.hostile_formats import NAMES, beside, formats, odd
from bench.hostile_pictures import MARK, Picture, bent, bombs, cut, double, sound
from bench.isolation import value_of
from bench.scales import Scales
from bench.stage import Stage, stage

AT_ONCE = 4
PLAIN, FETCHING = "gateway-1", "gateway-2"
# Refusals of a request as a whole: there is no field to name.
WHOLE = {
    "bad_request", "body_too_large", "invalid_api_key", "invalid_json", "method_not_allowed",
    "not_found", "unsupported_media_type",
}  # fmt: skip
MAX_MESSAGE = 1000
LOST = "needs too much memory to decode"
_ID = re.compile(r"(?:video|subj)_[0-9a-f]{32}")
WIRE = (
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500),
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
    b"POST /v1/videos HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/videos HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    b"POST /v1/videos HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"POST /v1/videos HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    b"GET /healthz\0 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"get / http/1.1\r\n\r\n",
    bytes(100_000),
)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    request_id: str
    body: bytes


@dataclass
class Tally:
    """What became of the cases, over all threads."""

    count: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, case: Case, answer: Answer | None, took_s: float) -> None:
        """One more."""
        word = judge(case, answer)
        with self.lock:
            self.kinds[case.kind] += 1
            self.slowest_s = max(self.slowest_s, took_s)
            if word:
                self.count[word] += 1
                status, body = (answer.status, answer.body) if answer else (0, b"")
                self.faults.append(f"{word}: {case.kind}, {case.name}: {status} {body[:300]!r}")
            if answer is not None and answer.status < 500:
                self.count["accepted" if answer.status < 400 else "refused"] += 1
                self.count["lost"] += LOST.encode() in answer.body
            if answer is not None and case.method == "POST" and answer.status < 300:
                self.accepted |= set(_ID.findall(answer.body.decode()))


def judge(case: Case, answer: Answer | None) -> str:
    """What is wrong with an answer, as a key of the result; empty if nothing is."""
    if answer is None:
        return "unanswered"
    if answer.status >= 500:
        return "server_errors"
    if answer.status < 400:
        return "mistaken" if case.must == "refused" else ""
    if not answer.request_id.startswith("req_"):
        return "misshapen"
    if case.method == "HEAD":
        return ""
    try:
        error = json.loads(answer.body)["error"]
        right = error.keys() == {"message", "type", "param", "code"} and (
            0 < len(error["message"]) <= MAX_MESSAGE and error["type"] == "invalid_request_error"
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        right = False
    if not right:
        return "misshapen"
    if not error["param"] and error["code"] not in WHOLE:
        return "unnamed"
    return "mistaken" if case.must == "taken" else ""


def pictures(dice: random.Random) -> Iterator[Case]:
    """As forms, in JSON, and as photos of subjects, in turn."""
    kinds: dict[str, Callable[[random.Random], Iterator[Picture]]] = {
        "cut": cut, "bent": bent, "bombs": bombs, "double": double, "formats": formats,
        "odd": odd, "beside": beside,
    }  # fmt: skip
    for kind, each in kinds.items():
        for number, one in enumerate(each(dice)):
            body, sort, path = WAYS[number % len(WAYS)]
            make = _enclosed(body, one.make)
            yield Case(kind, one.name, make, sort, path, must=one.must, slow=one.slow)
    for name in NAMES:
        yield Case("names", repr(name[:60]), partial(with_picture, sound("png"), name))


def photo(data: bytes) -> bytes:
    """A form that keeps a subject."""
    return form([part("name", b"anna"), part("images", data, b"anna.png")])


WAYS = (
    (with_picture, FORM, "/v1/videos"),
    (inline, JSON, "/v1/videos"),
    (photo, FORM, "/v1/subjects"),
)


def _enclosed(body: Callable[[bytes], bytes], make: Callable[[], bytes]) -> Callable[[], bytes]:
    return lambda: body(make())


def cases(seed: int, port: int, most: int = 0) -> list[Case]:
    """All, in an order of the seed's; or about so many, some of every kind and none that is slow.

    port: of the stranger that the second gateway may ask.
    """
    found: dict[str, list[Case]] = defaultdict(list)
    for each in (pictures, forms, values, json_bodies, doors, films, addresses):
        for case in each(random.Random(f"{seed}/{each.__name__}")):
            found[case.kind].append(case)
    found["redirects"] = list(through(port))
    dice = random.Random(seed)
    chosen = list(itertools.chain(*found.values()))
    if most:
        share = most / len(chosen)
        quick = {kind: [case for case in each if not case.slow] for kind, each in found.items()}
        chosen = [
            case for each in quick.values()
            for case in dice.sample(each, min(len(each), max(3, round(share * len(each)))))
        ]  # fmt: skip
    dice.shuffle(chosen)
    return chosen


def send(port: int, case: Case) -> Answer | None:
    """One case over a connection of its own; None where nothing comes back."""
    body = case.make()
    line = HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        line.putrequest(case.method, case.path)
        for name, value in {"content-type": case.type, **case.headers}.items():
            line.putheader(name, value)
        line.putheader("content-length", str(len(body)))
        with suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
            line.endheaders(body)
        answer = line.getresponse()
        return Answer(answer.status, answer.getheader("x-request-id", ""), answer.read())
    except (HTTPException, OSError):
        return None
    finally:
        line.close()


def raw(port: int, data: bytes) -> int:
    """The status that broken HTTP gets; 0 where the line is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            words = line.recv(4096).split()
        except OSError:
            return 0
    return int(words[1]) if len(words) > 1 else 0


def kept(place: Stage) -> tuple[set[str], set[str]]:
    """Ids that anything in Redis or the store names, and keys and files that name none."""
    ids: set[str] = set()
    others: set[str] = set()
    texts = {str(k): value_of(place.redis, str(k)) for k in place.redis.scan_iter("*")}
    folder = Path(place.settings.blobs_url)
    texts |= {str(path.relative_to(folder)): "" for path in folder.rglob("*") if path.is_file()}
    for name, value in texts.items():
        found = _ID.findall(f"{name} {value}")
        ids |= set(found)
        others |= set() if found else {name}
    return ids, others


def hidden(place: Stage) -> list[str]:
    """Stored files with something of what hid in a picture."""
    files = [path for path in Path(place.settings.blobs_url).rglob("*") if path.is_file()]
    return [path.name for path in files if MARK in path.read_bytes()]


def connects(log: Path, own: str) -> list[str]:
    """Where sockets went that must not: neither to the bench nor to what is public."""
    lines = set(log.read_text().splitlines()) if log.exists() else set()
    right = {own, *(f"{address} 443" for address in PUBLIC)}
    return sorted(lines - right)


def good(place: Stage, name: str, tally: Tally) -> bool:
    """Whether a request with nothing wrong is still served, to its stored picture."""
    case = Case("good", name, lambda: with_picture(sound("jpeg")), must="taken")
    answer = send(place.ports[name], case)
    tally.note(case, answer, 0.0)
    if answer is None or answer.status != 202:
        return False
    path = json.loads(answer.body)["subjects"][0]["reference"]
    shown = send(place.ports[name], Case("good", name, bytes, "", path, "GET"))
    return shown is not None and shown.body.startswith(b"\x89PNG")


def run(seed: int, most: int = 0) -> dict[str, Any]:
    """The whole experiment, or about `most` cases of it; returns what it found."""
    with stranger() as port, tempfile.TemporaryDirectory(prefix="tb") as folder:
        own, log = f"127.0.0.1:{port}", Path(folder) / "connects"
        env = {"BENCH_STRANGER": "", "BENCH_CONNECTS": str(log)}
        apart = {
            PLAIN: env, FETCHING: env | {"BENCH_STRANGER": own, "TROUPE_FETCH_HOSTS": f"*,{own}"},
        }  # fmt: skip
        with stage(
            gateways=2, workers=0, apart=apart, decode_timeout_s=10,
            gateway="bench.hostile_gateway:create_app",
        ) as place:  # fmt: skip
            place.start_all()
            return _run(place, cases(seed, port, most), log, own)


def _run(place: Stage, chosen: Sequence[Case], log: Path, own: str) -> dict[str, Any]:
    tally = Tally()
    ready = all([good(place, name, tally) for name in place.ports])
    pids = {name: place.pid(name) for name in place.ports}
    _, before = kept(place)
    scales = Scales(list(pids.values()))

    def one(case: Case) -> None:
        begin = time.monotonic()
        answer = send(place.ports[FETCHING if case.fetches else PLAIN], case)
        tally.note(case, answer, time.monotonic() - begin)

    with scales.weighing(), ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, chosen))
    wire = [raw(port, data) for data in WIRE for port in place.ports.values()]
    tally.kinds["wire"] = len(wire)
    tally.count["server_errors"] += sum(status >= 500 for status in wire)
    crashes = sum(place.ended(name) for name in pids)
    after = not crashes and all([good(place, name, tally) for name in place.ports])
    ids, others = kept(place)
    left = sorted(ids - tally.accepted) + sorted(others - before) + hidden(place)
    told = {name: tally.count[name] for name in (
        "accepted", "refused", "server_errors", "unanswered", "misshapen", "unnamed", "mistaken")}
    found: dict[str, Any] = {
        "cases": len(chosen) + len(wire),
        "kinds": dict(sorted(tally.kinds.items())),
        **told,
        "crashes": crashes,
        "decoders_lost": tally.count["lost"],
        "left": len(left),
        "forbidden_connects": len(outside := connects(log, own.replace(":", " "))),
        "growth_mb": round(scales.growth / 1e6, 1),
        "settled_mb": round(scales.settled() / 1e6, 1),
        "decoder_mb": round(scales.child / 1e6, 1),
        "slowest_s": round(tally.slowest_s, 2),
        "good_request_served": ready and after,
        "faults": [*tally.faults[:20], *left[:5], *outside[:5]],
    }
    return found | {"clean": clean(found)}


MUST_BE_NONE = (
    "server_errors", "unanswered", "misshapen", "unnamed", "mistaken", "crashes", "left",
    "forbidden_connects",
)  # fmt: skip


def clean(found: dict[str, Any]) -> bool:
    """Whether nothing is wrong."""
    quiet = not any(found[name] for name in MUST_BE_NONE)
    slim = max(found["growth_mb"], found["settled_mb"]) <= 256
    return quiet and slim and bool(found["good_request_served"])


def main(given: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--cases", type=int, default=0, help="about so many (0: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="for symmetry: it is always the last")
    asked = parser.parse_args(given)
    found = run(asked.seed, asked.cases)
    print(json.dumps(found))
    return 0 if found["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
