"""The turn's plumbing, with scripted models: order, escalation, who stands in for whom, cancellation."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from rag.corpus.library import Progress
from rag.errors import ModelUnreachable, UserError
from rag.models.state import State
from rag.settings import Mode, Settings
from rag.telemetry import Telemetry
from rag.turn import cascade
from rag.turn.calibration import Calibration, Line, Scorer
from rag.turn.cascade import Answered, Escalating, Failed, Judged, Phase, Prompted, Retrieved, Token, Turn
from rag.turn.prompt import CHECK
from rag.turn.session import Session
from rag.words import Said

from .conftest import open_library
from .scripted import Reply, ScriptedLegs

QUESTION = "Where do zebras drink?"
DOCUMENT = b"# Zebras\n\nZebras drink at the Mara river every morning.\n\n# Lions\n\nLions sleep under acacia trees.\n"
GOOD = "Zebras drink at the Mara river."


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "animals.md").write_bytes(DOCUMENT)
    (docs / "plants.txt").write_text("Acacia trees grow on dry ground. Grass grows after rain.")
    library = open_library(docs, tmp_path / "cache")
    session = Session(library)
    yield session
    session.attachments.close()
    library.close()


async def events_of(
    session: Session,
    legs: ScriptedLegs,
    settings: Settings,
    question: str = QUESTION,
    mode: Mode | None = None,
    id: str = "",
    **named: Any,
) -> list[cascade.Event]:
    turn = cascade.answer(question, session=session, legs=legs, settings=settings, mode=mode, id=id, **named)
    async with aclosing(turn) as events:
        return [event async for event in events]


async def turn_of(*arguments: Any, **named: Any) -> Turn:
    last = (await events_of(*arguments, **named))[-1]
    assert isinstance(last, Answered), last
    return last.turn


async def test_a_supported_draft_stands_and_is_cited(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD], [])
    events = await events_of(session, legs, settings)
    kinds = [type(event) for event in events if not isinstance(event, Phase)]
    assert kinds == [Retrieved, Prompted, *[Token] * 6, Judged, Answered]
    assert [event.passages for event in events if isinstance(event, Prompted)] == [1]
    turn = events[-1].turn  # type: ignore[union-attr]
    assert turn.answer == f"{GOOD} [1]"
    assert turn.model == "scripted-slm"
    assert not turn.escalated
    assert turn.citations[0].quote == "Zebras drink at the Mara river every morning."
    assert legs.llm.backend_.asked == []


async def test_low_confidence_draft_is_escalated_and_the_larger_model_does_not_see_it(
    session: Session, settings: Settings
) -> None:
    legs = ScriptedLegs([Reply("Zebras drink somewhere near old wooden fences mostly.", logprob=-2.5)], [f"{GOOD} [1]"])
    events = await events_of(session, legs, settings)
    assert any(isinstance(event, Escalating) and "low confidence" in event.reason for event in events)
    turn = events[-1].turn  # type: ignore[union-attr]
    assert turn.escalated
    assert turn.model == "scripted-llm"
    assert [draft.leg for draft in turn.drafts] == ["slm", "llm"]
    assert "wooden" not in str(legs.llm.backend_.asked)
    assert not turn.verdict.accepted


async def test_a_number_from_nowhere_escalates(session: Session, settings: Settings) -> None:
    turn = await turn_of(session, ScriptedLegs(["Zebras drink at the Mara river since 1974."], [GOOD]), settings)
    assert turn.escalated
    assert turn.verdict is not None
    assert turn.verdict.reason == "the number 1974 is in no passage that was read"


async def test_too_short_escalates_unless_it_stands_in_a_passage(session: Session, settings: Settings) -> None:
    short = await turn_of(session, ScriptedLegs(["Yes"], [GOOD]), settings)
    assert short.escalated
    assert short.verdict is not None
    assert "too short" in short.verdict.reason
    verbatim = await turn_of(session, ScriptedLegs(["Mara river"], []), settings)
    assert not verbatim.escalated


async def test_silent_documents_are_said_to_be_silent_and_no_model_is_asked(
    session: Session, settings: Settings
) -> None:
    legs = ScriptedLegs([], [])
    turn = await turn_of(session, legs, settings, question="Who won the chess olympiad?")
    assert turn.model is None
    assert "not in your documents" in turn.answer
    assert turn.drafts == ()
    turn = await turn_of(session, legs, settings, question="Which lions won the chess olympiad in Budapest?")
    assert "animals.md" in turn.answer


async def test_a_single_small_table_answers_the_questions_that_it_can(tmp_path: Path, settings: Settings) -> None:
    """Of one passage, idf tells nothing; and a unit such as W is no Polish word, so the table is not in Polish."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "oil.csv").write_text("part,oil\nengine,5W-30\ngearbox,75W-90\n")
    library = open_library(tmp_path / "docs", tmp_path / "cache")
    legs = ScriptedLegs(["The gearbox takes 75W-90 oil."], [])
    turn = await turn_of(Session(library), legs, settings, mode="slm", question="Which oil does the gearbox take?")
    assert turn.answer == "The gearbox takes 75W-90 oil. [1]"
    turn = await turn_of(Session(library), legs, settings, question="Who sells the best gearbox in Uruguay?")
    assert turn.model is None
    library.close()


async def test_each_mode_asks_its_own_model_only(session: Session, settings: Settings) -> None:
    unsure = Reply("Zebras drink somewhere near old wooden fences mostly.", logprob=-2.5)
    kept = await turn_of(session, ScriptedLegs([unsure], []), settings, mode="slm")
    assert (kept.model, kept.escalated) == ("scripted-slm", False)
    large = await turn_of(session, ScriptedLegs([], [GOOD]), settings, mode="llm")
    assert (large.model, large.escalated, large.verdict) == ("scripted-llm", False, None)


async def test_without_the_larger_model_the_draft_stands_marked(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs(["Zebras drink at the Mara river since 1974."], [])
    legs.llm.failure = ModelUnreachable("No model at http://127.0.0.1:9/v1.")
    turn = await turn_of(session, legs, settings)
    assert turn.model == "scripted-slm"
    assert not turn.escalated
    assert "not refined" in turn.notes[0]
    assert "No model at" in turn.notes[0]


async def test_while_the_larger_model_is_fetched_the_draft_stands_with_the_progress(
    session: Session, settings: Settings
) -> None:
    legs = ScriptedLegs(["Zebras drink at the Mara river since 1974."], [])
    legs.llm.state = State("fetching", 300_000_000, 1_117_000_000)
    turn = await turn_of(session, legs, settings)
    assert "fetching 300 of 1,117 MB" in turn.notes[0]


async def test_without_the_small_model_the_larger_answers_marked(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([], [GOOD])
    legs.slm.failure = ModelUnreachable("No model there.")
    turn = await turn_of(session, legs, settings)
    assert turn.model == "scripted-llm"
    assert turn.notes == ("Answered by the larger model: No model there.",)
    assert turn.escalated


async def test_slm_mode_never_falls_back_to_a_remote_model(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([], [GOOD])
    legs.slm.failure = ModelUnreachable("No model there.")
    legs.llm.leaves = True
    session.remote = "allow"
    last = (await events_of(session, legs, settings, mode="slm"))[-1]
    assert isinstance(last, Failed)
    assert legs.llm.backend_.asked == []


@pytest.mark.parametrize(("remote", "why"), [("ask", "only after you allow it"), ("never", "may not leave")])
async def test_a_model_elsewhere_is_not_asked_before_that_is_allowed(
    session: Session, settings: Settings, remote: Any, why: str
) -> None:
    legs = ScriptedLegs(["It is 999.", "It is 999."], [GOOD])
    legs.llm.leaves = True
    legs.llm.backend_.where = "api.example"
    session.remote = remote
    turn = await turn_of(session, legs, settings)
    assert turn.answer.startswith("It is 999.")
    assert turn.where == "on this machine"
    assert not turn.escalated
    assert "api.example" in turn.notes[0]
    assert why in turn.notes[0]
    asked_for = await turn_of(session, legs, settings, mode="llm", insist=True)
    assert asked_for.answer.startswith("It is 999."), "the small model stands in"
    assert legs.llm.backend_.asked == []
    session.remote = "allow"
    assert (await turn_of(session, legs, settings, mode="llm")).where == "api.example"


async def test_a_small_model_elsewhere_needs_leave_too(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([], [GOOD])
    legs.slm.leaves = True
    turn = await turn_of(session, legs, settings, mode="slm")
    assert turn.model == "scripted-llm", "the one that is here stands in"
    assert legs.slm.backend_.asked == []


async def test_what_is_asked_once_more_is_worded_anew(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD, GOOD], [])
    await turn_of(session, legs, settings)
    await turn_of(session, legs, settings, fresh=True)
    assert legs.slm.backend_.temperatures == [0, cascade.FRESH_TEMPERATURE]


async def test_how_far_the_evidence_is_read_is_told(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([Reply(GOOD, reads=(0.25, 1.0))], [])
    told = [event.detail for event in await events_of(session, legs, settings) if isinstance(event, Phase)]
    assert "The small model is reading: 25%" in told


async def test_what_a_turn_says_can_be_said_in_other_languages(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs(["It is 999."], [])
    legs.llm.failure = ModelUnreachable("No model there.")
    turn = await turn_of(session, legs, settings)
    assert turn.verdict is not None
    assert isinstance(turn.verdict.reason, Said)
    assert all(isinstance(note, Said) for note in turn.notes)
    silent = await turn_of(session, ScriptedLegs(), settings, question="Which zebra won the regatta in Uruguay?")
    assert isinstance(silent.answer, Said)


async def test_telemetry_is_told_of_every_turn_however_it_ends(session: Session, settings: Settings) -> None:
    told: list[tuple[dict[str, Any], object]] = []

    class Listening(Telemetry):
        def record(self, trace: Any, turn: Any, **more: Any) -> None:
            told.append((dict(turn), more["error"]))

    listening = Listening(None, "0")
    await turn_of(session, ScriptedLegs([GOOD]), settings, observers=[listening])
    assert told[-1][0]["model"] == "scripted-slm"
    await events_of(session, ScriptedLegs(), settings, question="", observers=[listening])
    assert isinstance(told[-1][1], UserError)
    legs: Any = ScriptedLegs([Reply(GOOD, hold=asyncio.Event())])
    stopped = cascade.answer(QUESTION, session=session, legs=legs, settings=settings, observers=[listening])
    async with aclosing(stopped) as events:
        async for event in events:
            if isinstance(event, Token):
                break
    assert told[-1] == ({"mode": "auto"}, None)
    assert len(told) == 3


async def test_the_language_of_the_answer_can_be_chosen(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD], [])
    await turn_of(session, legs, settings.model_copy(update={"answer_language": "sv"}))
    assert "Answer in Swedish." in legs.slm.backend_.asked[0][0]["content"]


async def test_without_any_model_there_is_one_clear_error(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([], [])
    legs.slm.failure = ModelUnreachable("No small one.")
    legs.llm.failure = ModelUnreachable("No large one.")
    last = (await events_of(session, legs, settings))[-1]
    assert isinstance(last, Failed)
    assert str(last.error) == "Neither model answered. No small one. No large one."


async def test_a_broken_draft_gives_way_to_the_larger_model(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([Reply("Zebras dr", error=ModelUnreachable("It died."))], [GOOD])
    turn = await turn_of(session, legs, settings)
    assert turn.answer.startswith(GOOD)
    assert [draft.leg for draft in turn.drafts] == ["llm"]


async def test_waiting_for_the_model_is_told(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([Reply(GOOD, waits=(2, 1))], [])
    legs.slm.state = State("loading")
    legs.slm.later = (State("ready"),)
    told = [event.detail for event in await events_of(session, legs, settings) if isinstance(event, Phase)]
    assert "Waiting for the small model: loading" in told
    assert "Waiting for the small model (2 before you)" in told
    assert "Waiting for the small model (1 before you)" in told


async def test_closing_the_turn_stops_the_model_and_remembers_what_was_shown(
    session: Session, settings: Settings
) -> None:
    legs = ScriptedLegs([Reply(GOOD, hold=asyncio.Event())], [])
    turn = cascade.answer(QUESTION, session=session, legs=legs, settings=settings)  # type: ignore[arg-type]
    async with aclosing(turn) as events:
        async for event in events:
            if isinstance(event, Token):
                break
    assert legs.slm.backend_.stopped == 1
    assert [exchange.answer for exchange in session.history] == ["Zebras"]


async def test_cancelling_the_task_stops_the_model(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([Reply(GOOD, hold=asyncio.Event())], [])
    begun = asyncio.Event()

    async def door() -> None:
        turn = cascade.answer(QUESTION, session=session, legs=legs, settings=settings)  # type: ignore[arg-type]
        async with aclosing(turn) as events:
            async for event in events:
                if isinstance(event, Token):
                    begun.set()

    task = asyncio.create_task(door())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert legs.slm.backend_.stopped == 1


async def test_a_follow_up_finds_what_the_question_before_it_was_about(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD, "They drink every morning.", GOOD], [])
    await turn_of(session, legs, settings)
    turn = await turn_of(session, legs, settings, question="When do they drink?")
    assert "zebras" in turn.query
    assert turn.query.startswith("When do they drink?")
    assert turn.hits[0].passage.heading == ("Zebras",)
    assert any(message["content"] == QUESTION for message in legs.slm.backend_.asked[-1])
    # And on: the second follow-up still knows what the first question was about.
    turn = await turn_of(session, legs, settings, question="And where?")
    assert turn.hits[0].passage.heading == ("Zebras",)


async def test_a_question_with_a_subject_of_its_own_carries_nothing(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD, "Lions sleep under acacia trees."], [])
    await turn_of(session, legs, settings)
    turn = await turn_of(session, legs, settings, question="Where do lions sleep?")
    assert turn.query == "Where do lions sleep?"
    assert len(legs.slm.backend_.asked[-1]) == 2, "a small model is not shown turns that the question does not lean on"


async def test_an_edited_question_forgets_what_came_after_it(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD, GOOD, GOOD], [])
    for id in ("a", "b"):
        await turn_of(session, legs, settings, id=id)
    session.rewind("a")
    await turn_of(session, legs, settings, id="a")
    assert [exchange.id for exchange in session.history] == ["a"]


@pytest.mark.parametrize("question", ["", "   \n", "zebra " * 4000])
async def test_a_question_that_cannot_be_asked_is_one_clear_error(
    question: str, session: Session, settings: Settings
) -> None:
    last = (await events_of(session, ScriptedLegs(), settings, question=question))[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, UserError)
    assert str(last.error).startswith("The question is")


async def test_invented_markers_are_removed_and_counted(session: Session, settings: Settings) -> None:
    turn = await turn_of(session, ScriptedLegs([], ["Zebras drink at the Mara river [1][7]."]), settings, mode="llm")
    assert turn.answer == "Zebras drink at the Mara river [1]."
    assert turn.notes == ("1 source mark that named no passage was removed.",)


async def test_a_refusal_names_the_nearest_documents_and_cites_nothing(session: Session, settings: Settings) -> None:
    turn = await turn_of(session, ScriptedLegs(["I don't know."], ["I don't know."]), settings)
    assert turn.escalated, "the passages cover the question, so the small model's refusal is doubted"
    assert "animals.md" in turn.answer
    assert turn.citations == ()


async def test_a_question_about_an_upload_as_a_whole_reads_its_opening(session: Session, settings: Settings) -> None:
    session.attachments.add(
        b"# Sales\n\nSales of bicycles doubled.\n\n# Staff\n\nNobody left. All stayed.", "report.md"
    )
    legs = ScriptedLegs([], ["Sales of bicycles doubled [1]."])
    turn = await turn_of(session, legs, settings, "Summarise the upload", mode="llm")
    assert turn.citations[0].passage.source == "report.md"
    assert turn.query == "Summarise the upload"
    asked = legs.llm.backend_.asked[0][-1]["content"]
    assert "Outline of report.md:\n- Sales\n- Staff" in asked
    assert "Nobody left." in asked
    assert "zebras" not in asked.casefold()


async def test_a_summary_that_no_model_gives_leaves_the_outline(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs(["I don't know."], ["I don't know."])
    turn = await turn_of(session, legs, settings, "Give me an overview of animals.md")
    assert "The outline of animals.md:" in turn.answer
    assert "- Zebras" in turn.answer
    assert "not in your documents" not in turn.answer


async def test_an_ordinary_question_beside_an_upload_is_searched_for(session: Session, settings: Settings) -> None:
    session.attachments.add(b"Quarterly report. Sales of bicycles doubled.", "report.txt")
    turn = await turn_of(session, ScriptedLegs([GOOD], []), settings)
    assert turn.hits[0].passage.source == "animals.md"
    assert turn.hits[0].score > 0


async def test_documents_that_are_being_read_are_waited_for(
    session: Session, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = session.attachments.library
    waited: list[float] = []

    async def settled(limit_s: float) -> bool:
        waited.append(limit_s)
        (library.folder / "otters.txt").write_text("Otters sleep on their backs in kelp.")
        library.update()
        return True

    library.reading = Progress(120, 1000)
    monkeypatch.setattr(library, "settled", settled)
    events = await events_of(
        session, ScriptedLegs(["Otters sleep on their backs."]), settings, "Where do otters sleep?"
    )
    assert Phase("read", "Reading documents: 120 of 1,000 documents") in events
    turn = events[-1].turn  # type: ignore[union-attr]
    assert turn.hits[0].passage.source == "otters.txt"
    assert turn.notes == ()
    assert turn.trace.find("read") is not None
    assert waited == [2.0]


async def test_documents_that_take_too_long_to_read_are_told(
    session: Session, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def settled(limit_s: float) -> bool:
        return False

    monkeypatch.setattr(session.attachments.library, "reading", Progress(120, 1000))
    monkeypatch.setattr(session.attachments.library, "settled", settled)
    turn = await turn_of(session, ScriptedLegs([GOOD], []), settings)
    assert turn.notes == ("Still reading documents (120 of 1,000 documents): the answer knows only those.",)


async def test_before_the_first_document_is_read_the_wait_is_longer(tmp_path: Path, settings: Settings) -> None:
    waited: list[float] = []

    async def settled(limit_s: float) -> bool:
        waited.append(limit_s)
        return True

    (tmp_path / "docs").mkdir()
    library = open_library(tmp_path / "docs", tmp_path / "cache")
    library.reading = Progress(0, 10)
    library.settled = settled  # type: ignore[method-assign]
    await turn_of(Session(library), ScriptedLegs(), settings)
    assert waited == [10.0]
    library.close()


async def test_the_turn_carries_the_contract(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs(["Zebras drink at the Mara river since 1974."], [GOOD])
    turn = (await turn_of(session, legs, settings)).to_dict()
    assert {
        "question",
        "query",
        "mode",
        "answer",
        "model",
        "escalated",
        "refused",
        "verdict",
        "drafts",
        "hits",
        "citations",
        "trace",
    } <= set(turn)
    assert set(turn["verdict"]) == {"score", "threshold", "accepted", "reason", "signals"}
    assert set(turn["drafts"][0]) == {"leg", "model", "text", "usage", "finish_reason", "runs_on"}
    assert set(turn["hits"][0]) == {"source", "page", "heading", "start", "end", "score", "text"}
    assert set(turn["trace"]) == {"spans", "total_ms", "ttft_ms"}
    spans = [(span["name"], span["leg"]) for span in turn["trace"]["spans"]]
    for leg, outer in (("slm", "draft"), ("llm", "escalate")):
        assert [name for name, of in spans if of == leg and name != "judge"] == [
            outer, "prompt", "request", "first_token", "completion",
        ]  # fmt: skip
    assert ("retrieve", None) in spans
    assert all(span["duration_ms"] is not None for span in turn["trace"]["spans"])
    assert 0 < turn["trace"]["ttft_ms"] <= turn["trace"]["total_ms"]


SURE_OF_NOTHING = Scorer({"uncovered": -1.0}, -5.0)
SURE_OF_ALL = Scorer({"uncovered": -1.0}, 5.0)


def fitted(**changes: Any) -> Calibration:
    """A calibration that accepts every whole draft, but for the changes."""
    options: dict[str, Any] = {
        "key": "k", "slm": "scripted-slm", "llm": "scripted-llm", "right": Line(SURE_OF_ALL, 0.5),
        "right_without_logprobs": Line(SURE_OF_ALL, 0.5),
    }  # fmt: skip
    return Calibration(**{**options, **changes})


async def test_a_hopeless_draft_is_given_up_while_it_is_written_and_the_model_stopped(
    session: Session, settings: Settings
) -> None:
    legs = ScriptedLegs([GOOD], [f"Yes. {GOOD}"])
    calibration = fitted(early={2: Line(SURE_OF_NOTHING, 0.5)})
    turn = await turn_of(session, legs, settings, fitted=calibration)
    assert legs.slm.backend_.stopped == 1
    assert (turn.drafts[0].text, turn.drafts[0].finish_reason) == ("Zebras drink", None)
    assert turn.escalated
    assert turn.verdict is not None
    assert "given up after 2 tokens" in turn.verdict.reason
    assert turn.verdict.score < turn.verdict.threshold
    assert turn.answer == f"{GOOD} [1]"


async def test_a_draft_can_be_given_up_before_it_begins(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD], [f"Yes. {GOOD}"])
    turn = await turn_of(session, legs, settings, fitted=fitted(early={0: Line(SURE_OF_NOTHING, 0.5)}))
    assert legs.slm.backend_.asked == []
    assert [draft.leg for draft in turn.drafts] == ["llm"]
    assert turn.verdict is not None
    assert "before it began" in turn.verdict.reason


@pytest.mark.parametrize(
    ("changes", "mode"),
    [({"early": False}, None), ({"confidence": 0.2}, None), ({"strategy": "refine"}, None), ({}, "slm")],
)
async def test_no_draft_is_given_up_when_it_is_wanted_whole(
    session: Session, settings: Settings, changes: dict[str, Any], mode: Mode | None
) -> None:
    legs = ScriptedLegs([GOOD], [])
    settings = settings.model_copy(update=changes)
    calibration = fitted(early={0: Line(SURE_OF_NOTHING, 0.5), 2: Line(SURE_OF_NOTHING, 0.5)})
    turn = await turn_of(session, legs, settings, mode=mode, fitted=calibration)
    assert turn.drafts[0].text == GOOD
    assert not turn.escalated


async def test_what_was_given_up_is_finished_when_the_larger_model_fails(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD, GOOD], [Reply("", error=ModelUnreachable("The server is gone."))])
    turn = await turn_of(session, legs, settings, fitted=fitted(early={2: Line(SURE_OF_NOTHING, 0.5)}))
    assert turn.answer == f"{GOOD} [1]"
    assert [draft.text for draft in turn.drafts] == [GOOD]
    assert not turn.escalated
    assert any("not refined" in note for note in turn.notes)


async def test_a_larger_model_that_says_no_refuses(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([], ["No. The passages tell of rivers only."])
    events = await events_of(session, legs, settings, mode="llm")
    assert not any(isinstance(event, Token) for event in events)
    turn = events[-1].turn  # type: ignore[union-attr]
    assert turn.refused
    assert turn.answer.startswith("This is not in your documents")
    assert turn.citations == ()
    assert legs.llm.backend_.stopped == 1, "what it would add is not waited for"


async def test_what_a_model_had_read_that_says_no_is_counted(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([], [Reply("No. The passages tell of rivers only.", reads=[0.5, 1.0])])
    turn = await turn_of(session, legs, settings, mode="llm")
    assert turn.refused
    assert (turn.bill.input_tokens, turn.bill.output_tokens, turn.bill.at_least) == (100, 1, True)


async def test_the_word_before_an_answer_is_not_shown(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([], [f"Yes. {GOOD}"])
    events = await events_of(session, legs, settings, mode="llm")
    assert "".join(event.text for event in events if isinstance(event, Token)).strip() == GOOD
    assert events[-1].turn.answer == f"{GOOD} [1]"  # type: ignore[union-attr]


@pytest.mark.parametrize(("lead", "refused"), [(0.3, True), (0.9, False)])
async def test_a_yes_that_is_too_unsure_refuses(
    session: Session, settings: Settings, lead: float, refused: bool
) -> None:
    legs = ScriptedLegs([], [Reply(f"Yes {GOOD}", yes_over_no=lead)])
    turn = await turn_of(session, legs, settings, mode="llm", fitted=fitted(check=0.5))
    assert turn.refused is refused


async def test_who_insists_is_answered_where_documents_are_silent_and_the_model_says_no(
    session: Session, settings: Settings
) -> None:
    question = "Which zebras won the football cup in Uruguay in 1930?"
    silent = await turn_of(session, ScriptedLegs(), settings, question=question)
    assert silent.refused
    legs = ScriptedLegs([], ["None did."])
    turn = await turn_of(session, legs, settings, question=question, mode="llm", insist=True)
    assert turn.answer.startswith("None did.")
    assert CHECK not in legs.llm.backend_.asked[0][-1]["content"]


async def test_refining_shows_the_larger_model_the_draft(session: Session, settings: Settings) -> None:
    draft = "Zebras drink at the river in 1974."
    legs = ScriptedLegs([draft], [GOOD])
    turn = await turn_of(session, legs, settings.model_copy(update={"strategy": "refine"}))
    assert turn.escalated
    assert draft in legs.llm.backend_.asked[0][-1]["content"]


async def test_where_the_first_passages_hold_too_little_others_are_looked_through(
    session: Session, settings: Settings
) -> None:
    many = "\n\n".join(f"# Ring {n}\n\nOkapi okapi okapi okapi okapi, number {n}." for n in range(8))
    rare = "# Rare\n\nTapirs swim.\n\n# Late\n\nQuolls climb.\n"
    session.attachments.add(f"{many}\n\n{rare}".encode(), "rings.md")
    legs = ScriptedLegs([], ["Yes. Tapirs swim [1]."])
    question = "Okapi: zorilla, binturong, kinkajou, tapirs, quolls?"
    turn = await turn_of(session, legs, settings.model_copy(update={"top_k": 3}), mode="llm", question=question)
    read = " ".join(hit.passage.text for hit in turn.prompts["llm"].evidence)
    assert "Tapirs" in read
    assert "Quolls" in read


async def test_the_turn_before_does_not_make_a_silent_question_answerable(session: Session, settings: Settings) -> None:
    await turn_of(session, ScriptedLegs([], [f"Yes. {GOOD}"]), settings, mode="llm")
    turn = await turn_of(session, ScriptedLegs(), settings, question="Which regatta crowned the Uruguayan rowers?")
    assert turn.refused
    assert turn.model is None


async def test_an_uncalibrated_pair_is_told(session: Session, settings: Settings) -> None:
    turn = await turn_of(session, ScriptedLegs([GOOD], []), settings)
    assert turn.verdict is not None
    assert "not calibrated for these models" in turn.verdict.reason


async def test_what_was_thought_aloud_is_taken_back_and_no_part_of_the_answer(
    session: Session, settings: Settings
) -> None:
    text = "Zebras drink at the Mara river since 1974."
    legs = ScriptedLegs([Reply(text, aloud="Let me see. Zebras, rivers...", busy_s=2)])
    events = [e async for e in cascade.answer(QUESTION, session=session, legs=legs, settings=settings, mode="slm")]
    kinds = [type(event).__name__ for event in events]
    assert kinds.count("Retracted") == 1
    back = kinds.index("Retracted")
    assert "Let me see" in "".join(e.text for e in events[:back] if isinstance(e, cascade.Token))
    phases = [event.detail for event in events if isinstance(event, cascade.Phase)]
    assert any("2 s" in words for words in phases), "a busy server's wish is told"
    assert any("thinking" in words for words in phases)
    last = events[-1]
    assert isinstance(last, cascade.Answered)
    assert last.turn.answer.startswith(text.rstrip("."))
    assert "Let me see" not in last.turn.answer
    assert "".join(e.text for e in events[back:] if isinstance(e, cascade.Token)) == text
