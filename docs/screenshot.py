"""Makes docs/chat.png: two real questions, answered by the real models, in the real page.

Start `smallfirst chat --port 8123 --no-open` with both models here, then run `python docs/screenshot.py 8123`.
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.run import find_browser

ESCALATES = "What is the example price of output tokens?"
STANDS = "What does a judge fall back on when a server returns no logprobs?"


def main(port: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 900, "height": 980}, device_scale_factor=1.5)
        page.goto(f"http://127.0.0.1:{port}")
        page.locator("#chat-settings-open-modal").wait_for()
        for number, question in enumerate((ESCALATES, STANDS)):
            page.locator("#chat-input").fill(question)
            page.keyboard.press("Enter")
            page.get_by_test_id("receipt-toggle").nth(number).wait_for(timeout=180_000)
        page.locator("details summary").first.click()
        page.get_by_test_id("receipt-toggle").last.click()
        page.get_by_test_id("receipt-body").last.wait_for()
        page.get_by_text(ESCALATES).scroll_into_view_if_needed()
        page.screenshot(path=Path(__file__).parent / "chat.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
