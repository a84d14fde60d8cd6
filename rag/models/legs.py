"""The two legs of the cascade: which model each is, and how far it is from answering.

A leg begins as a name in settings; `places` tells where its model is to be had. On a server it is looked up there; run
here, its weights are fetched and verified and a server of ours is started. A server that dies is noticed by the next
turn, and by `watch`; it is tried again without being asked. Knows no questions. What it is doing is its `state`, which
doors show; what it can do is `backend()`.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rag.errors import ModelError, ModelUnknown, ModelUnreachable, RagError
from rag.models import addresses, capabilities, discovery, foundry, native, places, tuning, weights
from rag.models.backend import HERE, Backend, ChatBackend, Limits, Message
from rag.models.capabilities import Tried
from rag.models.child import ChildServer
from rag.models.cores import Cores
from rag.models.places import Embedded, Hosted, LegName, Managed, Place, Search
from rag.models.runtime import EmbeddedServer
from rag.models.spare import SpareTime
from rag.models.state import PROGRESS, State
from rag.settings import Settings
from rag.trace import Trace

log = logging.getLogger("smallfirst")

Opening = Callable[[LegName, bool], list[Message]]
"""What every prompt of a leg begins with; the second argument says whether it is shown examples."""
# How often the servers are looked after, and how long one of this machine may take to accept a connection.
WATCH_S = 3.0
SEARCH_AGAIN_S = 30.0
ACCEPT_S = 0.8
# The window that Ollama gives a model which nobody has loaded; what is longer it cuts without a word.
OLLAMA_TOKENS = 4096
SPOKEN: dict[str, str] = {"slm": "small model", "llm": "larger model"}


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
    def pid(self) -> int | None: ...
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

    def __init__(
        self,
        name: LegName,
        settings: Settings,
        cores: Cores,
        *,
        search: Search | None = None,
        tried: Tried | None = None,
    ) -> None:
        """Raises UserError for a name that cannot be right."""
        self.name = name
        self.note = ""
        """What the user may want to know of where this model is, once it was looked for."""
        self.opening: Opening | None = None
        self.spare: SpareTime | None = None
        """When what need not be done at once is done; None: it is not done."""
        self._settings = settings
        self._cores = cores
        self._search = search or Search(settings)
        self._tried = tried or Tried(settings.cache_dir)
        self._server: ChildServer | None = None
        self._backend: Backend | None = None
        self._starting: asyncio.Task[None] | None = None
        self._cancelled = threading.Event()
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._place: Place | None = places.declared(name, settings)
        self._capabilities: capabilities.Capabilities | None = None
        self._asked = False
        """Somebody's turn may be answered there; before that a server elsewhere hears nothing."""
        self._used_at = 0.0
        self._looked_at = 0.0
        self._state = State("remote" if isinstance(self._place, Hosted) else "absent")
        self.model: str = self._place.model if self._place else getattr(settings, f"{name}_model")
        self.max_tokens: int = getattr(settings, f"{name}_max_tokens")

    @property
    def state(self) -> State:
        return self._state

    @property
    def examples(self) -> bool:
        """Is it shown answered questions before its own?"""
        if self.name != "slm":
            return False
        chosen = self._settings.slm_examples
        if chosen is not None:
            return chosen
        # The same weights under another server's name need them as much.
        plain = self.model.lower().rpartition("/")[2]
        return any(entry.examples and plain.startswith(entry.name) for entry in weights.CATALOGUE.values())

    @property
    def remote(self) -> bool:
        """Does its text leave this process for a server that is not ours?"""
        return isinstance(self._place, Hosted)

    @property
    def leaves(self) -> bool:
        """Does its text leave this machine?"""
        return isinstance(self._place, Hosted) and not addresses.is_loopback(self._place.server.base_url)

    @property
    def installed(self) -> bool:
        """Could it be started without fetching anything?"""
        chosen = self._weights
        return chosen is None or weights.installed(chosen, self._settings.cache_dir) is not None

    @property
    def where(self) -> str:
        """Where its text goes: `on this machine`, or the server's host."""
        if isinstance(self._place, Hosted) and self.leaves:
            return addresses.host_of(self._place.server.base_url)
        return HERE

    @property
    def runs_on(self) -> str:
        """What runs it, for a person: `llama.cpp`, `Foundry Local, CPU`."""
        match self._place:
            case Hosted() as hosted:
                return hosted.runs_on
            case Managed():
                provider = self._server.provider if isinstance(self._server, foundry.FoundryServer) else None
                return ", ".join(filter(None, ("Foundry Local", provider)))
            case _:
                return "llama.cpp"

    @property
    def context_tokens(self) -> int | None:
        """The window if known."""
        match self._place:
            case Hosted() as hosted:
                tried = self._capabilities.context_tokens if self._capabilities else None
                return hosted.context_tokens or tried or (OLLAMA_TOKENS if hosted.server.kind == "ollama" else None)
            case Managed() if isinstance(self._server, foundry.FoundryServer):
                return self._server.context_tokens
            case _:
                return int(self._settings.context_tokens)

    @property
    def pid(self) -> int | None:
        """Process of the server that is ours, if it runs."""
        return self._server.pid if self._server else None

    @property
    def server(self) -> ChildServer | None:
        """The server that is ours, once there is one."""
        return self._server

    @property
    def key(self) -> str | None:
        """What its server asks for."""
        return self._server.api_key if self._server else self._key

    @property
    def streaming(self) -> bool:
        """Does it answer somebody at the moment?"""
        return self._backend is not None and self._backend.streaming > 0

    def start(self) -> "asyncio.Task[None]":
        """Begin to look up, fetch and load, once; the task never raises, the state tells how it went."""
        if self._starting is None or (self._starting.done() and self._backend is None):
            self._starting = asyncio.create_task(self._start(), name=f"start {self.name}")
        return self._starting

    def leave_absent(self) -> None:
        """Nobody is going to fetch it; say how it can be."""
        self._set(State("absent", detail=f"Not fetched. To have it: smallfirst models pull {self.model}"))

    async def located(self) -> None:
        """Wait until it is known where the model is and what it is called there. Raises RagError.

        A server elsewhere is not asked before somebody allowed it; until then its model has the name in settings.
        """
        if self._place is None:
            self._place, self.note = await places.locate(self.name, self._settings, self._search)
        elif isinstance(self._place, Hosted) and self._place.named and self._may_ask:
            self._place = await self._settle(self._place)
        self.model = self._place.model

    async def backend(self) -> ChatBackend:
        """The backend, started if need be; waits until it can answer. Raises ModelError with the reason if it cannot."""
        self._asked = True
        self._used_at = asyncio.get_running_loop().time()
        if self.spare is not None:
            self.spare.stir()
        if (reason := self._failure()) and not isinstance(self._place, Hosted) and self._place is not None:
            # Tried again behind this turn's back: the next one may find it.
            self.start()
            raise ModelUnreachable(reason)
        if self._backend is not None and await self._is_gone():
            await self._lose()
        if self._backend is None:
            await self._started(lost=self._failure() is not None)
        if self._server is not None:
            # After a crash the server comes back on another port.
            try:
                await self._server.wait_ready()
            except ModelUnreachable as error:
                await self._drop_backend()
                self._set(State("failed", detail=str(error)))
                raise
            if self._backend is None or self._backend.base_url != self._server.base_url:
                await self._drop_backend()
                self._backend = self._make_backend(self._server.base_url)
        assert self._backend is not None, "a leg that started has a backend"
        return self._backend

    async def _started(self, *, lost: bool) -> None:
        """Wait for the start. One whose server was `lost` may find another way; nobody waits through a download for it."""
        starting = self.start()
        async with contextlib.aclosing(self.changes()) as states:
            watching = asyncio.ensure_future(anext(states))
            try:
                while not starting.done():
                    await asyncio.wait([starting, watching], return_when=asyncio.FIRST_COMPLETED)
                    if lost and self._state.phase in PROGRESS:
                        raise ModelUnreachable(f"The {SPOKEN[self.name]} is on its way here: {self._state.words}.")
                    if watching.done():
                        watching = asyncio.ensure_future(anext(states))
            finally:
                watching.cancel()
                await asyncio.wait([watching])
        if reason := self._failure():
            raise ModelUnreachable(reason)

    async def changes(self) -> AsyncGenerator[State, None]:
        """The state now, and each later one."""
        while True:
            changed = self._changed
            yield self._state
            await changed.wait()

    async def look(self) -> None:
        """Is the server still there, and is the model still wanted? Called now and then while nobody asks."""
        if self._starting is None or not self._starting.done():
            return
        if isinstance(self._place, Hosted) and not self.leaves:
            if self._backend is None:
                # Looking around again (ports, a command) is not for every moment.
                now = asyncio.get_running_loop().time()
                if self._declared or now - self._looked_at > SEARCH_AGAIN_S:
                    self._looked_at = now
                    await asyncio.shield(self.start())
            elif await self._is_gone():
                await self._lose()
        elif self._server is not None and self._backend is not None:
            if not self._server.ready.is_set():
                # It died and is being started again, or has been given up.
                self._set(State("loading"))
                try:
                    await self._server.wait_ready()
                    self._set(State("ready"))
                except ModelUnreachable as error:
                    await self._drop_backend()
                    self._set(State("failed", detail=str(error)))
            await self._rest()

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
            "runs_on": self.runs_on,
            "where": self.where,
            "state": state.phase,
            "done_bytes": state.done_bytes,
            "total_bytes": state.total_bytes,
            "detail": state.detail,
        }

    @property
    def _weights(self) -> weights.Weights | None:
        if isinstance(self._place, Embedded):
            return self._place.weights
        return weights.CATALOGUE.get(self.model) if self._place is None else None

    def _failure(self) -> str | None:
        return self._state.detail if self._state.phase == "failed" else None

    async def _drop_backend(self) -> None:
        if self._backend is not None:
            backend, self._backend = self._backend, None
            await backend.close()

    def _make_backend(self, base_url: str) -> Backend:
        settings = self._settings
        local = self._server is not None
        return Backend(
            self.name,
            self.model,
            base_url,
            api_key=self.key,
            where=None if self.leaves else HERE,
            cores=self._cores if local else None,
            context_tokens=self.context_tokens,
            limits=Limits(settings.connect_timeout_s, settings.first_token_timeout_s, settings.stall_timeout_s),
            capabilities=self._capabilities,
            runs_on=self.runs_on,
            resolve=self._resolve_again if isinstance(self._place, Hosted) else None,
            retry_after_s=settings.retry_after_s,
        )

    @property
    def _key(self) -> str | None:
        """The user's key for the server that he named, and for no other."""
        secret = getattr(self._settings, f"{self.name}_api_key")
        named = isinstance(self._place, Hosted) and self._place.named
        return secret.get_secret_value() if secret and named else None

    async def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            if self._state.phase == "failed" and not self._declared:
                # What was found by looking around may have moved, as Foundry Local's port does.
                self._place = None
            if isinstance(self._place, Hosted):
                await self._check_accepts(self._place)
            await self.located()
            if isinstance(self._place, Hosted):
                if self._may_ask:
                    await self._reach(self._place)
                self._set(State("remote"))
            else:
                assert self._place is not None
                await self._run(self._place)
        except RagError as error:
            self._set(State("failed", detail=str(error)))
        except Exception as error:
            log.exception("The %s could not be started", SPOKEN[self.name])
            self._set(State("failed", detail=f"The {SPOKEN[self.name]} could not be started: {error}"))

    @property
    def _declared(self) -> bool:
        """Do settings alone say where it is?"""
        return places.declared(self.name, self._settings) is not None

    # On a server that is there already

    @property
    def _may_ask(self) -> bool:
        """May its server hear of us? A server elsewhere only once somebody's turn may be answered there."""
        return not self.leaves or self._asked or self._settings.remote == "allow"

    async def _check_accepts(self, place: Hosted) -> None:
        if self.leaves or await addresses.accepts(place.server.base_url, ACCEPT_S):
            return
        mend = f"Start that server, or set RAG_{self.name.upper()}_BASE_URL." if place.named else "Start that server."
        raise ModelUnreachable(f"No model server at {place.server.base_url}. {mend}")

    async def _settle(self, place: Hosted) -> Hosted:
        """What the model that is wanted is called on the server that was named."""
        server = await self._identify(place)
        try:
            return places.settle(self.name, self._settings, server)
        except ModelUnknown:
            # The other leg's server may have it; whoever exchanged the two addresses is told.
            others = [one for one in await self._search.servers() if one.base_url != server.base_url]
            return places.settle(self.name, self._settings, server, others)

    async def _reach(self, place: Hosted) -> None:
        address = place.server.base_url
        self._capabilities = self._tried.get(address, place.model, place.server.version)
        self._backend = self._make_backend(address)
        if self.spare is not None and not self.leaves:
            self._warm()
            if self._capabilities is None and self._settings.probe:
                self.spare.add(f"try {self.model}", self._probe)

    async def _identify(self, place: Hosted) -> discovery.Server:
        return await discovery.identify(
            place.server.base_url,
            found_by=place.server.found_by,
            api_key=self._key,
            timeout_s=self._settings.connect_timeout_s,
        )

    async def _resolve_again(self) -> str:
        """The server says that it has no such model: what is it called there now? Raises ModelUnknown."""
        assert isinstance(self._place, Hosted)
        server = await self._identify(self._place)
        if not server.models:
            raise ModelUnknown(
                f"{self._place.server.base_url} has no model {self.model}."
                f" Set RAG_{self.name.upper()}_MODEL to one that it has."
            )
        settled = places.settle(self.name, self._settings, server) if self._place.named else None
        if settled is None:
            self._search.forget()
            found, self.note = await places.locate(self.name, self._settings, self._search)
            if not isinstance(found, Hosted) or found.server.base_url != self._place.server.base_url:
                raise ModelUnknown(f"{self._place.server.base_url} has no model {self.model} any more. Ask again.")
            settled = found
        self._place = settled
        self.model = settled.model
        return settled.model

    async def _is_gone(self) -> bool:
        """Does nothing listen any more where the server was? Only asked of this machine, where it costs nothing."""
        if not isinstance(self._place, Hosted) or self.leaves:
            return False
        return not await addresses.accepts(self._place.server.base_url, ACCEPT_S)

    async def _lose(self) -> None:
        assert isinstance(self._place, Hosted)
        self._search.forget()
        await self._drop_backend()
        self._set(State("failed", detail=f"The model server at {self._place.server.base_url} is gone. Start it again."))

    async def _probe(self) -> None:
        backend, place = self._backend, self._place
        if backend is None or not isinstance(place, Hosted):
            return
        found = await capabilities.probe(
            backend.base_url, place.model, api_key=self._key, context_tokens=place.context_tokens
        )
        self._tried.put(backend.base_url, place.model, place.server.version, found)
        if self._backend is backend:
            self._capabilities = backend.capabilities = found
            backend.context_tokens = self.context_tokens

    # On a server of ours

    async def _run(self, place: Embedded | Managed) -> None:
        if isinstance(place, Managed):
            if self._server is None:
                self._server = foundry.FoundryServer(place.source, self._settings, progress=self._report)
            self._set(State("loading"))
        else:
            path = place.file or await self._fetch()
            self._set(State("loading"))
            if self._server is None:
                self._server = self._embedded(path)
                self._capabilities = capabilities.EMBEDDED
        if isinstance(place, Managed) and place.source.folder is None:
            await self._server.start()  # it may fetch for an hour
        else:
            # Loading computes too; an answer in progress must not be slowed by it.
            async with self._cores.claim():
                await self._server.start()
        if isinstance(self._server, foundry.FoundryServer):
            self.model = self._server.model_id
        self._backend = self._make_backend(self._server.base_url)
        await self._backend.connect()
        self._used_at = asyncio.get_running_loop().time()
        self._set(State("ready"))
        if isinstance(place, Embedded):  # Foundry Local's library keeps nothing of what it has read
            self._warm()

    def _embedded(self, path: Path) -> EmbeddedServer:
        settings = self._settings
        own, threads = settings.llama_server, settings.threads
        tuned = tuning.load(settings.cache_dir, path, llama_server=own, threads=threads) if settings.tune else None
        if tuned is None and settings.tune and not threads and self.spare is not None:
            self.spare.add(f"measure what suits {self.model}", lambda: self._tune(path))
        return EmbeddedServer(
            self.model,
            path,
            context_tokens=settings.context_tokens,
            threads=threads or (tuned.threads if tuned else 0),
            prompt_cache_mb=settings.prompt_cache_mb,
            program=own or (tuned.program if tuned else native.find(settings.cache_dir)),
            **({"batch_tokens": tuned.batch_tokens} if tuned else {}),
        )

    async def _tune(self, path: Path) -> None:
        """What it finds counts from the next start of this model."""
        async with self._cores.claim():
            await tuning.tune(self.model, path, self._settings)

    def _warm(self) -> None:
        if self.spare is not None and self.opening is not None:
            self.spare.add(f"warm {self.name}", self._read_opening, urgent=True)

    async def _read_opening(self) -> None:
        """Read what every prompt begins with, so that the first question need not wait for it."""
        if self._backend is None or self.opening is None:
            return
        messages = [*self.opening(self.name, self.examples), {"role": "user", "content": "?"}]
        with contextlib.suppress(ModelError):  # the turn will tell
            async with contextlib.aclosing(self._backend.stream(messages, max_tokens=1, trace=Trace())) as pieces:
                async for _ in pieces:
                    pass

    async def _rest(self) -> None:
        """Give the memory back of a model that nobody has asked for a while."""
        after_s = self._settings.idle_unload_s
        now = asyncio.get_running_loop().time()
        if not after_s or now - self._used_at < after_s or self.streaming or self._server is None:
            return
        async with self._cores.claim():
            if asyncio.get_running_loop().time() - self._used_at < after_s:
                return  # somebody came while we waited
            await self._drop_backend()
            await self._server.stop()
            self._set(State("resting"))

    async def _fetch(self) -> Path:
        chosen = self._weights
        assert chosen is not None
        if not self.installed:
            self._set(State("fetching", 0, chosen.size_bytes))  # before the first byte, which may be long in coming
        return await asyncio.to_thread(
            weights.pull,
            chosen,
            self._settings.cache_dir,
            weights_dir=self._settings.weights_dir,
            source=self._settings.weights_source,
            hub_url=self._settings.hub_url,
            progress=self._report,
            cancelled=self._cancelled,
        )

    def _report(self, progress: weights.Progress | foundry.Progress) -> None:
        """From whichever thread fetches."""
        state = State(progress.phase, progress.done_bytes, progress.total_bytes, progress.note)
        assert self._loop is not None, "whoever fetches was started"
        with contextlib.suppress(RuntimeError):  # the loop closed while a cancelled download was ending
            self._loop.call_soon_threadsafe(self._set, state)

    def _set(self, state: State) -> None:
        if state.phase == self._state.phase and not state.detail:
            # What was said about a download ("thrown away, fetched again") stays readable while it goes on.
            state = replace(state, detail=self._state.detail)
        if state == self._state:
            return
        self._state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Legs:
    """Both legs, which share this machine's cores."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cores = Cores()
        self.search = Search(settings)
        self.tried = Tried(settings.cache_dir)
        self._spare = SpareTime(self._busy)
        self._watching: asyncio.Task[None] | None = None
        self.slm = self._leg("slm")
        self.llm = self._leg("llm")

    def _leg(self, name: LegName) -> Leg:
        return Leg(name, self._settings, self._cores, search=self.search, tried=self.tried)

    async def located(self) -> None:
        """Wait until it is known where both models are and what they are called there. Raises RagError."""
        await self.slm.located()
        await self.llm.located()

    async def start(self, *, pull_llm: bool, opening: Opening | None = None) -> None:
        """The small model first, so that the chat can answer; then the larger one, if it is here or to be fetched.

        From then on both are looked after until `close`, and warmed with the `opening` of their prompts.
        """
        for leg in (self.slm, self.llm):
            leg.opening, leg.spare = opening, self._spare
        await self.slm.start()
        with contextlib.suppress(RagError):  # its own start tells
            await self.llm.located()
        if pull_llm or self.llm.installed:
            await self.llm.start()
        else:
            self.llm.leave_absent()
        self._watching = asyncio.create_task(self._watch(), name="watch the models")

    @property
    def waiting(self) -> int:
        """How many things are left to be done while nobody asks."""
        return self._spare.waiting

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._spare.close()
        await asyncio.gather(self.slm.close(), self.llm.close())

    def _busy(self) -> bool:
        return any(leg.streaming or leg.state.phase == "loading" for leg in (self.slm, self.llm))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            for failure in await asyncio.gather(self.slm.look(), self.llm.look(), return_exceptions=True):
                if isinstance(failure, Exception):
                    log.error("A model server could not be looked after", exc_info=failure)
