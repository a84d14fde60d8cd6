"""How fast models are, by the length of the prompt and by how many ask at once: the run that fills a sweep's report.

Knows the order of the work: load, warm up, lengths, concurrency. One request is `speed`'s, what can be measured
`runtimes`', what is reported `sweep`'s, how it is shown `bench_view`'s. What was measured stays in the report, however
the run ends.
"""

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence

from rag.errors import ModelError, PromptTooLong, RagError
from rag.lab import runtimes, speed
from rag.lab.runtimes import Runner, Running
from rag.lab.speed import Scale, Timed
from rag.lab.sweep import MEDIUM_TOKENS, AtConcurrency, AtLength, Measured, Plan, Report
from rag.models.backend import Message
from rag.resources import Sampler, Used
from rag.settings import Settings

Progress = Callable[[str, int, int], None]
"""What is being done, how many of how many are done."""

FEW_PIECES = 0.9
"""For each token. Fewer cannot be tokens one by one; a few are held back by characters that take several."""


async def run(
    report: Report, settings: Settings, *, models: Sequence[str] = (), survey: str | None = None, progress: Progress
) -> None:
    """Fill the report: the `models` (or the chat's pair) as the chat would run them, or a `survey` of runtimes.

    `survey`: `all` or one of `runtimes.KINDS`. A model that fails costs only itself. Raises UserError for what cannot be
    measured before anything is; and at the end the first model's error: in a survey only if nothing could be measured.
    """
    if survey is None:
        runners = await runtimes.named(models, settings)
    else:
        runners = await runtimes.everywhere(settings, runtimes.KINDS if survey == "all" else (survey,), models)
    broken: list[RagError] = []
    for number, runner in enumerate(runners, 1):
        who = f"{number}/{len(runners)} {runner.model}" if len(runners) > 1 else runner.model
        try:
            await _measure(report, runner, settings, lambda what, *much, who=who: progress(f"{who}: {what}", *much))
        except RagError as error:
            report.failures.append(f"{runner.model}, {runner.runtime}: {error}")
            broken.append(error)
    if broken and (survey is None or not report.rows):
        raise broken[0]
    report.complete = not broken


async def _measure(report: Report, runner: Runner, settings: Settings, progress: Progress) -> None:
    progress("loading", 0, 1)
    async with runner.open() as running:
        measured = Measured.of(running)
        report.models.append(measured)
        await _Bench(report.plan, settings, running, measured, progress).all()


class _Bench:
    """One model's requests, in order."""

    def __init__(
        self, plan: Plan, settings: Settings, running: Running, measured: Measured, progress: Progress
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._running = running
        self._measured = measured
        self._progress = progress
        # Two runs must not send the same prompts to a server that keeps what it has read.
        self._number = secrets.randbelow(100_000_000)
        self._scale: Scale | None = None
        self._written = speed.WRITTEN_TOKENS

    async def all(self) -> None:
        plan = self._plan
        if not plan.stream:
            speed.unstreamed(self._running.backend)
        await self._warm_up()
        try:
            if plan.prompt:
                await self._length("prompt", plan.rounds, None)
            else:
                await self._lengths()
            for many in plan.concurrency:
                await self._at_once(many)
        finally:
            self._remark()

    async def _warm_up(self) -> None:
        backend, stream = self._running.backend, self._plan.stream
        self._progress("warming up", 0, 1)
        if self._plan.prompt:
            self._measured.warm_up, self._written = await speed.warm_up(backend, self._of(None), streamed=stream)
        else:
            numbers = (self._next(), self._next())
            self._scale, self._measured.warm_up = await speed.scale(backend, numbers, streamed=stream)
            self._written = self._scale.written_tokens

    def _remark(self) -> None:
        """Why some figures are not there, or not what they seem."""
        rows, notes = self._measured.lengths, self._measured.notes
        if not self._plan.stream:
            notes.append("Asked without streaming (BENCH_STREAM=0), so only whole requests could be timed.")
            return
        if self._written > speed.WRITTEN_TOKENS:
            notes.append(
                f"It thinks before it answers, so it may write {self._written} tokens where others write"
                f" {speed.WRITTEN_TOKENS}; times between pieces are those of the answer alone."
            )
        if any(row.first_token_ms is None for row in rows):
            notes.append("It does not stream its answers, so the time of their first token is not known.")
        elif any(row.output_tokens and row.decode_tokens_per_s is None for row in rows):
            notes.append(f"Where it wrote fewer than {speed.LEAST_TOKENS} tokens its speed of writing is not told.")
        timed = [one for row in rows for one in row.timed if one.gaps_ms and one.output_tokens is not None]
        pieces, tokens = sum(len(one.gaps_ms) + 1 for one in timed), sum(one.output_tokens or 0 for one in timed)
        if pieces < tokens * FEW_PIECES and self._written == speed.WRITTEN_TOKENS:
            notes.append(
                f"It sent {pieces:,} pieces of text for {tokens:,} tokens: the times between pieces are longer than those"
                " between tokens."
            )

    async def _lengths(self) -> None:
        done: set[int] = set()
        for wanted in self._plan.lengths:
            tokens = self._fitting(wanted)
            if tokens in done:
                continue
            try:
                await self._length(f"pp{tokens}", self._plan.rounds_of(tokens), tokens)
                done.add(tokens)
            except PromptTooLong:
                # Its answer may have told the window.
                shorter = self._fitting(wanted)
                if shorter < tokens and shorter not in done:
                    await self._length(f"pp{shorter}", self._plan.rounds_of(shorter), shorter)
                elif shorter >= tokens:
                    self._measured.notes.append(f"Prompts of {tokens:,} tokens are too long for it.")
                done.add(shorter)

    def _fitting(self, wanted: int) -> int:
        """That many tokens, or as many as the window holds beside the answer; no fewer than the task alone has."""
        least = math.ceil(self._scale.fixed_tokens) if self._scale is not None else 1
        if wanted < least:
            self._note(f"The task alone has {least} tokens for it; shorter prompts were not asked.")
            return least
        window = self._running.backend.context_tokens
        most = wanted if window is None else window - self._written - speed.SPARE_TOKENS
        if wanted <= most:
            return wanted
        self._note(
            f"Its window of {window:,} tokens holds a prompt of {most:,} and an answer; longer ones were not asked."
        )
        return max(1, most)

    def _note(self, words: str) -> None:
        if words not in self._measured.notes:
            self._measured.notes.append(words)

    async def _length(self, label: str, rounds: int, tokens: int | None) -> None:
        timed: list[Timed] = []
        what = f"{label}, one at a time"
        async with self._watched() as used:
            try:
                self._progress(what, 0, rounds)
                for number in range(rounds):
                    timed.append(await self._ask(self._of(tokens), self._written))
                    self._progress(what, number + 1, rounds)
            finally:
                if timed:
                    self._measured.lengths.append(AtLength(label, tuple(timed), used()))

    async def _at_once(self, many: int) -> None:
        """Raises a request's error where the model is gone: none was answered, or one was not by a server of ours."""
        waves = math.ceil(self._plan.rounds / many)
        total = waves * many
        what = f"{many} at once"
        timed: list[Timed] = []
        failed: list[ModelError] = []
        clock = asyncio.get_running_loop().time

        async def one(messages: list[Message], written: int) -> None:
            try:
                timed.append(await self._ask(messages, written))
            except ModelError as error:
                failed.append(error)
            self._progress(what, len(timed) + len(failed), total)

        tokens = None if self._plan.prompt else self._fitting(MEDIUM_TOKENS)
        thinks = self._written > speed.WRITTEN_TOKENS
        written = self._written if self._plan.prompt or thinks else speed.SHORT_TOKENS
        async with self._watched() as used:
            self._progress(what, 0, total)
            wall_s = 0.0
            try:
                for _ in range(waves):
                    wave = [self._of(tokens) for _ in range(many)]
                    began = clock()
                    try:
                        async with asyncio.TaskGroup() as group:
                            for messages in wave:
                                group.create_task(one(messages, written))
                    finally:
                        wall_s += clock() - began
            finally:
                if timed:
                    told = tuple(str(error) for error in failed)
                    self._measured.concurrency.append(AtConcurrency(many, tuple(timed), told, wall_s, used()))
        # What a server of others refuses under load is a figure; ours has only one request at a time, so it has died.
        if failed and (self._running.queued or not timed):
            raise failed[0]

    async def _ask(self, messages: list[Message], written: int) -> Timed:
        return await speed.ask(self._running.backend, messages, written, streamed=self._plan.stream)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _of(self, tokens: int | None) -> list[Message]:
        """A prompt of that length; for None the user's own."""
        if tokens is None:
            return speed.given(self._next(), self._plan.prompt)
        assert self._scale is not None, "the warm-up counted"
        return speed.prompt(self._next(), self._scale.words(tokens))

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[Callable[[], Used]]:
        """What the model's server uses meanwhile, asked by calling what is yielded."""
        async with Sampler({"model": self._running.pid}, watts=self._settings.watts) as sampler:
            yield lambda: sampler.used("model")
