"""The doorbell says no more than it must, and does not hang."""

import base64
import json
import time
from pathlib import Path

from service.doorbell import ENCODE_QUEUE, ENCODE_TASK, ENOUGH, QUEUE, TASK, Doorbell
from service.ledger import connect
from workers.settings import Settings


def test_a_message_is_the_tasks_name_and_for_encoders_the_id(settings: Settings) -> None:
    bell = Doorbell(settings)
    assert bell.ring("video_1") is True
    assert bell.ring_encoder("video_1") is True
    bell.close()
    client = connect(settings)
    for queue, task, said in ((QUEUE, TASK, ""), (ENCODE_QUEUE, ENCODE_TASK, "video_1")):
        text = client.lpop(f"{settings.key_prefix}:broker:{queue}")
        message = json.loads(text)
        assert message["headers"]["task"] == task
        assert client.lpop(f"{settings.key_prefix}:broker:{queue}") is None
        body = json.loads(base64.b64decode(message["body"]))
        assert message["content-type"] == "application/json"
        assert body[0] == [said] and body[1] == {}
        assert ("video_1" in text) is bool(said)
    client.close()


def test_a_deleted_jobs_id_leaves_the_encoders_queue(settings: Settings) -> None:
    bell, client = Doorbell(settings), connect(settings)
    for ref in ("t/one", "t/two", "t/one", "t/one-more"):
        bell.ring_encoder(ref)
    bell.forget("t/one")
    key = f"{settings.key_prefix}:broker:{ENCODE_QUEUE}"
    bodies = [json.loads(text)["body"] for text in client.lrange(key, 0, -1)]
    left = [json.loads(base64.b64decode(body))[0] for body in bodies]
    assert sorted(left) == [["t/one-more"], ["t/two"]]
    bell.close()
    client.close()


def test_without_a_broker_it_fails_fast_and_says_so(settings: Settings, tmp_path: Path) -> None:
    bell = Doorbell(settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none"}))
    begin = time.monotonic()
    assert bell.ring("video_1") is False
    assert time.monotonic() - begin < 3
    bell.close()


def test_no_more_are_rung_than_there_is_use_for(settings: Settings) -> None:
    bell, client = Doorbell(settings), connect(settings)
    key = f"{settings.key_prefix}:broker:{QUEUE}"
    bell.ring_some(["a", "b"])
    assert client.llen(key) == 2
    for number in range(3 * ENOUGH):
        bell.ring_soon(f"v{number}")
    bell.close()  # rings for what waits
    assert client.llen(key) == ENOUGH
    client.ltrim(key, 0, 9)
    again = Doorbell(settings)
    again.ring_some([f"w{number}" for number in range(ENOUGH)])
    assert client.llen(key) == ENOUGH
    again.close()
    client.close()


def test_without_a_broker_a_crowd_is_given_up_at_once(settings: Settings, tmp_path: Path) -> None:
    bell = Doorbell(settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none"}))
    begin = time.monotonic()
    bell.ring_some([f"v{number}" for number in range(1000)])
    assert time.monotonic() - begin < 5
    bell.close()
