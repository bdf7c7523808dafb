"""/v1/videos over a real ledger and store: what is taken, and what can be asked afterwards."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from engine.presets import MINIATURE
from engine.spec import Guidance, Spec
from service.blobs import get
from service.deps import House
from service.jobs import Books, Claim
from service.ledger import Ledger
from tests.service.rig import keys_of, picture
from workers.settings import Settings

ANNA = json.dumps([{"name": "anna", "image": "a.png"}])
PNG = picture("teal")


def files(*names: str, field: str = "images") -> list[tuple[str, tuple[str, bytes, str]]]:
    return [
        (field, (name, picture("teal", (20 + n, 20)), "image/png")) for n, name in enumerate(names)
    ]


def post(client: TestClient, prompt: str = "@anna waves", **fields: Any) -> Response:
    data = {"prompt": prompt, "subjects": ANNA, **fields}
    return client.post("/v1/videos", data=data, files=files("a.png"))


def spec_of(ledger: Ledger, answer: Response) -> Spec:
    assert answer.status_code == 202, answer.text
    return Spec.from_json(ledger.read("local/" + answer.json()["id"]).request["spec"])


def stored(settings: Settings) -> list[Path]:
    return [path for path in Path(settings.blobs_url).rglob("*") if path.is_file()]


# what is taken


def test_multipart_with_subjects(client: TestClient, ledger: Ledger, house: House) -> None:
    two = '[{"name": "bob", "image": "2.png"}, {"name": "anna", "image": "1.png"}]'
    answer = client.post(
        "/v1/videos",
        data={"prompt": "@anna waves at @bob", "subjects": two},
        files=files("1.png", "2.png"),
    )
    assert answer.status_code == 202, answer.text
    video = answer.json()
    assert answer.headers["location"] == f"/v1/videos/{video['id']}"
    assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
    assert (video["queue_position"], video["size"], video["seconds"]) == (0, "96x64", "2.125")
    assert [one["name"] for one in video["subjects"]] == ["bob", "anna"]
    references = ledger.read("local/" + video["id"]).request["references"]
    widths = [get(house.blobs, one["key"])[16:20] for one in references]
    assert [int.from_bytes(width, "big") for width in widths] == [21, 20]


def test_json_with_pictures_inside(client: TestClient, ledger: Ledger) -> None:
    plain = base64.b64encode(PNG).decode()
    body = {
        "prompt": "@anna waves at @bob",
        "subjects": [
            {"name": "anna", "image": plain},
            {"name": "bob", "image": f"data:image/png;base64,{plain}"},
        ],
        "num_frames": 9,
        "guidance": {"mode": "dual", "text_scale": 6},
        "negative_prompt": None,
    }
    spec = spec_of(ledger, client.post("/v1/videos", json=body))
    assert (spec.names, spec.num_frames) == (("anna", "bob"), 9)
    assert spec.guidance == replace(Guidance.assumed(MINIATURE), mode="dual", text_scale=6.0)


def test_every_field_reaches_the_spec(client: TestClient, ledger: Ledger) -> None:
    answer = post(
        client, size="64x96", num_frames="13", fps="12", seed="5", steps="7", guidance="3.5",
        negative_prompt="blur", model="miniature", solver="unipc",
        tier="fast",
    )  # fmt: skip
    assert spec_of(ledger, answer) == Spec(
        prompt="@anna waves", width=64, height=96, num_frames=13, fps=12, steps=7,
        names=("anna",), negative_prompt="blur", seed=5,
        guidance=replace(Guidance.assumed(MINIATURE), scale=3.5),
        solver="unipc", tier="fast",
    )  # fmt: skip
    video = answer.json()
    assert (video["seed"], video["steps"], video["solver"]) == (5, 7, "unipc")
    assert (video["tier"], video["forwards"]) == ("fast", None)
    assert video["guidance"]["scale"] == 3.5


@pytest.mark.parametrize(
    ("seconds", "frames"), [("2", 17), ("1", 9), ("4", 33), ("2.125", 17), ("0.7", 5)]
)
def test_seconds_become_the_nearest_frames(
    client: TestClient, ledger: Ledger, seconds: str, frames: int
) -> None:
    assert spec_of(ledger, post(client, seconds=seconds)).num_frames == frames


def test_a_seed_is_drawn_and_told(client: TestClient) -> None:
    seeds = {post(client).json()["seed"] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize("field", ["input_reference", "input_reference[]", "images", "images[]"])
def test_the_openai_form(client: TestClient, ledger: Ledger, field: str) -> None:
    answer = client.post(
        "/v1/videos",
        data={"prompt": "@subject1 and @bob wave"},
        files=files("upload", "bob.png", field=field),
    )
    assert spec_of(ledger, answer).names == ("subject1", "bob")


def test_no_subjects_at_all(client: TestClient, ledger: Ledger) -> None:
    assert spec_of(ledger, client.post("/v1/videos", data={"prompt": "a field"})).names == ()


def test_letters_are_normalised_so_that_names_meet(client: TestClient, ledger: Ledger) -> None:
    subjects = json.dumps([{"name": "Zoe\u0308", "image": "a.png"}], ensure_ascii=False)
    answer = post(client, "@Zo\u00eb waves", subjects=subjects)
    assert spec_of(ledger, answer).names == ("Zo\u00eb",)


def test_the_answer_says_what_the_miniature_cannot(client: TestClient) -> None:
    usual = post(client).json()["warnings"]
    assert len(usual) == 1 and "only the drawn world" in usual[0]
    unusual = post(client, size="64x64", fps="16").json()["warnings"]
    assert "Trained at 96x64 and 17 frames" in " ".join(unusual)
    assert "8 frames a second" in " ".join(unusual)


def test_a_lost_doorbell_does_not_lose_the_job(
    client: TestClient, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.doorbell, "ring", lambda ref: False)
    assert post(client).status_code == 202
    assert house.ledger.books().queued == 1


# what can be asked afterwards


def test_retrieve_follows_the_record(client: TestClient, ledger: Ledger) -> None:
    first, second = (post(client).json()["id"] for _ in range(2))
    waiting = client.get(f"/v1/videos/{second}")
    assert waiting.json()["queue_position"] == 1
    assert int(waiting.headers["openai-poll-after-ms"]) > 0
    claim = ledger.claim("h")
    assert isinstance(claim, Claim)
    ledger.beat(claim, 30, stage="denoise", step=3, digest="d1", fraction=0.3)
    running = client.get(f"/v1/videos/{first}").json()
    assert (running["status"], running["progress"], running["step"]) == ("in_progress", 30, 3)
    assert (running["model_digest"], running["queue_position"]) == ("d1", None)
    assert running["eta_s"] is not None
    made = {"forwards": {"asked": 20, "computed": 9}, "timings": {"denoise_s": 1.5}}
    ledger.commit(claim, {**made, "warnings": ["odd"]})
    done = client.get(f"/v1/videos/{first}")
    video = done.json()
    assert (video["status"], video["progress"], video["queue_position"]) == ("completed", 100, None)
    assert video["completed_at"] >= video["created_at"]
    assert video["tier"] == "exact" and video["forwards"] == made["forwards"]
    assert video["timings"]["denoise_s"] == 1.5 and "odd" in video["warnings"]
    assert "openai-poll-after-ms" not in done.headers


def test_a_failed_video_is_two_hundred_with_its_reason(client: TestClient, ledger: Ledger) -> None:
    video_id = post(client).json()["id"]
    claim = ledger.claim("h")
    assert isinstance(claim, Claim)
    ledger.fail(claim, "engine_error", "it broke", retry=False)
    answer = client.get(f"/v1/videos/{video_id}")
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"] == {"code": "engine_error", "message": "it broke"}


def test_listing_pages_like_openai(client: TestClient) -> None:
    ids = [post(client).json()["id"] for _ in range(5)]
    first = client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in first["data"]] == ids[:2:-1]
    assert (first["object"], first["has_more"]) == ("list", True)
    assert (first["first_id"], first["last_id"]) == (ids[4], ids[3])
    rest = client.get("/v1/videos", params={"after": first["last_id"], "limit": 3}).json()
    assert [video["id"] for video in rest["data"]] == ids[2::-1] and rest["has_more"] is False
    rising = client.get("/v1/videos", params={"order": "asc"}).json()
    assert [video["id"] for video in rising["data"]] == ids


def test_an_empty_list_is_a_list(client: TestClient) -> None:
    assert client.get("/v1/videos").json() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "param"), [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order")]
)
def test_wrong_queries_name_the_parameter(client: TestClient, query: str, param: str) -> None:
    answer = client.get(f"/v1/videos?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_unknown_videos_are_not_found(client: TestClient) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/content")):
        answer = client.request(method, f"/v1/videos/video_none{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert client.get("/v1/videos?after=video_none").status_code == 404


def test_cancel_ends_a_waiting_job(client: TestClient) -> None:
    video_id = post(client).json()["id"]
    video = client.post(f"/v1/videos/{video_id}/cancel").json()
    assert (video["status"], video["error"]["code"]) == ("failed", "cancelled")


def test_delete_leaves_nothing(client: TestClient, ledger: Ledger, settings: Settings) -> None:
    video_id = post(client).json()["id"]
    assert stored(settings)
    assert client.delete(f"/v1/videos/{video_id}").json() == {
        "id": video_id, "deleted": True, "object": "video.deleted",
    }  # fmt: skip
    assert client.get(f"/v1/videos/{video_id}").status_code == 404
    assert stored(settings) == [] and ledger.graves(0) == []
    assert not [key for key in keys_of(settings) if video_id in key]
    assert ledger.books() == Books(1, 0, 0, 0, 1)


def test_delete_of_a_running_job_tells_its_worker(client: TestClient, ledger: Ledger) -> None:
    video_id = post(client).json()["id"]
    claim = ledger.claim("h")
    assert isinstance(claim, Claim)
    assert client.delete(f"/v1/videos/{video_id}").status_code == 200
    assert ledger.beat(claim) == "gone"
    assert ledger.graves(0) == [f"local/{video_id}"]  # swept once no worker can still be writing
