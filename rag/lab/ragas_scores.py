"""Ragas metrics of a run's samples: Scores, and the child process that makes them.

Knows how the child (`ragas_child`) is started and spoken with; nothing of how ragas measures. Ragas is no part of this
environment unless its extra is installed, and newer ones cannot be (they pin older libraries than ours), so the child runs
in whichever Python has it. It is given none of this program's keys and no address: the judge is asked here, like any model.
"""

import asyncio
import json
import os
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag.errors import ModelSilent, PromptTooLong, RagError, UserError
from rag.lab.judge import Judge
from rag.lab.ragas_child import NO_RAGAS
from rag.lab.samples import Sample

CHILD = Path(__file__).with_name("ragas_child.py")
REPLY_TOKENS = 1200
"""Ragas has its judge list statements and verdicts, as JSON."""
LINE_BYTES = 16_000_000
INSTALL = (
    "Install it with pip install 'smallfirst[ragas]', or into an environment of its own (pip install ragas"
    " 'langchain-community<0.4.2' rapidfuzz) and name that environment's Python: --ragas PYTHON."
)


@dataclass
class Scores:
    """What was measured until now; filled while it is."""

    version: str = ""
    """Of ragas."""
    metrics: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    """Metrics that this ragas cannot make, and why."""
    by_question: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Question's id -> metric -> score from 0 to 1; None where ragas made none, as when its judge keeps to no form."""
    why: dict[str, int] = field(default_factory=dict)
    """What ragas said where it made none, and how often."""

    @property
    def means(self) -> dict[str, float]:
        """ragas_<metric> over the questions that have a score; ragas_unscored: the share of scores that were not made."""
        asked = [score for scores in self.by_question.values() for score in scores.values()]
        found = {}
        for name in self.metrics:
            held = [s for scores in self.by_question.values() if (s := scores.get(name)) is not None]
            if held:
                found[f"ragas_{name}"] = statistics.fmean(held)
        if asked:
            found["ragas_unscored"] = sum(score is None for score in asked) / len(asked)
        return found

    def to_dict(self) -> dict[str, Any]:
        counts = {
            name: sum(scores.get(name) is not None for scores in self.by_question.values()) for name in self.metrics
        }
        return {"version": self.version, "questions": counts, "missing": self.missing, "why_unscored": self.why}


async def check(python: str = "") -> None:
    """Raises UserError where that interpreter ("" is our own) has no ragas: sooner than when all questions are asked."""
    async with _child(python) as (child, said):
        assert child.stdin is not None
        child.stdin.close()  # it has nothing to score
        if await child.wait() == NO_RAGAS:
            raise await _no_ragas(python, said)


async def score(
    into: Scores,
    samples: Sequence[Sample],
    judge: Judge | None,
    *,
    python: str = "",
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> None:
    """Have ragas score the samples, one after another. `python` is an interpreter that has it; "" is our own.

    Without a judge, only what needs none. Raises UserError where there is no ragas, ModelError where the judge fails.
    """
    async with _child(python) as (child, said):
        if await _speak(child, into, samples, judge, progress):
            return
        if await child.wait() == NO_RAGAS:
            raise await _no_ragas(python, said)
        last = await said() or f"exit status {child.returncode}"
        raise RagError(f"Ragas stopped ({last}). What it had scored until then is in the report.")


@asynccontextmanager
async def _child(python: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Callable[[], Awaitable[str]]]]:
    """The process, and what gives the last line that it said beside the protocol, once it has ended; gone at the end."""
    python = python or sys.executable
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAG_")}
    try:
        child = await asyncio.create_subprocess_exec(
            python, "-I", str(CHILD), env=environment, limit=LINE_BYTES,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"{python} cannot be run: {error.strerror}. {INSTALL}") from None
    listening = asyncio.create_task(_listen(child))
    try:
        yield child, lambda: asyncio.shield(listening)
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        await listening


async def _listen(child: asyncio.subprocess.Process) -> str:
    """A pipe that nobody reads would stop it."""
    assert child.stderr is not None
    last = ""
    async for line in child.stderr:
        last = line.decode(errors="replace").strip() or last
    return last


async def _no_ragas(python: str, said: Callable[[], Awaitable[str]]) -> UserError:
    return UserError(f"{python or sys.executable} has no ragas that works ({await said()}). {INSTALL}")


async def _speak(
    child: asyncio.subprocess.Process,
    into: Scores,
    samples: Sequence[Sample],
    judge: Judge | None,
    progress: Callable[[str, int, int], None],
) -> bool:
    """Until the child has told its last score; False where it stopped before."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # what it said at its end tells why
        _write(child.stdin, {"samples": [_asked(sample) for sample in samples], "judge": judge is not None})
        await child.stdin.drain()
        async for line in child.stdout:
            told = json.loads(line)
            if "ragas" in told:
                into.version, into.metrics, into.missing = told["ragas"], tuple(told["metrics"]), told["missing"]
            elif "prompt" in told:
                assert judge is not None, "without a judge nothing is asked that needs one"
                _write(child.stdin, {"text": await _reply(judge, told["prompt"])})
                await child.stdin.drain()
            elif "metric" in told:
                into.by_question.setdefault(samples[told["sample"]].id, {})[told["metric"]] = told["score"]
                if told["why"]:
                    into.why[told["why"]] = into.why.get(told["why"], 0) + 1
                progress("ragas scoring", told["sample"] + 1, len(samples))
            else:
                return True
    return False


async def _reply(judge: Judge, prompt: str) -> str:
    try:
        return await judge.ask([{"role": "user", "content": prompt}], max_tokens=REPLY_TOKENS)
    except (PromptTooLong, ModelSilent):
        return ""  # which is no form, so there is no score


def _write(stream: asyncio.StreamWriter, line: dict[str, Any]) -> None:
    stream.write(json.dumps(line).encode() + b"\n")


def _asked(sample: Sample) -> dict[str, Any]:
    """In ragas' form, and which metrics have what they need."""
    parts = sample.to_dict()
    del parts["id"]
    asks: list[str] = []
    if sample.retrieved_contexts:
        if not sample.refused:
            asks += ["faithfulness"]
        if sample.reference is not None:
            asks += ["context_precision", "context_recall"]
        if sample.reference_contexts:
            asks += ["non_llm_context_precision", "non_llm_context_recall"]
    return {**parts, "asks": asks}
