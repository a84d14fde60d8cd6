"""Both models asked the same: `run` fills a Report.

Knows how they must be asked so that their figures can be compared. The messages are the turn's (`prepared`), the answers
come through the product's own backends, and a refined answer through `cascade.answer`. What is made of the figures is
`comparison`'s, how they look is `compare_view`'s.

Both are asked at temperature 0 with one seed and one limit of tokens, prompt by prompt and round by round, one after the
other and each in turn the first, so that a machine that slows down slows both. In a round a model answers twice: `cold`,
and at once again, `warm`, when its server has kept the prompt. So that cold is cold, the server is first asked one token of
something else, and ours keep no prompt but the last: of the prompt they then hold only what the template begins with, three
tokens of the models that come with this program. What a server elsewhere keeps is not known.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from dataclasses import replace

from rag import terminal
from rag.corpus.library import Library
from rag.errors import ModelRefused, ModelSilent, PromptTooLong, UserError
from rag.lab.comparison import LEGS, TEMPERATURE, Asked, Failure, Model, Refinement, Report, Run
from rag.lab.prepared import prepare
from rag.models.backend import ChatBackend, Delta, Draft, Message
from rag.models.legs import Leg, Legs
from rag.models.places import LegName
from rag.models.state import PROGRESS
from rag.resources import Sampler, Used
from rag.settings import Settings
from rag.trace import Trace
from rag.turn import cascade
from rag.turn.bill import COMPUTING, WRITING, Price
from rag.turn.prompt import REFINE
from rag.turn.session import Session
from rag.words import say

Count = Callable[[str, int, int], None]
"""Told what is done, how many, and of how many."""

# Asked only to make a server forget: it begins like no other prompt. The second is for templates without a system message.
_ELSE: tuple[list[Message], ...] = (
    [{"role": "system", "content": "."}, {"role": "user", "content": "?"}],
    [{"role": "user", "content": "?"}],
)


async def run(report: Report, settings: Settings, *, progress: Count = lambda *_: None) -> None:
    """Measure all that the report's plan says, and fill the report with it.

    Whatever is raised (RagError, cancellation) leaves in the report what was measured until then, and no process behind. A
    model that has no answer to one prompt is noted, and the others go on. A model on another machine is asked only where
    settings allow it.
    """
    report.max_tokens, report.currency = settings.llm_max_tokens, settings.currency
    # Of several prompts that it keeps, a server finds the beginning of the next one again.
    settings = settings.model_copy(update={"prompt_cache_mb": 0})
    legs = Legs(settings)
    try:
        await legs.located()
        for leg in (legs.slm, legs.llm):
            _check_allowed(leg, settings)
        with _library(settings if report.plan.retrieve else None) as library:
            for leg in (legs.slm, legs.llm):
                report.models[leg.name] = await _open(leg, settings)
            await _Measuring(report, settings, legs, library, progress).all()
    finally:
        await legs.close()
    report.complete = True


@contextmanager
def _library(settings: Settings | None) -> Iterator[Library | None]:
    if settings is None:
        yield None
        return
    with closing(Library(settings)) as library:
        terminal.read(library)
        yield library


def _check_allowed(leg: Leg, settings: Settings) -> None:
    if leg.leaves and settings.remote != "allow":
        texts = cascade.NOT_ALLOWED if settings.remote == "never" else cascade.NOT_ASKED
        raise UserError(say(texts[leg.name], where=leg.where))


async def _open(leg: Leg, settings: Settings) -> Model:
    """Have it answer; where it must be fetched, that is shown."""
    fetched = False
    began = time.perf_counter()
    leg.start()
    async with aclosing(leg.changes()) as states:
        async for state in states:
            if state.phase in PROGRESS:
                fetched = True
                await terminal.show_starting(leg, tell_failed=False)
                break
            if state.usable or state.phase == "failed":
                break
    await forget(await leg.backend())
    loaded_s = time.perf_counter() - began
    ours = leg.pid is not None
    return Model(
        name=leg.model,
        runs_on=leg.runs_on,
        where=leg.where,
        ours=ours,
        load_s=loaded_s if ours and not fetched else None,
        price=Price.of(leg.name, settings, remote=leg.leaves),
    )


async def forget(backend: ChatBackend) -> None:
    """Ask for one token of something else, so that the server keeps nothing of the next prompt."""
    for messages in _ELSE:
        try:
            with suppress(ModelSilent):  # one token is little to say
                async with aclosing(backend.stream(messages, max_tokens=1, trace=Trace())) as pieces:
                    async for _ in pieces:
                        pass
            return
        except ModelRefused:
            if messages is _ELSE[-1]:
                raise


class _Measuring:
    """A comparison under way."""

    def __init__(
        self, report: Report, settings: Settings, legs: Legs, library: Library | None, progress: Count
    ) -> None:
        self.report = report
        self.plan = report.plan
        self.settings = settings
        self.legs = legs
        self.library = library
        self.progress = progress
        self.done = 0

    async def all(self) -> None:
        self._count(0)
        for number, prompt in enumerate(self.plan.prompts):
            self.report.asked.append(await self._asked(prompt))
            for round_ in range(self.plan.repeat):
                for name in LEGS if (number + round_) % 2 == 0 else LEGS[::-1]:
                    await self._answers(number, self._leg(name))
            if self.plan.refine:
                if all(self.report.failure(number, name) for name in LEGS):
                    self._count(1)
                else:
                    await self._refine(number)

    def _leg(self, name: LegName) -> Leg:
        return self.legs.slm if name == "slm" else self.legs.llm

    def _count(self, more: int) -> None:
        self.done += more
        self.progress("Answers", self.done, self.plan.answers)

    async def _asked(self, prompt: str) -> Asked:
        alone: list[Message] = [{"role": "user", "content": prompt}]
        if self.library is None:
            return Asked(prompt, alone)
        windows = [(await self._leg(name).backend()).context_tokens for name in LEGS]
        try:
            built = await prepare(
                prompt,
                self.library,
                self.settings,
                context_tokens=min((window for window in windows if window is not None), default=None),
                max_tokens=self.report.max_tokens,
            )
        except UserError as error:  # it is too long for a turn; the others need not be
            self.report.failures += [Failure(len(self.report.asked), leg, str(error)) for leg in LEGS]
            return Asked(prompt, alone)
        if built is None:
            return Asked(prompt, alone, silent=True)
        return Asked(prompt, built.messages, tuple(hit.passage.place for hit in built.evidence))

    async def _answers(self, number: int, leg: Leg) -> None:
        """One model's cold and warm answer to one prompt; neither where it had none before."""
        messages = self.report.asked[number].messages
        if self.report.failure(number, leg.name) is None:
            await forget(await leg.backend())
        for cold in (True, False):
            if self.report.failure(number, leg.name) is None:
                trace = Trace()
                try:
                    async with Sampler({leg.name: lambda: leg.pid}, watts=self.settings.watts) as sampler:
                        draft, pieces = await self._stream(leg, messages, self.report.max_tokens, trace)
                    used = sampler.used(leg.name)
                    self.report.runs.append(self._timed(number, leg.name, draft, pieces, trace, cold=cold, used=used))
                except (ModelSilent, PromptTooLong) as error:
                    self.report.failures.append(Failure(number, leg.name, str(error)))
            self._count(1)

    async def _stream(self, leg: Leg, messages: list[Message], max_tokens: int, trace: Trace) -> tuple[Draft, int]:
        """The answer, and in how many pieces it came."""
        backend = await leg.backend()
        pieces = 0
        stream = backend.stream(
            messages, max_tokens=max_tokens, trace=trace, temperature=TEMPERATURE, seed=self.plan.seed
        )
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, Draft):
                    return event, pieces
                pieces += isinstance(event, Delta)
        raise AssertionError("a stream ends with a draft or raises")

    def _timed(
        self,
        number: int,
        leg: LegName,
        draft: Draft,
        pieces: int,
        trace: Trace,
        *,
        cold: bool,
        used: Used | None = None,
    ) -> Run:
        spans = [span for span in trace.spans if span.leg == leg and span.name in COMPUTING]
        # A busy server is asked again; what was waited until then says nothing of its speed.
        sent_ms = [span.start_ms for span in spans if span.name == "first_token"][-1]
        spans = [span for span in spans if span.start_ms >= sent_ms]
        write_ms = sum(span.duration_ms or 0 for span in spans if span.name in WRITING)
        end_ms = max(span.end_ms or 0 for span in spans)
        read, written = (draft.usage.input_tokens, draft.usage.output_tokens) if draft.usage else (None, None)
        return Run(
            prompt=number,
            leg=leg,
            model=draft.model,
            cold=cold,
            text=draft.text,
            finish_reason=draft.finish_reason,
            ttft_ms=next(span.start_ms for span in spans if span.name == "completion") - sent_ms,
            total_ms=end_ms - sent_ms,
            read_ms=end_ms - sent_ms - write_ms,
            write_ms=write_ms,
            streamed=pieces > 1,
            input_tokens=read,
            output_tokens=written,
            cost=self.report.models[leg].price.cost(read, written),
            used=used,
        )

    async def _refine(self, number: int) -> None:
        both = (self.legs.slm, self.legs.llm)
        for leg in both:
            await forget(await leg.backend())
        pids = {"slm": lambda: self.legs.slm.pid, "llm": lambda: self.legs.llm.pid}
        async with Sampler(pids, watts=self.settings.watts) as sampler:
            if self.library is None:
                refinement = await self._refine_alone(number)
            else:
                refinement = await self._refine_turn(number, self.library)
        cpu_s = [sampler.used(leg.name).cpu_s for leg in both]
        known_s = [one for one in cpu_s if one is not None]
        self.report.refinements.append(replace(refinement, cpu_s=sum(known_s) if len(known_s) == len(cpu_s) else None))
        if not refinement.whole:
            # A turn makes do with what it has; a model that has died is told of here.
            for leg in both:
                await forget(await leg.backend())
        self._count(1)

    async def _refine_turn(self, number: int, library: Library) -> Refinement:
        """As the chat does with RAG_STRATEGY=refine, except that no draft is good enough."""
        never = {"strategy": "refine", "confidence": 1.0}
        session, trace = Session(library, "auto"), Trace()
        turn: cascade.Turn | None = None
        pieces = dict.fromkeys(LEGS, 0)
        try:
            events = cascade.answer(
                self.plan.prompts[number],
                session=session,
                legs=self.legs,
                settings=self.settings.model_copy(update=never),
                trace=trace,
            )
            async with aclosing(events):
                async for event in events:
                    match event:
                        case cascade.Failed():
                            raise event.error
                        case cascade.Token(leg="slm" | "llm" as leg):
                            pieces[leg] += 1
                        case cascade.Answered():
                            turn = event.turn
        finally:
            session.attachments.close()
        assert turn is not None, "a turn ends with an answer or fails"
        wrote = {draft.leg: draft for draft in turn.drafts}
        parts = {
            leg: self._timed(number, leg, wrote[leg], pieces[leg], trace, cold=True) for leg in LEGS if leg in wrote
        }
        verdict, why = turn.verdict, ""
        if len(parts) < len(LEGS):
            stands = verdict is not None and (verdict.accepted or not parts)
            why = verdict.reason if verdict is not None and stands else " ".join(turn.notes)
        return self._refined(number, parts.get("slm"), parts.get("llm"), trace, why)

    async def _refine_alone(self, number: int) -> Refinement:
        """Without documents there is no turn: the larger model gets the prompt, and the draft as a turn words it."""
        trace, messages = Trace(), self.report.asked[number].messages
        draft = refined = None
        why = ""
        try:
            slm, llm = self.legs.slm, self.legs.llm
            wrote, pieces = await self._stream(slm, messages, slm.max_tokens, trace)
            draft = self._timed(number, slm.name, wrote, pieces, trace, cold=True)
            asked = f"{messages[-1]['content']}\n\n{REFINE}\n{wrote.text}"
            wrote, pieces = await self._stream(llm, [{"role": "user", "content": asked}], llm.max_tokens, trace)
            refined = self._timed(number, llm.name, wrote, pieces, trace, cold=True)
        except (ModelSilent, PromptTooLong) as error:
            why = str(error)
        return self._refined(number, draft, refined, trace, why)

    def _refined(self, number: int, draft: Run | None, refined: Run | None, trace: Trace, why: str) -> Refinement:
        stands = trace.find("completion", "llm") if refined is not None else None
        seen = trace.find("completion", "slm") if draft is not None else stands
        return Refinement(
            prompt=number,
            draft=draft,
            refined=refined,
            ttft_ms=seen.start_ms if seen is not None else None,
            answer_ttft_ms=stands.start_ms if stands is not None else None,
            total_ms=trace.total_ms,
            cpu_s=None,
            why=why,
        )
