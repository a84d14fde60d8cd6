"""Who holds a conversation, what its key opens, and what ends with it; real documents, no server."""

import asyncio
from pathlib import Path

import pytest

from rag.corpus.library import Library
from rag.errors import DocumentError, UserError
from rag.serve.conversations import Conversation, Conversations
from rag.turn.session import Exchange, Session


def begin(conversations: Conversations, holder: str, library: Library) -> Conversation:
    return conversations.begin(holder, Session(library))


def test_each_conversation_has_a_key_of_its_own(library: Library) -> None:
    conversations = Conversations(most_documents=3)
    keys = {begin(conversations, f"holder {number}", library).key for number in range(50)}
    assert len(keys) == 50
    assert min(map(len, keys)) >= 43, "256 bits"


def test_the_key_hands_over_the_conversation_and_its_documents(library: Library) -> None:
    conversations = Conversations(most_documents=3)
    mine = begin(conversations, "before", library)
    mine.attach(b"The zeppelin flies.", "zeppelin.txt")
    fresh = begin(conversations, "after", library)
    assert conversations.take_over(fresh.key, "after") is None, "it has that one already"
    assert conversations.take_over(mine.key[:-1], "after") is None
    assert conversations.of("after") is fresh
    assert conversations.take_over(mine.key, "after") == (mine, "before")
    assert conversations.of("before") is None
    assert conversations.of("after") is mine
    assert len(conversations) == 1
    conversations.end("before")  # its time ran out; that is nobody's any more
    assert [document["source"] for document in mine.documents()] == ["zeppelin.txt"]


def test_an_ended_conversation_holds_nothing_and_its_key_opens_nothing(library: Library) -> None:
    conversations = Conversations(most_documents=3)
    mine = begin(conversations, "mine", library)
    mine.attach(b"The zeppelin flies.", "zeppelin.txt")
    assert len(mine.session.attachments.index) == len(library.index) + 1
    conversations.end("mine")
    assert mine.documents() == []
    assert len(mine.session.attachments.index) == len(library.index)
    assert conversations.take_over(mine.key, "thief") is None
    assert len(conversations) == 0


async def test_the_end_ends_a_turn_under_way(library: Library) -> None:
    conversations = Conversations(most_documents=3)
    mine = begin(conversations, "mine", library)
    mine.turn = asyncio.create_task(asyncio.Event().wait())
    conversations.end("mine")
    with pytest.raises(asyncio.CancelledError):
        await mine.turn


def test_a_document_is_removed_by_a_number_that_is_never_given_again(library: Library) -> None:
    mine = Conversation(Session(library), "mine", most_documents=3)
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
    mine = Conversation(Session(library), "mine", most_documents=2)
    mine.attach(b"The zeppelin flies.", "zeppelin.txt")
    mine.attach(b"The submarine dives.", "submarine.txt")
    with pytest.raises(DocumentError, match=r"balloon\.txt is one too many: at most 2 documents.*Remove one first"):
        mine.attach(b"The balloon floats.", "balloon.txt")
    mine.attach(b"The zeppelin lands.", "zeppelin.txt")
    mine.remove(2)
    mine.attach(b"The balloon floats.", "balloon.txt")
    assert mine.session.attachments.sources == ["zeppelin.txt", "balloon.txt"]


def test_an_upload_is_new_once(library: Library) -> None:
    mine = Conversation(Session(library), "mine", most_documents=3)
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
