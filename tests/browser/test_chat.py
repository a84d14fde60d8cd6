"""The chat in a real browser with real models: ask, stream, receipt, upload, follow-up, mode."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from .conftest import tab

QUESTION = "What is the default confidence threshold of Small First?"


def test_a_real_question_streams_cites_and_shows_where_the_time_went(browser: Browser, real_url: str) -> None:
    with tab(browser, real_url) as chat:
        turn = chat.ask(QUESTION)
        names = [event[0] for event in chat.events]
        assert "stream_token" in names or "stream_start" in names
        assert turn["question"] == QUESTION
        assert turn["drafts"][0]["leg"] == "slm"
        assert {"0.19", "0.65"} & set(re.findall(r"0\.\d+", turn["answer"])), "the 135M model answers from one passage"
        assert turn["citations"], "an answer from the documents cites them"
        place = turn["citations"][0]["source"]
        assert place in chat.answer

        toggle = chat.page.get_by_test_id("receipt-toggle").last
        assert "smollm2-135m" in toggle.inner_text()
        assert toggle.get_attribute("aria-expanded") == "false"
        toggle.press("Enter")
        body = chat.page.get_by_test_id("receipt-body").last
        expect(body).to_be_visible()
        drawn = {
            (bar.get_attribute("data-span"), bar.get_attribute("data-leg"))
            for bar in body.get_by_test_id("receipt-bar").all()
        }
        assert {
            ("retrieve", None),
            ("prompt", "slm"),
            ("request", "slm"),
            ("first_token", "slm"),
            ("completion", "slm"),
        } <= {(span, leg or None) for span, leg in drawn}
        assert "smollm2-135m" in {draft["model"] for draft in turn["drafts"]}
        taken = body.get_by_role("row").filter(has_text="smollm2-135m").first
        expect(taken).to_contain_text(re.compile(r"\d written · [\d.]+ m?s of CPU time · at most [\d,]+ MB of memory"))
        energy = body.get_by_role("row").filter(has_text="Energy")
        expect(energy).to_contain_text(re.compile(r"\d J, (measured \(|estimated from CPU time, 20 W assumed)"))
        assert turn["where"] == "on this machine"


def test_an_upload_is_asked_about_in_the_next_message_and_stays(
    browser: Browser, real_url: str, tmp_path: Path
) -> None:
    manual = tmp_path / "frobnicator manual.md"
    manual.write_text("# Frobnicator\n\nThe frobnicator must be oiled every 17 days with whale-free oil.\n")
    notes = tmp_path / "zeppelin.txt"
    notes.write_text("The zeppelin of Ottilie Brandt carries 23 passengers from Ulm to Bregenz.\n")
    with tab(browser, real_url) as chat, tab(browser, real_url) as other:
        chat.attach(manual)
        turn = chat.ask("How often must the frobnicator be oiled?")
        assert turn["citations"][0]["source"] == manual.name
        assert "17" in turn["answer"]
        chat.attach(notes)
        turn = chat.ask("How many passengers does the zeppelin carry?")
        assert turn["hits"][0]["source"] == notes.name
        turn = chat.ask("Which oil does the frobnicator need?")
        assert turn["hits"][0]["source"] == manual.name
        turn = other.ask("How often must the frobnicator be oiled?")
        assert "not in your documents" in turn["answer"]


def test_a_file_that_cannot_be_read_says_why(browser: Browser, real_url: str, tmp_path: Path) -> None:
    torn = tmp_path / "torn.pdf"
    torn.write_bytes(b"this is no pdf at all")
    with tab(browser, real_url) as chat:
        chat.attach(torn)
        chat.send("What does it say?")
        expect(chat.page.get_by_text("Not attached. torn.pdf is named .pdf but is no PDF file")).to_be_visible()


def test_a_real_pdf_is_asked_about_and_cited_by_page(browser: Browser, real_url: str) -> None:
    from ..conftest import CORPUS

    with tab(browser, real_url) as chat:
        chat.attach(CORPUS / "latency.pdf")
        turn = chat.ask("What is prefill?")
        assert any(hit["source"] == "latency.pdf" and hit["page"] for hit in turn["hits"])


@pytest.mark.parametrize(("label", "leg"), [("LLM", "llm"), ("SLM", "slm")])
def test_the_mode_is_switched_in_the_chat_settings(browser: Browser, real_url: str, label: str, leg: str) -> None:
    with tab(browser, real_url) as chat:
        chat.switch(label)
        turn = chat.ask(QUESTION)
        assert turn["mode"] == leg
        assert [draft["leg"] for draft in turn["drafts"]] == [leg]


def test_a_follow_up_is_understood(browser: Browser, real_url: str) -> None:
    with tab(browser, real_url) as chat:
        chat.switch("SLM")
        chat.ask("How many parameters does Phi-4-mini have?")
        turn = chat.ask("And under which licence is it published?")
        assert "Phi-4-mini" in turn["query"]
        assert any("Phi-4-mini" in hit["text"] for hit in turn["hits"][:2])
