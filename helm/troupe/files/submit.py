"""`submit.py answers|job URL SECONDS`: does a gateway answer, and does a job go through it?

Needs nothing but the standard library. An API key, where one is asked for, is in API_KEY.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
import zlib


def call(url: str, body: dict[str, object] | None = None) -> tuple[int, bytes]:
    """Status and body; a status of 0: nobody answered."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    if key := os.environ.get("API_KEY"):
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()


def until(end: float, url: str, pleases) -> bytes:
    """The first answer that pleases; ends the process when there is none in time."""
    while True:
        status, found = call(url)
        if pleases(status, found):
            return found
        if time.monotonic() > end:
            sys.exit(f"{url}: still {status} {found[:500]!r}")
        time.sleep(1)


def ended(status: int, found: bytes) -> bool:
    return status == 200 and json.loads(found)["status"] in {"completed", "failed"}


def job(base: str, end: float) -> None:
    until(end, f"{base}/readyz", lambda status, _: status == 200)
    asked: dict[str, object] = {"prompt": "somebody waves", "seed": "7", "steps": "4"}
    status, found = call(f"{base}/v1/videos", asked)
    if status != 202:
        sys.exit(f"not accepted: {status} {found[:500]!r}")
    at = f"{base}/v1/videos/{json.loads(found)['id']}"
    last = json.loads(until(end, at, ended))
    if last["status"] != "completed":
        sys.exit(f"it failed: {last.get('error')}")
    status, film = call(f"{at}/content")
    if status != 200 or film[4:8] != b"ftyp":
        sys.exit(f"no video: {status} {film[:80]!r}")
    told = f"{len(film)} bytes, crc {zlib.crc32(film):08x}, model {last.get('model_digest')}"
    sys.stdout.write(f"a job went through: {told}\n")


def main() -> None:
    what, base, seconds = sys.argv[1:]
    end = time.monotonic() + float(seconds)
    until(end, f"{base}/healthz", lambda status, _: status == 200)
    if what == "job":
        job(base, end)
    sys.stdout.write(f"{base} answers\n")


main()
