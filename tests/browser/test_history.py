"""Past conversations in a real browser: found by a word, renamed, exported, deleted with everything that was theirs."""

import re
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from ..product import ScriptedServer, chat, free_port
from .conftest import tab

QUESTION = "What is the largest file that I can drop into a chat?"
OILED = "How often must the frobnicator be oiled?"


def sidebar(page: Page) -> None:
    page.locator("#sidebar-trigger-button:visible").click()


def test_a_conversation_is_found_renamed_exported_and_deleted(
    browser: Browser, scripted: ScriptedServer, tmp_path: Path
) -> None:
    scripted.script = lambda model, asked: "It must be oiled every 17 days." if "oiled" in asked else "It is 10 MB."
    data = tmp_path / "data"
    environment = {
        "RAG_CACHE_DIR": str(tmp_path / "cache"), "RAG_DATA_DIR": str(data),
        "RAG_SLM_BASE_URL": scripted.url, "RAG_SLM_MODEL": "small", "RAG_LLM_BASE_URL": scripted.url,
        "RAG_LLM_MODEL": "large", "RAG_MODE": "slm",
    }  # fmt: skip
    manual = tmp_path / "manual.md"
    manual.write_text("The frobnicator must be oiled every 17 days.")
    with chat(free_port(), tmp_path / "chat.log", **environment) as url:
        with tab(browser, url, mode="slm") as other:
            other.ask(QUESTION)
        with tab(browser, url, mode="slm") as mine:
            page = mine.page
            mine.attach(manual)
            mine.ask(OILED)
            address = page.url
            kept = [path for path in data.rglob("*") if path.is_file() and path.read_bytes() == manual.read_bytes()]
            assert len(kept) == 1

            # Exports, from the panel of totals and from the receipt.
            page.get_by_test_id("totals-toggle").click()
            with page.expect_download() as markdown:
                page.get_by_role("link", name="Markdown").click()
            text = Path(markdown.value.path()).read_text()
            assert "It must be oiled every 17 days." in text
            assert "manual.md" in text
            with page.expect_download() as table:
                page.get_by_role("link", name="CSV").click()
            assert OILED in Path(table.value.path()).read_text("utf-8-sig")
            page.keyboard.press("Escape")
            page.get_by_test_id("receipt-toggle").click()
            with page.expect_download() as one:
                page.get_by_test_id("receipt-body").get_by_role("link", name=re.compile("JSON")).click()
            assert OILED in Path(one.value.path()).read_text()

            # Found by a word of the answer.
            sidebar(page)
            page.locator("#search-chats-button").click()
            page.get_by_role("combobox").fill("17 days")
            results = page.get_by_role("option")
            expect(results).to_have_count(1)
            expect(results).to_contain_text(OILED)
            page.keyboard.press("Escape")

            # Renamed.
            row = page.locator(f'a[href$="{address.rpartition("/")[2]}"]').locator("xpath=ancestor::li[1]")
            row.hover()
            row.locator("#thread-options").click()
            page.get_by_role("menuitem", name="Rename").click()
            page.get_by_role("dialog").get_by_role("textbox").fill("Oil")
            page.get_by_role("dialog").get_by_role("button", name=re.compile("Rename|Save|Confirm")).click()
            expect(row).to_contain_text("Oil")
            page.reload()
            expect(page.get_by_test_id("receipt-toggle")).to_have_count(1)
            sidebar(page)
            expect(row).to_contain_text("Oil")

            # Deleted: from the list, from its address, from the disk.
            row.hover()
            row.locator("#thread-options").click()
            page.get_by_role("menuitem", name="Delete").click()
            page.get_by_role("alertdialog").get_by_role("button", name=re.compile("Delete|Confirm|Continue")).click()
            page.wait_for_url(f"{url}/")
            expect(page.get_by_test_id("receipt-toggle")).to_have_count(0)
            expect(row).to_have_count(0)
            sidebar(page)
            expect(page.get_by_text(QUESTION).first).to_be_visible()
            assert not any(path.exists() for path in kept)
            assert not any(b"frobnicator" in path.read_bytes() for path in data.rglob("*") if path.is_file())
            page.goto(address)
            expect(page.get_by_text("Couldn't resume chat").first).to_be_visible()
            expect(page.get_by_test_id("receipt-toggle")).to_have_count(0)
