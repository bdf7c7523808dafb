"""/v1/subjects and characters over a real ledger and store."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image

from engine.video import Video
from service.audit import about
from service.blobs import get
from service.deps import House
from service.ledger import Ledger
from tests.service.rig import keys_of, picture
from tests.service.test_sources import grey
from workers.settings import Settings


def photos(*colors: str) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [
        ("images", (f"{n}.png", picture(color, (20 + n, 20)), "image/png"))
        for n, color in enumerate(colors)
    ]


def keep(client: TestClient, *colors: str, **fields: Any) -> Response:
    return client.post(
        "/v1/subjects", data={"name": "anna", **fields}, files=photos(*(colors or ("teal",)))
    )


def stored(settings: Settings) -> list[Path]:
    return [path for path in Path(settings.blobs_url).rglob("*") if path.is_file()]


def use(client: TestClient, subject_id: str, **fields: Any) -> Response:
    subjects = json.dumps([{"id": subject_id}])
    return client.post("/v1/videos", data={"prompt": "@anna waves", "subjects": subjects, **fields})


def test_a_subject_is_kept_listed_and_shown(client: TestClient) -> None:
    answer = keep(client, "teal", "red")
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["object"], found["name"], found["consent"]) == ("subject", "anna", None)
    assert client.get(f"/v1/subjects/{found['id']}").json() == found
    assert client.get("/v1/subjects").json()["data"] == [found]
    for number, path in enumerate(found["images"]):
        shown = client.get(path)
        assert shown.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(shown.content)).size == (20 + number, 20)
    assert client.get(f"/v1/subjects/{found['id']}/images/2").status_code == 404
    assert client.get(f"/v1/subjects/{found['id']}/images/-1").status_code == 404


def test_json_with_photos_inside_and_a_consent(client: TestClient, house: House) -> None:
    consent = {"basis": "consent", "statement": "signed on paper", "by": "the studio"}
    plain = base64.b64encode(picture()).decode()
    answer = client.post("/v1/subjects", json={"name": "a", "images": plain, "consent": consent})
    found = answer.json()
    assert (answer.status_code, found["consent"]) == (201, "consent")
    (entry,) = house.audit.entries("local", f"local/{found['id']}")
    wanted = {"who": "the studio", "basis": "consent", "text": "signed on paper"}
    assert (entry.action, entry.detail) == ("subject.consent", wanted)


@pytest.mark.parametrize(
    ("colors", "fields", "param"),
    [
        ((), {"name": "a"}, "images"),
        (("red",) * 9, {"name": "a"}, "images"),
        (("red",), {"name": ""}, "name"),
        (("red",), {"name": "a", "consent": '{"basis": "maybe"}'}, "consent"),
    ],
)
def test_what_is_refused_leaves_nothing(
    client: TestClient, settings: Settings, colors: tuple[str, ...], fields: Any, param: str
) -> None:
    answer = client.post("/v1/subjects", data=fields, files=photos(*colors) or None)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert stored(settings) == []
    assert not [key for key in keys_of(settings) if not key.endswith(":quota:local")]


def test_a_damaged_photo_leaves_nothing(client: TestClient, settings: Settings) -> None:
    bad = [*photos("red"), ("images", ("b.png", picture()[:50], "image/png"))]
    answer = client.post("/v1/subjects", data={"name": "a"}, files=bad)
    assert answer.json()["error"]["code"] == "invalid_image"
    assert stored(settings) == []


def test_a_video_of_a_subject_has_its_own_copies(
    client: TestClient, ledger: Ledger, house: House
) -> None:
    subject = keep(client, "teal", "red", "blue").json()
    answer = use(client, subject["id"])
    assert answer.status_code == 202, answer.text
    (shown,) = answer.json()["subjects"]
    assert (shown["name"], shown["id"]) == ("anna", subject["id"])
    request = ledger.read("local/" + answer.json()["id"]).request
    (first,), more = request["references"], request["more"]
    assert [one["name"] for one in more] == ["anna", "anna"]
    keys = [first["key"], *(one["key"] for one in more)]
    assert all(key.startswith(f"t/local/videos/{answer.json()['id']}/") for key in keys)
    sizes = [Image.open(io.BytesIO(get(house.blobs, key))).size[0] for key in keys]
    assert sizes == [20, 21, 22]


def test_another_name_and_an_upload_beside(client: TestClient, ledger: Ledger) -> None:
    subject = keep(client).json()
    subjects = [{"name": "bob", "image": "0.png"}, {"id": subject["id"], "name": "zoe"}]
    answer = client.post(
        "/v1/videos",
        data={"prompt": "@zoe waves at @bob", "subjects": json.dumps(subjects)},
        files=photos("red"),
    )
    assert answer.status_code == 202, answer.text
    request = ledger.read("local/" + answer.json()["id"]).request
    assert [one["name"] for one in request["references"]] == ["bob", "zoe"]
    assert request["spec"]["names"] == ["bob", "zoe"]


@pytest.mark.parametrize(
    ("entry", "param"),
    [
        ({"id": "subj_none"}, "subjects[0].id"),
        ({"name": "anna"}, "subjects[0].image"),
        ({"id": "subj_none", "image": "a.png"}, "subjects[0].id"),
        ({"image": "a.png"}, "subjects[0].name"),
    ],
)
def test_wrong_subjects_are_named(client: TestClient, entry: Any, param: str) -> None:
    data = {"prompt": "@anna waves", "subjects": json.dumps([entry])}
    error = client.post("/v1/videos", data=data).json()["error"]
    assert error["param"] == param, error


def test_deletion_leaves_nothing_and_videos_keep_theirs(
    client: TestClient, settings: Settings
) -> None:
    subject = keep(client, "teal", "red").json()
    video = use(client, subject["id"]).json()
    gone = client.delete(f"/v1/subjects/{subject['id']}").json()
    assert gone == {
        "id": subject["id"], "deleted": True, "object": "subject.deleted", "videos_deleted": [],
    }  # fmt: skip
    assert not any("subjects" in path.parts for path in stored(settings))
    assert not [key for key in keys_of(settings) if ":subject" in key]
    assert client.get(video["subjects"][0]["reference"]).status_code == 200
    for path in ("", "/images/0"):
        assert client.get(f"/v1/subjects/{subject['id']}{path}").status_code == 404
    assert client.delete(f"/v1/subjects/{subject['id']}").status_code == 404


def test_deletion_with_its_videos(client: TestClient, settings: Settings, ledger: Ledger) -> None:
    subject, other = (keep(client).json() for _ in range(2))
    mine = [use(client, subject["id"]).json()["id"] for _ in range(2)]
    theirs = use(client, other["id"]).json()["id"]
    gone = client.delete(f"/v1/subjects/{subject['id']}", params={"cascade": True}).json()
    assert gone["videos_deleted"] == mine
    assert [video["id"] for video in client.get("/v1/videos").json()["data"]] == [theirs]
    left = " ".join(map(str, [*stored(settings), *keys_of(settings)]))
    assert not any(name in left for name in [subject["id"], *mine])
    assert ledger.books().balanced


def test_deletion_with_its_videos_takes_what_was_made_of_those(
    client: TestClient, settings: Settings, house: House
) -> None:
    subject = keep(client).json()
    mine = use(client, subject["id"]).json()["id"]
    claim = house.ledger.claim("h")
    assert claim is not None and claim.ref == f"local/{mine}"
    out = house.blobs.put(f"t/local/videos/{mine}/out", grey(17).mp4(), ".mp4").key
    house.ledger.commit(claim, {"video": out})
    longer = {"prompt": "a field", "seconds": 1, "video": {"id": mine}}
    of_it = client.post("/v1/videos/extensions", json=longer).json()["id"]
    gone = client.delete(f"/v1/subjects/{subject['id']}", params={"cascade": True}).json()
    assert gone["videos_deleted"] == [mine, of_it]
    assert client.get("/v1/videos").json()["data"] == []
    assert not [path for path in stored(settings) if "videos" in path.parts]


def test_a_character_is_a_subject_made_of_frames(client: TestClient, house: House) -> None:
    frames = np.zeros((8, 64, 96, 3), np.uint8) + (20 * np.arange(8, dtype=np.uint8))[
        :, None, None, None
    ]
    answer = client.post(
        "/v1/videos/characters",
        data={"name": "Mossy the turtle"},
        files={"video": ("a.mp4", Video(frames, 8).mp4(), "video/mp4")},
    )
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["object"], found["name"]) == ("character", "Mossy the turtle")
    assert client.get(f"/v1/videos/characters/{found['id']}").json() == found
    kept = house.subjects.read(f"local/{found['id']}")
    means = [
        np.asarray(Image.open(io.BytesIO(get(house.blobs, key)))).mean() for key in kept.images
    ]
    assert [round(float(mean) / 20) for mean in means] == [1, 3, 5, 7]


def test_consent_is_attested_of_each_kind_of_subject(client: TestClient, house: House) -> None:
    consent = json.dumps({"basis": "consent", "statement": "signed", "by": "Anna"})
    character = client.post(
        "/v1/videos/characters",
        data={"name": "anna", "consent": consent},
        files={"video": ("a.mp4", grey(9).mp4(), "video/mp4")},
    ).json()
    inline = [{"name": "anna", "image": "0.png", "consent": {"basis": "self"}}]
    sent = {"prompt": "@anna waves", "subjects": json.dumps(inline)}
    video = client.post("/v1/videos", data=sent, files=photos("teal")).json()
    said = [entry for entry in house.audit.entries() if entry.action == "subject.consent"]
    assert [entry.detail["basis"] for entry in said] == ["consent", "self"]
    names = [f"local/{character['id']}", f"local/{video['id']}#anna"]
    assert [entry.about for entry in said] == [about(name) for name in names]

    before = len(client.get("/v1/videos").json()["data"])
    inline[0]["consent"] = {"basis": "because"}
    sent["subjects"] = json.dumps(inline)
    answer = client.post("/v1/videos", data=sent, files=photos("teal"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "consent")
    kept = json.dumps([{"id": character["id"], "consent": {"basis": "self"}}])
    answer = client.post("/v1/videos", data={"prompt": "@anna waves", "subjects": kept})
    assert answer.json()["error"]["param"] == "subjects[0].consent"
    assert len(client.get("/v1/videos").json()["data"]) == before


def test_a_character_needs_a_video(client: TestClient, settings: Settings) -> None:
    answer = client.post("/v1/videos/characters", data={"name": "a"}, files=photos("red"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "video")
    still = {"video": ("a.mp4", picture(), "video/mp4")}
    answer = client.post("/v1/videos/characters", data={"name": "a"}, files=still)
    assert answer.json()["error"]["code"] == "invalid_video" and stored(settings) == []
    assert client.get("/v1/videos/characters/subj_none").status_code == 404
