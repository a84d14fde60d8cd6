"""One answer in a conversation: what is offered, what stands, what its message says, and how it comes back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rag.serve.answer import Answer, text_of
from rag.settings import Settings
from rag.turn.session import Session

from .conftest import open_library
from .scripted import ScriptedLegs
from .test_cascade import DOCUMENT, GOOD, turn_of

WRONG = "It is 999."
SILENT = "Which zebra won the regatta in Uruguay?"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / 'the "animals".md').write_bytes(DOCUMENT)
    library = open_library(docs, tmp_path / "cache")
    session = Session(library)
    yield session
    session.attachments.close()
    library.close()


@pytest.fixture
async def escalated(session: Session, settings: Settings) -> Answer:
    answer = Answer("answer", "question", "thread")
    answer.take(await turn_of(session, ScriptedLegs([WRONG], [f"{GOOD} [1]"]), settings), "en")
    return answer


async def test_of_an_answer_by_the_small_model_the_larger_can_be_asked(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD], [])
    answer = Answer("answer", "question", "thread")
    answer.take(await turn_of(session, legs, settings), "en")
    assert answer.offers(legs, "ask") == ["ask_larger", "retry"]
    answer.asked = True
    assert answer.offers(legs, "ask") == ["retry"]
    answer.asked = False
    legs.llm.leaves = True
    assert answer.offers(legs, "ask") == ["ask_larger", "retry"]
    assert answer.offers(legs, "never") == ["retry"], "the text may not go there"


async def test_the_small_models_answer_can_be_kept(escalated: Answer) -> None:
    legs = ScriptedLegs()
    assert escalated.offers(legs, "ask") == ["keep_short", "retry"]
    assert escalated.turn["model"] == "scripted-llm"
    escalated.keep_short()
    for turn in (escalated.turn, escalated.shown):
        assert turn["answer"].startswith(WRONG)
        assert turn["model"] == "scripted-slm"
        assert turn["standing"] == "slm"
    assert text_of(escalated.shown).startswith(WRONG)
    assert escalated.offers(legs, "ask") == ["ask_larger", "retry"]


async def test_what_was_refused_over_passages_can_be_asked_of_the_larger_model_once(
    session: Session, settings: Settings
) -> None:
    legs = ScriptedLegs()
    answer = Answer("answer", "question", "thread")
    answer.take(await turn_of(session, legs, settings, question=SILENT), "en")
    assert answer.turn["refused"]
    assert ("ask_larger" in answer.offers(legs, "ask")) == bool(answer.turn["hits"])
    answer.insisted = True
    assert answer.offers(legs, "ask") == ["retry"]


def test_a_stopped_answer_can_only_be_tried_again() -> None:
    answer = Answer("answer", "question", "thread", turn={"stopped": True, "id": "question"})
    assert not answer.answered
    assert answer.offers(ScriptedLegs(), "ask") == ["retry"]


async def test_every_mark_in_the_message_has_its_source(escalated: Answer) -> None:
    text = text_of(escalated.shown)
    assert "river. [1]" in text
    assert text.splitlines()[-1] == "[1]: #source-1 \"the 'animals'.md › Zebras\""


def test_a_model_cannot_say_where_a_mark_leads() -> None:
    evil = 'Go there [1].\n\n[1]: https://example.org/ "x"\n  [a b]: /logout'
    citation = {"marker": 1, "source": "a.md", "page": 3, "heading": ["B", "C"]}
    text = text_of({"answer": evil, "notes": [], "citations": [citation]})
    definitions = [line for line in text.splitlines() if line.lstrip().startswith("[")]
    assert definitions == ['[1]: #source-1 "a.md, 3 › B › C"']


async def test_an_answer_comes_back_from_the_history(escalated: Answer) -> None:
    legs = ScriptedLegs()
    escalated.kept, escalated.comment, escalated.asked = "bad", "It is not so.", True
    props = escalated.props(legs, "ask", shown=True, labels=True, attachments=["a.md"], language="en")
    step = {"id": "answer", "threadId": "thread", "type": "assistant_message", "metadata": escalated.turn}
    again = Answer.of_step(step, props)
    assert again is not None
    assert again.turn == escalated.turn
    assert (again.kept, again.comment, again.asked, again.standing) == ("bad", "It is not so.", True, None)
    assert again.props(legs, "ask", shown=True, labels=True, attachments=["a.md"], language="en") == props


@pytest.mark.parametrize(
    "step",
    [
        {"type": "user_message", "id": "x", "metadata": {"id": "y"}},
        {"type": "assistant_message", "id": "x", "metadata": None},
        {"type": "assistant_message", "id": "x", "metadata": {"documents": []}},
    ],
)
def test_other_messages_are_no_answers(step: dict[str, Any]) -> None:
    assert Answer.of_step({"threadId": "t", **step}, {}) is None


async def test_the_receipt_speaks_the_readers_language_and_the_metadata_english(
    session: Session, settings: Settings
) -> None:
    answer = Answer("answer", "question", "thread")
    answer.take(await turn_of(session, ScriptedLegs([WRONG], [f"{GOOD} [1]"]), settings), "sv")
    assert "999" in answer.shown["verdict"]["reason"]
    assert answer.turn["verdict"]["reason"] == "the number 999 is in no passage that was read"
    assert answer.turn["id"] == "question"
