"""The two legs of the cascade: which model each is, and how far it is from answering.

A leg begins as a name in settings. If a server's address goes with it, it is ready at once. If it is a model of ours or
a .gguf file, the weights are fetched and verified and the embedded server is started. Knows no questions. What it is
doing is its `state`, which doors show; what it can do is `backend()`.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from rag.errors import ModelUnreachable, RagError, UserError
from rag.models import weights
from rag.models.backend import HERE, Backend, ChatBackend, Limits, is_loopback
from rag.models.runtime import Cores, EmbeddedServer
from rag.settings import Settings
from rag.words import say

log = logging.getLogger("smallfirst")

LegName = Literal["slm", "llm"]
Phase = Literal["absent", "fetching", "verifying", "loading", "ready", "failed", "remote"]
SPOKEN: dict[str, str] = {"slm": "small model", "llm": "larger model"}
PROGRESS: dict[str, str] = {"fetching": "turn.progress_fetching", "verifying": "turn.progress_verifying"}
STATES: dict[str, str] = {
    "absent": "turn.state_absent",
    "fetching": "turn.state_fetching",
    "verifying": "turn.state_verifying",
    "loading": "turn.state_loading",
    "ready": "turn.state_ready",
    "remote": "turn.state_remote",
}


@dataclass(frozen=True)
class State:
    """How far a leg is. Bytes are of the weights; 0 where nothing is fetched."""

    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0
    detail: str = ""

    @property
    def usable(self) -> bool:
        return self.phase in ("ready", "remote")

    @property
    def words(self) -> str:
        """For a person, without a full stop."""
        if self.phase in PROGRESS and self.total_bytes:
            megabytes = {"done": round(self.done_bytes / 1e6), "total": round(self.total_bytes / 1e6)}
            return say(PROGRESS[self.phase], **megabytes)
        return self.detail.rstrip(".") if self.phase == "failed" else say(STATES[self.phase])


class Answering(Protocol):
    """A leg as the turn sees it; `Leg` says what each name means."""

    @property
    def name(self) -> LegName: ...
    @property
    def model(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def examples(self) -> bool: ...
    @property
    def remote(self) -> bool: ...
    @property
    def leaves(self) -> bool: ...
    @property
    def where(self) -> str: ...
    @property
    def installed(self) -> bool: ...
    @property
    def state(self) -> State: ...

    def start(self) -> object: ...
    def changes(self) -> AsyncGenerator[State, None]: ...
    async def backend(self) -> ChatBackend: ...


class Pair(Protocol):
    """Both legs of a cascade."""

    @property
    def slm(self) -> Answering: ...
    @property
    def llm(self) -> Answering: ...


class Leg:
    """One model, from its name in settings to a backend that answers."""

    def __init__(self, name: LegName, settings: Settings, cores: Cores) -> None:
        self.name = name
        self._settings = settings
        self._cores = cores
        self._server: EmbeddedServer | None = None
        self._backend: Backend | None = None
        self._starting: asyncio.Task[None] | None = None
        self._cancelled = threading.Event()
        self._changed = asyncio.Event()
        self._state = State("absent")
        self._address: str | None = getattr(settings, f"{name}_base_url")
        self.model: str = getattr(settings, f"{name}_model")
        self.max_tokens: int = getattr(settings, f"{name}_max_tokens")
        self._weights: weights.Weights | None = None
        self._file: Path | None = None
        if self._address:
            self._backend = self._make_backend(self._address)
            self._state = State("remote")
        elif self.model.lower().endswith(".gguf"):
            self._file = Path(self.model).expanduser()
            self.model = self._file.stem
            if not self._file.is_file():
                raise UserError(f"No model file at {self._file}. Set RAG_{name.upper()}_MODEL to one that is there.")
        else:
            self._weights = weights.find(self.model)

    @property
    def state(self) -> State:
        return self._state

    @property
    def examples(self) -> bool:
        """Is it shown answered questions before its own?"""
        chosen = self._settings.slm_examples if self.name == "slm" else False
        return chosen if chosen is not None else self._weights is not None and self._weights.examples

    @property
    def remote(self) -> bool:
        """Does its text leave this process for a server that the user named?"""
        return self._state.phase == "remote"

    @property
    def leaves(self) -> bool:
        """Does its text leave this machine?"""
        return self._address is not None and not is_loopback(self._address)

    @property
    def installed(self) -> bool:
        """Could it be started without fetching anything?"""
        if self._weights is None:
            return True
        return weights.installed(self._weights, self._settings.cache_dir) is not None

    @property
    def where(self) -> str:
        """Where its text goes: `on this machine`, or the server's host."""
        return self._backend.where if self._backend is not None and self.leaves else HERE

    @property
    def context_tokens(self) -> int | None:
        """The window if known."""
        return None if self.remote else self._settings.context_tokens

    @property
    def pid(self) -> int | None:
        """Process of the embedded server, if it runs."""
        return self._server.pid if self._server else None

    def start(self) -> "asyncio.Task[None]":
        """Begin to fetch and load, once; the task never raises, the state tells how it went."""
        if self._starting is None or (self._starting.done() and self._state.phase == "failed"):
            self._starting = asyncio.create_task(self._start(), name=f"start {self.name}")
        return self._starting

    def leave_absent(self) -> None:
        """Nobody is going to fetch it; say how it can be."""
        self._set(State("absent", detail=f"Not fetched. To have it: smallfirst models pull {self.model}"))

    async def backend(self) -> ChatBackend:
        """The backend, started if need be; waits until it can answer. Raises ModelError with the reason if it cannot."""
        if reason := self._failure():
            # Tried again behind this turn's back: the next one may find it.
            self.start()
            raise ModelUnreachable(reason)
        if self._backend is None:
            await asyncio.shield(self.start())
            if reason := self._failure():
                raise ModelUnreachable(reason)
        if self._server is not None:
            # After a crash the server comes back on another port.
            await self._server.wait_ready()
            if self._backend is None or self._backend.base_url != self._server.base_url:
                await self._drop_backend()
                self._backend = self._make_backend(self._server.base_url)
        assert self._backend is not None, "a leg that started has a backend"
        return self._backend

    async def changes(self) -> AsyncGenerator[State, None]:
        """The state now, and each later one."""
        while True:
            changed = self._changed
            yield self._state
            await changed.wait()

    async def close(self) -> None:
        """Stop fetching, stop the server. Afterwards nothing of it runs."""
        self._cancelled.set()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._drop_backend()
        if self._server is not None:
            await self._server.stop()

    def to_dict(self) -> dict[str, Any]:
        state = self._state
        return {
            "name": self.model,
            "state": state.phase,
            "done_bytes": state.done_bytes,
            "total_bytes": state.total_bytes,
            "detail": state.detail,
        }

    def _failure(self) -> str | None:
        return self._state.detail if self._state.phase == "failed" else None

    async def _drop_backend(self) -> None:
        if self._backend is not None:
            await self._backend.close()
            self._backend = None

    def _make_backend(self, base_url: str) -> Backend:
        settings = self._settings
        secret = getattr(settings, f"{self.name}_api_key")
        key = self._server.api_key if self._server else secret.get_secret_value() if secret else None
        local = self._server is not None
        return Backend(
            self.name,
            self.model,
            base_url,
            api_key=key,
            where=None if self.leaves else HERE,
            cores=self._cores if local else None,
            context_tokens=settings.context_tokens if local else None,
            limits=Limits(settings.connect_timeout_s, settings.first_token_timeout_s, settings.stall_timeout_s),
        )

    async def _start(self) -> None:
        if self.remote:
            return
        try:
            path = self._file or await self._fetch()
            self._set(State("loading"))
            if self._server is None:
                self._server = EmbeddedServer(
                    self.model,
                    path,
                    context_tokens=self._settings.context_tokens,
                    threads=self._settings.threads,
                    prompt_cache_mb=self._settings.prompt_cache_mb,
                )
            # Loading computes too; an answer in progress must not be slowed by it.
            async with self._cores.claim():
                await self._server.start()
            self._backend = self._make_backend(self._server.base_url)
            await self._backend.connect()
            self._set(State("ready"))
        except RagError as error:
            self._set(State("failed", detail=str(error)))
        except Exception as error:
            log.exception("The %s could not be started", SPOKEN[self.name])
            self._set(State("failed", detail=f"The {SPOKEN[self.name]} could not be started: {error}"))

    async def _fetch(self) -> Path:
        assert self._weights is not None
        loop = asyncio.get_running_loop()

        def report(progress: weights.Progress) -> None:
            state = State(progress.phase, progress.done_bytes, progress.total_bytes, progress.note)
            with contextlib.suppress(RuntimeError):  # the loop closed while a cancelled download was ending
                loop.call_soon_threadsafe(self._set, state)

        settings, chosen = self._settings, self._weights
        return await asyncio.to_thread(
            weights.pull,
            chosen,
            settings.cache_dir,
            weights_dir=settings.weights_dir,
            source=settings.weights_source,
            hub_url=settings.hub_url,
            progress=report,
            cancelled=self._cancelled,
        )

    def _set(self, state: State) -> None:
        if state.phase == self._state.phase and not state.detail:
            # What was said about a download ("thrown away, fetched again") stays readable while it goes on.
            state = replace(state, detail=self._state.detail)
        self._state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Legs:
    """Both legs, which share this machine's cores."""

    def __init__(self, settings: Settings) -> None:
        cores = Cores()
        self.slm = Leg("slm", settings, cores)
        self.llm = Leg("llm", settings, cores)

    async def start(self, *, pull_llm: bool) -> None:
        """The small model first, so that the chat can answer; then the larger one, if it is here or to be fetched."""
        await self.slm.start()
        if pull_llm or self.llm.installed:
            await self.llm.start()
        else:
            self.llm.leave_absent()

    async def close(self) -> None:
        await asyncio.gather(self.slm.close(), self.llm.close())
