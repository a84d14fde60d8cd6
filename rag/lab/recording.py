"""What models have written before, so that no policy needs to run them twice: Recordings, RecordedLegs.

A model, its messages and its longest answer lead to the same words at temperature 0, so each such request is sent to the
model once and replayed ever after, with the times it took. Knows nothing of questions or of what is right; the turn
cannot tell a replayed leg from a real one, except that it answers at once.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag.errors import ModelSilent, UserError
from rag.models.backend import ChatBackend, Delta, Draft, Message, Piece, Thinking, Token, Usage, Waiting
from rag.models.legs import Leg, Legs
from rag.models.state import State
from rag.resources import Sampler
from rag.trace import Trace


@dataclass(frozen=True)
class Call:
    """What one request to a model cost. Where the turn hung up early, only up to then."""

    leg: str
    model: str
    ttft_ms: float
    total_ms: float
    cpu_s: float | None
    """CPU seconds of the model's process; None where it is not on this machine."""
    input_tokens: int
    output_tokens: int
    stopped: bool
    """The turn hung up before the end."""
    waited_ms: float = field(default=0.0, compare=False)
    """What the turn really waited, because nothing was recorded yet."""


class Recordings:
    """A file of answers; committed one by one, so that an interrupted run goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT, answer TEXT)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"Answers cannot be kept in {path} ({error}). Make the folder writable, or set RAG_CACHE_DIR to another."
            ) from None

    def find(self, key: str) -> dict[str, Any] | None:
        row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def keep(self, key: str, model: str, answer: dict[str, Any]) -> None:
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, model, json.dumps(answer)))

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        self._db.close()


class RecordedLegs:
    """Both legs, which answer from recordings where they can; `calls` is what the requests cost since it was cleared."""

    def __init__(self, legs: Legs, recordings: Recordings) -> None:
        self.calls: list[Call] = []
        self.slm = RecordedLeg(legs.slm, recordings, self.calls)
        self.llm = RecordedLeg(legs.llm, recordings, self.calls)


class RecordedLeg:
    """A leg as the turn sees it. The model behind it is started at the first request that was never made before."""

    def __init__(self, leg: Leg, recordings: Recordings, calls: list[Call]) -> None:
        self.real = leg
        self.name = leg.name
        self.model = leg.model
        self.max_tokens = leg.max_tokens
        self.examples = leg.examples
        self.remote = leg.remote
        self.leaves = leg.leaves
        self.where = leg.where
        self.installed = True
        self.pid = None
        """What is replayed computes nothing."""
        self.state = State("remote" if leg.remote else "ready")
        self._backend = _RecordedBackend(leg, recordings, calls)

    def start(self) -> None:
        """Nothing to do before a request."""

    async def changes(self) -> AsyncGenerator[State, None]:
        yield self.state

    async def backend(self) -> ChatBackend:
        return self._backend


class _RecordedBackend:
    def __init__(self, leg: Leg, recordings: Recordings, calls: list[Call]) -> None:
        self.leg: str = leg.name
        self.model = leg.model
        self.where = leg.where
        self.context_tokens = leg.context_tokens
        self.runs_on = leg.runs_on
        self._real = leg
        self._recordings = recordings
        self._calls = calls

    async def stream(
        self,
        messages: list[Message],
        *,
        max_tokens: int,
        trace: Trace,
        temperature: float = 0,
        seed: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        assert temperature == 0, "only what leads to the same words is recorded"
        key = _key(self.model, self.where, messages, max_tokens)
        recorded = self._recordings.find(key)
        began = time.perf_counter()
        if recorded is None:
            # Recorded whole, whatever this turn needs of it: the next policy may want the rest.
            recorded = await self._record(messages, max_tokens)
            self._recordings.keep(key, self.model, recorded)
        waited_ms = (time.perf_counter() - began) * 1000
        tokens = [Token(text, logprob, tuple(top), tuple(texts)) for text, logprob, top, texts in recorded["tokens"]]
        usage = Usage(*recorded["usage"]) if recorded["usage"] else None
        ms, reached, finished = recorded["first_ms"], 0, False
        for name in ("request", "first_token", "completion"):
            trace.close(trace.open(name, self.leg))
        try:
            for at_ms, text, upto in recorded["pieces"]:
                ms, new, reached = at_ms, tuple(tokens[reached:upto]), upto
                yield Delta(text, new)
            ms, finished = recorded["total_ms"], True
        finally:
            share = 1.0 if finished else ms / recorded["total_ms"]
            cpu_s = recorded["cpu_s"]
            self._calls.append(
                Call(
                    leg=self.leg,
                    model=self.model,
                    ttft_ms=recorded["first_ms"],
                    total_ms=ms,
                    cpu_s=None if cpu_s is None else cpu_s * share,
                    input_tokens=usage.input_tokens if usage else 0,
                    output_tokens=usage.output_tokens if usage and finished else reached,
                    stopped=not finished,
                    waited_ms=waited_ms,
                )
            )
        if recorded["silent"]:
            raise ModelSilent(recorded["silent"])
        yield Draft(
            self.leg, self.model, recorded["text"], tuple(tokens), usage, recorded["finish_reason"], self.runs_on
        )

    async def _record(self, messages: list[Message], max_tokens: int) -> dict[str, Any]:
        backend = await self._real.backend()
        began = time.perf_counter()
        pieces: list[tuple[float, str, int]] = []
        draft: Draft | None = None
        silent = None
        reached = 0
        try:
            async with (
                Sampler({self.leg: lambda: self._real.pid}, watts=0) as sampler,
                aclosing(backend.stream(messages, max_tokens=max_tokens, trace=Trace())) as stream,
            ):
                async for piece in stream:
                    if isinstance(piece, Waiting):
                        began = time.perf_counter()
                        sampler.restart()
                    elif isinstance(piece, Thinking) and piece.retract:
                        pieces.clear()
                        reached = 0
                    elif isinstance(piece, Draft):
                        draft = piece
                    elif isinstance(piece, Delta):
                        reached += len(piece.tokens)
                        pieces.append((round((time.perf_counter() - began) * 1000, 2), piece.text, reached))
        except ModelSilent as error:
            silent = str(error)  # it would say nothing again
        total_ms = (time.perf_counter() - began) * 1000
        cpu_s = sampler.used(self.leg).cpu_s
        return {
            "text": draft.text if draft else "",
            "tokens": [
                (t.text, round(t.logprob, 5), [round(x, 4) for x in t.top], t.top_texts)
                for t in (draft.tokens if draft else ())
            ],
            "usage": (draft.usage.input_tokens, draft.usage.output_tokens) if draft and draft.usage else None,
            "finish_reason": draft.finish_reason if draft else None,
            "pieces": pieces,
            "first_ms": pieces[0][0] if pieces else round(total_ms, 2),
            "total_ms": round(total_ms, 2),
            "cpu_s": None if cpu_s is None else round(cpu_s, 3),
            "silent": silent,
        }


def _key(model: str, where: str, messages: list[Message], max_tokens: int) -> str:
    whole = json.dumps([model, where, messages, max_tokens], ensure_ascii=False)
    return hashlib.sha256(whole.encode()).hexdigest()
