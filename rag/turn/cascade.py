"""THE turn, top to bottom: one question becomes one answer.

Every door (browser, API, terminal, evaluation, bench) iterates over `answer(...)` and shows its events in its own way; no
door decides anything. Knows the order of the work and who answers when somebody cannot; what is found, how a prompt is
worded and what makes a draft good are other rooms' business.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rag.corpus.analysis import PIECE
from rag.corpus.index import Hit, Query
from rag.errors import ModelError, QuestionTooLong, RagError, UserError
from rag.models.backend import HERE, Draft, Reading, Thinking, Usage, Waiting
from rag.models.backend import Token as Written
from rag.models.legs import Answering, Pair
from rag.resources import Sampler, Used
from rag.settings import Mode, Settings
from rag.trace import Span, Trace
from rag.turn import calibration, citations, confidence, evidence, overview, prompt, rewriting
from rag.turn.bill import Bill, bill
from rag.turn.calibration import Calibration
from rag.turn.check import Check
from rag.turn.citations import Citation
from rag.turn.confidence import Grounds, Verdict
from rag.turn.overview import Overview
from rag.turn.prompt import Prompt
from rag.turn.session import Exchange, Session
from rag.words import say

# Documents that have just changed are worth a short wait; the first ones of all, a longer one.
SETTLE_S = 2.0
SETTLE_FIRST_S = 10.0
# So many times the usual passages are looked through when the first ones hold too little of the question.
MORE = 3
# Asked once more, a model that always took the likeliest word would say the same.
FRESH_TEMPERATURE = 0.7
# A request that waited longer before it was sent waited for somebody else's answer.
WAITED_MS = 1.0

WAITS = {"slm": "turn.phase_load_slm", "llm": "turn.phase_load_llm"}
READS = {"slm": "turn.phase_reads_slm", "llm": "turn.phase_reads_llm"}
READS_SHARE = {"slm": "turn.phase_reads_slm_share", "llm": "turn.phase_reads_llm_share"}
THINKS = {"slm": "turn.phase_thinks_slm", "llm": "turn.phase_thinks_llm"}
AGAIN = {"slm": "turn.phase_again_slm", "llm": "turn.phase_again_llm"}
QUEUES = {"slm": "turn.phase_queue_slm", "llm": "turn.phase_queue_llm"}
SILENT = {"slm": "turn.reason_no_answer_slm", "llm": "turn.reason_no_answer_llm"}
STOOD_IN = {"slm": "turn.note_stood_in_slm", "llm": "turn.note_stood_in_llm"}
NOT_ALLOWED = {"slm": "turn.not_allowed_slm", "llm": "turn.not_allowed_llm"}
NOT_ASKED = {"slm": "turn.not_asked_slm", "llm": "turn.not_asked_llm"}


@dataclass(frozen=True)
class Phase:
    """What the turn is doing now, in words for a person."""

    name: str
    detail: str


@dataclass(frozen=True)
class Retrieved:
    query: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Prompted:
    """A leg is sent its prompt, in which so many passages are numbered from 1."""

    leg: str
    passages: int


@dataclass(frozen=True)
class Token:
    """Text as a model writes it; a rejected leg's text is still the leg's own."""

    leg: str
    text: str


@dataclass(frozen=True)
class Retracted:
    """What this leg has written so far was not its answer: it thought aloud, and only now says so."""

    leg: str


@dataclass(frozen=True)
class Judged:
    verdict: Verdict


@dataclass(frozen=True)
class Escalating:
    """Another model takes over; what was shown so far does not stand."""

    reason: str
    leg: str


@dataclass(frozen=True)
class SetAside:
    """An answer that another took the place of."""

    model: str
    text: str
    citations: tuple[Citation, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "answer": self.text,
            "citations": [citation.to_dict() for citation in self.citations],
        }


@dataclass(frozen=True)
class Turn:
    """One question, answered. `to_dict` is the contract that scripts and the chat's metadata rely on."""

    question: str
    query: str
    mode: Mode
    answer: str
    model: str | None
    """Who wrote the answer; None when the documents are silent and no model was asked."""
    where: str | None
    """Where the text of this turn went: on this machine, or the hosts of the servers elsewhere that were sent it."""
    escalated: bool
    refused: bool
    """The answer says that it is not in the documents."""
    verdict: Verdict | None
    drafts: tuple[Draft, ...]
    hits: tuple[Hit, ...]
    citations: tuple[Citation, ...]
    set_aside: SetAside | None
    """The small model's whole answer, where the larger one's took its place: somebody may prefer it."""
    notes: tuple[str, ...]
    """What the user must know about this answer: who could not be asked, what was left out."""
    bill: Bill
    """Tokens, money, energy, and what the models took of this machine."""
    prompts: dict[str, Prompt]
    """What each leg was sent, for those who look inside; of it, the dictionary has the ledgers."""
    check: Check | None
    """What the larger model said first, if it was asked; not part of the dictionary, nor is the next."""
    fitted: Calibration | None
    """What the small model was judged by; None for the cold start's formula."""
    trace: Trace

    def to_dict(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "query": self.query,
            "mode": self.mode,
            "answer": self.answer,
            "model": self.model,
            "where": self.where,
            "escalated": self.escalated,
            "refused": self.refused,
            "verdict": self.verdict.to_dict() if self.verdict else None,
            "drafts": [draft.to_dict() for draft in self.drafts],
            "hits": [hit.to_dict() for hit in self.hits],
            "citations": [citation.to_dict() for citation in self.citations],
            "set_aside": self.set_aside.to_dict() if self.set_aside else None,
            "notes": list(self.notes),
            "bill": self.bill.to_dict(),
            "ledger": {leg: built.ledger for leg, built in self.prompts.items()},
            "trace": self.trace.to_dict(),
        }


@dataclass(frozen=True)
class Answered:
    turn: Turn


@dataclass(frozen=True)
class Failed:
    error: RagError


class Observer(Protocol):
    """Somebody who is told of every turn: that it begins, and at its end, however it ends, spans and the dictionary.

    Never who asked.
    """

    def begin(self, trace: Trace) -> None:
        """A turn begins whose spans will be found in this; `record` follows, with the same one."""

    def record(
        self,
        trace: Trace,
        turn: Mapping[str, Any],
        *,
        question_id: str = "",
        models: Mapping[str, str] | None = None,
        remote: Collection[str] = (),
        error: BaseException | None = None,
    ) -> None: ...


Event = Phase | Retrieved | Prompted | Token | Retracted | Judged | Escalating | Answered | Failed


async def answer(
    question: str,
    *,
    session: Session,
    legs: Pair,
    settings: Settings,
    mode: Mode | None = None,
    id: str = "",
    trace: Trace | None = None,
    insist: bool = False,
    fresh: bool = False,
    fitted: Calibration | Literal["find"] | None = "find",
    max_tokens: int | None = None,
    observers: Sequence[Observer] = (),
) -> AsyncGenerator[Event, None]:
    """Answer one question; the last event is `Answered` or `Failed`.

    Closing the iterator stops the work, the models' included; what was written until then is remembered as the answer.
    `id` is the door's name for the question. `insist` has a model answer even where the documents seem silent; `fresh`
    has it choose its words anew, for a question that is asked once more. `fitted` is for trying a calibration out, or
    none; otherwise the pair's own is found. `max_tokens` shortens the models' answers below what settings allow. The
    `observers` are told of the turn at its end, however it ends. Bugs are raised; what can go wrong is a `Failed`.
    """
    turn = _Work(
        question.strip(), session, legs, settings, mode or session.mode, id, trace or Trace(), insist, fresh, fitted,
        max_tokens,
    )  # fmt: skip
    finished, answered = False, None
    failure: Exception | None = None
    for observer in observers:
        observer.begin(turn.trace)
    try:
        async with aclosing(turn.run()) as events:
            async for event in events:
                if isinstance(event, Answered):
                    finished, answered = True, event.turn
                yield event
    except RagError as error:
        finished, failure = True, error
        yield Failed(error)
    except Exception as error:
        failure = error  # a bug: to the observers no turn that somebody stopped
        raise
    finally:
        if not finished and turn.shown:
            session.remember(Exchange(id, turn.question, str(turn.query), turn.shown))
        both = (legs.slm, legs.llm)
        ended = {} if not observers else answered.to_dict() if answered else {"mode": turn.mode}
        for observer in observers:
            observer.record(
                turn.trace,
                ended,
                question_id=id,
                models={leg.name: leg.model for leg in both},
                remote=[leg.name for leg in both if leg.remote],
                error=failure,
            )


class _Work:
    """One turn under way. `shown` is the text that stands before the user."""

    def __init__(
        self,
        question: str,
        session: Session,
        legs: Pair,
        settings: Settings,
        mode: Mode,
        id: str,
        trace: Trace,
        insist: bool,
        fresh: bool,
        fitted: Calibration | Literal["find"] | None,
        max_tokens: int | None,
    ) -> None:
        self.question = question
        self.query = Query(question)
        self.session = session
        self.legs = legs
        self.settings = settings
        self.mode = mode
        self.id = id
        self.trace = trace
        self.insist = insist
        self.temperature = FRESH_TEMPERATURE if fresh else 0.0
        self.index = session.attachments.index
        self.hits: tuple[Hit, ...] = ()
        self.overview: Overview | None = None
        self.drafts: list[Draft] = []
        self.prompts: dict[str, Prompt] = {}
        self.notes: list[str] = []
        self.where: dict[str, str] = {}
        """By leg, of those that were sent something."""
        self.sampled: list[tuple[str, Used]] = []
        """What each request to a leg used of this machine."""
        self.shown = ""
        self.fitted = fitted
        self.max_tokens = max_tokens
        self.given_up: Verdict | None = None
        """On a small model's draft that was not worth finishing, or beginning."""
        self.check: Check | None = None
        self.denied = False
        """The larger model says that the passages don't answer the question."""

    @property
    def calibration(self) -> Calibration | None:
        """Of the pair. A server's own names for its models are only known once it was asked."""
        if self.fitted == "find":
            return calibration.find(self.legs.slm.model, self.legs.llm.model, self.settings)
        return self.fitted

    async def run(self) -> AsyncGenerator[Event, None]:
        self._check()

        # 1. What has changed on disk is found by the question that is asked next, unless it is too much to wait for.
        async with aclosing(self._settle()) as events:
            async for event in events:
                yield event

        # 2. Find passages; where they leave most of the question open, no model is asked to invent. A follow-up carries
        # words over from the conversation; a question about a document as a whole is not searched for.
        with self.trace.span("rewrite"):
            attached = self.session.attachments
            talking = bool(self.session.history)
            self.overview = overview.find(self.question, attached, attached.library, talking=talking)
            if self.overview is None:
                self.query = rewriting.rewrite(
                    self.question, self.session.history, self.index.idf, self.index.languages
                )
        if self.overview is not None:
            yield Phase("retrieve", say("turn.phase_outline", name=self.overview.name))
            self.hits, silent, covered = self.overview.hits, False, 1.0
        else:
            yield Phase("retrieve", say("turn.phase_search", count=len(self.index)))
            with self.trace.span("retrieve"):
                covered = await self._search()
            silent = not self.hits or covered < self.settings.min_coverage
        yield Retrieved(str(self.query), self.hits)
        if silent and not (self.insist and self.hits):
            reason = say("turn.reason_silent", percent=round(100 * covered))
            silence = Verdict(0.0, self.settings.min_coverage, False, reason)
            yield self._finish(None, silence, escalated=False)
            return

        # 3. The chosen model, or the small one first; whoever cannot answer is stood in for, and that is said.
        first = self.legs.llm if self.mode == "llm" else self.legs.slm
        second = self.legs.slm if first is self.legs.llm else self.legs.llm
        verdict: Verdict | None = None
        try:
            async with aclosing(self._ask(first)) as events:
                async for event in events:
                    yield event
        except ModelError as error:
            failure = error.told
            if self.mode == "slm" and second.leaves:
                raise  # text leaves the machine only for a mode that says so
            yield Escalating(say(SILENT[first.name]), second.name)
            self.shown = ""
            try:
                async with aclosing(self._ask(second)) as events:
                    async for event in events:
                        yield event
            except ModelError as other:
                raise type(other)(say("turn.neither", first=failure, second=other.told)) from other
            self.notes.append(say(STOOD_IN[second.name], failure=failure))
            yield self._finish(self.drafts[-1], None, escalated=second is self.legs.llm)
            return

        # 4. Judge the small model's draft, unless that was done while it was being written.
        draft = self.drafts[-1] if self.drafts else None
        if first is self.legs.slm:
            if self.given_up is None:
                assert draft is not None, "a leg that was not given up has written"
                yield Phase("judge", say("turn.phase_judge"))
                with self.trace.span("judge", "slm"):
                    verdict = confidence.judge(
                        draft,
                        self._grounds("slm"),
                        calibration=self.calibration,
                        threshold=self.settings.confidence,
                        min_words=self.settings.min_words,
                    )
            else:
                verdict = self.given_up
            yield Judged(verdict)

        # 5. Not good enough: the larger model answers.
        escalated = False
        if self.mode == "auto" and verdict is not None and not verdict.accepted:
            yield Escalating(verdict.reason, "llm")
            standing, self.shown = self.shown, ""
            try:
                async with aclosing(self._ask(self.legs.llm)) as events:
                    async for event in events:
                        yield event
                draft, escalated = self.drafts[-1], True
            except ModelError as error:
                if self.given_up is not None:
                    # Given up for the sake of a model that is not there: then it is finished after all.
                    async with aclosing(self._finish_draft()) as events:
                        async for event in events:
                            yield event
                    draft = self.drafts[-1]
                else:
                    self.shown = standing
                self.notes.append(say("turn.note_not_refined", reason=verdict.reason, failure=error.told))
        yield self._finish(draft, verdict, escalated=escalated)

    async def _search(self) -> float:
        """Fill `hits`; returns how much of the question's words those hold that will be read.

        Where they hold too little, once more: with the words of the turn before, and among more passages.
        """
        self.hits = tuple(await self.index.search(self.query, self.settings.top_k))
        read: Sequence[Hit] = self.hits[: self.settings.llm_passages]
        # Words carried over help to find; that the passages lack some of them is no reason to be silent.
        forms = dict.fromkeys((self.question, str(self.query)))
        covered = max(confidence.coverage(form, read, self.index.telling) for form in forms)
        if covered >= self.settings.min_coverage or not self.hits:
            return covered
        query = self.query
        if self.session.history and not query.context:
            query = Query(self.question, self.session.history[-1].question)
        hits = tuple(await self.index.search(query, MORE * self.settings.top_k))
        read = evidence.select(
            hits, self._asked(), passages=self.settings.llm_passages, budget_tokens=self.settings.evidence_tokens,
            tokens=lambda passage: prompt.estimate_tokens(passage.text),
        ).hits  # fmt: skip
        # A question that does not lean on the turn before must be covered itself: words carried over only help to find.
        if (again := confidence.coverage(self.question, read, self.index.telling)) < self.settings.min_coverage:
            return covered
        self.query, self.hits = query, hits
        return again

    def _grounds(self, leg: str) -> Grounds:
        return Grounds(
            self.question,
            str(self.query),
            self.hits,
            self.prompts[leg].evidence,
            self.index.idf,
            most_idf=self.index.idf(""),
            searched=self.overview is None,
        )

    def _check(self) -> None:
        if not self.question:
            raise UserError(say("turn.question_empty"))
        most = self.settings.context_tokens // 3
        length = prompt.estimate_tokens(self.question)
        if length > most:
            raise QuestionTooLong(say("turn.question_long", tokens=length, most=most))

    async def _settle(self) -> AsyncGenerator[Event, None]:
        """Wait a little for documents that are being read."""
        library = self.session.attachments.library
        if library.reading is not None:
            yield Phase("read", say("turn.phase_documents", progress=library.reading.words))
            with self.trace.span("read"):
                limit_s = SETTLE_S if len(self.session.attachments.index) else SETTLE_FIRST_S
                settled = await library.settled(limit_s)
            if not settled and (reading := library.reading) is not None:
                self.notes.append(say("turn.note_still_reading", progress=reading.words))
        self.index = self.session.attachments.index

    def _asked(self) -> dict[str, float]:
        """The query's terms and what each tells."""
        if self.overview is not None:
            return {}
        weights = self.query.weights(self.index.languages)
        return {t: weight * self.index.idf(t) for t, weight in weights.items() if not t.startswith(PIECE)}

    async def _ask(self, leg: Answering, *, whole: bool = False) -> AsyncGenerator[Event, None]:
        """One leg writes; its draft is added to `drafts`. A draft that broke off is not.

        In Auto the small model's may be given up before its end (`given_up`), unless it is wanted `whole`.
        """
        large = leg.name == "llm"
        with self.trace.span("escalate" if large else "draft", leg.name):
            if reason := self._refused_to(leg):
                raise ModelError(reason)
            if large and (reason := _not_here(leg)):
                raise ModelError(reason)
            if not leg.state.usable:
                with self.trace.span("load", leg.name):
                    leg.start()
                    async with aclosing(leg.changes()) as states:
                        async for state in states:
                            if state.usable or state.phase == "failed":
                                break
                            yield Phase("load", say(WAITS[leg.name], state=state.words))
            server = await leg.backend()
            with self.trace.span("prompt", leg.name):
                self.prompts[leg.name] = built = self._prompt(leg, server.context_tokens)
            watch = _Watch(self, leg) if not large and not whole else None
            if watch is not None and watch.given_up("", ()):
                return
            check = self.check = Check() if built.checks else None
            least = self.calibration.check if self.calibration is not None else None
            yield Prompted(leg.name, len(built.evidence))
            yield Phase("ask", say(READS[leg.name]))
            written = ""
            tokens: list[Written] = []
            prompt_tokens: int | None = None
            stream = server.stream(
                built.messages, max_tokens=self._most(leg), trace=self.trace, temperature=self.temperature
            )
            async with self._sampled(leg), aclosing(stream) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Waiting):
                        if piece.again_s is not None:
                            yield Phase("queue", say(AGAIN[leg.name], seconds=max(1, round(piece.again_s))))
                        else:
                            yield Phase("queue", say(QUEUES[leg.name], count=piece.ahead))
                        continue
                    if isinstance(piece, Reading):
                        prompt_tokens = piece.prompt_tokens
                        yield Phase("ask", say(READS_SHARE[leg.name], percent=round(100 * piece.share)))
                        continue
                    self.where[leg.name] = server.where
                    if isinstance(piece, Thinking):
                        if piece.retract:
                            written, tokens = "", []
                            check = self.check = Check() if built.checks else None
                            self.shown = ""
                            yield Retracted(leg.name)
                        yield Phase("think", say(THINKS[leg.name]))
                        continue
                    if isinstance(piece, Draft):
                        if check is not None:
                            check.end()
                            self.denied = check.denies(least)
                        self.drafts.append(check.strip(piece) if check else piece)
                        break
                    written += piece.text
                    tokens.extend(piece.tokens)
                    text = check.read(piece) if check else piece.text
                    if check is not None and check.denies(least):
                        self.denied = True
                    elif text:
                        self.trace.first_token()
                        self.shown += text
                        yield Token(leg.name, text)
                    if self.denied or (watch is not None and watch.given_up(written, tokens)):
                        # Hanging up is how the model learns to stop; what it had read and written by then is known here.
                        usage = None if prompt_tokens is None else Usage(prompt_tokens, len(tokens))
                        self.drafts.append(
                            Draft(leg.name, server.model, written, tuple(tokens), usage, runs_on=server.runs_on)
                        )
                        break

    @asynccontextmanager
    async def _sampled(self, leg: Answering) -> AsyncIterator[None]:
        """What the body uses of this machine is counted; a server elsewhere uses another."""
        if leg.leaves:
            yield
            return
        sampler, began_ms = Sampler({leg.name: lambda: leg.pid}, watts=self.settings.watts), self.trace.now_ms()

        def opened(span: Span) -> None:
            if span.name == "request" and span.start_ms - began_ms > WAITED_MS:
                sampler.restart()  # what its model computed until now was not for this turn

        try:
            async with sampler:
                self.trace.on_open = opened
                yield
        finally:
            self.trace.on_open = None
            self.sampled.append((leg.name, sampler.used(leg.name)))

    def _prompt(self, leg: Answering, context_tokens: int | None) -> Prompt:
        large = leg.name == "llm"
        leaning = bool(self.query.context)
        return prompt.build(
            self.question,
            self.hits,
            # A small model is led astray by turns that the question does not lean on.
            self.session.history if large or leaning else (),
            asked=self._asked(),
            overview=self.overview,
            large=large,
            passages=self.settings.llm_passages if large else self.settings.slm_passages,
            evidence_tokens=self.settings.evidence_tokens,
            history_turns=self.settings.history_turns if large else 1,
            context_tokens=context_tokens,
            max_tokens=self._most(leg),
            examples=leg.examples,
            check=self.settings.check and not self.insist,
            draft=self.drafts[-1].text if self._refines and large and self.drafts else None,
            language=self.settings.answer_language,
        )

    def _most(self, leg: Answering) -> int:
        """Tokens that it may write."""
        return leg.max_tokens if self.max_tokens is None else min(leg.max_tokens, self.max_tokens)

    def _refused_to(self, leg: Answering) -> str | None:
        """Why text must not be sent there."""
        if not leg.leaves or self.session.remote == "allow":
            return None
        return say((NOT_ALLOWED if self.session.remote == "never" else NOT_ASKED)[leg.name], where=leg.where)

    @property
    def _refines(self) -> bool:
        return self.mode == "auto" and self.settings.strategy == "refine"

    async def _finish_draft(self) -> AsyncGenerator[Event, None]:
        """The small model writes again what was given up."""
        self.drafts = [draft for draft in self.drafts if draft.leg != "slm"]
        self.shown = ""
        async with aclosing(self._ask(self.legs.slm, whole=True)) as events:
            async for event in events:
                yield event

    def _read_most(self) -> tuple[Hit, ...]:
        return max((built.evidence for built in self.prompts.values()), key=len, default=())

    def _finish(self, draft: Draft | None, verdict: Verdict | None, *, escalated: bool) -> Answered:
        refused = draft is None or self.denied or confidence.is_refusal(draft.text)
        cited: tuple[Citation, ...] = ()
        if draft is None or refused:
            text = _only_outline(self.overview) if self.overview else _not_found(self.hits)
        else:
            with self.trace.span("cite"):
                resolved = citations.resolve(draft.text, self.prompts[draft.leg].evidence, self.index.idf)
            text, cited = resolved.text, resolved.citations
            if resolved.invented:
                self.notes.append(say("turn.note_invented", count=resolved.invented))
            if not cited:
                self.notes.append(say("turn.note_unsupported"))
            if draft.finish_reason == "length":
                self.notes.append(say("turn.note_cut_off"))
        self.shown = text
        turn = Turn(
            question=self.question,
            query=str(self.query),
            mode=self.mode,
            answer=text,
            model=draft.model if draft else None,
            where=self._went(),
            escalated=escalated,
            refused=refused,
            verdict=verdict,
            drafts=tuple(self.drafts),
            # Of an overview, what was read: a first sentence for each heading is no result of a search.
            hits=self.hits if self.overview is None else self._read_most(),
            citations=cited,
            set_aside=self._set_aside() if escalated else None,
            notes=tuple(self.notes),
            bill=bill(
                self.drafts,
                self.trace,
                self.settings,
                remote=[leg.name for leg in (self.legs.slm, self.legs.llm) if leg.leaves],
                sampled=self.sampled,
            ),
            prompts=dict(self.prompts),
            check=self.check,
            fitted=self.calibration,
            trace=self.trace,
        )
        self.session.remember(Exchange(self.id, self.question, str(self.query), text, refused))
        return Answered(turn)

    def _went(self) -> str | None:
        elsewhere = [where for where in self.where.values() if where != HERE]
        return ", ".join(dict.fromkeys(elsewhere)) or (HERE if self.where else None)

    def _set_aside(self) -> SetAside | None:
        whole = (draft for draft in self.drafts if draft.leg == "slm" and draft.finish_reason == "stop")
        draft = next(whole, None)
        if draft is None or confidence.is_refusal(draft.text) or not draft.text.strip():
            return None
        resolved = citations.resolve(draft.text, self.prompts["slm"].evidence, self.index.idf)
        return SetAside(draft.model, resolved.text, resolved.citations)


class _Watch:
    """Looks at a small model's draft while it grows, at the moments for which giving up was fitted."""

    def __init__(self, turn: _Work, leg: Answering) -> None:
        self._turn = turn
        self._leg = leg
        self._grounds: Grounds | None = None
        fitted, settings = turn.calibration, turn.settings
        asked = settings.confidence
        self._moments: list[int] = []
        if (
            fitted is not None
            and settings.early
            and turn.mode == "auto"
            and turn.overview is None
            # A refined answer needs the whole draft, and a larger model that is not here would make it needed after all.
            and settings.strategy == "answer"
            and turn.legs.llm.state.at_hand
            and turn._refused_to(turn.legs.llm) is None
            # Who asks for less confidence than was fitted would miss drafts that he wants.
            and (asked is None or asked >= fitted.right.at)
        ):
            self._moments = sorted(fitted.early)
            self._fitted = fitted
            self._threshold = fitted.right.at if asked is None else asked

    def given_up(self, text: str, tokens: Sequence[Written]) -> bool:
        """Is it time to look, and is it hopeless? Then the turn holds the verdict."""
        if not self._moments or len(tokens) < self._moments[0]:
            return False
        after = self._moments.pop(0)
        if self._grounds is None:
            self._grounds = self._turn._grounds(self._leg.name)
        with self._turn.trace.span("judge", self._leg.name):
            self._turn.given_up = confidence.hopeless(
                after, text, tokens, self._grounds, self._fitted, threshold=self._threshold
            )
        return self._turn.given_up is not None


def _not_here(leg: Answering) -> str | None:
    """Why the larger model cannot be asked now, when waiting for it would be too long to sit through."""
    if leg.state.phase in ("fetching", "verifying"):
        return say("turn.not_here_yet", state=leg.state.words)
    if leg.state.phase == "absent" and not leg.installed:
        return say("turn.not_here", command=f"smallfirst models pull {leg.model}")
    return None


def _only_outline(overview: Overview) -> str:
    if not overview.outline:
        return say("turn.only_begins", name=overview.name, text=overview.hits[0].passage.text)
    return say("turn.only_outline", name=overview.name, outline=overview.outline)


def _not_found(hits: Sequence[Hit]) -> str:
    places = list(dict.fromkeys(hit.passage.source for hit in hits))[:3]
    if not places:
        return say("turn.not_found_no_word")
    return say("turn.not_found", places=", ".join(places))
