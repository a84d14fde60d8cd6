"""What a browser's model is sent, and what its answer is worth: THE turn (`cascade.answer`), whose model sits elsewhere.

`POST /ondevice/prompt` runs the turn with a small model that writes nothing, and gives back what it was sent.
`POST /ondevice/verdict` runs it once more with one that writes what the browser's model wrote: the search is the server's
own each time, and nothing that a page says of passages is believed. `GET /ondevice/opening` is the wording by which a
page makes the same prompt from a reference text when this server has gone. Of what is asked it keeps the last few reference
texts as they were read, in memory, because a question, its verdict and the next question come with the same one.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from functools import lru_cache
from typing import Any, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from rag.corpus import documents
from rag.corpus.documents import Ingest, Passage
from rag.corpus.index import BM25Index, Hit, SmallEngine
from rag.corpus.library import Library
from rag.errors import UserError
from rag.models.answer import Answer
from rag.models.backend import Draft, Message
from rag.models.places import LegName
from rag.models.standin import StandIn, StandIns
from rag.models.thinking import Splitter
from rag.models.weights import CATALOGUE
from rag.serve.api_errors import ApiRoute
from rag.serve.documents import address
from rag.serve.ondevice.shelf import DEFAULT
from rag.serve.service import Service
from rag.serve.visitors import VISITOR
from rag.settings import Settings
from rag.turn import cascade, confidence, prompt
from rag.turn.cascade import Turn
from rag.turn.citations import Citation
from rag.turn.confidence import Grounds, Verdict
from rag.turn.session import Exchange, Session
from rag.words import say, translated

REFERENCE: Final = "reference.txt"
"""What the reference text is called among the sources."""
WHERE: Final = "in the browser"
REFERENCE_CHARS: Final = 300_000
TEXT_CHARS: Final = 20_000
"""Of a question, or of an answer."""
# Nobody types these; where they stand in the wording, the page puts in its own.
EVIDENCE_MARK: Final = "⟦evidence⟧"
QUESTION_MARK: Final = "⟦question⟧"


class Said(BaseModel):
    """An earlier question and its answer."""

    question: str = Field(max_length=TEXT_CHARS)
    answer: str = Field(max_length=TEXT_CHARS)


class Asked(BaseModel):
    """A question, and where its answer may come from."""

    question: str = Field(max_length=TEXT_CHARS)
    reference: str = Field("", max_length=REFERENCE_CHARS)
    retrieve: bool = True
    """Search the folder of documents, too."""
    history: list[Said] = Field(default_factory=list, max_length=20)
    model: str = Field(DEFAULT, max_length=100)
    """The browser's model, by its name in the catalogue."""
    window: int = Field(2048, ge=256, le=131_072)
    """Tokens, prompt and answer together."""
    max_tokens: int | None = Field(None, ge=1, le=8192)


class TopLogprob(BaseModel):
    token: str = Field(max_length=400)
    logprob: float


class Logprob(TopLogprob):
    top_logprobs: list[TopLogprob] = Field(default_factory=list, max_length=20)


class Judging(Asked):
    """An answer to that question. Without `tokens` it is judged by its words alone."""

    engine: Literal["browser", "llm"] = "browser"
    answer: str = Field(max_length=TEXT_CHARS)
    finish_reason: Literal["stop", "length"] = "stop"
    tokens: list[Logprob] = Field(default_factory=list, max_length=8192)
    """As OpenAI's `logprobs.content`: all of the answer's, or they count for nothing."""


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=ApiRoute, include_in_schema=False)

    @routes.get("/ondevice/opening")
    async def opening() -> dict[str, Any]:
        return wording(service.settings)

    @routes.post("/ondevice/prompt")
    async def prompted(asked: Asked) -> dict[str, Any]:
        turn, source = await _turn(service, asked, "slm", None)
        sent = turn.prompts.get("slm")
        answer = {
            "messages": sent.messages if sent else [],
            "silent": sent is None,
            "answer": turn.answer if sent is None else "",
            "read": [source.told(hit) for hit in sent.evidence] if sent else [],
            "hits": [source.told(hit) for hit in turn.hits],
            "query": turn.query,
            "notes": [] if sent is None else _before(turn),
            "ledger": sent.ledger if sent else {},
        }
        return _spoken(answer)

    @routes.post("/ondevice/verdict")
    async def verdict(asked: Judging) -> dict[str, Any]:
        leg: LegName = "llm" if asked.engine == "llm" else "slm"
        turn, source = await _turn(service, asked, leg, asked)
        found = turn.verdict if leg == "slm" else _judged(turn, source, service.settings)
        signals = found.signals if found else None
        answer = {
            "verdict": found.to_dict() if found else None,
            "refused": turn.refused,
            "answer": turn.answer,
            "citations": [source.told(citation) for citation in turn.citations],
            "with_logprobs": signals is not None and signals.mean_logprob is not None,
            "notes": list(turn.notes),
        }
        return _spoken(answer)

    return routes


def wording(settings: Settings) -> dict[str, Any]:
    """The small model's prompt with marks for what is not known yet: for each model, and for a window without room."""
    passage = Passage("", "", None, None, (), 0, 0, EVIDENCE_MARK, "")

    def template(examples: bool) -> list[Message]:
        return prompt.build(
            QUESTION_MARK, [Hit(passage, 1.0)], (),
            asked={}, large=False, passages=1, evidence_tokens=settings.evidence_tokens, history_turns=0,
            context_tokens=None, max_tokens=settings.slm_max_tokens, examples=examples, check=False,
            language=settings.answer_language,
        ).messages  # fmt: skip

    return {
        "evidence_mark": EVIDENCE_MARK,
        "question_mark": QUESTION_MARK,
        "templates": {model.name: template(model.examples) for model in CATALOGUE.values()},
        "plain": template(False),
        "examples_from_tokens": prompt.EXAMPLES_FROM_TOKENS,
        "max_tokens": settings.slm_max_tokens,
        "passage_chars": settings.passage_chars,
        "question_chars": TEXT_CHARS,
        "reference_chars": REFERENCE_CHARS,
        "reference_name": REFERENCE,
    }


# The turn


class _Source:
    """Where the answer to one question may come from, as a session of its own."""

    def __init__(self, service: Service, asked: Asked) -> None:
        library = service.library if asked.retrieve else _Nothing(service.settings)
        self.session = Session(library, "slm")
        for said in asked.history:
            self.session.remember(Exchange("", said.question, said.question, said.answer))
        self.pasted: frozenset[str] = frozenset()

    def add(self, read: tuple[Ingest, list[Passage]]) -> None:
        report, passages = read
        self.session.attachments.restore(report, passages)
        self.pasted = frozenset(passage.id for passage in passages)

    def told(self, one: Hit | Citation) -> dict[str, Any]:
        """A hit or a citation with its address, below the server's own; None for the page's own text."""
        pasted = one.passage.id in self.pasted
        return {**one.to_dict(), "address": None if pasted else address(one.passage, VISITOR.get()).removeprefix("/")}


class _Nothing(Library):
    """The library of somebody who has none: only the reference text is searched."""

    def __init__(self, settings: Settings) -> None:
        # No folder is opened; what Attachments and the turn ask a library for is empty.
        self.settings = settings
        self.reading = None
        self.index = BM25Index()
        self.reports = []
        self._engine = SmallEngine(())


async def _turn(service: Service, asked: Asked, leg: LegName, judged: Judging | None) -> tuple[Turn, _Source]:
    """The turn as it goes when that model writes that answer, or nothing. Raises RagError."""
    if asked.model not in CATALOGUE:
        raise UserError(f"There is no model {asked.model!r}. Use one of: {', '.join(CATALOGUE)}.")
    reference = asked.reference.strip()
    if not reference and not asked.retrieve:
        raise UserError("There is nothing to answer from. Paste a reference text, or have the documents searched.")
    source = _Source(service, asked)
    if reference:
        source.add(await asyncio.to_thread(_read, reference, service.settings.passage_chars))
    settings, large = service.settings, leg == "llm"
    if large:
        # The word Yes or No that a larger model begins with is no part of what the page was sent.
        settings = settings.model_copy(update={"check": False})
    slm = _Elsewhere("slm", asked.model, judged, asked, settings.slm_max_tokens)
    llm = _Elsewhere("llm", service.legs.llm.model, judged, asked, settings.llm_max_tokens)
    events = cascade.answer(
        asked.question, session=source.session, legs=StandIns(slm, llm), settings=settings, mode=leg, insist=False
    )
    async with aclosing(events):
        async for event in events:
            if isinstance(event, cascade.Failed):
                raise event.error
            if isinstance(event, cascade.Answered):
                return event.turn, source
    raise AssertionError("a turn ends with its answer, or with why there is none")


@lru_cache(4)  # the prompt and the verdict of one question, and the next question
def _read(reference: str, passage_chars: int) -> tuple[Ingest, list[Passage]]:
    """In this process: it is plain text, there is nothing in it to take apart."""
    return documents.ingest(reference.encode("utf-8", "replace"), REFERENCE, passage_chars)


def _spoken(answer: dict[str, Any]) -> dict[str, Any]:
    """The same in the language of whoever asks: the reason, the notes, and what is said in the place of an answer."""
    return translated(answer, VISITOR.get().language)  # type: ignore[no-any-return]


def _before(turn: Turn) -> list[str]:
    """What must be known before there is an answer: that documents are still being read."""
    return [note for note in turn.notes if note != say("turn.note_unsupported")]


def _judged(turn: Turn, source: _Source, settings: Settings) -> Verdict | None:
    """A larger model's answer over the passages that it read; no calibration was made for its words."""
    sent = turn.prompts.get("llm")
    if sent is None or turn.refused:
        return None
    index = source.session.attachments.index
    grounds = Grounds(
        turn.question, turn.query, turn.hits, sent.evidence, index.idf,
        most_idf=index.idf(""), searched=any(hit.score for hit in turn.hits),
    )  # fmt: skip
    return confidence.judge(turn.drafts[-1], grounds, threshold=settings.confidence, min_words=settings.min_words)


class _Elsewhere(StandIn):
    """Its model writes in the browser: what it wrote is told with the question about it."""

    where = WHERE
    runs_on = "wllama"

    def __init__(self, name: LegName, model: str, judged: Judging | None, asked: Asked, max_tokens: int) -> None:
        entry = CATALOGUE.get(model)
        super().__init__(
            name,
            asked.window if name == "slm" else None,
            asked.max_tokens or max_tokens,
            model=model,
            examples=name == "slm" and entry is not None and entry.examples,
        )
        self._judged = judged

    def written(self) -> Draft:
        if self._judged is None:
            return super().written()
        # Taken as a server's stream is: thoughts are no part of it, and tokens count only if none is missing.
        answer = Answer(TEXT_CHARS, Splitter())
        answer.take(_choice(self._judged.answer, self._judged.tokens))
        answer.end()
        text = "".join(answer.text)
        return Draft(
            self.leg, self.model, text, answer.covering(text),
            finish_reason=self._judged.finish_reason, runs_on=self.runs_on,
        )  # fmt: skip


def _choice(text: str, tokens: Sequence[Logprob]) -> dict[str, Any]:
    return {"delta": {"content": text}, "logprobs": {"content": [token.model_dump() for token in tokens]}}
