"""The studio page in a real browser, against the service as real processes.

Only the engine is scripted (tests/workers/scripted.py): its prompt `slow` waits at each step.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.service.rig import Service, redis_url, wait_for
from troupe.doctor import find_chromium
from workers.settings import Settings

__all__ = ["redis_url"]

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
PATIENCE_MS = 90_000
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("studio")
    (folder / "model").mkdir()
    settings = Settings(
        redis_url=redis_url,
        key_prefix="studio",
        blobs_url=str(folder / "blobs"),
        redis_timeout_s=5,
        decode_timeout_s=60,
        model_dir=folder / "model",
    )
    service = Service(settings, folder)
    service.start("gateway", "worker", "reaper")
    try:
        wait_for(lambda: _is_ready(service), PATIENCE_MS / 1000, 0.2)
        yield service
    finally:
        service.close()


def _is_ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def watched(browser: Browser) -> Iterator[Page]:
    """An empty page; any script error or policy violation fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None,
    )
    yield page
    context.close()
    assert wrong == []


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """The studio, freshly opened."""
    with watched(browser) as page:
        page.goto(service.url)
        expect(page.locator("#service")).to_have_attribute("data-state", "ready")
        yield page
        for video in httpx.get(f"{service.url}/v1/videos", timeout=30).json()["data"]:
            httpx.delete(f"{service.url}/v1/videos/{video['id']}", timeout=30)


def _until(element: Locator, condition: str) -> None:
    """Waits for a condition of one element. The page's policy forbids Playwright's own way."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not element.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.1)


def _fill_example(page: Page) -> None:
    page.click("#load-example")
    expect(page.locator(".member")).to_have_count(2)
    expect(page.locator("#prompt")).to_have_value(re.compile("@anna .*@bob"))


def _make(page: Page, steps: int = 4) -> None:
    page.evaluate(
        "n => { const r = document.getElementById('steps'); r.value = n;"
        " r.dispatchEvent(new Event('input', { bubbles: true })); }",
        steps,
    )
    page.click("#submit")


def test_pictures_to_video_and_again(page: Page, service: Service) -> None:
    """The main path: example, submit, play beside the references, sheet, another seed, delete."""
    _fill_example(page)
    expect(page.locator("#checks")).to_contain_text("Everyone has a part")
    _make(page)
    expect(page.locator("#result")).to_be_visible()

    player = page.locator("#player")
    _until(player, "video => video.readyState >= 2")
    assert player.evaluate("video => video.loop && video.muted && video.videoWidth > 0")
    assert player.evaluate("video => getComputedStyle(video).imageRendering") == "pixelated"
    expect(page.locator("#faces li")).to_have_count(2)
    expect(page.locator("#faces small")).to_have_text(["50 % alike"] * 2)
    for face in page.locator("#faces img").all():
        _until(face, "image => image.naturalWidth > 0")
    page.click("#sheet-toggle")
    expect(page.locator("#sheet")).to_be_visible()
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith(".mp4")

    seed = page.input_value("#seed")
    page.click("#again")
    expect(page.locator(".card")).to_have_count(2)
    expect(page.locator("#result")).to_be_visible()
    assert page.input_value("#seed") != seed

    page.locator(".card .delete").first.click()
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#empty")).to_be_visible()


def test_progress_is_live_and_can_be_stopped(page: Page) -> None:
    _fill_example(page)
    page.fill("#prompt", "slow: @anna waits for @bob")
    _make(page, steps=60)
    expect(page.locator("#stage-detail")).to_contain_text(re.compile(r"step \d+ of 60"))
    _until(page.locator("#progress"), "bar => bar.value > 5")
    page.click("#cancel")
    expect(page.locator("#verdict")).to_contain_text(re.compile("cancel", re.IGNORECASE))
    expect(page.locator(".card .badge").first).to_have_text("stopped")


def test_what_does_not_fit_is_told_before_it_is_sent(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    _fill_example(page)
    page.fill("#prompt", "@anna walks while @zed hides")
    expect(page.locator("#checks")).to_contain_text("@zed has no picture")
    expect(page.locator("#checks")).to_contain_text("@bob has a picture but no part")
    expect(page.locator("#mirror mark.stranger")).to_have_text("@zed")
    page.click("#submit")
    expect(page.locator("#errors")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()
    assert "POST" not in sent

    page.fill("#prompt", "@anna walks")
    page.locator(".chip.unnamed").click()
    expect(page.locator("#prompt")).to_have_value("@anna walks @bob ")
    expect(page.locator("#checks")).to_contain_text("Everyone has a part")


def test_a_renamed_character_keeps_its_part(page: Page) -> None:
    _fill_example(page)
    page.locator(".member .name").first.fill("zoë")
    expect(page.locator("#prompt")).to_have_value(re.compile("^@zoë on the right"))
    page.locator(".member .name").first.fill("2x")
    expect(page.locator("#checks")).to_contain_text("is not a name")
    page.locator(".member .name").first.fill("bob")
    expect(page.locator("#checks")).to_contain_text("Two pictures are called bob")


def test_pictures_are_picked_limited_and_removed(page: Page, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("no picture")
    page.set_input_files("#files", [EXAMPLES / "anna.png", note])
    expect(page.locator("#errors")).to_contain_text("note.txt is not a PNG")
    expect(page.locator(".member")).to_have_count(1)
    page.set_input_files("#files", [EXAMPLES / "bob.png"] * 3)
    expect(page.locator(".member")).to_have_count(4)
    expect(page.locator("#add-card")).to_be_hidden()
    names = [name.input_value() for name in page.locator(".member .name").all()]
    assert len(set(names)) == 4 and names[0] == "anna"
    page.locator(".member .remove").nth(1).click()
    expect(page.locator(".member")).to_have_count(3)
    expect(page.locator("#add-card")).to_be_visible()


def test_a_refusal_of_the_service_marks_its_field(page: Page, tmp_path: Path) -> None:
    fake = tmp_path / "anna.png"
    fake.write_text("text under a picture's name")
    page.set_input_files("#files", fake)
    page.fill("#prompt", "@anna waits")
    page.click("#submit")
    expect(page.locator("#errors")).to_contain_text(re.compile("picture|image", re.IGNORECASE))
    expect(page.locator(".member").first).to_have_class(re.compile("invalid"))

    page.locator(".member .remove").click()
    page.fill("#prompt", "a quiet meadow")
    page.click("#more > summary")
    page.fill("#fps", "0")
    page.click("#submit")
    expect(page.locator("#fps")).to_be_focused()
    expect(page.locator("#errors")).to_contain_text("fps")


def test_reload_keeps_the_history_and_the_video_on_stage(page: Page) -> None:
    _fill_example(page)
    _make(page)
    expect(page.locator("#result")).to_be_visible()
    page.reload()
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#result")).to_be_visible()
    page.click("#change")
    expect(page.locator(".member")).to_have_count(2)
    expect(page.locator("#prompt")).to_have_value(re.compile("@anna .*@bob"))


def test_everything_has_a_name_and_the_keyboard_suffices(page: Page) -> None:
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea, a, progress, video')]
           .filter(e => e.checkVisibility() && !(e.ariaLabel || e.textContent.trim() || e.title
             || [...(e.labels ?? [])].some(l => l.textContent.trim())))
           .map(e => e.outerHTML)"""
    )
    assert nameless == []
    page.focus("#load-example")
    page.keyboard.press("Enter")
    expect(page.locator(".member")).to_have_count(2)
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#announce")).to_have_text("The video is ready.")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_spills_over_at_any_width(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    _fill_example(page)
    page.click("#more > summary")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/docs", ".opblock-summary-path >> nth=0"), ("/redoc", "h1")],
)
def test_the_interface_is_shown_without_a_way_out(
    browser: Browser, service: Service, path: str, shown: str
) -> None:
    """Scripts and styles of the page are the service's own."""
    with watched(browser) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{service.url}{path}")
        expect(page.locator(shown)).to_be_visible()
        scripts = [url for url in asked if url.endswith((".js", ".css", ".json"))]
        assert len(scripts) > 1 and all(url.startswith(service.url) for url in scripts), asked
