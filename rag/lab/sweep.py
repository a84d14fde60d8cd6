"""What a sweep measures of models, by the length of the prompt and by how many ask at once: Plan, Measured, Report.

Knows what each figure is made of; asks nobody and shows nothing. A figure that is not known is None, or left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from rag import __version__
from rag.errors import UserError
from rag.lab import speed
from rag.lab.machine import machine
from rag.lab.runtimes import Running
from rag.lab.speed import Timed
from rag.lab.spread import Spread
from rag.resources import Used
from rag.settings import Settings

LENGTHS = (64, 256, 1024, 4096)
CONCURRENCY = (1, 2, 4, 8, 16, 32)
SURVEY_LENGTHS = (1024,)
"""Of each model on each runtime."""
MEDIUM_TOKENS = 128
"""What is read by each of several at once."""
FULL_ROUNDS_TOKENS = 1024
"""A longer prompt is asked less often, so that all of its rounds read about as much."""
LEAST_ROUNDS = 2
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


def _told(spread: Spread | None) -> dict[str, float | int | None] | None:
    return None if spread is None else spread.to_dict()


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _flat(name: str, spread: Spread | None, parts: Sequence[str]) -> dict[str, float | None]:
    return {} if spread is None else {f"{name}_{part}": getattr(spread, part) for part in parts}
