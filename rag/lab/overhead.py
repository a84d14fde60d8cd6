"""How much this product itself costs: size, start, memory, and its own share of the time that an answer takes.

Starts the product as a user would, in a process of its own on a free port, and asks it over HTTP. The bare request is the
same messages sent straight to the same model server, in turn with ours, so that both meet the same machine. It is the one
request to a model that does not go through `models.backend`: what that costs is part of what is measured. Knows no quality.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import psutil
from pydantic import SecretStr

from rag import __version__
from rag.corpus.library import Library
from rag.errors import RagError, UserError
from rag.lab.machine import machine
from rag.lab.spread import Spread
from rag.models.backend import Message
from rag.models.child import KEY_VARIABLE
from rag.models.legs import Legs
from rag.resources import Sampler, Used, cpu_s
from rag.settings import Settings
from rag.turn import cascade
from rag.turn.session import Session

Progress = Callable[[str, int, int], None]
"""What is being done, how many of how many are done."""

STARTS = 3
ROUNDS = 20
QUESTION = "What is the default confidence threshold of Small First?"
READY_LIMIT_S = 120.0


@dataclass(frozen=True)
class Streamed:
    """One answer as whoever asked got it over HTTP, milliseconds since the request was begun."""

    first_ms: float
    gaps_ms: tuple[float, ...]
    """Between one piece of text and the next."""
    total_ms: float


@dataclass(frozen=True)
class Pair:
    """One question, to the model's server and then through the product."""

    bare: Streamed
    ours: Streamed


@dataclass
class Report:
    """What was measured so far."""

    model: str = ""
    installed_mb: float | None = None
    """Disk space of this package and all that it needs, in 10^6 bytes, without weights and without test tools."""
    starts_s: list[float] = field(default_factory=list)
    """From the command to a page that is served and a small model that answers, nothing to fetch."""
    memory_mb: float | None = None
    """Resident memory of the chat, idle after its start, without the model servers, in 10^6 bytes."""
    turns_ms: list[float] = field(default_factory=list)
    """The turn's own share: everything before the request is sent, in process."""
    pairs: list[Pair] = field(default_factory=list)
    """Without the first, which reads the prompt: the others find it in the server's cache, where our own share shows."""
    own_cpu_s: float | None = None
    """Of the chat and its children without the model's server, during the pairs and the one that is not counted."""
    product: Used | None = None
    """By the chat and its children during the pairs; the model's server is one of these."""
    server: Used | None = None
    """By the model's server alone."""
    complete: bool = False
    """Everything was measured."""

    @property
    def overhead_ms(self) -> Spread | None:
        """First token through `cascade.answer` over HTTP minus first token of the bare request."""
        return Spread.of(pair.ours.first_ms - pair.bare.first_ms for pair in self.pairs)

    @property
    def ratio(self) -> Spread | None:
        """First token of ours over that of the bare request; 1: nothing was added."""
        return Spread.of(pair.ours.first_ms / pair.bare.first_ms for pair in self.pairs)

    @property
    def whole_overhead_ms(self) -> Spread | None:
        """The whole answer, until the stream ends."""
        return Spread.of(pair.ours.total_ms - pair.bare.total_ms for pair in self.pairs)

    def streamed(self, which: str, figure: str) -> Spread | None:
        """`which`: bare or ours; `figure`: first_ms, total_ms or gaps_ms (of all pairs together)."""
        found: list[float] = []
        for pair in self.pairs:
            value = getattr(getattr(pair, which), figure)
            found.extend(value if isinstance(value, tuple) else [value])
        return Spread.of(found)

    @property
    def own_peak_memory_mb(self) -> float | None:
        """Of the product without the model's server, whose memory does not change while it answers."""
        if self.product is None or self.server is None:
            return None
        whole, model = self.product.peak_memory_mb, self.server.peak_memory_mb
        return None if whole is None or model is None else max(0.0, whole - model)

    @property
    def metrics(self) -> dict[str, float]:
        """What was not measured is left out."""
        turn_ms = statistics.median(self.turns_ms) if self.turns_ms else None
        found: dict[str, tuple[float | None, int]] = {
            "installed_mb": (self.installed_mb, 0),
            "start_s": (statistics.median(self.starts_s) if self.starts_s else None, 2),
            "memory_mb": (self.memory_mb, 0),
            "overhead_ms": (_p50(self.overhead_ms), 2),
            "overhead_ms_p95": (_p95(self.overhead_ms), 2),
            "bare_first_token_ms": (_p50(self.streamed("bare", "first_ms")), 2),
            "bare_first_token_ms_p95": (_p95(self.streamed("bare", "first_ms")), 2),
            "first_token_ms": (_p50(self.streamed("ours", "first_ms")), 2),
            "first_token_ms_p95": (_p95(self.streamed("ours", "first_ms")), 2),
            "ratio": (_p50(self.ratio), 3),
            "ratio_p95": (_p95(self.ratio), 3),
            "whole_answer_overhead_ms": (_p50(self.whole_overhead_ms), 2),
            "whole_answer_overhead_ms_p95": (_p95(self.whole_overhead_ms), 2),
            "bare_inter_token_ms": (_p50(self.streamed("bare", "gaps_ms")), 2),
            "bare_inter_token_ms_p95": (_p95(self.streamed("bare", "gaps_ms")), 2),
            "inter_token_ms": (_p50(self.streamed("ours", "gaps_ms")), 2),
            "inter_token_ms_p95": (_p95(self.streamed("ours", "gaps_ms")), 2),
            "turn_before_request_ms": (turn_ms, 2),
            "own_cpu_s_per_pair": (
                None if self.own_cpu_s is None or not self.pairs else self.own_cpu_s / (len(self.pairs) + 1),
                4,
            ),
            "own_peak_memory_mb": (self.own_peak_memory_mb, 0),
            "model_server_peak_memory_mb": (self.server.peak_memory_mb if self.server else None, 0),
        }
        return {name: round(value, digits or None) for name, (value, digits) in found.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": self.metrics,
            "question": QUESTION,
            "rounds": len(self.pairs),
            "starts": len(self.starts_s),
            "model": self.model,
            "complete": self.complete,
            "used_by_product_and_model_server": self.product.to_dict() if self.product else None,
            "used_by_model_server": self.server.to_dict() if self.server else None,
            "version": __version__,
            "versions": {name: metadata.version(name) for name in ("chainlit", "openai", "xllamacpp", "rank-bm25")},
            "machine": machine(),
        }


async def run(
    report: Report, settings: Settings, rounds: int = ROUNDS, *, starts: int = STARTS, progress: Progress
) -> None:
    """Fill the report. The small model's weights must be here already, and it must be one that runs here."""
    legs = Legs(settings)
    report.model = legs.slm.model
    if not legs.slm.installed:
        raise UserError(f"{legs.slm.model} is not here. Fetch it first: smallfirst models pull {legs.slm.model}")
    report.installed_mb = installed_bytes("smallfirst") / 1e6
    for number in range(starts):
        progress("starting the product", number, starts)
        async with _chat() as (url, process, start_s):
            report.starts_s.append(start_s)
            progress("starting the product", number + 1, starts)
            if number == starts - 1:
                report.memory_mb = process.memory_info().rss / 1e6
                await _pairs(report, url, process, settings, rounds, progress)
    report.complete = True


async def _pairs(
    report: Report, url: str, process: psutil.Process, settings: Settings, rounds: int, progress: Progress
) -> None:
    server, base_url, key = _model_server(process)
    messages = await _in_process(report, settings, base_url, key, rounds, progress)
    pids: dict[str, Callable[[], int | None]] = {"product": lambda: process.pid, "server": lambda: server.pid}
    question: list[Message] = [{"role": "user", "content": QUESTION}]
    before_s = await asyncio.to_thread(_own_cpu_s, process, server)
    async with Sampler(pids, watts=settings.watts) as sampler:
        try:
            for number in range(rounds + 1):
                progress("pairs of requests", number, rounds + 1)
                pair = Pair(
                    await _stream(base_url, messages, settings.slm_model, key, logprobs=True),
                    await _stream(f"{url}/v1", question, "smallfirst-slm"),
                )
                if number:
                    report.pairs.append(pair)
            progress("pairs of requests", rounds + 1, rounds + 1)
        finally:
            report.product, report.server = sampler.used("product"), sampler.used("server")
            after_s = _own_cpu_s(process, server)
            if before_s is not None and after_s is not None:
                report.own_cpu_s = after_s - before_s


def installed_bytes(name: str) -> int:
    """Disk space of a distribution and of everything that it requires here, bytes as the file system counts them."""
    seen: set[str] = set()
    waiting = [name]
    total = 0
    while waiting:
        requirement = waiting.pop()
        plain = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        key = re.sub(r"[-_.]+", "-", plain).lower()
        if key in seen or ("extra ==" in requirement):
            continue
        seen.add(key)
        try:
            distribution = metadata.distribution(plain)
        except metadata.PackageNotFoundError:
            if key == name:
                raise UserError(f"{name} is not installed in this Python. Install it with pip, then measure.") from None
            continue  # required on other systems only
        waiting.extend(distribution.requires or ())
        for file in distribution.files or ():
            with contextlib.suppress(OSError):
                stat = Path(str(distribution.locate_file(file))).stat()
                total += getattr(stat, "st_blocks", 0) * 512 or stat.st_size
    return total


@contextlib.asynccontextmanager
async def _chat() -> AsyncIterator[tuple[str, psutil.Process, float]]:
    """The product, started as a user would; yields its address, its process, and the seconds until it was ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = tempfile.mkdtemp(prefix="smallfirst-")  # no conversation of the user's
    began = time.perf_counter()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rag.cli", "chat", "--no-open", "--port", str(port),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        env={
            **os.environ, "RAG_PULL_LLM": "false", "RAG_LLM_BASE_URL": "http://127.0.0.1:9/v1", "RAG_DATA_DIR": data,
            "RAG_LOGIN": "auto", "RAG_TUNE": "false",
        },
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx2.AsyncClient(trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    status = (await client.get(f"{url}/status")).json()
                    if status["slm"]["state"] == "ready":
                        break
                if child.returncode is not None or time.perf_counter() - began > READY_LIMIT_S:
                    raise RagError("The chat did not become ready. Run `smallfirst chat` to see why.")
                await asyncio.sleep(0.02)
            (await client.get(url)).raise_for_status()
        yield url, psutil.Process(child.pid), time.perf_counter() - began
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()
        shutil.rmtree(data, ignore_errors=True)


def _model_server(process: psutil.Process) -> tuple[psutil.Process, str, str]:
    """Process, address and key of the embedded server that a chat process runs."""
    for child in process.children(recursive=True):
        for connection in child.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return child, f"http://127.0.0.1:{connection.laddr.port}/v1", child.environ()[KEY_VARIABLE]
    raise RagError("The chat runs no model server. Unset RAG_SLM_BASE_URL to measure with the embedded model.")


def _own_cpu_s(process: psutil.Process, server: psutil.Process) -> float | None:
    """CPU seconds of the chat and its children until now, without the model's server; None if one is gone."""
    whole, model = cpu_s(process.pid), cpu_s(server.pid)
    return None if whole is None or model is None else whole - model


async def _in_process(
    report: Report, settings: Settings, server: str, key: str, rounds: int, progress: Progress
) -> list[Message]:
    """What the turn sends to the small model; how long it works before it sends goes into the report."""
    settings = settings.model_copy(update={"slm_base_url": server, "slm_api_key": SecretStr(key)})
    legs = Legs(settings)
    messages: list[Message] = []
    with contextlib.closing(Library(settings)) as library:
        library.update()
        try:
            for number in range(rounds):
                progress("turns within this process", number, rounds)
                turn = cascade.answer(QUESTION, session=Session(library), legs=legs, settings=settings, mode="slm")
                async with contextlib.aclosing(turn) as events:
                    async for event in events:
                        if isinstance(event, cascade.Failed):
                            raise event.error
                        if isinstance(event, cascade.Answered):
                            request = event.turn.trace.find("request")
                            assert request is not None, "a model was asked"
                            report.turns_ms.append(request.start_ms)
                            messages = event.turn.prompts["slm"].messages
        finally:
            await legs.close()
    return messages


async def _stream(
    base_url: str, messages: list[Message], model: str, key: str = "none", *, logprobs: bool = False
) -> Streamed:
    """Send one request and time the pieces of text in its stream. A turn asks its model for `logprobs`; ours tells none."""
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": True, "temperature": 0, "max_tokens": 160}
    if logprobs:
        body |= {"logprobs": True, "top_logprobs": 5}
    headers = {"Authorization": f"Bearer {key}"}
    came_ms: list[float] = []
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=60, headers=headers) as client:
            # The connection is made before the clock starts: both servers are on this machine and keep it open.
            await client.get(f"{base_url}/models")
            began = time.perf_counter()
            async with client.stream("POST", f"{base_url}/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        choices = json.loads(line[6:]).get("choices") or [{}]
                        if choices[0].get("delta", {}).get("content"):
                            came_ms.append((time.perf_counter() - began) * 1000)
            total_ms = (time.perf_counter() - began) * 1000
    except httpx2.HTTPError as error:
        raise RagError(f"{base_url} broke off: {error or type(error).__name__}. Measure again.") from error
    if not came_ms:
        raise RagError(f"{base_url} wrote no text (status {response.status_code}).")
    gaps_ms = tuple(later - earlier for earlier, later in pairwise(came_ms))
    return Streamed(came_ms[0], gaps_ms, total_ms)


def _p50(spread: Spread | None) -> float | None:
    return None if spread is None else spread.p50


def _p95(spread: Spread | None) -> float | None:
    return None if spread is None else spread.p95
