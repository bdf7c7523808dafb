"""The official openai SDK, unchanged, against our processes."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from engine.video import Video
from tests.service.rig import Service, picture, redis_url, settings
from workers.settings import Settings

openai = pytest.importorskip("openai")

__all__ = ["redis_url", "settings"]
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def client(settings: Settings, tmp_path: Path) -> Iterator["openai.OpenAI"]:
    (tmp_path / "model").mkdir()
    quick = settings.model_copy(update={"lease_s": 3.0, "model_dir": tmp_path / "model"})
    service = Service(quick, tmp_path)
    try:
        service.start("gateway", "worker", "reaper")
        service.wait_ready()
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused") as client:
            yield client
    finally:
        service.close()


def test_create_poll_download_list_delete(client: "openai.OpenAI") -> None:
    anna = ("anna.png", picture("teal"), "image/png")
    bob = ("bob.jpg", picture("red", form="JPEG"), "image/jpeg")
    video = client.videos.create_and_poll(
        prompt="@anna waves at @bob",
        input_reference=[anna, bob],  # type: ignore[arg-type]
        seconds="2",  # type: ignore[arg-type]
        size="96x64",  # type: ignore[arg-type]
        extra_body={"seed": 3, "steps": 4},
        poll_interval_ms=100,
    )
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.size, video.seconds, video.object) == ("96x64", "2.125", "video")
    film = Video.from_mp4(client.videos.download_content(video.id).read())
    assert len(film.frames) == 17
    thumbnail = client.videos.download_content(video.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(thumbnail)).format == "JPEG"

    one = client.videos.create(prompt="@subject1 waves", input_reference=anna)  # type: ignore[arg-type]
    none = client.videos.create(prompt="a green field", extra_body={"steps": 2})
    listed = [found.id for found in client.videos.list(limit=1)]
    assert listed == [none.id, one.id, video.id]
    for made in (one, none):
        assert client.videos.poll(made.id, poll_interval_ms=100).status == "completed"
    gone = client.videos.delete(video.id)
    assert (gone.id, gone.deleted, gone.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError, match="There is no video"):
        client.videos.retrieve(video.id)

    with pytest.raises(openai.BadRequestError) as told:
        client.videos.create(prompt="@anna waves")
    assert told.value.param == "prompt" and told.value.request_id
    assert "no picture of anna" in told.value.message
