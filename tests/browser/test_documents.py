"""Attached documents as a person meets them: read, listed, asked about, still there after a reload, removed, gone."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from ..product import ROOT, ScriptedServer, chat, free_port
from .conftest import Chat, tab

QUESTION = "How often must the frobnicator be oiled?"
GOOD = "The frobnicator must be oiled every 17 days. [1]"
# Every process of the product that reads a file of this name waits until the test lets it go on.
SLOW = """
import os, time
import rag.corpus.documents as room
read = room.read
def slow(data, source, **more):
    while source.startswith("slow") and not os.path.exists(os.environ["GATE"]):
        time.sleep(0.05)
    return read(data, source, **more)
room.read = slow
"""


@dataclass
class Product:
    url: str
    gate: Path


@pytest.fixture(scope="module")
def product(browser: Browser, scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "sitecustomize.py").write_text(SLOW)
    environment = {
        "RAG_SLM_BASE_URL": scripted.url, "RAG_SLM_MODEL": "small", "RAG_LLM_BASE_URL": scripted.url,
        "RAG_LLM_MODEL": "large", "RAG_DISCONNECT_GRACE_S": "0.5", "RAG_MODE": "slm", "GATE": str(folder / "gate"),
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
    }  # fmt: skip
    with chat(free_port(), folder / "chat.log", **environment) as url:
        yield Product(url, folder / "gate")


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    path = tmp_path / "frobnicator manual.md"
    path.write_text("# Frobnicator\n\nThe frobnicator must be oiled every 17 days with whale-free oil.\n")
    return path


@pytest.fixture(autouse=True)
def answers(scripted: ScriptedServer) -> None:
    scripted.script = lambda model, question: GOOD


def attach(chat: Chat, path: Path, text: str = "") -> None:
    """Attach a file, send it, and wait until it has been dealt with, and the question with it answered."""
    told = chat.page.get_by_text(re.compile(r"documents? attached\.|Not attached\."))
    before, answered = told.count(), chat.page.get_by_test_id("receipt-toggle").count()
    chat.attach(path)
    if text:
        chat.page.locator("#chat-input").fill(text)
    chat.page.locator("#chat-submit").click()
    expect(told).to_have_count(before + 1)
    if text:
        expect(chat.page.get_by_test_id("receipt-toggle")).to_have_count(answered + 1)
    expect(chat.page.locator("#stop-button")).to_have_count(0)


def sources(turn: dict[str, Any]) -> set[str]:
    return {hit["source"] for hit in turn["hits"]}


def listed(page: Page) -> Locator:
    """The rows of the standing list, which is opened for them."""
    toggle = page.get_by_test_id("documents-toggle")
    if toggle.get_attribute("aria-expanded") == "false":
        toggle.click()
    return page.get_by_test_id("documents-list").get_by_role("listitem")


def reload(chat: Chat) -> None:
    chat.page.reload()
    chat.page.locator("#chat-settings-open-modal").wait_for()


def test_an_upload_is_reported_listed_and_found_until_it_is_removed(
    browser: Browser, product: Product, manual: Path
) -> None:
    with tab(browser, product.url) as chat:
        page = chat.page
        expect(page.get_by_test_id("documents")).to_be_hidden()
        attach(chat, manual)
        report = page.get_by_test_id("attachments")
        expect(report).to_contain_text(re.compile(r"frobnicator manual\.md.*\d+ characters, 1 passage"))
        expect(page.get_by_text("Ask something about it.")).to_be_visible()
        expect(page.get_by_test_id("documents-toggle")).to_have_text("1 document attached")
        assert manual.name in sources(chat.ask(QUESTION))

        expect(listed(page)).to_have_count(1)
        expect(listed(page)).to_contain_text("1 passage")
        listed(page).get_by_role("button", name=f"Remove {manual.name}").press("Enter")
        expect(page.get_by_test_id("documents")).to_be_hidden()
        expect(page.locator("#chat-input")).to_be_focused()
        expect(report).to_contain_text("Removed")
        expect(page.get_by_role("status").filter(has_text=f"No longer attached: {manual.name}")).to_be_attached()
        assert manual.name not in sources(chat.ask(QUESTION))


def test_a_reloaded_tab_goes_on_with_its_conversation(browser: Browser, product: Product, manual: Path) -> None:
    with tab(browser, product.url) as chat, tab(browser, product.url) as other:
        page = chat.page
        attach(chat, manual, QUESTION)
        expect(page.get_by_test_id("receipt-toggle")).to_have_count(1)
        for times in (1, 2):
            reload(chat)
            expect(page.get_by_test_id("documents-toggle")).to_have_text("1 document attached")
            expect(page.locator("[data-step-type=user_message]").get_by_text(QUESTION).first).to_be_visible()
            expect(page.get_by_test_id("receipt-toggle")).to_have_count(times)
            expect(page.get_by_test_id("attachments")).to_contain_text("1 passage")
            assert manual.name in sources(chat.ask(QUESTION))
        page.get_by_test_id("attachments").get_by_role("button", name="Remove").click()
        expect(page.get_by_test_id("documents")).to_be_hidden()
        assert manual.name not in sources(chat.ask(QUESTION))
        reload(chat)
        expect(page.get_by_test_id("receipt-toggle")).to_have_count(4)
        expect(page.get_by_test_id("documents")).to_be_hidden()

        reload(other)
        expect(other.page.get_by_test_id("documents")).to_be_hidden()
        assert manual.name not in sources(other.ask(QUESTION))


def test_the_mode_is_the_same_after_a_reload(browser: Browser, product: Product) -> None:
    with tab(browser, product.url) as chat:
        chat.switch("LLM")
        assert chat.ask("What is the largest file that I can drop into a chat?")["mode"] == "llm"
        reload(chat)
        expect(chat.page.get_by_test_id("receipt-toggle")).to_have_count(1)
        chat.page.locator("#chat-settings-open-modal").click()
        expect(chat.page.get_by_role("radio", name=re.compile("^LLM"))).to_be_checked()


def test_a_new_chat_begins_without_documents(browser: Browser, product: Product, manual: Path) -> None:
    with tab(browser, product.url) as chat:
        attach(chat, manual)
        chat.page.locator("#new-chat-button:visible").click()
        chat.page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
        chat.page.locator("#welcome-screen").wait_for()
        expect(chat.page.get_by_test_id("documents")).to_be_hidden()
        assert manual.name not in sources(chat.ask(QUESTION))
        reload(chat)
        expect(chat.page.get_by_test_id("receipt-toggle")).to_have_count(1)
        expect(chat.page.get_by_test_id("documents")).to_be_hidden()


def test_reading_is_shown_and_can_be_stopped(browser: Browser, product: Product, manual: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.txt"
    slow.write_text("The zeppelin of Ottilie Brandt carries 23 passengers from Ulm to Bregenz.\n")
    with tab(browser, product.url) as chat:
        page = chat.page
        chat.attach(manual)
        chat.attach(slow)
        chat.send("How many passengers does the zeppelin carry?")
        expect(page.get_by_text(re.compile(r"Reading slow\.txt \(2 of 2\) … [23] s"))).to_be_visible()
        page.locator("#stop-button").click()
        expect(page.get_by_text(re.compile(r"1 document attached\."))).to_be_visible()
        expect(page.get_by_text("Stopped reading.")).to_be_visible()
        expect(page.locator("#stop-button")).to_have_count(0)
        expect(page.get_by_text("Task manually stopped.")).to_have_count(0)
        expect(page.get_by_test_id("receipt-toggle")).to_have_count(0)
        expect(listed(page)).to_have_count(1)
        expect(listed(page)).to_contain_text(manual.name)
        page.keyboard.press("Escape")
        expect(page.get_by_test_id("documents-list")).to_be_hidden()

        product.gate.touch()
        attach(chat, slow)
        assert slow.name in sources(chat.ask("How many passengers does the zeppelin carry?"))
        expect(listed(page)).to_have_count(2)


def test_a_file_that_cannot_be_read_costs_one_line(
    browser: Browser, product: Product, manual: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.pdf"
    torn.write_bytes(b"this is no pdf at all")
    with tab(browser, product.url) as chat:
        chat.attach(torn)
        chat.attach(manual)
        chat.page.locator("#chat-submit").click()
        expect(chat.page.get_by_text("1 document attached.")).to_be_visible()
        expect(chat.page.get_by_text("Not attached. torn.pdf is named .pdf but is no PDF file")).to_have_count(1)
        expect(chat.page.get_by_test_id("attachment")).to_have_count(1)
        expect(listed(chat.page)).to_have_count(1)


def test_a_file_of_no_known_kind_is_refused_in_one_sentence(browser: Browser, product: Product, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"\0\0\0 ftypisom")
    with tab(browser, product.url) as chat:
        with chat.page.expect_response("**/project/file**") as answer:
            chat.page.locator("#upload-button-input").set_input_files(film)
        assert not answer.value.ok
        told = chat.page.get_by_text(
            re.compile(r"film\.mp4 is not of a kind that can be read here\. Save it as one of \.pdf")
        )
        expect(told.first).to_be_visible()


def test_a_newer_file_of_the_same_name_takes_the_place(browser: Browser, product: Product, manual: Path) -> None:
    with tab(browser, product.url) as chat:
        attach(chat, manual)
        manual.write_text("# Frobnicator\n\nThe frobnicator must be oiled every 99 days.\n")
        attach(chat, manual)
        rows = chat.page.get_by_test_id("attachment")
        expect(rows.first).to_contain_text("Replaced")
        expect(rows.last.get_by_role("button", name="Remove")).to_be_visible()
        expect(listed(chat.page)).to_have_count(1)
        assert "99 days" in str(chat.ask(QUESTION)["hits"])


def test_an_edited_question_does_not_bring_back_what_was_removed(
    browser: Browser, product: Product, manual: Path
) -> None:
    with tab(browser, product.url) as chat:
        page = chat.page
        attach(chat, manual, QUESTION)
        expect(page.get_by_test_id("receipt-toggle")).to_have_count(1)
        listed(page).get_by_role("button", name="Remove").click()
        expect(page.get_by_test_id("documents")).to_be_hidden()
        page.locator("[data-step-type=user_message]").get_by_text(QUESTION).hover()
        page.locator(".edit-message").click()
        page.locator("#edit-chat-input").fill("And how often must the frobnicator be oiled?")
        page.locator(".confirm-edit").click()
        expect(page.get_by_test_id("attachments")).to_have_count(0)
        expect(page.get_by_test_id("receipt-toggle")).to_have_count(1)
        assert manual.name not in sources(chat.turn())


def test_what_was_searched_for_is_shown_when_it_is_not_the_question(
    browser: Browser, product: Product, manual: Path
) -> None:
    with tab(browser, product.url) as chat:
        attach(chat, manual, QUESTION)
        expect(chat.page.get_by_test_id("receipt-query")).to_have_count(0)
        turn = chat.ask("And with which oil?")
        assert turn["query"] != turn["question"]
        expect(chat.page.get_by_test_id("receipt-query")).to_have_text(f"Searched for: {turn['query']}")


def test_the_folders_reading_is_shown_and_told_in_the_terminal(
    browser: Browser, scripted: ScriptedServer, tmp_path: Path
) -> None:
    docs, log, gate = tmp_path / "docs", tmp_path / "chat.log", tmp_path / "gate"
    docs.mkdir()
    (docs / "manual.md").write_text("The frobnicator must be oiled every 17 days.\n")
    (docs / "slow.txt").write_text("The zeppelin of Ottilie Brandt carries 23 passengers.\n")
    (docs / "torn.pdf").write_bytes(b"this is no pdf at all")
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    environment = {
        "RAG_SLM_BASE_URL": scripted.url, "RAG_LLM_BASE_URL": scripted.url, "RAG_DOCS": str(docs), "GATE": str(gate),
        "RAG_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
    }  # fmt: skip
    with chat(free_port(), log, **environment) as url, tab(browser, url) as page:
        notice = page.page.get_by_test_id("documents-status")
        expect(notice).to_contain_text("Reading documents: 1 of 3")
        assert "passages in" not in log.read_text(), "the size is told when it is known"
        gate.touch()
        expect(notice).to_be_hidden()
        assert "2 documents, 2 passages in" in log.read_text()
        assert "torn.pdf is named .pdf but is no PDF file" in log.read_text()
        assert "slow.txt" in sources(page.ask("How many passengers does the zeppelin carry?"))
