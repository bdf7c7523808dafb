"""The operator's page in a real browser, against the service as real processes."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from service.auth import Keys
from service.fleet import Fleet
from service.ledger import connect
from tests.e2e.test_studio import browser, pytestmark, watched
from tests.service.rig import Service, picture, redis_url, settings, wait_for
from workers.settings import Settings

__all__ = ["browser", "pytestmark", "redis_url", "settings"]


@pytest.fixture
def service(settings: Settings, tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "model").mkdir()
    given = {"model_dir": tmp_path / "model", "auth": "keys", "lease_s": 6.0}
    service = Service(settings.model_copy(update=given), tmp_path)
    service.start("gateway", "worker", "reaper")
    try:
        service.wait_ready()
        yield service
    finally:
        service.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with watched(browser) as page:
        yield page


def post(service: Service, key: str, prompt: str, steps: int) -> str:
    answer = httpx.post(
        f"{service.url}/v1/videos",
        data={"prompt": prompt, "steps": str(steps)},
        files={"images": ("anna.png", picture())},
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_key_opens_it_it_lives_and_it_stops_a_job(
    page: Page, service: Service, settings: Settings
) -> None:
    keys = Keys(connect(settings), settings, required=True)
    admin, acme = keys.create("house", scopes=["read", "admin"]), keys.create("acme")
    page.goto(f"{service.url}/ops")
    expect(page.locator("#door")).to_be_visible()
    page.fill("#key", acme)
    page.keyboard.press("Enter")
    expect(page.locator("#door-error")).to_contain_text("scope 'admin'")
    page.fill("#key", admin)
    page.keyboard.press("Enter")
    expect(page.locator("#board")).to_be_visible()
    expect(page.locator("#tiles")).to_contain_text("balanced")
    expect(page.locator("#workers")).to_contain_text("idle")
    expect(page.locator("#running")).to_contain_text("No job is in hand.")

    expect(page.locator("#models")).to_contain_text("No model is in quarantine.")
    client = connect(settings)
    Fleet(client, settings).quarantine("f" * 64, "head.weight is not finite", "w1")
    client.close()
    expect(page.locator("#models")).to_contain_text(re.compile("f{12}.*head.weight is not finite"))

    long = post(service, acme, "@anna waves slow", 120)
    waits = post(service, acme, "@anna waves", 4)
    expect(page.locator("#running")).to_contain_text(re.compile(rf"acme/{long}.*denoise \d+/120"))
    expect(page.locator("#line")).to_contain_text(f"acme/{waits}")
    expect(page.locator("#tenants")).to_contain_text("acme")
    page.screenshot(path=str(service.logs / "ops.png"), full_page=True)
    page.locator(f'#running button[data-ref="acme/{long}"]').click()
    expect(page.locator("#running")).not_to_contain_text(long)
    expect(page.locator("#line")).to_contain_text("Nothing waits.")
    header = {"Authorization": f"Bearer {acme}"}
    found = httpx.get(f"{service.url}/v1/videos/{long}", headers=header, timeout=60).json()
    assert found["error"]["code"] == "cancelled"

    poison = post(service, acme, "@anna always-crash", 4)
    expect(page.locator("#quarantine")).to_contain_text(f"acme/{poison}")
    expect(page.locator("#quarantine")).to_contain_text("start 3:")
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert stored == "[{},{}]" and admin not in page.content()
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=str(service.logs / "ops-dark.png"), full_page=True)
    for width in (320, 768):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=str(service.logs / "ops-narrow.png"), full_page=True)

    service.stop("gateway")
    expect(page.locator("#status")).to_have_attribute("data-state", "down")
    wait_for(lambda: "does not answer" in page.locator("#status").inner_text())
