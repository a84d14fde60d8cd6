"""How much this product itself costs: size, start, memory, and its own share of the time to the first token.

Starts the product as a user would, in a process of its own on a free port, and asks it over HTTP. The bare request is the
same messages sent straight to the same model server, in turn with ours, so that both meet the same machine. Knows no
quality.
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
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx2
import psutil
from pydantic import SecretStr
from rich.table import Table

from rag import __version__, terminal
from rag.corpus.library import Library
from rag.errors import RagError, UserError
from rag.lab.machine import machine
from rag.models.backend import Message
from rag.models.child import KEY_VARIABLE
from rag.models.legs import Legs
from rag.settings import Settings
from rag.turn import cascade
from rag.turn.session import Session

STARTS = 3
QUESTION = "What is the default confidence threshold of Small First?"
READY_LIMIT_S = 120.0


@dataclass(frozen=True)
class Report:
    """Figures and what they were measured on. Times are medians."""

    installed_mb: float
    """Disk space of this package and all that it needs, in 10^6 bytes, without weights and without test tools."""
    start_s: float
    """From the command to a page that is served and a small model that answers, nothing to fetch."""
    memory_mb: float
    """Resident memory of the chat, idle after its start, without the model servers, in 10^6 bytes."""
    overhead_ms: float
    """First token through `cascade.answer` over HTTP minus first token of the bare request."""
    bare_ms: float
    """First token of the bare request."""
    turn_ms: float
    """The turn's own share: everything before the request is sent, in process."""
    rounds: int
    model: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": {
                "installed_mb": round(self.installed_mb),
                "start_s": round(self.start_s, 2),
                "memory_mb": round(self.memory_mb),
                "overhead_ms": round(self.overhead_ms, 2),
                "bare_first_token_ms": round(self.bare_ms, 2),
                "turn_before_request_ms": round(self.turn_ms, 2),
            },
            "question": QUESTION,
            "rounds": self.rounds,
            "starts": STARTS,
            "model": self.model,
            "version": __version__,
            "versions": {name: metadata.version(name) for name in ("chainlit", "openai", "xllamacpp", "rank-bm25")},
            "machine": machine(),
        }


async def run(settings: Settings, rounds: int) -> Report:
    """Measure everything once. The small model's weights must be here already."""
    if rounds < 1:
        raise UserError(f"--rounds is {rounds}; at least 1 is needed.")
    legs = Legs(settings)
    if not legs.slm.installed:
        raise UserError(f"{legs.slm.model} is not here. Fetch it first: smallfirst models pull {legs.slm.model}")
    starts: list[float] = []
    memory_mb = turn_ms = 0.0
    differences: list[float] = []
    bares: list[float] = []
    for number in range(STARTS):
        terminal.notices.print(f"start {number + 1} of {STARTS}")
        async with _chat() as (url, process, start_s):
            starts.append(start_s)
            if number < STARTS - 1:
                continue
            memory_mb = process.memory_info().rss / 1e6
            terminal.notices.print(f"{rounds} pairs of requests")
            server, key = _model_server(process)
            messages, turn_ms = await _in_process(settings, server, key, rounds)
            for _ in range(rounds + 1):
                bare = await _first_token(server, messages, settings.slm_model, key)
                ours = await _first_token(f"{url}/v1", [{"role": "user", "content": QUESTION}], "smallfirst-slm")
                bares.append(bare)
                differences.append(ours - bare)
    # The first pair reads the prompt; the others find it in the server's cache, where our own share shows.
    return Report(
        installed_mb=installed_bytes("smallfirst") / 1e6,
        start_s=statistics.median(starts),
        memory_mb=memory_mb,
        overhead_ms=statistics.median(differences[1:]),
        bare_ms=statistics.median(bares[1:]),
        turn_ms=turn_ms,
        rounds=rounds,
        model=settings.slm_model,
    )


def show(report: Report) -> None:
    table = Table(title=f"Small First {__version__}, {report.model}, {report.rounds} rounds")
    for column in ("what", "measured"):
        table.add_column(column)
    table.add_row("installed size, without weights", f"{report.installed_mb:,.0f} MB")
    table.add_row("start to ready, nothing to fetch", f"{report.start_s:.1f} s")
    table.add_row("resident memory, idle, without the model servers", f"{report.memory_mb:,.0f} MB")
    table.add_row("first token through the API minus first token of the bare request", f"{report.overhead_ms:.1f} ms")
    table.add_row("  first token of the bare request", f"{report.bare_ms:.1f} ms")
    table.add_row("  turn's own work before the request", f"{report.turn_ms:.1f} ms")
    terminal.out.print(table)
    terminal.out.print(", ".join(f"{name} {value}" for name, value in machine().items()))


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


def _model_server(process: psutil.Process) -> tuple[str, str]:
    """Address and key of the embedded server that a chat process runs."""
    for child in process.children(recursive=True):
        for connection in child.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return f"http://127.0.0.1:{connection.laddr.port}/v1", child.environ()[KEY_VARIABLE]
    raise RagError("The chat runs no model server. Unset RAG_SLM_BASE_URL to measure with the embedded model.")


async def _in_process(settings: Settings, server: str, key: str, rounds: int) -> tuple[list[Message], float]:
    """What the turn sends to the small model, and the median of the milliseconds that it works before it sends."""
    settings = settings.model_copy(update={"slm_base_url": server, "slm_api_key": SecretStr(key)})
    library = Library(settings)
    library.update()
    legs = Legs(settings)
    own: list[float] = []
    messages: list[Message] = []
    try:
        for _ in range(rounds):
            turn = cascade.answer(QUESTION, session=Session(library), legs=legs, settings=settings, mode="slm")
            async with contextlib.aclosing(turn) as events:
                async for event in events:
                    if isinstance(event, cascade.Failed):
                        raise event.error
                    if isinstance(event, cascade.Answered):
                        request = event.turn.trace.find("request")
                        assert request is not None, "a model was asked"
                        own.append(request.start_ms)
                        messages = event.turn.prompts["slm"].messages
    finally:
        await legs.close()
    return messages, statistics.median(own)


async def _first_token(base_url: str, messages: list[Message], model: str, key: str = "none") -> float:
    """Milliseconds from sending a request to the first piece of text in its stream."""
    body = {"model": model, "messages": messages, "stream": True, "temperature": 0, "max_tokens": 160,
            "logprobs": True, "top_logprobs": 5}  # fmt: skip
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(trust_env=False, timeout=60, headers=headers) as client:
        # The connection is made before the clock starts: both servers are on this machine and keep it open.
        await client.get(f"{base_url}/models")
        began = time.perf_counter()
        first = 0.0
        async with client.stream("POST", f"{base_url}/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if first == 0.0 and line.startswith("data: {"):
                    choices = json.loads(line[6:]).get("choices") or [{}]
                    if choices[0].get("delta", {}).get("content"):
                        first = (time.perf_counter() - began) * 1000
        if not first:
            raise RagError(f"{base_url} wrote no text (status {response.status_code}).")
        return first
