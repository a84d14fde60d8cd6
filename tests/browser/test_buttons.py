"""Asking the larger model by hand, in a real browser before a scripted model; the other buttons are in test_receipt.py."""

import re

from playwright.sync_api import Browser, Locator, expect

from ..product import ScriptedServer
from .conftest import Chat, tab

QUESTION = "What is the largest file that I can drop into a chat?"
GOOD = "The largest file is 10 MB."
SILENT = "Which zebra file won the Uruguayan regatta?"
LARGER = re.compile("^Ask the larger model")


def test_the_larger_model_writes_a_second_answer(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: GOOD if model == "small" else "It is 10 MB, says the larger model."
    with tab(browser, scripted_url) as chat:
        first = chat.ask(QUESTION)
        assert not first["escalated"]
        larger = chat.page.get_by_role("button", name=LARGER)
        expect(larger).to_have_text("Ask the larger model")
        chat.page.set_viewport_size({"width": 320, "height": 700})
        box = larger.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 320
        larger.click()
        expect(chat.page.get_by_test_id("receipt-toggle")).to_have_count(2)
        assert chat.turn()["mode"] == "llm"
        expect(answers(chat).first).to_contain_text(GOOD.rstrip("."))
        expect(answers(chat).last).to_contain_text("says the larger model")
        expect(larger).to_have_count(0)
        expect(chat.page.get_by_role("button", name="Copy to clipboard")).to_have_count(2)
        expect(chat.page.locator("[data-step-type=user_message]").get_by_text(QUESTION)).to_have_count(1)


def test_stop_ends_the_larger_models_work_and_it_can_be_asked_again(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    scripted.script = lambda model, _: GOOD if model == "small" else None
    scripted.reset()
    with tab(browser, scripted_url) as chat:
        chat.ask(QUESTION)
        chat.page.get_by_role("button", name=LARGER).click()
        expect(chat.page.get_by_text("on and on")).to_be_visible()
        expect(chat.page.get_by_role("button", name=LARGER)).to_have_count(0)
        chat.page.locator("#stop-button").click()
        assert scripted.hung_up.wait(20), "the model went on"
        expect(chat.page.get_by_text("Stopped.", exact=True)).to_be_visible()
        expect(chat.page.get_by_role("button", name=LARGER)).to_be_enabled()
        expect(chat.page.get_by_text("Task manually stopped.")).to_have_count(0)


def test_a_refusal_offers_the_larger_model_anyway(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    scripted.script = lambda model, _: "The zebra file won it."
    with tab(browser, scripted_url) as chat:
        assert chat.ask(SILENT)["refused"]
        expect(chat.page.get_by_test_id("receipt-rejected")).to_have_count(0)
        chat.page.get_by_role("button", name=re.compile("^Ask the larger model anyway")).click()
        expect(chat.page.get_by_test_id("receipt-toggle")).to_have_count(2)
        expect(answers(chat).last).to_contain_text("The zebra file won it")


def test_what_a_refusing_model_wrote_can_be_read(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "I do not know, but perhaps 7 MB."
    with tab(browser, scripted_url) as chat:
        turn = chat.ask(QUESTION)
        assert turn["refused"]
        assert "7 MB" not in turn["answer"]
        folded = chat.page.get_by_test_id("receipt-rejected")
        expect(folded).to_have_count(len(turn["drafts"]))
        expect(folded.last.locator("summary")).to_have_text(
            "What the larger model wrote, not shown as the answer: it says that this is not in the documents."
        )
        folded.last.locator("summary").click()
        expect(folded.last.locator("del")).to_have_text("I do not know, but perhaps 7 MB.")


def answers(chat: Chat) -> Locator:
    return chat.page.locator("[data-step-type=assistant_message] .message-content")
