"""Who holds a conversation, who takes it over, and what ends with it; real documents, no server."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag.corpus.library import Library
from rag.errors import DocumentError, UserError
from rag.serve.answer import Answer
from rag.serve.conversations import Conversation, Conversations
from rag.serve.preferences import Preferences
from rag.turn.session import Exchange, Session


def begin(conversations: Conversations, holder: str, library: Library, thread_id: str = "") -> Conversation:
    chosen = Preferences.of(library.settings)
    return conversations.begin(holder, thread_id or f"thread of {holder}", Session(library), chosen, "en")


def alone(library: Library, most_documents: int = 3) -> Conversation:
    return begin(Conversations(most_documents), "mine", library)


def test_who_opens_a_thread_takes_its_conversation_over_with_its_documents(library: Library) -> None:
    conversations = Conversations(most_documents=3)
    mine = begin(conversations, "before", library, "thread")
    mine.attach(b"The zeppelin flies.", "zeppelin.txt")
    begin(conversations, "after", library)
    assert conversations.of_thread("thread") is mine
    assert conversations.of_thread("thre") is None
    conversations.take_over(mine, "after")
    assert conversations.of("before") is None
    assert conversations.of("after") is mine
    assert len(conversations) == 1
    conversations.take_over(mine, "after")
    assert conversations.of("after") is mine, "it has that one already"
    conversations.end("before")  # its time ran out; that is nobody's any more
    assert [document["source"] for document in mine.documents()] == ["zeppelin.txt"]


def test_an_ended_conversation_holds_nothing(library: Library) -> None:
    conversations = Conversations(most_documents=3)
    mine = begin(conversations, "mine", library, "thread")
    mine.attach(b"The zeppelin flies.", "zeppelin.txt")
    assert len(mine.session.attachments.index) == len(library.index) + 1
    conversations.end("mine")
    assert mine.documents() == []
    assert len(mine.session.attachments.index) == len(library.index)
    assert conversations.of_thread("thread") is None
    assert len(conversations) == 0


async def test_closing_waits_for_what_turns_say_last(library: Library) -> None:
    conversations = Conversations(most_documents=3)
    mine = begin(conversations, "mine", library)
    said = []

    async def turn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            said.append("stopped")

    mine.turn = asyncio.create_task(turn())
    await asyncio.sleep(0)
    await conversations.close()
    assert said == ["stopped"]
    assert len(conversations) == 0


def test_a_document_comes_back_from_the_history_with_its_number(library: Library) -> None:
    before = alone(library)
    before.attach(b"The submarine dives.", "submarine.txt")
    report = before.attach(b"The zeppelin flies over the frobnicator.", "zeppelin.txt")
    passages = before.session.attachments.opening("zeppelin.txt")
    after = alone(library)
    after.attach_again(2, report, passages, "upload")
    assert after.documents() == before.documents(after=1)
    assert len(after.session.attachments.index) == len(library.index) + 1
    assert not after.first_seen("upload"), "an edited question brings its files again"
    after.attach(b"The balloon floats.", "balloon.txt")
    assert [document["number"] for document in after.documents()] == [2, 3]


def test_what_was_said_comes_back_from_the_history(library: Library) -> None:
    def asked(id: str, text: str) -> dict[str, Any]:
        return {"id": id, "threadId": "thread", "type": "user_message", "output": text, "metadata": {}}

    def answered(id: str, of: str, text: str, **turn: Any) -> dict[str, Any]:
        metadata = {"id": of, "answer": text, **turn}
        return {"id": id, "threadId": "thread", "type": "assistant_message", "output": text, "metadata": metadata}

    mine = alone(library)
    mine.restore(
        {
            "steps": [
                asked("q1", "How much?"), answered("a1", "q1", "Much.", query="How much gold?", hits=[]),
                asked("q2", "And where?"), answered("a2", "q2", "", stopped=True),
                asked("q3", "Who?"), answered("a3", "q3", "Nobody."), answered("a4", "q3", "Ada.", refused=False),
                {"id": "run", "threadId": "thread", "type": "run", "output": "", "metadata": {}},
            ],
            "elements": [{"id": "e1", "name": "Receipt", "forId": "a1", "props": {"kept": "good"}}],
        }
    )  # fmt: skip
    assert [(one.id, one.query, one.answer) for one in mine.session.history] == [
        ("q1", "How much gold?", "Much."),
        ("q3", "Who?", "Ada."),
    ]
    assert list(mine.answers) == ["a1", "a2", "a3", "a4"]
    assert (mine.answers["a1"].kept, mine.answers["a1"].element_id) == ("good", "e1")


def test_leave_that_one_conversation_gave_stays_until_somebody_chooses_otherwise(library: Library) -> None:
    mine = alone(library)
    mine.session.remote = "allow"
    mine.choose(replace(mine.preferences, mode="slm"))
    assert (mine.session.mode, mine.session.remote) == ("slm", "allow")
    mine.choose(replace(mine.preferences, remote="never"))
    assert mine.session.remote == "never"


def test_an_edited_question_takes_the_answers_below_it(library: Library) -> None:
    mine = alone(library)
    for number in range(3):
        mine.answers[f"a{number}"] = Answer(f"a{number}", f"q{number}", "thread")
    mine.forget_after("q1", ["q0", "a0", "q1"])
    assert list(mine.answers) == ["a0"]


async def test_the_end_ends_a_turn_under_way(library: Library) -> None:
    conversations = Conversations(most_documents=3)
    mine = begin(conversations, "mine", library)
    mine.turn = asyncio.create_task(asyncio.Event().wait())
    conversations.end("mine")
    with pytest.raises(asyncio.CancelledError):
        await mine.turn


def test_a_document_is_removed_by_a_number_that_is_never_given_again(library: Library) -> None:
    mine = alone(library)
    mine.attach(b"The zeppelin flies.", "zeppelin.txt")
    mine.attach(b"The submarine dives.", "submarine.txt")
    mine.attach(b"The zeppelin lands.", "zeppelin.txt")
    assert [(document["number"], document["source"]) for document in mine.documents()] == [
        (2, "submarine.txt"),
        (3, "zeppelin.txt"),
    ]
    assert [document["source"] for document in mine.documents(after=2)] == ["zeppelin.txt"]
    assert mine.documents(after=2)[0]["told"] == "19 characters, 1 passage"
    for gone in (1, 4, 0):
        with pytest.raises(UserError, match="no longer attached"):
            mine.remove(gone)
    mine.remove(3)
    assert mine.session.attachments.sources == ["submarine.txt"]
    mine.attach(b"The zeppelin flies.", "zeppelin.txt")
    assert [document["number"] for document in mine.documents()] == [2, 4]


def test_there_is_an_end_to_what_one_conversation_holds(library: Library, tmp_path: Path) -> None:
    mine = alone(library, most_documents=2)
    mine.attach(b"The zeppelin flies.", "zeppelin.txt")
    mine.attach(b"The submarine dives.", "submarine.txt")
    with pytest.raises(DocumentError, match=r"balloon\.txt is one too many: at most 2 documents.*Remove one first"):
        mine.attach(b"The balloon floats.", "balloon.txt")
    mine.attach(b"The zeppelin lands.", "zeppelin.txt")
    mine.remove(2)
    mine.attach(b"The balloon floats.", "balloon.txt")
    assert mine.session.attachments.sources == ["zeppelin.txt", "balloon.txt"]


def test_an_upload_is_new_once(library: Library) -> None:
    mine = alone(library)
    assert mine.first_seen("a")
    assert not mine.first_seen("a")
    assert mine.first_seen("b")


def exchanges(conversation: Conversation) -> list[tuple[str, str]]:
    return [(exchange.id, exchange.answer) for exchange in conversation.session.history]


def test_a_question_asked_anew_stands_in_the_history_once(library: Library) -> None:
    mine = begin(Conversations(most_documents=3), "holder", library)
    for id in "abc":
        mine.session.remember(Exchange(id, id, id, "first"))
    with mine.asked_anew("b"):
        assert exchanges(mine) == [("a", "first")], "what came later is not known to it"
        mine.session.remember(Exchange("b", "b", "b", "second"))
    assert exchanges(mine) == [("a", "first"), ("b", "second"), ("c", "first")]
    with pytest.raises(UserError), mine.asked_anew("b"):
        raise UserError("nothing was answered")
    assert exchanges(mine) == [("a", "first"), ("b", "second"), ("c", "first")]
    with mine.asked_anew("unheard of"):
        mine.session.remember(Exchange("d", "d", "d", "first"))
    assert [id for id, _ in exchanges(mine)] == ["a", "b", "c", "d"]
