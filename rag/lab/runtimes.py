"""What can be measured: models as the chat would run them, and each model on each runtime that is here.

Knows how a model that was named is found and opened, and what then runs it: llama.cpp as installed, llama.cpp built for
this processor, Foundry Local's library, a server that was there. Sends no prompt.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.models import addresses, discovery, foundry, names, native, places, processor, weights
from rag.models.backend import Backend, Limits
from rag.models.capabilities import EMBEDDED
from rag.models.child import ChildServer
from rag.models.cores import Cores
from rag.models.discovery import Offered, Server
from rag.models.legs import Leg
from rag.models.places import LegName, Search
from rag.models.runtime import EmbeddedServer
from rag.settings import Settings

KINDS = ("embedded", "native", "foundry", "servers")
"""Of runtimes that can be compared."""
ASK_S = 15.0
"""The longest that a program may take to tell its devices."""
_PAIR: tuple[LegName, LegName] = ("slm", "llm")


@dataclass(frozen=True)
class Running:
    """A model that can be asked now."""

    model: str
    """As its server calls it."""
    runtime: str
    """What runs it, for a person, with the execution provider where that is told."""
    where: str
    """`on this machine`, or the server's host."""
    backend: Backend
    context_tokens: int | None
    """The window; None where nobody tells it."""
    pid: Callable[[], int | None]
    """Of the server's process, if it is ours."""
    queued: bool
    """Requests wait for each other with us: one model computes at a time. Otherwise the server sees all of them at once."""
    load_s: float | None = None
    """From the server's start until it could answer, nothing to fetch; None of a server that was there."""
    threads: int | None = None
    devices: tuple[str, ...] = ()
    """GPUs and the like that this llama.cpp says it can compute on; empty where there are none, or nobody tells."""


@dataclass(frozen=True)
class Runner:
    """A model on a runtime that could be measured; opening it starts what is needed. Opening may raise ModelError."""

    model: str
    runtime: str
    open: Callable[[], AbstractAsyncContextManager[Running]]


# As the chat would


async def named(models: Sequence[str], settings: Settings) -> list[Runner]:
    """The models of those names, or the pair of the chat where none is named; each is looked up, none is started.

    Raises UserError or ModelUnknown for a name that fits nothing, for a model that is not fetched, and for one on another
    machine where RAG_REMOTE does not allow it.
    """
    search = Search(settings)
    chosen = [await _chosen(model, settings) for model in models] or [(name, settings) for name in _PAIR]
    runners: list[Runner] = []
    here: set[str] = set()
    for name, own in chosen:
        alike = own.slm_base_url == settings.slm_base_url
        leg = Leg(name, own, Cores(), search=search if alike else None)
        await leg.located()
        if leg.leaves and settings.remote != "allow":
            raise UserError(
                f"{leg.model} is at {leg.where}, and text would leave this machine. Set RAG_REMOTE=allow to measure it."
            )
        if not leg.installed:
            raise UserError(f"{leg.model} is not here. Fetch it first: smallfirst models pull {leg.model}")
        if not leg.remote:
            if leg.model in here:
                continue  # one model on both legs
            here.add(leg.model)
        runners.append(Runner(leg.model, leg.runs_on, partial(_of_leg, leg, settings)))
    return runners


async def _chosen(model: str, settings: Settings) -> tuple[LegName, Settings]:
    """The leg whose settings lead to the model, with its name filled in.

    Of the servers that the user named it may be on either, whose key goes with it; otherwise it runs here or was found.
    """
    if settings.slm_base_url or settings.llm_base_url:
        # One that does not list its models is taken at the user's word, for the name that stands beside its address.
        for leg in _PAIR:
            if getattr(settings, f"{leg}_base_url") and model == getattr(settings, f"{leg}_model"):
                return leg, settings.model_copy(update={f"{leg}_model": model})
        servers = await discovery.find(settings)
        ours = Server("", "embedded", "catalogue", models=tuple(Offered(name) for name in weights.CATALOGUE))
        away = settings.model_copy(update={"slm_model": model, "slm_base_url": None})
        if (best := names.choose(model, [*servers, ours])) is not None:
            for leg in _PAIR:
                if best[0].found_by == f"RAG_{leg.upper()}_BASE_URL":
                    return leg, settings.model_copy(update={f"{leg}_model": model})
        elif places.declared("slm", away.model_copy(update={"discover": True})) is None:
            raise names.unknown(model, [*servers, ours])
        return "slm", away
    return "slm", settings.model_copy(update={"slm_model": model})


@asynccontextmanager
async def _of_leg(leg: Leg, settings: Settings) -> AsyncIterator[Running]:
    try:
        load_s = await _loaded(leg)
        backend = await leg.backend()
        assert isinstance(backend, Backend), "a leg's backend is a real one"
        server = leg.server
        llama = server if isinstance(server, EmbeddedServer) else None
        yield Running(
            model=leg.model,
            runtime=_llama(llama.program, settings) if llama else _there(leg.runs_on, backend if leg.remote else None),
            where=leg.where,
            backend=backend,
            context_tokens=leg.context_tokens,
            pid=lambda: leg.pid,
            queued=not leg.remote,
            load_s=load_s,
            threads=_threads(llama),
            devices=await asyncio.to_thread(devices, llama.program) if llama else (),
        )
    finally:
        await leg.close()


async def _loaded(leg: Leg) -> float | None:
    """Wait until it can answer, or has failed, which asking it tells."""
    began: float | None = None
    leg.start()
    async with aclosing(leg.changes()) as states:
        async for state in states:
            if state.usable or state.phase == "failed":
                break
            # What is fetched in between (by Foundry Local's library) is no part of loading.
            began = (began or time.perf_counter()) if state.phase == "loading" else None
    return time.perf_counter() - began if began is not None else None


# Each model on each runtime


async def everywhere(settings: Settings, wanted: Sequence[str], models: Sequence[str] = ()) -> list[Runner]:
    """Of the `KINDS` that are `wanted`: the `models`, or all that are here. Raises UserError where there is none."""
    found = [runner async for runner in _found(settings, wanted)]
    if not found:
        raise UserError(
            f"There is nothing to measure for {', '.join(wanted)}. See `smallfirst models list` and `smallfirst doctor`."
        )
    if not models:
        return found
    offered = [Offered(runner.model) for runner in found]
    ids = set()
    for model in models:
        match = names.resolve(model, list(dict.fromkeys(offered)))
        if match is None:
            there = ", ".join(dict.fromkeys(one.id for one in offered))
            raise UserError(f"No model {model!r} on these runtimes: there is {there}. Name one of them in --models.")
        ids.add(match.id)
    return [runner for runner in found if runner.model in ids]


async def _found(settings: Settings, wanted: Sequence[str]) -> AsyncIterator[Runner]:
    here = [
        (entry.name, path)
        for entry in weights.CATALOGUE.values()
        if (path := weights.installed(entry, settings.cache_dir)) is not None
    ]
    programs: list[Path | None] = []
    if "embedded" in wanted:
        programs.append(None)
    if "native" in wanted:
        programs += [program for program in (native.find(settings.cache_dir), settings.llama_server) if program]
    for name, path in here:
        for program in programs:
            embedded = EmbeddedServer(
                name, path, context_tokens=settings.context_tokens, threads=settings.threads, program=program
            )
            yield Runner(name, _llama(program, settings), partial(_started, embedded, settings))
    if "foundry" in wanted and foundry.installed():
        for config in sorted((settings.cache_dir / "onnx").glob("*/genai_config.json")):
            server = foundry.FoundryServer(foundry.Source(folder=config.parent), settings)
            provider = foundry.provider_in(config.parent)
            yield Runner(config.parent.name, f"Foundry Local, ONNX, {provider}", partial(_started, server, settings))
    if "servers" in wanted:
        for there in await discovery.find(settings):
            for offered in there.models:
                if offered.loaded is not False:
                    title = ", ".join(filter(None, (there.title, offered.provider)))
                    runtime = f"{title} at {there.base_url}"
                    yield Runner(offered.id, runtime, partial(_asked, there, offered, runtime, settings))


@asynccontextmanager
async def _asked(there: Server, offered: Offered, runtime: str, settings: Settings) -> AsyncIterator[Running]:
    key = settings.key_for(there.base_url)
    backend = _backend(offered.id, there.base_url, settings, api_key=key, context_tokens=offered.context_tokens)
    try:
        yield Running(
            model=offered.id,
            runtime=runtime,
            where=backend.where,
            backend=backend,
            context_tokens=offered.context_tokens,
            pid=lambda: None,
            queued=False,
        )
    finally:
        await backend.close()


@asynccontextmanager
async def _started(server: ChildServer, settings: Settings) -> AsyncIterator[Running]:
    began = time.perf_counter()
    await server.start()
    load_s = time.perf_counter() - began
    try:
        llama = server if isinstance(server, EmbeddedServer) else None
        if isinstance(server, foundry.FoundryServer):
            runtime, window = f"Foundry Local, ONNX, {server.provider}", server.context_tokens
            model, seen = server.model_id, None
        else:
            assert llama is not None, "there are two kinds of servers of ours"
            runtime, window = _llama(llama.program, settings), llama.context_tokens
            model, seen = server.name, EMBEDDED
        more: dict[str, Any] = {"api_key": server.api_key, "cores": Cores(), "context_tokens": window}
        backend = _backend(model, server.base_url, settings, capabilities=seen, **more)
        try:
            yield Running(
                model=server.name,
                runtime=runtime,
                where=backend.where,
                backend=backend,
                context_tokens=window,
                pid=lambda: server.pid,
                queued=True,
                load_s=load_s,
                threads=_threads(llama),
                devices=await asyncio.to_thread(devices, llama.program) if llama else (),
            )
        finally:
            await backend.close()
    finally:
        await server.stop()


def _backend(model: str, base_url: str, settings: Settings, **more: Any) -> Backend:
    limits = Limits(settings.connect_timeout_s, settings.first_token_timeout_s, settings.stall_timeout_s)
    return Backend(
        "slm",
        model,
        base_url,
        where="on this machine" if addresses.is_loopback(base_url) else None,
        limits=limits,
        retry_after_s=settings.retry_after_s,
        **more,
    )


def _there(runs_on: str, backend: Backend | None) -> str:
    """Two servers of one kind are told apart by their addresses, which hold no key."""
    return f"{runs_on} at {backend.base_url}" if backend else runs_on


# What llama.cpp is


def _llama(program: Path | None, settings: Settings) -> str:
    if program is None:
        return "llama.cpp, as installed"
    if program == native.find(settings.cache_dir):
        return "llama.cpp, built for this processor"
    return f"llama.cpp, {program}"


def _threads(server: EmbeddedServer | None) -> int | None:
    return (server.threads or processor.physical_cores()) if server else None


def devices(program: Path | None) -> tuple[str, ...]:
    """What that llama-server, or for None the wheel, can compute on beside the processor, as it says itself.

    llama.cpp puts as much of a model there as fits, where nothing else is said. Empty where there is nothing, or nobody
    tells. Blocks: call it in a thread.
    """
    if program is not None:
        said = _said([str(program.absolute()), "--list-devices"])
        # "  CUDA0: NVIDIA GeForce RTX 4070 (12282 MiB, 11000 MiB free)"
        listed = [line.strip() for line in said.partition("Available devices:")[2].splitlines() if line.strip()]
        return tuple(line.rpartition(" (")[0] for line in listed if ": " in line and line.endswith("free)"))
    try:
        told = json.loads(_said([sys.executable, "-P", "-c", _DEVICES]).splitlines()[-1])
        return tuple(str(one) for one in told)
    except (ValueError, IndexError, TypeError):
        return ()


# In a process of its own: what computes is never imported in ours.
_DEVICES = """
import json, xllamacpp
told = [one for one in xllamacpp.get_device_info() if not one["type"].name.endswith("_CPU")]
print(json.dumps([one["name"] + ": " + one["description"] for one in told]))
"""


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
