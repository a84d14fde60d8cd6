"""What a Prometheus server is told: real turns with scripted models, counted, scraped from the real routes and parsed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from pydantic import SecretStr

from rag import __version__
from rag.errors import ModelUnreachable
from rag.metrics import LEGS, OUTCOMES, Metrics
from rag.models.backend import Backend
from rag.models.cores import Cores
from rag.models.state import State
from rag.serve.server import application
from rag.settings import MODES, Mode, Settings
from rag.turn import cascade
from rag.turn.cascade import Answered, Phase, Token
from rag.turn.session import Session

from .conftest import open_library
from .scripted import Reply, ScriptedLegs
from .serving import ScriptedService

QUESTION = "Where do zebras drink at the secretriver?"
GOOD = "Zebras drink at the secretriver."
WRONG = "Zebras drink at the secretriver since 1974."
"""The number is in no passage: the draft is rejected."""


class Watched:
    """A service whose turns are asked here and whose numbers are scraped as Prometheus does."""

    def __init__(self, service: Any) -> None:
        self.service = service
        transport = httpx2.ASGITransport(application(service, "127.0.0.1"))
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def turn(self, question: str = QUESTION, mode: Mode = "auto") -> AsyncGenerator[cascade.Event, None]:
        service = self.service
        session = Session(service.library, mode)
        return cascade.answer(
            question, session=session, legs=service.legs, settings=service.settings, observers=service.observers
        )

    async def ask(self, question: str = QUESTION, mode: Mode = "auto") -> cascade.Event:
        async with aclosing(self.turn(question, mode)) as events:
            return [event async for event in events][-1]

    async def scrape(self, **headers: str) -> "Scraped":
        answer = await self.client.get("/metrics", headers=headers)
        assert answer.status_code == 200
        return Scraped(answer)


class Scraped:
    def __init__(self, answer: httpx2.Response) -> None:
        self.answer = answer
        self.openmetrics = answer.headers["content-type"].startswith("application/openmetrics-text")
        self.families: list[Metric] = list((read_openmetrics if self.openmetrics else read_text)(answer.text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Of one series, which must be there; a label that is not named may have any value, and all are summed."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert found, f"{name} {labels}"
        return sum(found)

    def turns(self) -> dict[str, float]:
        """By outcome, those that there were."""
        counts = {outcome: self.value("smallfirst_turns_total", outcome=outcome) for outcome in OUTCOMES}
        return {outcome: count for outcome, count in counts.items() if count}


@asynccontextmanager
async def watched(tmp_path: Path, legs: Any, **chosen: Any) -> AsyncIterator[Watched]:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "secretfile.md").write_text("# Secretheading\n\nZebras drink at the secretriver every morning.")
    settings = Settings(_env_file=None, cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", docs=docs, **chosen)  # type: ignore[call-arg]
    library = open_library(docs, tmp_path / "cache")
    watched = Watched(ScriptedService(settings, library, legs))
    try:
        async with watched.client:
            yield watched
    finally:
        library.close()


async def test_an_answer_is_counted_with_its_times_and_tokens(tmp_path: Path) -> None:
    async with watched(tmp_path, ScriptedLegs([GOOD])) as watching:
        answered = await watching.ask()
        told = await watching.scrape()
    assert isinstance(answered, Answered)
    trace = answered.turn.trace
    assert trace.ttft_ms is not None
    assert told.turns() == {"answered": 1}
    assert told.value("smallfirst_turns_total", mode="auto", outcome="answered") == 1
    assert told.value("smallfirst_first_token_seconds_count", mode="auto") == 1
    assert told.value("smallfirst_first_token_seconds_sum", mode="auto") == pytest.approx(trace.ttft_ms / 1000)
    assert told.value("smallfirst_turn_seconds_sum", mode="auto") == pytest.approx(trace.total_ms / 1000)
    assert told.value("smallfirst_retrieval_seconds_count") == 1
    assert told.value("smallfirst_tokens_total", leg="slm", kind="input") == 100
    assert told.value("smallfirst_tokens_total", leg="slm", kind="output") == 5
    assert told.value("smallfirst_tokens_total", leg="llm") == 0
    assert told.value("smallfirst_escalations_total") == 0


async def test_an_escalation_is_counted_and_so_are_the_rejected_drafts_tokens(tmp_path: Path) -> None:
    async with watched(tmp_path, ScriptedLegs([WRONG], [GOOD])) as watching:
        await watching.ask()
        told = await watching.scrape()
    assert told.turns() == {"answered": 1}
    assert told.value("smallfirst_escalations_total", leg="llm", reason="rejected") == 1
    assert told.value("smallfirst_escalations_total") == 1
    assert told.value("smallfirst_tokens_total", kind="input") == 200
    assert told.value("smallfirst_escalations_failed_total") == 0


@pytest.mark.parametrize(
    ("mode", "dead", "answers"), [("auto", "slm", "llm"), ("slm", "slm", "llm"), ("llm", "llm", "slm")]
)
async def test_who_stands_in_is_counted_as_no_rejection(tmp_path: Path, mode: Mode, dead: str, answers: str) -> None:
    legs = ScriptedLegs([GOOD], [GOOD])
    getattr(legs, dead).failure = ModelUnreachable("It is gone.")
    async with watched(tmp_path, legs) as watching:
        await watching.ask(mode=mode)
        told = await watching.scrape()
    assert told.turns() == {"answered": 1}
    assert told.value("smallfirst_escalations_total", leg=answers, reason="no_answer") == 1
    assert told.value("smallfirst_escalations_total") == 1


async def test_a_rejected_draft_that_stands_for_want_of_the_larger_model_is_counted(tmp_path: Path) -> None:
    legs = ScriptedLegs([WRONG, WRONG])
    legs.llm.failure = ModelUnreachable("It is gone.")
    async with watched(tmp_path, legs) as watching:
        await watching.ask()
        await watching.ask(mode="slm")  # here nobody was to take over
        told = await watching.scrape()
    assert told.turns() == {"answered": 2}
    assert told.value("smallfirst_escalations_total") == 0
    assert told.value("smallfirst_escalations_failed_total") == 1


async def test_refusals_failures_and_bugs_are_told_apart_from_answers(tmp_path: Path) -> None:
    legs = ScriptedLegs(["The documents do not say."], ["The documents do not say."])
    async with watched(tmp_path, legs) as watching:
        await watching.ask("Which regatta was won in Uruguay?")
        assert (await watching.scrape()).turns() == {"refused": 1}, "the documents were silent"
        await watching.ask(mode="slm")
        assert (await watching.scrape()).turns() == {"refused": 2}, "the model said so"
        await watching.ask("")
        assert (await watching.scrape()).turns() == {"refused": 2, "failed": 1}
        with pytest.raises(IndexError):
            await watching.ask(mode="slm")  # the script has no more replies, as a bug would have it
        told = await watching.scrape()
    assert told.turns() == {"refused": 2, "failed": 2}
    assert told.value("smallfirst_turn_seconds_count") == 2, "what failed at once would make the rest look fast"
    assert told.value("smallfirst_turns_under_way") == 0


async def test_a_scrape_shows_the_turn_that_is_under_way_and_then_that_it_was_stopped(tmp_path: Path) -> None:
    async with watched(tmp_path, ScriptedLegs([Reply(GOOD, hold=asyncio.Event())])) as watching:
        assert (await watching.scrape()).value("smallfirst_turns_under_way") == 0
        async with aclosing(watching.turn(mode="slm")) as events:
            async for event in events:
                if isinstance(event, Token):
                    break
            told = await watching.scrape()
            assert told.value("smallfirst_turns_under_way") == 1
            assert told.turns() == {}
        told = await watching.scrape()
    assert told.value("smallfirst_turns_under_way") == 0
    assert told.turns() == {"stopped": 1}
    assert told.value("smallfirst_turns_total", mode="slm", outcome="stopped") == 1
    assert told.value("smallfirst_first_token_seconds_count", mode="slm") == 1


async def test_who_waits_for_the_cores_is_in_the_queue_until_they_are_had(tmp_path: Path) -> None:
    legs: Any = ScriptedLegs((), [Reply(GOOD, hold=asyncio.Event())])
    cores = Cores()
    legs.slm.backend_ = Backend("slm", "m", "http://127.0.0.1:9/v1", cores=cores)
    async with watched(tmp_path, legs) as watching, aclosing(watching.turn()) as events:
        async with cores.claim():
            assert (await watching.scrape()).value("smallfirst_queue_requests") == 0
            async for event in events:
                if isinstance(event, Phase) and event.name == "queue":
                    break
            told = await watching.scrape()
        assert told.value("smallfirst_queue_requests", leg="slm") == 1
        assert told.value("smallfirst_queue_requests", leg="llm") == 0
        async for event in events:
            if isinstance(event, Token):  # nobody listens where the small model was; the larger one writes
                break
        told = await watching.scrape()
        assert told.value("smallfirst_turns_under_way") == 1
        assert told.value("smallfirst_queue_requests") == 0
    await legs.slm.backend_.close()


async def test_models_and_documents_are_told_as_they_are_at_the_scrape(tmp_path: Path) -> None:
    legs = ScriptedLegs()
    legs.llm.state = State("absent")
    async with watched(tmp_path, legs) as watching:
        told = await watching.scrape()
        assert told.value("smallfirst_model_ready", leg="slm") == 1
        assert told.value("smallfirst_model_ready", leg="llm") == 0
        assert told.value("smallfirst_index_documents") == 1
        assert told.value("smallfirst_index_passages") == len(watching.service.library.index) > 0
        assert told.value("smallfirst_build_info", version=__version__) == 1
        legs.llm.state = State("resting")
        (tmp_path / "docs" / "more.txt").write_text("Lions sleep under acacia trees.")
        await asyncio.to_thread(watching.service.library.update)
        told = await watching.scrape()
    assert told.value("smallfirst_model_ready", leg="llm") == 1
    assert told.value("smallfirst_index_documents") == 2


async def test_no_text_of_a_turn_and_no_name_is_in_the_exposition(tmp_path: Path) -> None:
    async with watched(tmp_path, ScriptedLegs([WRONG], [GOOD])) as watching:
        await watching.ask()
        await watching.ask("secretquestion")
        told = await watching.scrape()
    for text in ("secret", "scripted", str(tmp_path)):
        assert text not in told.answer.text.lower()
    short: dict[str, set[str]] = {
        "mode": set(MODES),
        "leg": set(LEGS),
        "outcome": set(OUTCOMES),
        "kind": {"input", "output"},
    }
    for sample in told.samples:
        for label, value in sample.labels.items():
            assert label not in short or value in short[label], sample


async def test_every_series_of_a_turn_is_there_before_the_first_one(tmp_path: Path) -> None:
    async with watched(tmp_path, ScriptedLegs([WRONG], [GOOD])) as watching:
        before = await watching.scrape()
        await watching.ask()
        after = await watching.scrape()
    assert [(s.name, s.labels) for s in before.samples] == [(s.name, s.labels) for s in after.samples]
    for family in before.families:
        assert family.documentation
        if family.name.startswith("smallfirst_") and family.type == "histogram":
            assert family.name.endswith("_seconds")


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", True),
        ("application/openmetrics-text; version=torn", True),
        ("text/plain; version=torn", False),
        ("*/*", False),
    ],
)
async def test_the_format_is_the_one_that_the_scraper_names(tmp_path: Path, accept: str, openmetrics: bool) -> None:
    async with watched(tmp_path, ScriptedLegs([GOOD])) as watching:
        await watching.ask()
        told = await watching.scrape(accept=accept)
    assert told.openmetrics == openmetrics
    assert told.answer.text.endswith("# EOF\n") == openmetrics
    assert told.turns() == {"answered": 1}
    assert told.answer.headers["cache-control"] == "no-store"


async def test_where_there_are_keys_a_scrape_needs_one(tmp_path: Path) -> None:
    async with watched(tmp_path, ScriptedLegs(), api_keys=[SecretStr("one-key")]) as watching:
        refused = await watching.client.get("/metrics")
        told = await watching.scrape(authorization="Bearer one-key")
    assert refused.status_code == 401
    assert "smallfirst" not in refused.text
    assert told.turns() == {}


async def test_two_services_in_one_process_count_apart(tmp_path: Path) -> None:
    legs = ScriptedLegs([GOOD])
    async with watched(tmp_path, legs) as watching:
        other = Metrics(watching.service.library, legs)  # type: ignore[arg-type]
        await watching.ask()
        assert (await watching.scrape()).turns() == {"answered": 1}
        assert b'smallfirst_turns_total{mode="auto",outcome="answered"} 0.0' in other.exposition()[0]
