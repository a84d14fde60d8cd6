"""Makes the pictures in this folder: real questions, answered by the real models, in the real page.

`python -m docs.screenshot` starts the chat by itself, over the shipped documents and with a data folder of its own; both
models must be here (`smallfirst models list`).
"""

import re
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.product import chat, free_port
from tests.run import find_browser

HERE = Path(__file__).parent
ESCALATES = "What is the example price of output tokens?"
STANDS = "What does a judge fall back on when a server returns no logprobs?"
OF_A_PDF = "Which part of the latency depends on the length of the prompt?"
OF_TWO = "What is the difference between a cascade and a router?"
SILENT = "Which zebra won the regatta in Uruguay?"
LIMIT_MS = 180_000


def opened(browser: Browser, url: str, **context: object) -> Page:
    page = browser.new_context(**{"locale": "en-US", "device_scale_factor": 1.5, **context}).new_page()  # type: ignore[arg-type]
    page.goto(url)
    page.locator("#chat-settings-open-modal").wait_for()
    page.wait_for_timeout(1000)  # its socket connects, and pictures fade in
    return page


def ask(page: Page, question: str) -> None:
    before = page.get_by_test_id("receipt-toggle").count()
    page.locator("#chat-input").fill(question)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("receipt-toggle")).to_have_count(before + 1, timeout=LIMIT_MS)


def shoot(page: Page, name: str) -> None:
    page.wait_for_timeout(600)  # what moves has moved
    page.screenshot(path=HERE / f"{name}.png")


def ondevice(browser: Browser, url: str) -> None:
    """The same question to the model in the browser and to both of the server; the browser's is the server's small one."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, device_scale_factor=1.5)
    page.goto(f"{url}/ondevice")
    page.locator("#model").select_option("qwen2.5-coder-0.5b")
    page.locator("#start").click()
    expect(page.locator("body")).to_have_attribute("data-model", "ready", timeout=LIMIT_MS)
    for engine in ("slm", "llm"):
        page.locator(f"#ask-{engine}").check()
    page.locator("#question").fill(OF_TWO)
    page.keyboard.press("Enter")
    page.locator("#stop").wait_for()
    expect(page.locator("#stop")).to_be_hidden(timeout=LIMIT_MS)
    page.wait_for_timeout(600)
    page.screenshot(path=HERE / "ondevice.png", full_page=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        report = browser.new_page(viewport={"width": 960, "height": 1050}, device_scale_factor=1.5)
        report.goto((HERE.parent / "benchmarks" / "compare.html").as_uri())
        shoot(report, "compare")
        with chat(free_port(), Path(folder) / "chat.log") as url:
            size = {"width": 900, "height": 980}
            page = opened(browser, url, viewport=size)
            ask(page, ESCALATES)
            ask(page, STANDS)
            page.get_by_test_id("receipt-rejected").first.locator("summary").click()
            page.get_by_test_id("receipt-toggle").last.click()
            page.get_by_test_id("receipt-body").last.wait_for()
            page.get_by_text(ESCALATES).first.scroll_into_view_if_needed()
            shoot(page, "chat")
            address = page.url

            page = opened(browser, address, viewport={"width": 1280, "height": 860})
            ask(page, OF_A_PDF)
            page.locator('[data-step-type=assistant_message] a[href^="#source-"]').last.click()
            page.get_by_test_id("passages").locator("mark, img").first.wait_for()
            shoot(page, "source")

            ask(page, SILENT)
            page.keyboard.press("Escape")
            page.get_by_test_id("totals-toggle").click()
            shoot(page, "totals")

            page = opened(browser, address, viewport={"width": 1280, "height": 860}, color_scheme="dark")
            page.locator("#sidebar-trigger-button:visible").click()
            expect(page.get_by_role("link", name=re.compile(ESCALATES[:20]))).to_be_visible()
            shoot(page, "history")

            page = opened(browser, url, viewport=size)
            page.locator("#chat-settings-open-modal").click()
            page.locator("#confirm").wait_for()
            shoot(page, "settings")

            page = opened(browser, address, viewport={"width": 320, "height": 640}, has_touch=True, is_mobile=True)
            shoot(page, "phone")

            page = opened(browser, url, viewport=size, locale="uk-UA")
            ask(page, STANDS)
            page.get_by_test_id("receipt-toggle").last.click()
            shoot(page, "ukrainian")

            ondevice(browser, url)
        browser.close()


if __name__ == "__main__":
    main()
