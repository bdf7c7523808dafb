"""Subjects, edits, extensions and remixes on the shipped miniature, by real processes; and that
deleting leaves nothing anywhere within seconds."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine.video import Video
from service.ledger import connect
from tests.service.rig import ROOT, Service, keys_of, redis_url, settings, wait_for
from workers.settings import Settings

__all__ = ["redis_url", "settings"]
pytestmark = pytest.mark.slow

WITHIN_S = 5.0
PROMPT = "@anna bounces in a meadow"


@pytest.fixture
def service(settings: Settings, tmp_path: Path) -> Iterator[Service]:
    real = settings.model_copy(
        update={
            "lease_s": 6.0,
            "model_dir": ROOT / "models" / "miniature",
            "encodings_dir": tmp_path / "encodings",
        }
    )
    service = Service(real, tmp_path, worker="workers.app")
    try:
        service.start("gateway", "worker", "reaper")
        service.wait_ready()
        yield service
    finally:
        service.close()


def ask(service: Service, method: str, path: str, **given: Any) -> Any:
    answer = httpx.request(method, f"{service.url}{path}", timeout=60, **given)
    assert answer.status_code < 300, answer.text
    return answer.json()


def done(service: Service, video: Any) -> Any:
    path = f"/v1/videos/{video['id']}"
    wait_for(lambda: ask(service, "GET", path)["status"] not in {"queued", "in_progress"}, 300)
    found = ask(service, "GET", path)
    assert found["status"] == "completed", found["error"]
    return found


def film(service: Service, video: Any) -> Video:
    answer = httpx.get(f"{service.url}/v1/videos/{video['id']}/content", timeout=60)
    return Video.from_mp4(answer.content)


def files(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file()]


def traces(service: Service, names: list[str]) -> list[str]:
    """Keys and values in Redis and files that hold any of the names, and every picture there is."""
    settings = service.settings
    client = connect(settings)
    found = []
    for key in keys_of(settings):
        kind = client.type(key)
        value: Any = {
            "string": client.get,
            "hash": client.hgetall,
            "zset": lambda k: client.zrange(k, 0, -1),
            "set": client.smembers,
            "list": lambda k: client.lrange(k, 0, -1),
            "stream": client.xrange,
        }.get(str(kind), str)(key)
        found += [f"{key} {value}" for name in names if name in f"{key} {value}"]
    client.close()
    assert settings.encodings_dir is not None
    kept = [path for path in files(settings.encodings_dir) if ".owners" in path]
    return found + files(Path(settings.blobs_url)) + kept


def test_everything_that_a_subject_is_used_for_and_that_it_leaves_nothing(
    service: Service,
) -> None:
    consent = json.dumps({"basis": "fictional", "statement": "drawn"})
    photo = (ROOT / "examples" / "anna.png").read_bytes()
    images = [("images", ("a.png", photo, "image/png"))] * 2
    subject = ask(
        service, "POST", "/v1/subjects", data={"name": "anna", "consent": consent}, files=images
    )
    fields = {"steps": 4, "seed": 7, "num_frames": 9}
    cast = {"subjects": [{"id": subject["id"]}]}
    asked = {"prompt": PROMPT, **fields, **cast}
    video = done(service, ask(service, "POST", "/v1/videos", json=asked))
    assert video["identity"] is not None and len(film(service, video).frames) == 9
    assert service.settings.encodings_dir is not None
    owned = [path for path in files(service.settings.encodings_dir) if video["id"] in path]
    assert owned

    remixed = ask(
        service, "POST", f"/v1/videos/{video['id']}/remix", json={"prompt": "@anna walks left"}
    )
    source = {"prompt": PROMPT, "video": {"id": video["id"]}, "steps": 4}
    edited = ask(service, "POST", "/v1/videos/edits", json={**source, "strength": 0.25})
    longer = ask(service, "POST", "/v1/videos/extensions", json={**source, "seconds": 1})
    assert done(service, remixed)["remixed_from_video_id"] == video["id"]
    before = film(service, video).frames.astype(float)
    after = film(service, done(service, edited)).frames
    assert np.abs(before - after).mean() < 20  # a quarter of the way: much of it is still there
    whole = film(service, done(service, longer)).frames
    assert len(whole) == 9 + 8 and np.abs(whole[0] - before[0]).mean() < 5
    jumps = np.abs(np.diff(whole.astype(float), axis=0)).mean((1, 2, 3))
    assert jumps[8] < 2 * np.median(jumps)  # where the source ends

    running = ask(service, "POST", "/v1/videos", json={**asked, "steps": 150})
    path = f"/v1/videos/{running['id']}"
    wait_for(lambda: ask(service, "GET", path)["stage"] == "denoise")
    gone = ask(service, "DELETE", f"/v1/subjects/{subject['id']}", params={"cascade": True})
    made = {one["id"] for one in (video, remixed, edited, longer, running)}
    assert set(gone["videos_deleted"]) == made
    begin = time.monotonic()
    names = [subject["id"], *made, PROMPT, "walks left"]
    wait_for(lambda: not traces(service, names), WITHIN_S)
    assert time.monotonic() - begin < WITHIN_S
    assert ask(service, "GET", "/v1/videos")["data"] == []
