"""Deleting a video: nothing is left but a receipt that names nobody."""

from pathlib import Path

import pytest

from service.auth import EVERYBODY
from service.deps import House
from service.errors import NotFound
from service.removal import remove_video
from tests.service.rig import keys_of, picture, request_of
from workers.settings import Settings


@pytest.mark.parametrize("state", ["queued", "running", "completed"])
def test_what_is_left(house: House, settings: Settings, state: str) -> None:
    ref = "local/video_1"
    house.blobs.put("t/local/videos/video_1/in", picture(), ".png")
    house.ledger.submit(ref, request_of("anna"))
    if state != "queued":
        claim = house.ledger.claim("h")
        assert claim is not None
        if state == "completed":
            house.ledger.commit(claim, {})
    remove_video(ref, EVERYBODY, house)
    assert not [path for path in Path(settings.blobs_url).rglob("*") if path.is_file()]
    assert not [key for key in keys_of(settings) if "video_1" in key]
    assert house.ledger.graves(0) == ([ref] if state == "running" else [])
    (receipt,) = house.audit.entries("local", ref)
    assert (receipt.action, receipt.detail) == ("video.deleted", {"was": state})
    with pytest.raises(NotFound):
        house.ledger.read(ref)


def test_an_unknown_one_leaves_no_receipt(house: House) -> None:
    with pytest.raises(NotFound):
        remove_video("local/none", EVERYBODY, house)
    assert list(house.audit.entries()) == []
