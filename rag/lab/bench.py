"""How fast models are, by the length of the prompt and by how many ask at once: Plan, Report, and the run that fills it.

Knows the order of the work (load, warm up, lengths, concurrency) and what of it is reported. One request is `speed`'s,
what can be measured `runtimes`', how it is shown `bench_view`'s. What was measured stays in the report, however the run
ends.
"""

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from rag import __version__
from rag.errors import ModelError, PromptTooLong, RagError, UserError
from rag.lab import runtimes, speed
from rag.lab.machine import machine
from rag.lab.runtimes import Runner, Running
from rag.lab.speed import Scale, Timed
from rag.lab.spread import Spread
from rag.models.backend import Message
from rag.resources import Sampler, Used
from rag.settings import Settings

Progress = Callable[[str, int, int], None]
"""What is being done, how many of how many are done."""

LENGTHS = (64, 256, 1024, 4096)
CONCURRENCY = (1, 2, 4, 8, 16, 32)
SURVEY_LENGTHS = (1024,)
"""Of each model on each runtime."""
MEDIUM_TOKENS = 128
"""What is read by each of several at once."""
FULL_ROUNDS_TOKENS = 1024
"""A longer prompt is asked less often, so that all of its rounds read about as much."""
LEAST_ROUNDS = 2
FEW_PIECES = 0.9
"""For each token. Fewer cannot be tokens one by one; a few are held back by characters that take several."""
MOST_TOKENS = 1_000_000
MOST_AT_ONCE = 1024


@dataclass(frozen=True)
class Plan:
    """What is measured of each model."""

    rounds: int
    lengths: tuple[int, ...] = LENGTHS
    """Of the prompts, tokens, shortest first."""
    concurrency: tuple[int, ...] = CONCURRENCY
    """How many requests at once, fewest first."""
    prompt: str = ""
    """What is asked in place of prompts of these lengths."""
    stream: bool = True

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        rounds: int | None = None,
        lengths: str | None = None,
        concurrency: str | None = None,
        prompt: str | None = None,
        survey: bool = False,
    ) -> "Plan":
        """From the command line, else from settings; a `survey` of runtimes is shorter. UserError for what cannot be."""
        if rounds is not None and rounds < 1:
            raise UserError(f"--rounds is {rounds}; at least 1 is needed.")
        if prompt is not None and not prompt.strip():
            raise UserError("--prompt is empty. Write what the models are to be asked.")
        if prompt is not None and lengths is not None:
            raise UserError("--lengths is of prompts that are made here, and --prompt is one. Leave one of them out.")
        # The command line outdoes the environment.
        asked = (prompt or ("" if lengths is not None else settings.bench_prompt)).strip()
        many = SURVEY_LENGTHS if survey else LENGTHS
        plan = cls(
            rounds=settings.bench_rounds if rounds is None else rounds,
            lengths=() if asked else _numbers("--lengths", lengths, MOST_TOKENS, many),
            concurrency=_numbers("--concurrency", concurrency, MOST_AT_ONCE, () if survey else CONCURRENCY),
            prompt=asked,
            stream=settings.bench_stream,
        )
        if not (plan.prompt or plan.lengths or plan.concurrency):
            raise UserError("Neither a length nor a concurrency is left to measure. Name one with --lengths 256.")
        return plan

    def rounds_of(self, tokens: int) -> int:
        """How often a prompt of that length is asked."""
        fewer = math.ceil(self.rounds * FULL_ROUNDS_TOKENS / max(tokens, 1))
        return min(self.rounds, max(LEAST_ROUNDS, fewer))

    def to_dict(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "lengths": list(self.lengths),
            "concurrency": list(self.concurrency),
            "prompt": self.prompt or None,
            "stream": self.stream,
            "written_tokens": speed.WRITTEN_TOKENS,
            "at_once_input_tokens": MEDIUM_TOKENS,
            "at_once_written_tokens": speed.SHORT_TOKENS,
        }


def _numbers(flag: str, given: str | None, most: int, usual: tuple[int, ...]) -> tuple[int, ...]:
    if given is None:
        return usual
    if given.strip().lower() == "none":
        return ()
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isascii() and part.isdecimal() and 1 <= int(part[:10]) <= most for part in parts):
        raise UserError(
            f"{flag} is {given!r}. Write numbers from 1 to {most:,} with commas between them, as in 64,256, or none."
        )
    return tuple(sorted({int(part) for part in parts}))


@dataclass(frozen=True)
class AtLength:
    """One model's requests with prompts of one length, one after the other."""

    label: str
    """`pp1024`, as llama-bench calls the reading of so many tokens; `prompt` for the user's own."""
    timed: tuple[Timed, ...]
    used: Used
    """By the model's server while all of them ran; of a server that is not ours nothing is known."""

    @property
    def rounds(self) -> int:
        return len(self.timed)

    @property
    def input_tokens(self) -> Spread | None:
        return Spread.of(one.input_tokens for one in self.timed)

    @property
    def output_tokens(self) -> Spread | None:
        return Spread.of(one.output_tokens for one in self.timed)

    @property
    def first_token_ms(self) -> Spread | None:
        return Spread.of(one.first_ms for one in self.timed)

    @property
    def inter_token_ms(self) -> Spread | None:
        """Of all rounds together."""
        return Spread.of(gap for one in self.timed for gap in one.gaps_ms)

    @property
    def total_ms(self) -> Spread | None:
        return Spread.of(one.total_ms for one in self.timed)

    @property
    def prefill_tokens_per_s(self) -> Spread | None:
        return Spread.of(one.prefill_tokens_per_s for one in self.timed)

    @property
    def decode_tokens_per_s(self) -> Spread | None:
        return Spread.of(one.decode_tokens_per_s for one in self.timed)

    @property
    def cpu_s(self) -> float | None:
        """Of one request, on average."""
        return None if self.used.cpu_s is None else self.used.cpu_s / self.rounds

    @property
    def written_label(self) -> str:
        """`tg48 @ d1024`, as llama-bench calls the writing of so many tokens after so many that were read."""
        written = self.output_tokens
        return f"tg{written.p50:.0f} @ {self.label.replace('pp', 'd')}" if written else "tg"

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "rounds": self.rounds,
            **{name: _told(getattr(self, name)) for name in SPREADS},
            "cpu_s": _rounded(self.cpu_s, 3),
            "peak_memory_mb": _rounded(self.used.peak_memory_mb, 1),
            "used": self.used.to_dict(),
        }


SPREADS = (
    "input_tokens",
    "output_tokens",
    "first_token_ms",
    "inter_token_ms",
    "total_ms",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
)


@dataclass(frozen=True)
class AtConcurrency:
    """One model's requests, so many at once; when all have ended, the next so many."""

    concurrency: int
    timed: tuple[Timed, ...]
    failures: tuple[str, ...]
    """What each request that failed was told."""
    wall_s: float
    """That all of it took."""
    used: Used

    @property
    def requests(self) -> int:
        return len(self.timed) + len(self.failures)

    @property
    def tokens_per_s(self) -> float | None:
        """Written by all together; None where the server does not count."""
        written = [one.output_tokens for one in self.timed if one.output_tokens is not None]
        return sum(written) / self.wall_s if written and len(written) == len(self.timed) else None

    @property
    def queue_ms(self) -> Spread | None:
        return Spread.of(one.waited_ms for one in self.timed)

    @property
    def compute_ms(self) -> Spread | None:
        """To the first token, without the wait for our turn."""
        return Spread.of(one.first_ms for one in self.timed)

    @property
    def first_token_ms(self) -> Spread | None:
        """As whoever asked sees it: the wait for our turn is part of it."""
        return Spread.of(None if one.first_ms is None else one.waited_ms + one.first_ms for one in self.timed)

    @property
    def total_ms(self) -> Spread | None:
        return Spread.of(one.waited_ms + one.total_ms for one in self.timed)

    @property
    def cpu_s(self) -> float | None:
        """Of one request that was answered, on average."""
        return None if self.used.cpu_s is None or not self.timed else self.used.cpu_s / len(self.timed)

    def to_dict(self, *, queued: bool) -> dict[str, Any]:
        return {
            "concurrency": self.concurrency,
            "requests": self.requests,
            "failures": len(self.failures),
            "failed_with": sorted(set(self.failures)),
            "wall_s": round(self.wall_s, 3),
            "tokens_per_s": _rounded(self.tokens_per_s, 2),
            "requests_per_s": round(len(self.timed) / self.wall_s, 3),
            "input_tokens": _told(Spread.of(one.input_tokens for one in self.timed)),
            "output_tokens": _told(Spread.of(one.output_tokens for one in self.timed)),
            "first_token_ms": _told(self.first_token_ms),
            "queue_ms": _told(self.queue_ms) if queued else None,
            "compute_ms": _told(self.compute_ms) if queued else None,
            "total_ms": _told(self.total_ms),
            "cpu_s": _rounded(self.cpu_s, 3),
            "peak_memory_mb": _rounded(self.used.peak_memory_mb, 1),
            "used": self.used.to_dict(),
        }


@dataclass
class Measured:
    """One model on one runtime, filled row by row."""

    model: str
    runtime: str
    where: str
    context_tokens: int | None
    queued: bool
    load_s: float | None = None
    threads: int | None = None
    devices: tuple[str, ...] = ()
    warm_up: Timed | None = None
    """The first request after loading."""
    lengths: list[AtLength] = field(default_factory=list)
    concurrency: list[AtConcurrency] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What of the plan was measured in another way, for a person."""

    @classmethod
    def of(cls, running: Running) -> "Measured":
        return cls(
            model=running.model,
            runtime=running.runtime,
            where=running.where,
            context_tokens=running.context_tokens,
            queued=running.queued,
            load_s=running.load_s,
            threads=running.threads,
            devices=running.devices,
        )

    @property
    def title(self) -> str:
        return f"{self.model} on {self.runtime}"

    @property
    def streams(self) -> bool:
        """Did any of its answers come piece by piece?"""
        return any(row.first_token_ms is not None for row in self.lengths)

    @property
    def peak_memory_mb(self) -> float | None:
        used = [*(row.used for row in self.lengths), *(row.used for row in self.concurrency)]
        seen = [one.peak_memory_mb for one in used]
        return max((value for value in seen if value is not None), default=None)

    @property
    def metrics(self) -> dict[str, float]:
        """Flat; what is not known is left out."""
        found: dict[str, float | None] = {"load_s": self.load_s, "peak_memory_mb": self.peak_memory_mb}
        if self.warm_up is not None:
            found["first_request_first_token_ms"] = self.warm_up.first_ms
        for row in self.lengths:
            for name in ("prefill_tokens_per_s", "decode_tokens_per_s"):
                found |= _flat(f"{row.label}, {name}", getattr(row, name), ("mean", "sd", "p50"))
            for name in ("first_token_ms", "inter_token_ms", "total_ms"):
                found |= _flat(f"{row.label}, {name}", getattr(row, name), ("p50", "p95"))
            found[f"{row.label}, cpu_s"] = row.cpu_s
        for many in self.concurrency:
            at = f"{many.concurrency} at once"
            found[f"{at}, tokens_per_s"] = many.tokens_per_s
            found[f"{at}, failures"] = len(many.failures)
            for name in ("first_token_ms", "total_ms", *(("queue_ms", "compute_ms") if self.queued else ())):
                found |= _flat(f"{at}, {name}", getattr(many, name), ("p50", "p95"))
        return {f"{self.title}, {name}": round(value, 3) for name, value in found.items() if value is not None}

    @property
    def usual(self) -> dict[str, Any] | None:
        """The usual length in one line, medians; None where it was not measured."""
        known = [row for row in self.lengths if row.input_tokens and row.prefill_tokens_per_s]
        if not known:
            return None
        row = min(known, key=lambda one: abs((one.input_tokens.p50 if one.input_tokens else 0) - SURVEY_LENGTHS[0]))
        read, prefill, decode = row.input_tokens, row.prefill_tokens_per_s, row.decode_tokens_per_s
        return {
            "runtime": self.runtime,
            "model": self.model,
            "input_tokens": round(read.p50) if read else None,
            "rounds": row.rounds,
            "prefill_tokens_per_s": _rounded(prefill.p50 if prefill else None, 1),
            "decode_tokens_per_s": _rounded(decode.p50 if decode else None, 1),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "runtime": self.runtime,
            "where": self.where,
            "context_tokens": self.context_tokens,
            "threads": self.threads,
            "devices": list(self.devices),
            "one_at_a_time": self.queued,
            "load_s": _rounded(self.load_s, 2),
            "first_request": {
                "first_token_ms": _rounded(self.warm_up.first_ms, 1),
                "total_ms": _rounded(self.warm_up.total_ms, 1),
            }
            if self.warm_up
            else None,
            "peak_memory_mb": _rounded(self.peak_memory_mb, 1),
            "by_length": [row.to_dict() for row in self.lengths],
            "by_concurrency": [row.to_dict(queued=self.queued) for row in self.concurrency],
            "notes": self.notes,
        }


@dataclass
class Report:
    """What was measured so far."""

    plan: Plan
    models: list[Measured] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Of models that could not be measured, or not to the end."""
    complete: bool = False
    """Everything of the plan was measured, of each model."""

    @property
    def rows(self) -> int:
        """How many figures of a length or a concurrency there are."""
        return sum(len(one.lengths) + len(one.concurrency) for one in self.models)

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": {name: value for one in self.models for name, value in one.metrics.items()},
            "backends": [line for one in self.models if (line := one.usual) is not None],
            "rounds": self.plan.rounds,
            "plan": self.plan.to_dict(),
            "models": [one.to_dict() for one in self.models],
            "failures": self.failures,
            "complete": self.complete,
            "version": __version__,
            "versions": {name: metadata.version(name) for name in ("openai", "xllamacpp")},
            "machine": machine(),
        }


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
        """That many tokens, or as many as the window holds beside the answer."""
        window = self._running.backend.context_tokens
        most = wanted if window is None else window - self._written - speed.SPARE_TOKENS
        if wanted <= most:
            return wanted
        note = f"Its window of {window:,} tokens holds a prompt of {most:,} and an answer; longer ones were not asked."
        if note not in self._measured.notes:
            self._measured.notes.append(note)
        return max(1, most)

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


def _told(spread: Spread | None) -> dict[str, float | int | None] | None:
    return None if spread is None else spread.to_dict()


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _flat(name: str, spread: Spread | None, parts: Sequence[str]) -> dict[str, float | None]:
    return {} if spread is None else {f"{name}_{part}": getattr(spread, part) for part in parts}
