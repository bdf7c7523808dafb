"""`python -m bench.idempotency`: the same requests again and again, over connections that break.

Fifty clients send 10,000 POSTs with 500 keys, at gateways over one ledger. Half of the connections
are cut: within the headers, within the body, before the answer, within the answer. One request in
twenty comes with a key of another request. At the end there must be one job for each key, every
answer to a key must have named it, and nothing must be stored beside those jobs.

The last line is a JSON object: posts, keys, cut, answered, jobs, keys_with_two_jobs, conflicts,
conflicts_missed, unexpected, orphans.
"""

import argparse
import base64
import io
import json
import random
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bench.stage import Stage, stage
from service.refs import id_of

CUTS = ("headers", "body", "unanswered", "answer")
CUT_SHARE, FOREIGN_SHARE = 0.5, 0.05


class History:
    """What clients saw, over all threads."""

    def __init__(self) -> None:
        self.ids: dict[int, set[str]] = defaultdict(set)
        self.count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, word: str, key: int | None = None, video_id: str = "") -> None:
        """One more of a kind; and which job a key was told to be."""
        with self._lock:
            self.count[word] += 1
            if key is not None:
                self.ids[key].add(video_id)


def body_of(key: int, foreign: bool = False) -> bytes:
    """The request of a key, the same each time; every eighth has a picture."""
    asked: dict[str, Any] = {"prompt": "a meadow", "seed": key + (10**6 if foreign else 0)}
    if key % 8 == 0:
        out = io.BytesIO()
        Image.new("RGB", (32, 32), (key % 256, 80, 80)).save(out, "PNG")
        picture = base64.b64encode(out.getvalue()).decode()
        asked |= {"prompt": "@anna waves", "subjects": [{"name": "anna", "image": picture}]}
    return json.dumps(asked).encode()


def send(port: int, key: int, body: bytes, cut: str, dice: random.Random) -> tuple[int, Any] | None:
    """One POST over a connection of its own; None where it was cut."""
    head = (
        f"POST /v1/videos HTTP/1.1\r\nhost: x\r\nconnection: close\r\nidempotency-key: k{key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        if cut == "headers":
            line.sendall(head[: dice.randrange(1, len(head))])
            return None
        if cut == "body":
            line.sendall(head + body[: dice.randrange(len(body))])
            return None
        line.sendall(head + body)
        if cut == "unanswered":
            return None
        answer = line.recv(1)
        if cut == "answer":
            return None
        while chunk := line.recv(1 << 16):
            answer += chunk
    top, _, text = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(text)


def client(
    ports: Sequence[int], posts: int, keys: int, dice: random.Random, seen: History
) -> None:
    """One thread's share of the posts."""
    for _ in range(posts):
        key, foreign = dice.randrange(keys), dice.random() < FOREIGN_SHARE
        cut = dice.choice(CUTS) if dice.random() < CUT_SHARE else ""
        # A cut first request of another body would take the key for itself.
        foreign = foreign and bool(seen.ids.get(key)) and not cut
        try:
            found = send(dice.choice(ports), key, body_of(key, foreign), cut, dice)
        except OSError:
            seen.note("broken")
            continue
        judge(found, key, foreign, seen)


def judge(found: tuple[int, Any] | None, key: int, foreign: bool, seen: History) -> None:
    """Whether the answer is as it must be."""
    if found is None:
        seen.note("cut")
        return
    status, answer = found
    if foreign:
        seen.note("conflict" if status == 422 else "conflict_missed")
    elif status == 202:
        seen.note("answered", key, answer["id"])
    else:
        seen.note(f"unexpected {status}")


def orphans(place: Stage) -> int:
    """Folders of pictures in the store that belong to no job."""
    folder = Path(place.settings.blobs_url) / "t" / "local" / "videos"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    known = {id_of(ref) for ref in place.refs()}
    return len([name for name in names if name not in known])


def run(posts: int, keys: int, clients: int, seed: int, gateways: int = 2) -> dict[str, Any]:
    """The whole experiment; returns what it found."""
    seen = History()
    with stage(gateways=gateways, workers=0) as place:
        place.start_all()
        ports = list(place.ports.values())
        threads = [
            threading.Thread(
                target=client,
                args=(ports, posts // clients, keys, random.Random(f"{seed}/{n}"), seen),
            )
            for n in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        dice = random.Random(seed)
        for key in range(keys):  # whatever was cut: in the end each is sent whole
            judge(send(ports[0], key, body_of(key), "", dice), key, False, seen)
        jobs, left = place.ledger.books().submitted, orphans(place)
    return {
        "posts": posts + keys,
        "keys": keys,
        "cut": seen.count["cut"],
        "broken": seen.count["broken"],
        "answered": seen.count["answered"],
        "jobs": jobs,
        "keys_with_two_jobs": sum(len(ids) != 1 for ids in seen.ids.values()),
        "conflicts": seen.count["conflict"],
        "conflicts_missed": seen.count["conflict_missed"],
        "unexpected": {k: n for k, n in seen.count.items() if k.startswith("unexpected")},
        "orphans": left,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.idempotency")
    parser.add_argument("--posts", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=500)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="for symmetry: it is always the last")
    asked = parser.parse_args()
    print(json.dumps(run(asked.posts, asked.keys, asked.clients, asked.seed)))


if __name__ == "__main__":
    main()
