"""What a turn used and cost, by hand-made traces and by scripted turns."""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from rag.energy import Energy
from rag.errors import ModelBroke
from rag.models.backend import Draft, Piece, Token, Usage, Waiting
from rag.resources import Sampler, Used
from rag.settings import Settings
from rag.trace import Span, Trace
from rag.turn import cascade
from rag.turn.bill import Price, bill
from rag.turn.calibration import Calibration, Line, Scorer
from rag.turn.session import Session

from .conftest import open_library
from .scripted import Reply, ScriptedBackend, ScriptedLegs

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
    told = {"usage": Usage(*usage) if usage else None, "finish_reason": "stop", **more}
    return Draft(leg, f"model-{leg}", "Zebras drink there.", **told)


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
        "energy_measured": False,
        "energy_source": "estimated from computing time",
        "watts": 20,
        "resources": {},
    }


def test_prices_are_of_a_million_tokens_and_both_drafts_are_paid(priced: Settings) -> None:
    told = bill([draft(), draft("llm", (1000, 100))], BOTH, priced, remote={"llm"})
    assert told.cost == pytest.approx(1000 * 2e-6 + 100 * 8e-6)
    assert (told.input_tokens, told.output_tokens, told.currency) == (1400, 121, "EUR")
    assert told.tokens_per_s == pytest.approx(99 / 4), "of the draft that answers"
    assert told.energy.joules == pytest.approx(20 * 1.5), "the larger model computed elsewhere"


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
    told = bill([draft()], SMALL, settings.model_copy(update={"watts": 0.0})).to_dict()
    assert (told["energy_j"], told["energy_measured"], told["energy_source"]) == (None, False, "")


def used(energy: Energy, cpu_s: float | None = 1.25, memory_mb: float | None = 270.04) -> Used:
    return Used(cpu_s, memory_mb, None, None, energy, 1.0)


MEASURED = Energy(12.3456, True, "RAPL, package")
FROM_CPU = Energy(8.0, False, "estimated from CPU time")
UNKNOWN = Energy(None, False, "")


def test_what_was_sampled_is_told_and_takes_the_place_of_the_seconds(settings: Settings) -> None:
    told = bill([draft()], SMALL, settings, sampled=[("slm", used(FROM_CPU))]).to_dict()
    assert (told["energy_j"], told["energy_measured"], told["energy_source"]) == (8, False, "estimated from CPU time")
    assert told["resources"] == {"slm": {"cpu_s": 1.25, "peak_memory_mb": 270.0}}, "only what is known"
    assert told["watts"] == 20


def test_a_measurement_is_told_without_watts_too(settings: Settings) -> None:
    silent = settings.model_copy(update={"watts": 0.0})
    told = bill([draft()], SMALL, silent, sampled=[("slm", used(MEASURED))]).to_dict()
    assert (told["energy_j"], told["energy_measured"], told["energy_source"]) == (12.346, True, "RAPL, package")


def test_a_server_whose_process_is_not_known_is_estimated_beside_one_that_is(settings: Settings) -> None:
    sampled = [("slm", used(MEASURED)), ("llm", used(UNKNOWN, None, None))]
    told = bill([draft(), draft("llm")], BOTH, settings, sampled=sampled).to_dict()
    assert told["energy_j"] == pytest.approx(12.346 + 20 * 6, abs=0.001)
    assert (told["energy_measured"], told["energy_source"]) == (False, "RAPL, package + estimated from computing time")
    assert list(told["resources"]) == ["slm"]


def test_of_another_machine_nothing_is_counted(settings: Settings) -> None:
    sampled = [("slm", used(MEASURED)), ("llm", used(MEASURED))]
    told = bill([draft(), draft("llm")], BOTH, settings, remote={"llm"}, sampled=sampled).to_dict()
    assert (told["energy_j"], list(told["resources"])) == (12.346, ["slm"])


def test_a_leg_that_was_asked_twice_used_both(settings: Settings) -> None:
    sampled = [("slm", used(MEASURED)), ("slm", used(MEASURED, 0.75, 300))]
    told = bill([draft()], SMALL, settings, sampled=sampled)
    assert told.energy.joules == pytest.approx(2 * 12.3456)
    assert told.to_dict()["resources"] == {"slm": {"cpu_s": 2.0, "peak_memory_mb": 300}}


def test_a_span_that_is_open_counts_for_nothing_yet(settings: Settings) -> None:
    trace = Trace()
    trace.open("completion", "slm")
    assert bill([], trace, settings).energy.joules == 0


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


def burn(cpu_s: float) -> None:
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        pass


class BusyBackend(ScriptedBackend):
    """Computes for somebody else while a turn waits, and then for the turn; in this process."""

    async def stream(self, *arguments: Any, **named: Any) -> AsyncGenerator[Piece, None]:
        yield Waiting(1)
        burn(0.3)
        answering = super().stream(*arguments, **named)
        async for piece in answering:
            if isinstance(piece, Draft):
                burn(0.1)
            yield piece


async def test_a_turn_is_billed_for_what_its_model_computed_for_it(session: Session, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD])
    legs.slm.backend_, legs.slm.pid = BusyBackend("slm", [GOOD]), os.getpid()
    answering = cascade.answer("Where do zebras drink?", session=session, legs=legs, settings=settings, mode="slm")
    told = [event async for event in answering][-1].turn.to_dict()["bill"]  # type: ignore[union-attr]
    taken = told["resources"]["slm"]
    assert 0.05 <= taken["cpu_s"] < 0.3, "and not for what it computed while the turn waited"
    assert taken["peak_memory_mb"] > 10
    assert told["energy_j"] > 0
    assert told["energy_source"] not in ("", "estimated from computing time")
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("how", ["answered", "stopped", "failed"])
async def test_however_a_turn_ends_nobody_goes_on_looking(
    session: Session, settings: Settings, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    later = loop.call_later

    def call_later(delay: float, callback: Any, *arguments: Any, **named: Any) -> asyncio.TimerHandle:
        handle = later(delay, callback, *arguments, **named)
        if isinstance(getattr(callback, "__self__", None), Sampler):
            looks.append(handle)
        return handle

    monkeypatch.setattr(loop, "call_later", call_later)
    broken = Reply(GOOD, error=ModelBroke("It stopped.")) if how == "failed" else Reply(GOOD)
    legs, trace = ScriptedLegs([broken], [broken]), Trace()
    legs.slm.pid = legs.llm.pid = os.getpid()
    answering = cascade.answer("Where do zebras drink?", session=session, legs=legs, settings=settings, trace=trace)
    async with aclosing(answering) as events:
        async for event in events:
            if how == "stopped" and isinstance(event, cascade.Token):
                break
    assert isinstance(event, {"answered": cascade.Answered, "stopped": cascade.Token, "failed": cascade.Failed}[how])
    assert looks
    assert all(look.cancelled() for look in looks)
    assert trace.on_open is None


def test_of_a_model_that_was_hung_up_on_at_least_what_was_known_by_then_is_counted(settings: Settings) -> None:
    made = bill([draft(usage=(300, 2), finish_reason=None)], SMALL, settings)
    assert (made.input_tokens, made.output_tokens, made.at_least) == (300, 2, True)
