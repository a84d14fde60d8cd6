"""Ten turns of a real conversation in a real browser, with real models and a server that is killed in the middle."""

from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from ..product import chat as chat_server
from ..product import free_port
from .conftest import Chat, tab

MANUAL = "# Care\n\nThe frobnicator must be oiled every 17 days.\n\n# Price\n\nA frobnicator costs 420 kronor.\n"
LETTER = "Dear Ms Lindqvist,\n\nthe meeting in Uppsala takes place on 9 March. Please bring the contract.\n"
ONNX = "What does the name ONNX stand for?"


def written(page: Page) -> list[str]:
    """Everything that stands in the conversation, in its order, without times that a page words anew."""
    messages = page.locator("[data-step-type=user_message] .message-content, [data-step-type=assistant_message] .prose")
    return [text.strip() for text in messages.all_inner_texts() if text.strip()]


def choose(chat: Chat, place: int, option: str) -> None:
    """In the list at that place of the chat settings."""
    page = chat.page
    page.locator("#chat-settings-open-modal").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox").nth(place).click()
    page.get_by_role("option", name=option).click()
    page.locator("#confirm").click()
    page.locator("#confirm").wait_for(state="detached")


def test_ten_turns_with_uploads_an_escalation_a_stop_an_edit_and_a_killed_server(
    browser: Browser, small_weights: Path, tmp_path: Path
) -> None:
    port, log, data = free_port(), tmp_path / "chat.log", tmp_path / "data"
    manual, letter = tmp_path / "manual.md", tmp_path / "letter.txt"
    manual.write_text(MANUAL)
    letter.write_text(LETTER)
    models = {"RAG_DATA_DIR": str(data), "RAG_SLM_MODEL": "smollm2-135m", "RAG_LLM_MODEL": "smollm2-135m"}
    models["RAG_CHECK"] = "false"  # it says No to nearly everything
    with ExitStack() as until_killed, ExitStack() as to_the_end:
        url = until_killed.enter_context(chat_server(port, log, killed=True, **models))
        with tab(browser, url) as chat:
            page = chat.page
            # 1. A question about the folder.
            chat.switch("SLM")
            first = chat.ask(ONNX)
            assert first["citations"][0]["source"] == "onnx-runtime.md"

            # 2. An upload, asked about in the same message; 3. a follow-up, which leans on it.
            chat.attach(manual)
            assert chat.ask("How often must the frobnicator be oiled?")["citations"][0]["source"] == "manual.md"
            assert chat.ask("And how much does it cost?")["citations"][0]["source"] == "manual.md"

            # 4. An escalation, which a threshold of 1 makes certain.
            chat.switch("Auto")
            choose(chat, 0, "1 · every answer")
            escalated = chat.ask("How many days are there between two oilings of the frobnicator?")
            assert escalated["escalated"]
            assert [draft["leg"] for draft in escalated["drafts"]] == ["slm", "llm"]

            # 5. A stop.
            receipts = page.get_by_test_id("receipt").count()
            chat.send("Summarise all of the documents in this folder, please.")
            page.locator("#stop-button").click()
            expect(page.get_by_text("Stopped.", exact=True)).to_be_visible()
            expect(page.get_by_test_id("receipt")).to_have_count(receipts + 1)

            # 6. That question, edited, with another answer.
            page.get_by_text("Summarise all of the documents").hover()
            page.locator(".edit-message").last.click()
            page.locator("#edit-chat-input").fill("What is a cascade?")
            page.locator(".confirm-edit").click()
            expect(page.get_by_text("Stopped.", exact=True)).to_have_count(0)
            expect(page.get_by_test_id("receipt-toggle")).to_have_count(receipts + 1)

            # 7. A second upload; 8. a question about it.
            chat.attach(letter)
            chat.send("")
            expect(page.get_by_test_id("documents-toggle")).to_contain_text("2 documents attached")
            assert chat.ask("When does the meeting in Uppsala take place?")["hits"][0]["source"] == "letter.txt"

            # 9. A thumb, with a word.
            page.get_by_role("button", name="Good answer").last.click()
            before, turns, address = written(page), chat.turn(), page.url
            figures = page.get_by_test_id("receipt-toggle").all_inner_texts()

            # The server is killed, and comes back.
            until_killed.close()
            to_the_end.enter_context(chat_server(port, log, **models))
            page.goto(address)
            expect(page.get_by_test_id("receipt-toggle")).to_have_count(len(figures))
            assert written(page) == before
            assert page.get_by_test_id("receipt-toggle").all_inner_texts() == figures
            expect(page.get_by_test_id("documents-toggle")).to_contain_text("2 documents attached")
            expect(page.get_by_test_id("totals-toggle")).to_contain_text("6 turns")
            assert turns["question"] == "When does the meeting in Uppsala take place?"

            # 10. The conversation goes on: the follow-up knows what came before, the settings hold, the passages are there.
            last = chat.ask("How often must the frobnicator be oiled, again?")
            assert last["hits"][0]["source"] == "manual.md"
            assert last["escalated"], "the threshold is still 1"

            # It is found in the sidebar, under its first question.
            page.goto(url)
            page.locator("#chat-settings-open-modal").wait_for()
            page.locator("#sidebar-trigger-button:visible").click()
            found = page.locator(f'a[href$="{address.rpartition("/")[2]}"]')
            expect(found).to_contain_text(ONNX)
            found.click()
            expect(page.get_by_test_id("receipt-toggle")).to_have_count(len(figures) + 1)
