"""What a server of /v1/videos must do for the official openai SDK, unchanged, to work with it.

Facts of the SDK (3.52): files are parts named `input_reference`, several are
`input_reference[]`; an id in place of a file can only be sent by `extra_body`; what is retried and
how an error becomes an exception follows from status, `x-should-retry` and the body's shape.
"""

import io
import uuid
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conformance.conftest import Server

openai = pytest.importorskip("openai")
av = pytest.importorskip("av")

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def picture(color: str = "teal", form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(out, form)
    return out.getvalue()


def film(seconds: int = 2, fps: int = 8) -> bytes:
    """An mp4 that gets lighter."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(seconds * fps):
            pixels = np.full((64, 96, 3), 5 * number % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def length_s(mp4: bytes) -> float:
    with av.open(io.BytesIO(mp4)) as container:
        return float(container.duration / 1e6)


def create(client: Any, server: Server, prompt: str = "a green field", **more: Any) -> Any:
    return client.videos.create(prompt=prompt, extra_body=server.fields, **more)


def done(client: Any, video: Any) -> Any:
    found = client.videos.poll(video.id, poll_interval_ms=200)
    assert found.status == "completed" and found.error is None, found.error
    return found


# create, poll, retrieve


def test_a_new_video_is_an_object_of_the_standard(client: Any, server: Server) -> None:
    video = create(client, server)
    assert video.id and video.object == "video" and video.model
    assert video.status in {"queued", "in_progress", "completed"}
    assert 0 <= video.progress <= 100 and video.created_at > 1.7e9
    assert video.error is None and video.remixed_from_video_id is None
    assert float(video.seconds) > 0 and all(int(side) > 0 for side in video.size.split("x"))
    assert client.videos.retrieve(video.id).id == video.id
    assert done(client, video).completed_at >= video.created_at


def test_create_and_poll(client: Any, server: Server) -> None:
    video = client.videos.create_and_poll(
        prompt="a green field", extra_body=server.fields, poll_interval_ms=200
    )
    assert (video.status, video.progress) == ("completed", 100)


@pytest.mark.parametrize(
    "reference",
    [
        ("a.png", picture(), "image/png"),
        ("a.jpg", picture(form="JPEG"), "image/jpeg"),
        picture(),
        io.BytesIO(picture()),
    ],
    ids=["png", "jpeg", "bytes", "stream"],
)
def test_one_reference(client: Any, server: Server, reference: Any) -> None:
    done(client, create(client, server, "@subject1 waves", input_reference=reference))


def test_several_references(client: Any, server: Server) -> None:
    files = [("1.png", picture(), "image/png"), ("2.png", picture("red"), "image/png")]
    video = create(client, server, "@subject1 waves at @subject2", input_reference=files)
    done(client, video)


def test_a_json_body(client: Any, server: Server) -> None:
    body = {"prompt": "a green field", **server.fields}
    video = client.post("/videos", body=body, cast_to=openai.types.Video)
    assert client.videos.retrieve(video.id).prompt == "a green field"


def test_the_server_says_when_to_ask_again(client: Any, server: Server) -> None:
    video = create(client, server)
    answer = client.videos.with_raw_response.retrieve(video.id)
    if answer.parse().status in {"queued", "in_progress"}:
        assert int(answer.headers["openai-poll-after-ms"]) > 0


# download


def test_download(client: Any, finished: Any) -> None:
    content = client.videos.download_content(finished.id)
    data = content.read()
    assert content.response.headers["content-type"] == "video/mp4"
    assert int(content.response.headers["content-length"]) == len(data)
    assert abs(length_s(data) - float(finished.seconds)) < 0.2


@pytest.mark.parametrize("variant", ["thumbnail", "spritesheet"])
def test_download_of_pictures(client: Any, finished: Any, variant: str) -> None:
    data = client.videos.download_content(finished.id, variant=variant).read()
    Image.open(io.BytesIO(data)).verify()


def test_download_of_a_part(client: Any, finished: Any) -> None:
    whole = client.videos.download_content(finished.id).read()
    part = client.videos.download_content(finished.id, extra_headers={"range": "bytes=4-11"})
    assert part.response.status_code == 206 and part.read() == whole[4:12]


# list, delete


def test_a_list_is_paged_to_its_end(client: Any, server: Server) -> None:
    made = [create(client, server).id for _ in range(3)]
    newest = [video.id for video, _ in zip(client.videos.list(limit=1), range(3), strict=False)]
    assert newest == made[::-1]
    rising = [video.id for video in client.videos.list(limit=2, order="asc")]
    assert [one for one in rising if one in made] == made and len(set(rising)) == len(rising)
    page = client.videos.list(limit=1, after=made[2])
    assert [video.id for video in page.data] == [made[1]] and page.has_more in {True, False}


def test_what_is_deleted_is_gone(client: Any, server: Server) -> None:
    video = done(client, create(client, server))
    gone = client.videos.delete(video.id)
    assert (gone.id, gone.deleted, gone.object) == (video.id, True, "video.deleted")
    for ask in (client.videos.retrieve, client.videos.download_content, client.videos.delete):
        with pytest.raises(openai.NotFoundError):
            ask(video.id)
    assert video.id not in {one.id for one in client.videos.list(limit=20).data}


# videos that begin with a video


def test_edit(client: Any, server: Server, finished: Any) -> None:
    mp4 = ("a.mp4", film(), "video/mp4")
    extra = {name: value for name, value in server.fields.items() if name != "num_frames"}
    edited = client.videos.edit(prompt="a desert", video=mp4, extra_body=extra)
    assert abs(float(done(client, edited).seconds) - 2) < 0.5
    asked = {**extra, "video": {"id": finished.id}}
    edited = client.videos.edit(prompt="a desert", video=openai.omit, extra_body=asked)
    assert done(client, edited).size == finished.size


def test_extend(client: Any, server: Server) -> None:
    mp4 = ("a.mp4", film(), "video/mp4")
    extra = {name: value for name, value in server.fields.items() if name != "num_frames"}
    video = client.videos.extend(prompt="a field", seconds="2", video=mp4, extra_body=extra)
    longer = done(client, video)
    assert abs(float(longer.seconds) - 4) < 0.5
    data = client.videos.download_content(longer.id).read()
    assert abs(length_s(data) - float(longer.seconds)) < 0.2


def test_remix(client: Any, server: Server, finished: Any) -> None:
    video = done(client, client.videos.remix(finished.id, prompt="a green desert"))
    assert video.remixed_from_video_id == finished.id
    assert (video.size, video.seconds) == (finished.size, finished.seconds)


def test_characters(client: Any) -> None:
    mp4 = ("a.mp4", film(), "video/mp4")
    made = client.videos.create_character(name="Mossy the turtle", video=mp4)
    assert made.id and made.name == "Mossy the turtle" and made.created_at > 1.7e9
    found = client.videos.get_character(made.id)
    assert (found.id, found.name, found.created_at) == (made.id, made.name, made.created_at)


# errors


def told(error: Any, status: int) -> None:
    """Every error has a message, a shape and the id of its request."""
    assert error.status_code == status and error.request_id
    assert error.body["message"] and error.body["type"] and "code" in error.body
    assert error.body["message"] in error.message


def test_unknown_ids_are_not_found(client: Any) -> None:
    for ask in (client.videos.retrieve, client.videos.download_content, client.videos.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask("video_none")
        told(caught.value, 404)
    with pytest.raises(openai.NotFoundError):
        client.videos.remix("video_none", prompt="p")
    with pytest.raises(openai.NotFoundError):
        client.videos.get_character("char_none")


def test_wrong_fields_are_named(client: Any) -> None:
    for fields, param in (({"size": "big"}, "size"), ({"seconds": "-1"}, "seconds")):
        with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)) as caught:
            client.videos.create(prompt="a field", extra_body=fields)
        told(caught.value, caught.value.status_code)
        assert caught.value.param == param


def test_a_broken_reference_is_the_callers_fault(client: Any, server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, server, "@subject1 waves", input_reference=("a.png", b"no picture"))
    told(caught.value, 400)


def test_a_wrong_key_is_refused(server: Server) -> None:
    if server.key == "none":
        pytest.skip("the server asks for no key")
    for key in ("wrong", server.key + "x"):
        with server.client(api_key=key) as stranger:
            with pytest.raises(openai.AuthenticationError) as caught:
                stranger.videos.list()
            told(caught.value, 401)


def test_what_is_not_ready_is_not_asked_for_again(server: Server, own: Any) -> None:
    calls: list[int] = []
    with server.client(http_client=httpx.Client(transport=Counting(calls))) as client:
        video = client.videos.create(prompt="slow", extra_body={"steps": 100})
        calls.clear()
        with pytest.raises(openai.ConflictError) as caught:
            client.videos.download_content(video.id)
        told(caught.value, 409)
        assert caught.value.code == "video_not_ready" and len(calls) == 1
        cancelled = client.post(f"/videos/{video.id}/cancel", cast_to=openai.types.Video)
        ended = client.videos.poll(cancelled.id, poll_interval_ms=100)
        assert (ended.status, ended.error.code) == ("failed", "cancelled")


def test_a_failed_video_is_an_answer_not_an_exception(client: Any, own: Any) -> None:
    video = client.videos.create(prompt="spec", extra_body={"steps": 2})
    failed = client.videos.poll(video.id, poll_interval_ms=100)
    assert failed.status == "failed" and failed.error.code and "the script" in failed.error.message
    with pytest.raises(openai.ConflictError):
        client.videos.download_content(video.id)


def test_too_many_requests_say_when_to_come_back(server: Server, own: Any) -> None:
    from service.auth import Keys
    from service.tenants import Tenants

    Tenants(*own).set("busy", requests_per_minute=1)
    key = Keys(*own, required=True).create("busy")
    with server.client(api_key=key, max_retries=0) as client:
        create(client, server)
        with pytest.raises(openai.RateLimitError) as caught:
            create(client, server, "another field")
        told(caught.value, 429)
        assert 0 < int(caught.value.response.headers["retry-after"]) <= 60


# retries


class Counting(httpx.HTTPTransport):
    """Notes each request."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.calls = calls

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """As ever."""
        self.calls.append(1)
        return super().handle_request(request)


class Losing(Counting):
    """The first answer is lost on the way: the server has done its work."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises once."""
        answer = super().handle_request(request)
        if len(self.calls) == 1:
            answer.read()
            answer.close()
            raise httpx.ReadError("lost", request=request)
        return answer


def test_an_answer_that_got_lost_makes_no_second_video(client: Any, server: Server) -> None:
    calls: list[int] = []
    prompt = f"a green field {uuid.uuid4().hex}"
    with server.client(http_client=httpx.Client(transport=Losing(calls))) as unlucky:
        video = create(unlucky, server, prompt)
    assert len(calls) == 2
    found = [one.id for one in client.videos.list(limit=20).data if one.prompt == prompt]
    assert found == [video.id]


def test_an_idempotency_key_makes_one_video(client: Any, server: Server) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first, again = (create(client, server, extra_headers=key) for _ in range(2))
    assert first.id == again.id
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        create(client, server, "another field", extra_headers=key)
    told(caught.value, 422)
