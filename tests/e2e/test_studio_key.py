"""The studio where keys are required: it asks for one, and then can do all that it can without."""

import re

from playwright.sync_api import Page, expect

from service.auth import Keys
from service.ledger import connect
from tests.e2e.test_ops import page, service
from tests.e2e.test_studio import _fill_example, _make, _until, browser, pytestmark
from tests.service.rig import Service, redis_url, settings
from workers.settings import Settings

__all__ = ["browser", "page", "pytestmark", "redis_url", "service", "settings"]

KEPT = "JSON.stringify([{...localStorage}, {...sessionStorage}])"


def test_a_key_lets_one_in_and_shows_what_needs_one(
    page: Page, service: Service, settings: Settings
) -> None:
    keys = Keys(connect(settings), settings, required=True)
    key, other = keys.create("acme"), keys.create("other")
    page.goto(service.url)
    expect(page.locator("#door")).to_be_visible()
    expect(page.locator("#errors")).to_be_hidden()
    page.screenshot(path=str(service.logs / "door.png"), full_page=True)
    page.fill("#key", "trp_wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#door-told")).not_to_be_empty()
    assert page.evaluate(KEPT) == "[{},{}]"

    page.fill("#key", key)
    page.keyboard.press("Enter")
    expect(page.locator("#door")).to_be_hidden()
    expect(page.locator("#history-empty")).to_be_visible()
    _fill_example(page)
    _make(page)
    expect(page.locator("#result")).to_be_visible()
    player = page.locator("#player")
    _until(player, "video => video.readyState >= 2 && video.src.startsWith('blob:')")
    for picture in page.locator("#faces img, .card img").all():
        _until(picture, "image => image.naturalWidth > 0")
    page.click("#sheet-toggle")
    _until(page.locator("#sheet"), "image => image.naturalWidth > 0")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.path().read_bytes()[4:8] == b"ftyp"
    page.screenshot(path=str(service.logs / "keyed.png"), full_page=True)
    assert page.evaluate(KEPT) == f'[{{}},{{"troupe-key":"{key}"}}]'
    assert key not in page.content() and key not in page.url

    page.reload()
    expect(page.locator("#result")).to_be_visible()
    keys.revoke(key.split("_")[1])
    page.wait_for_timeout(6000)  # a gateway remembers a key for five seconds
    page.locator(".card .open").click()
    expect(page.locator("#door-told")).to_have_text(re.compile("key"))
    page.fill("#key", other)
    page.keyboard.press("Enter")
    expect(page.locator("#forget-key")).to_be_visible()
    page.click("#forget-key")
    expect(page.locator("#door")).to_be_visible()
    assert page.evaluate(KEPT) == "[{},{}]"
