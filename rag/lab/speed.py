"""How fast each runtime reads and writes: prefill and decode tokens a second, same prompts, through our own client.

Knows which runtimes can be had here (llama.cpp as installed, llama.cpp built for this processor, Foundry Local's library,
servers that run on this machine) and how to time one. Knows nothing of documents or of what the tokens say. Every prompt
begins with words of its own, so that no server finds it in its cache.
"""

import contextlib
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from rag import terminal
from rag.errors import ModelError, RagError, UserError
from rag.lab.machine import machine
from rag.models import discovery, foundry, native, weights
from rag.models.backend import Backend, Draft, Message
from rag.models.capabilities import EMBEDDED
from rag.models.child import ChildServer
from rag.models.cores import Cores
from rag.models.runtime import EmbeddedServer
from rag.settings import Settings
from rag.trace import Trace

BACKENDS = ("embedded", "native", "foundry", "servers")
SENTENCES = 90
WRITTEN_TOKENS = 48
LEAST_TOKENS = 8


@dataclass(frozen=True)
class Speed:
    """Medians of one model on one runtime."""

    runtime: str
    model: str
    input_tokens: int
    prefill_tokens_per_s: float
    """Tokens of the prompt over the time to the first token."""
    decode_tokens_per_s: float
    """Tokens after the first over the time after the first."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "model": self.model,
            "input_tokens": self.input_tokens,
            "prefill_tokens_per_s": round(self.prefill_tokens_per_s, 1),
            "decode_tokens_per_s": round(self.decode_tokens_per_s, 1),
        }


@dataclass(frozen=True)
class Runner:
    """A model on a runtime that could be measured; opening it starts what is needed."""

    runtime: str
    model: str
    open: Callable[[], AbstractAsyncContextManager[Backend]]


async def measure(settings: Settings, backend: str, rounds: int) -> list[Speed]:
    """Each model on each runtime, one after the other. `backend`: all, or one of `BACKENDS`."""
    if rounds < 1:
        raise UserError(f"--rounds is {rounds}; at least 1 is needed.")
    wanted = BACKENDS if backend == "all" else (backend,)
    found = [runner async for runner in _runners(settings, wanted)]
    if not found:
        raise UserError(
            f"There is nothing to measure for {backend}. See `smallfirst models list` and `smallfirst doctor`."
        )
    speeds: list[Speed] = []
    for number, runner in enumerate(found, 1):
        terminal.notices.print(f"{number} of {len(found)}: {runner.model}, {runner.runtime}", markup=False)
        try:
            async with runner.open() as opened:
                speeds.append(await _time(runner, opened, rounds))
        except RagError as error:
            terminal.notices.print(f"{runner.model}, {runner.runtime}: {error}", markup=False)
    if not speeds:
        raise RagError("Nothing could be measured; the lines above say why.")
    return speeds


def report(speeds: list[Speed], rounds: int) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    for speed in speeds:
        for name, value in list(speed.to_dict().items())[3:]:
            metrics[f"{speed.model} on {speed.runtime}, {name}"] = value
    return {
        "metrics": metrics,
        "backends": [speed.to_dict() for speed in speeds],
        "rounds": rounds,
        "machine": machine(),
    }


def show(speeds: list[Speed], rounds: int) -> None:
    table = Table(title=f"Tokens a second, medians of {rounds}")
    table.add_column("model")
    table.add_column("runtime")
    for column in ("prompt", "prefill", "decode"):
        table.add_column(column, justify="right")
    for speed in speeds:
        table.add_row(
            speed.model,
            speed.runtime,
            f"{speed.input_tokens:,}",
            f"{speed.prefill_tokens_per_s:,.0f}",
            f"{speed.decode_tokens_per_s:,.1f}",
        )
    terminal.out.print(table)
    terminal.out.print(", ".join(f"{name} {value}" for name, value in machine().items()))


async def _time(runner: Runner, backend: Backend, rounds: int) -> Speed:
    prefill: list[float] = []
    decode: list[float] = []
    read = 0
    for number in range(rounds + 1):
        trace = Trace()
        draft: Draft | None = None
        stream = backend.stream(_prompt(number), max_tokens=WRITTEN_TOKENS, trace=trace)
        async with contextlib.aclosing(stream) as pieces:
            async for piece in pieces:
                if isinstance(piece, Draft):
                    draft = piece
        first = trace.find("first_token")
        wrote_ms = sum(span.duration_ms or 0 for span in trace.spans if span.name in ("thinking", "completion"))
        if draft is None or draft.usage is None or first is None or not wrote_ms:
            raise ModelError(
                f"{runner.model} on {runner.runtime} does not count its tokens, so its speed is not known."
            )
        if draft.usage.output_tokens < LEAST_TOKENS:
            raise ModelError(f"{runner.model} wrote {draft.usage.output_tokens} tokens, too few to time.")
        if number == 0:
            continue  # loads what is loaded late
        read = draft.usage.input_tokens
        prefill.append(read / ((first.duration_ms or 0) / 1000))
        decode.append((draft.usage.output_tokens - 1) / (wrote_ms / 1000))
    return Speed(runner.runtime, runner.model, read, statistics.median(prefill), statistics.median(decode))


def _prompt(number: int) -> list[Message]:
    rows = " ".join(f"Entry {number + row * 7} of list {number} is odd." for row in range(SENTENCES))
    ask = "Write the numbers from one to a hundred as words, one after the other."
    return [{"role": "user", "content": f"List {number}. {rows}\n\n{ask}"}]


async def _runners(settings: Settings, wanted: tuple[str, ...]) -> AsyncIterator[Runner]:
    here = [
        (entry.name, path)
        for entry in weights.CATALOGUE.values()
        if (path := weights.installed(entry, settings.cache_dir)) is not None
    ]
    programs: list[tuple[str, Path | None]] = []
    if "embedded" in wanted:
        programs.append(("llama.cpp, as installed", None))
    if "native" in wanted and (built := native.find(settings.cache_dir)):
        programs.append(("llama.cpp, built for this processor", built))
    if "native" in wanted and settings.llama_server:
        programs.append((f"llama.cpp, {settings.llama_server}", settings.llama_server))
    for name, path in here:
        for runtime, program in programs:
            embedded = EmbeddedServer(
                name, path, context_tokens=settings.context_tokens, threads=settings.threads, program=program
            )
            yield Runner(runtime, name, partial(_started, embedded))
    if "foundry" in wanted and foundry.installed():
        for config in sorted((settings.cache_dir / "onnx").glob("*/genai_config.json")):
            server = foundry.FoundryServer(foundry.Source(folder=config.parent), settings)
            yield Runner("Foundry Local, ONNX", config.parent.name, partial(_started, server))
    if "servers" in wanted:
        for found in await discovery.find(settings):
            for offered in found.models:
                if offered.loaded is not False:
                    title = f"{discovery.TITLES[found.kind]} at {found.base_url}"
                    key = settings.key_for(found.base_url)
                    yield Runner(title, offered.id, partial(_asked, offered.id, found.base_url, api_key=key))


@asynccontextmanager
async def _asked(model: str, base_url: str, **more: Any) -> AsyncIterator[Backend]:
    backend = Backend("slm", model, base_url, **more)
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def _started(server: ChildServer) -> AsyncIterator[Backend]:
    await server.start()
    try:
        if isinstance(server, foundry.FoundryServer):
            opened = _asked(server.model_id, server.base_url, api_key=server.api_key)
        else:
            more = {"api_key": server.api_key, "cores": Cores(), "capabilities": EMBEDDED}
            opened = _asked(server.name, server.base_url, **more)
        async with opened as backend:
            yield backend
    finally:
        await server.stop()
