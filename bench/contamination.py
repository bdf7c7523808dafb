"""`python -m bench.contamination`: does a video ever show another request's references?

Many jobs at once, with the same prompt and seed, whose subjects look all but alike: one character
in pictures that differ in one pixel by one level, its near-twins, two of them in either order, some
of them kept and used by id; of several tenants, through real workers. So only the references tell
two jobs apart, and whatever leaks makes exactly another job's video.

Once with the scripted engine, whose video shows a digest of the pictures that it was given; and
once with a real one, whose workers share a folder of encodings, against a fresh engine in this
process that has nothing kept, for each request.

The last line is a JSON object, of both (`scripted`, `real`):

    jobs, requests  how many, and how many different ones
    own             videos that are their own request's
    foreign         videos of another request of these
    unknown         videos of neither
    pictures        references that the service shows and that are not the request's own
    failed          jobs that were not finished
    distinct        different videos that there had to be: as many as requests, or nothing is shown
    encodings       of the real: files that the workers kept and shared, prompts without words too
"""

import argparse
import hashlib
import io
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from bench.scripted import end, seen
from bench.stage import Stage, stage
from engine.cache import EncodingCache
from engine.pipeline import Engine
from engine.presets import MINIATURE
from engine.spec import Reference, Spec
from engine.video import picture_bytes
from service.auth import Keys
from training.world.identity import near_twin, sample_identity
from training.world.render import render_reference

TENANTS = ("acme", "zeta", "local", "other")
SEED, SIDE = 7, 64
FIELDS = {"size": "32x32", "num_frames": "5"}
AT_ONCE = 24
LIMIT_S = 600.0

Shown = tuple[str, ...]  # digests of what a video shows


@dataclass(frozen=True)
class Ask:
    """What one job is of: its faces by name, in the order in which they are given.

    number: of the request; jobs with the same number ask for the same. kept: by id.
    """

    number: int
    faces: tuple[Reference, ...]
    steps: int
    kept: bool = False

    @property
    def prompt(self) -> str:
        """The same for all with as many faces, in either order."""
        return " and ".join(f"@{name} waves" for name in sorted(face.name for face in self.faces))

    @property
    def spec(self) -> Spec:
        """As the gateway makes it."""
        names = tuple(face.name for face in self.faces)
        return Spec.of(
            MINIATURE, self.prompt, names, seed=SEED, steps=self.steps, width=32, height=32,
            num_frames=5,
        )  # fmt: skip


def faces(count: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """So many look-alikes, uint8 [64, 64, 3]: of each four, a character or a near-twin of it, and
    three copies that differ from that in one pixel by one level."""
    dice = np.random.default_rng(seed)
    first = who = sample_identity(dice)
    drawn = {first}
    found: list[np.ndarray[Any, Any]] = []
    for number in range(count):
        if number % 4 == 0:
            while number and who in drawn:
                who = near_twin(first, dice)
            drawn.add(who)
            plain = render_reference(who, np.random.default_rng(seed), SIDE)
        one = plain.copy()
        one[SIDE // 2, 8 + number % 48, number % 3] ^= 1 if number % 4 else 0
        found.append(one)
    return found


def asks(count: int, requests: int, steps: int, seed: int) -> list[Ask]:
    """So many jobs of so many different requests; every fourth request has two faces, and the next
    one the same two in the other order."""
    pixels = faces(requests + 1, seed)

    def face(name: str, number: int) -> Reference:
        return Reference(name, SIDE, SIDE, pixels[number].tobytes())

    made = []
    for number in range(requests):
        pair = number - number % 4
        given: tuple[Reference, ...] = (face("anna", number),)
        if number % 4 == 2:
            given = (face("anna", pair), face("ben", pair + 1))
        elif number % 4 == 3:
            given = (face("anna", pair + 1), face("ben", pair))
        made.append(Ask(number, given, steps, kept=number % 5 == 1))
    return [made[number % requests] for number in range(count)]


class Customers:
    """Ask for all jobs at once, as their tenants, and look at what comes."""

    def __init__(self, place: Stage, keys: dict[str, str]) -> None:
        self._url, self._keys = place.urls[0], keys
        self._room = {tenant: threading.BoundedSemaphore(AT_ONCE) for tenant in keys}
        self._mine, self._all = threading.local(), list[httpx.Client]()
        self._subjects: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def order(self, tenant: str, ask: Ask) -> str:
        """The id of a new video."""
        files, subjects = [], []
        for face in ask.faces:
            if ask.kept:
                subjects.append({"id": self._kept(tenant, face), "name": face.name})
            else:
                subjects.append({"name": face.name, "image": f"{face.name}.png"})
                files.append(("images", (f"{face.name}.png", picture_of(face), "image/png")))
        told = {"prompt": ask.prompt, "seed": str(SEED), "steps": str(ask.steps), **FIELDS}
        told["subjects"] = json.dumps(subjects)
        answer = self._ask(tenant, "POST", "/v1/videos", data=told, files=files or None)
        if answer.status_code != 202:
            raise RuntimeError(f"refused: {answer.status_code} {answer.text}")
        return str(answer.json()["id"])

    def _kept(self, tenant: str, face: Reference) -> str:
        """A subject's id; made when it is first asked for."""
        mark = (tenant, face.digest())
        with self._lock:
            if mark not in self._subjects:
                files = [("images", ("a.png", picture_of(face), "image/png"))]
                data = {"name": face.name}
                answer = self._ask(tenant, "POST", "/v1/subjects", data=data, files=files)
                self._subjects[mark] = answer.raise_for_status().json()["id"]
            return self._subjects[mark]

    def wait(self, tenant: str, video: str) -> dict[str, Any]:
        """The video, once it has ended. Raises TimeoutError."""
        over = time.monotonic() + LIMIT_S
        while time.monotonic() < over:
            told: dict[str, Any] = self._ask(tenant, "GET", f"/v1/videos/{video}").json()
            if told["status"] in {"completed", "failed"}:
                return told
            time.sleep(0.5)
        raise TimeoutError(f"{video}: not ended in {LIMIT_S:g} s")

    def content(self, tenant: str, path: str) -> bytes:
        """Of a path below a tenant's videos."""
        return self._ask(tenant, "GET", f"/v1/videos/{path}").raise_for_status().content

    def _ask(self, tenant: str, method: str, path: str, **given: Any) -> httpx.Response:
        """Each thread over connections of its own: a pool that threads share may close one as
        spare just when another thread was given it."""
        with self._room[tenant]:
            mine = self._mine.__dict__
            if tenant not in mine:
                bearer = {"authorization": f"Bearer {self._keys[tenant]}"}
                mine[tenant] = httpx.Client(base_url=self._url, headers=bearer, timeout=120)
                self._all.append(mine[tenant])
            answer: httpx.Response = mine[tenant].request(method, path, **given)
            return answer

    def close(self) -> None:
        """Give the connections back."""
        for client in self._all:
            client.close()


def picture_of(face: Reference) -> bytes:
    """As PNG."""
    out = io.BytesIO()
    Image.frombytes("RGB", (face.width, face.height), face.rgb).save(out, "PNG")
    return out.getvalue()


def verdict(shown: Shown, number: int, right: Sequence[Shown]) -> str:
    """Whose a video is, as a whole or in a part. right: what each request's must show."""
    if shown == right[number]:
        return "own"
    others = {part for at, parts in enumerate(right) if at != number for part in parts}
    return "foreign" if others & set(shown) else "unknown"


def strange(png: bytes, face: Reference) -> bool:
    """Whether a picture that the service shows is another than that face."""
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB").tobytes() != face.rgb


def serve(
    place: Stage,
    jobs: Sequence[Ask],
    right: Sequence[Shown],
    look: Callable[[Callable[[str], bytes], dict[str, Any]], Shown],
) -> dict[str, Any]:
    """All jobs at once; what became of them. look: what a finished video shows."""
    own = Keys(place.redis, place.settings, required=True)
    customers = Customers(place, {tenant: own.create(tenant) for tenant in TENANTS})

    def one(at: int) -> list[str]:
        # Twins are one tenant's; who asks for the same again is the same one, then the next.
        ask, turn = jobs[at], at // len(right)
        tenant = TENANTS[(ask.number // 2 + turn // 2) % len(TENANTS)]
        video = customers.order(tenant, ask)
        told = customers.wait(tenant, video)
        if told["status"] == "failed":
            return ["failed"]
        given = {face.name: face for face in ask.faces}
        wrong = [
            "pictures" for name, face in given.items()
            if strange(customers.content(tenant, f"{video}/references/{name}"), face)
        ]  # fmt: skip
        shown = look(lambda path: customers.content(tenant, f"{video}/{path}"), told)
        return [verdict(shown, ask.number, right), *wrong]

    with ThreadPoolExecutor(len(jobs)) as pool:
        words = Counter(word for found in pool.map(one, range(len(jobs))) for word in found)
    customers.close()
    kinds = ("own", "foreign", "unknown", "pictures", "failed")
    return {
        "jobs": len(jobs),
        "requests": len(right),
        "distinct": len(set(right)),
        **{kind: words[kind] for kind in kinds},
    }


def scripted(count: int, workers: int, seed: int) -> dict[str, Any]:
    """With the engine whose video shows what it was given."""
    jobs = asks(count, max(4, count // 2), 4, seed)
    asked = {job.number: job for job in jobs}
    right = [
        (end(SEED, job.steps, [face.rgb for face in job.faces]),)
        for _, job in sorted(asked.items())
    ]

    def shown(content: Callable[[str], bytes], told: dict[str, Any]) -> Shown:
        return (seen(content("content?variant=thumbnail")),)

    with stage(gateways=1, workers=workers, auth="keys") as place:
        place.start_all()
        return serve(place, jobs, right, shown)


def real(count: int, workers: int, model: Path, steps: int, seed: int) -> dict[str, Any]:
    """With the product's worker; each request a few times, so that most find their encodings."""
    jobs = asks(count, max(4, count // 3), steps, seed)
    right = fresh(model, {job.number: job for job in jobs})
    with tempfile.TemporaryDirectory(prefix="tb") as kept:
        with stage(
            gateways=1, workers=workers, auth="keys", worker="workers.app",
            model_dir=model.resolve(), encodings_dir=kept,
        ) as place:  # fmt: skip
            place.start_all()
            found = serve(place, jobs, right, _shown)
        found["encodings"] = len(list(Path(kept).glob("*/*.safetensors")))
    return found


def _shown(content: Callable[[str], bytes], told: dict[str, Any]) -> Shown:
    """What the answer says of the frames, and the bytes of the sheet that shows some of them."""
    return (told["frames_sha256"], _sha256(content("content?variant=spritesheet")))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fresh(model: Path, requests: dict[int, Ask]) -> list[Shown]:
    """What each must show, by number: made here, and nothing is kept from one to the next."""
    torch.set_num_threads(1)
    loaded = Engine.load(model)
    right: list[Shown] = []
    for number in sorted(requests):
        ask, parts = requests[number], (loaded.dit, loaded.encoders, loaded.preset, loaded.digest)
        engine = Engine(*parts, EncodingCache(), readers=loaded.readers)
        video = engine.generate(ask.spec, ask.faces)
        sheet = picture_bytes(video.contact_sheet(ask.faces), "PNG")
        right.append((video.sha256(), _sha256(sheet)))
    return right


def clean(found: dict[str, Any]) -> bool:
    """Whether every video is its own, and could have been another's."""
    return all(
        (one["own"], one["distinct"], one["pictures"]) == (one["jobs"], one["requests"], 0)
        for one in found.values()
    )


def run(
    jobs: int, real_jobs: int, workers: int, model: Path, steps: int, seed: int
) -> dict[str, Any]:
    """The whole experiment; returns what it found."""
    found = {"scripted": scripted(jobs, workers, seed)}
    if real_jobs:
        found["real"] = real(real_jobs, min(workers, 2), model, steps, seed)
    return {**found, "clean": clean(found)}


def main(given: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 1 where a video is not its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.contamination", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200, help="with the scripted engine")
    parser.add_argument("--real-jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--model", type=Path, default=Path("models/miniature"))
    parser.add_argument("--steps", type=int, default=4, help="of the real ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="for symmetry: it is always the last")
    asked = parser.parse_args(given)
    found = run(
        asked.jobs, asked.real_jobs, asked.workers, asked.model, asked.steps, asked.seed
    )
    print(json.dumps(found))
    return 0 if found["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
