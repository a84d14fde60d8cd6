"""What a turn used and cost, by hand-made traces and by scripted turns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rag.errors import ModelBroke
from rag.models.backend import Draft, Token, Usage
from rag.settings import Settings
from rag.trace import Span, Trace
from rag.turn import cascade
from rag.turn.bill import Price, bill
from rag.turn.calibration import Calibration, Line, Scorer
from rag.turn.session import Session

from .conftest import open_library
from .scripted import Reply, ScriptedLegs

GOOD = "Zebras drink at the Mara river."
SEEN = tuple(Token(word, -0.1) for word in ("Zebras", " drink", " there"))


def trace_of(*spans: tuple[str, str, float]) -> Trace:
    """Spans of (name, leg, milliseconds), one after another."""
    trace, now = Trace(), 0.0
    for name, leg, duration_ms in spans:
        trace.spans.append(Span(name, now, leg, duration_ms))
        now += duration_ms
    return trace


def draft(leg: str = "slm", usage: tuple[int, int] | None = (400, 21), **more: Any) -> Draft:
    return Draft(leg, f"model-{leg}", "Zebras drink there.", usage=Usage(*usage) if usage else None, **more)


SMALL = trace_of(
    ("queue", "slm", 700), ("request", "slm", 300), ("first_token", "slm", 500), ("completion", "slm", 2000)
)
BOTH = trace_of(
    ("first_token", "slm", 500), ("completion", "slm", 1000), ("first_token", "llm", 2000), ("completion", "llm", 4000)
)


@pytest.fixture
def priced(settings: Settings) -> Settings:
    return settings.model_copy(update={"llm_input_price": 2.0, "llm_output_price": 8.0, "currency": "EUR"})


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "animals.md").write_text("Zebras drink at the Mara river every morning. Lions sleep under acacia trees.")
    library = open_library(docs, tmp_path / "cache")
    session = Session(library)
    yield session
    session.attachments.close()
    library.close()


def test_a_model_that_runs_here_costs_nothing_and_its_seconds_are_counted(settings: Settings) -> None:
    told = bill([draft()], SMALL, settings)
    assert told.to_dict() == {
        "input_tokens": 400,
        "output_tokens": 21,
        "at_least": False,
        "tokens_per_s": 10.0,
        "cost": 0.0,
        "currency": "USD",
        "cost_known": True,
        "energy_j": 50.0,  # 20 W x (0.5 + 2) s: neither the queue nor the request
        "watts": 20,
    }


def test_prices_are_of_a_million_tokens_and_both_drafts_are_paid(priced: Settings) -> None:
    told = bill([draft(), draft("llm", (1000, 100))], BOTH, priced, remote={"llm"})
    assert told.cost == pytest.approx(1000 * 2e-6 + 100 * 8e-6)
    assert (told.input_tokens, told.output_tokens, told.currency) == (1400, 121, "EUR")
    assert told.tokens_per_s == pytest.approx(99 / 4), "of the draft that answers"
    assert told.energy_j == pytest.approx(20 * 1.5), "the larger model computed elsewhere"


def test_a_model_that_runs_here_can_have_a_price(settings: Settings) -> None:
    told = bill([draft()], SMALL, settings.model_copy(update={"slm_output_price": 1.0}))
    assert told.cost == pytest.approx(21e-6)


def test_a_remote_model_without_a_price_leaves_the_cost_unknown(settings: Settings) -> None:
    told = bill([draft(), draft("llm")], BOTH, settings, remote={"llm"}).to_dict()
    assert (told["cost"], told["cost_known"]) == (None, False)
    assert told["input_tokens"] == 800, "what is known is still told"


def test_half_a_price_is_no_price(settings: Settings) -> None:
    half = settings.model_copy(update={"llm_input_price": 2.0})
    assert bill([draft("llm")], BOTH, half, remote={"llm"}).cost is None
    assert Price.of("llm", half, remote=True) == Price(2.0, None)
    assert Price.of("llm", half, remote=False) == Price(2.0, 0.0)


def test_of_a_draft_that_was_hung_up_on_the_seen_tokens_are_counted(settings: Settings) -> None:
    told = bill([draft(usage=None, tokens=SEEN), draft("llm", (1000, 100))], BOTH, settings)
    assert (told.input_tokens, told.output_tokens, told.at_least) == (1000, 103, True)
    assert told.cost == 0, "it ran here, so how much it read costs nothing"


def test_what_a_hung_up_remote_model_costs_is_not_known(priced: Settings) -> None:
    told = bill([draft("llm", usage=None, tokens=SEEN)], BOTH, priced, remote={"llm"})
    assert (told.input_tokens, told.output_tokens) == (None, 3)
    assert told.cost is None
    free = priced.model_copy(update={"llm_input_price": 0.0, "llm_output_price": 0.0})
    assert bill([draft("llm", usage=None)], BOTH, free, remote={"llm"}).cost == 0


def test_a_server_that_reports_nothing_leaves_the_counts_unknown(settings: Settings) -> None:
    told = bill([draft(usage=None)], SMALL, settings)
    assert (told.input_tokens, told.output_tokens, told.tokens_per_s, told.at_least) == (None, None, None, True)


def test_an_answer_of_which_no_draft_is_left_is_not_forgotten(priced: Settings) -> None:
    stopped = trace_of(("first_token", "llm", 500), ("completion", "llm", 100))
    told = bill([], stopped, priced, remote={"llm"})
    assert (told.input_tokens, told.output_tokens, told.at_least, told.cost) == (None, None, True, None)
    twice = trace_of(("first_token", "slm", 100), ("first_token", "slm", 100), ("completion", "slm", 100))
    assert bill([draft()], twice, priced).at_least, "given up, then written anew"


def test_a_model_that_could_not_be_reached_used_nothing(priced: Settings) -> None:
    told = bill([], trace_of(("request", "llm", 500)), priced, remote={"llm"})
    assert (told.input_tokens, told.output_tokens, told.at_least, told.cost) == (0, 0, False, 0)


@pytest.mark.parametrize(
    ("written", "spans"),
    [
        (1, [("completion", "slm", 90.0)]),
        (5, []),
        (5, [("completion", "llm", 90.0)]),
        (5, [("completion", "slm", 0.0)]),
    ],
)
def test_a_speed_needs_two_tokens_and_the_time_between(
    settings: Settings, written: int, spans: list[tuple[str, str, float]]
) -> None:
    assert bill([draft(usage=(10, written))], trace_of(*spans), settings).tokens_per_s is None


def test_the_speed_is_of_the_answer_that_stands_when_a_leg_wrote_twice(settings: Settings) -> None:
    twice = trace_of(("completion", "slm", 9000), ("completion", "slm", 2000))
    assert bill([draft()], twice, settings).tokens_per_s == pytest.approx(10)


def test_without_watts_there_is_no_estimate(settings: Settings) -> None:
    assert bill([draft()], SMALL, settings.model_copy(update={"watts": 0.0})).energy_j is None


def test_a_span_that_is_open_counts_for_nothing_yet(settings: Settings) -> None:
    trace = Trace()
    trace.open("completion", "slm")
    assert bill([], trace, settings).energy_j == 0


async def billed(
    session: Session, legs: ScriptedLegs, settings: Settings, question: str = "Where do zebras drink?", **named: Any
) -> dict[str, Any]:
    answering = cascade.answer(question, session=session, legs=legs, settings=settings, **named)
    turn = [event async for event in answering][-1].turn  # type: ignore[union-attr]
    told = bill(turn.drafts, turn.trace, settings).to_dict()
    assert json.loads(json.dumps(told)) == told
    return told


async def test_where_the_documents_are_silent_nothing_is_used(session: Session, settings: Settings) -> None:
    told = await billed(session, ScriptedLegs(), settings, "Who won the chess olympiad?")
    assert (told["input_tokens"], told["output_tokens"], told["cost"], told["energy_j"]) == (0, 0, 0, 0)
    assert not told["at_least"]


async def test_a_turn_that_escalated_is_billed_for_both(session: Session, settings: Settings) -> None:
    told = await billed(session, ScriptedLegs(["Zebras drink there since 1974."], [GOOD]), settings)
    assert (told["input_tokens"], told["output_tokens"]) == (200, 5 + 6)
    assert told["energy_j"] > 0
    assert not told["at_least"]


async def test_a_hopeless_draft_and_one_that_broke_off_are_told(session: Session, settings: Settings) -> None:
    doubting = Calibration(
        key="k", slm="scripted-slm", llm="scripted-llm", right=Line(Scorer({}, 5.0), 0.5),
        right_without_logprobs=Line(Scorer({}, 5.0), 0.5),
        early={2: Line(Scorer({"uncovered": -1.0}, -5.0), 0.5)},
    )  # fmt: skip
    given_up = await billed(session, ScriptedLegs([GOOD], [GOOD]), settings, fitted=doubting)
    assert (given_up["at_least"], given_up["input_tokens"], given_up["output_tokens"]) == (True, 100, 2 + 6)
    broken = ScriptedLegs([Reply("Zebras drink", error=ModelBroke("It stopped."))], [GOOD])
    assert (await billed(session, broken, settings))["at_least"]
