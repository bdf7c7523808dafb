"""A signed address opens one file of one video until its time; nothing else, and nothing later."""

import time

import pytest

from service.errors import Forbidden
from service.ledger import connect
from service.links import Links
from workers.settings import Settings

SOON = int(time.time()) + 24 * 3600  # a suite may take long from here to a test


@pytest.fixture
def links(settings: Settings) -> Links:
    return Links(connect(settings), settings)


def test_what_was_signed_counts_at_every_gateway(links: Links, settings: Settings) -> None:
    signature = links.sign("acme", "video_1", "video", SOON)
    another = Links(connect(settings), settings)
    another.check("acme", "video_1", "video", SOON, signature)


@pytest.mark.parametrize(
    "told",
    [
        ("other", "video_1", "video", SOON),
        ("acme", "video_2", "video", SOON),
        ("acme", "video_1", "thumbnail", SOON),
        ("acme", "video_1", "video", SOON + 1),
    ],
)
def test_every_part_is_signed(links: Links, told: tuple[str, str, str, int]) -> None:
    signature = links.sign("acme", "video_1", "video", SOON)
    with pytest.raises(Forbidden, match="does not count"):
        links.check(*told, signature)


@pytest.mark.parametrize("signature", ["", "0" * 64, "ä"])
def test_no_signature_is_none(links: Links, signature: str) -> None:
    with pytest.raises(Forbidden):
        links.check("acme", "video_1", "video", SOON, signature)


def test_it_ends(links: Links) -> None:
    past = int(time.time()) - 1
    with pytest.raises(Forbidden, match="no more"):
        links.check("acme", "video_1", "video", past, links.sign("acme", "video_1", "video", past))


def test_another_keyspace_has_another_secret(links: Links, settings: Settings) -> None:
    other = Links(connect(settings), settings.model_copy(update={"key_prefix": "elsewhere"}))
    told = ("acme", "video_1", "video", SOON)
    assert other.sign(*told) != links.sign(*told)
