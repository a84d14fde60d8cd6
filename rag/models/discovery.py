"""Which model servers are there, and what each one is: Foundry Local, llama.cpp, Ollama, LM Studio, vLLM, or another.

Knows how each kind of server shows itself, and asks with GETs only; nothing is loaded, started or sent a text. Which of
the models is meant by a name, `names` knows. Only this machine is ever searched: 127.0.0.1 on the ports of `PLACES`, and
whatever loopback address Foundry Local's own command tells. A server elsewhere is asked only if the user named it.

How they tell (tests/wire has the shapes; that of llama.cpp was recorded from a running server, the others were written
from the documentation and source of each, Foundry Local's also from notes on a running one):

    llama.cpp       the header `Server: llama.cpp`; /v1/models owned_by "llamacpp"; /props: build_info, n_ctx
    Foundry Local   2.x, inside a program: /status with endpoints and pid. /v1/models is the whole catalogue, and only
                    what /models/loaded lists can answer; models brought along are under /catalogs/local/v1 only
                    0.10, `foundry server`: /status too, but /v1/models is what is in its cache
                    0.x, `foundry service`: /openai/status; /v1/models is what is in its cache, /foundry/list the
                    catalogue, /openai/loadedmodels what is loaded
    LM Studio       /api/v0/models with type and state; paths that it does not have are answered with 200 and an error
    Ollama          /api/version and /api/tags; /api/ps lists what is loaded, with its window
    vLLM            /v1/models owned_by "vllm" with max_model_len; /version
    any other       /v1/models
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx2
import psutil

from rag import __version__
from rag.errors import UserError
from rag.models import addresses
from rag.settings import Settings

Kind = Literal["embedded", "foundry", "llama.cpp", "ollama", "lmstudio", "vllm", "openai"]
TITLES: dict[Kind, str] = {
    "embedded": "llama.cpp",
    "foundry": "Foundry Local",
    "llama.cpp": "llama.cpp",
    "ollama": "Ollama",
    "lmstudio": "LM Studio",
    "vllm": "vLLM",
    "openai": "OpenAI-compatible server",
}
PLACES: tuple[int, ...] = (5273, 8080, 11434, 1234, 8000)
"""Ports of this machine that are looked at: Foundry Local, llama.cpp, Ollama, LM Studio, vLLM."""
TOTAL_S = 4.0
"""A whole search takes no longer."""
COMMAND_S = 3.0
"""Foundry Local's command takes no longer."""
MOST_BYTES = 2_000_000
"""No list of models is longer."""
LONGEST_ID = 300
SHORTEST_KEY = 12
NOT_ASKED = "not asked: text and requests go there only after somebody allowed it (RAG_REMOTE=allow)"
LOCAL_CATALOGUE = "/catalogs/local"
# The part of the time in which a server must have shown what it is; the rest is for what only its kind can tell.
FIRST_SHARE = 0.7
# What others say of a model's window.
WINDOWS = ("max_model_len", "context_length", "context_window", "max_context_length")

PROVIDERS: dict[str, str] = {
    "generic": "",
    "cuda": "CUDA",
    "dml": "DirectML",
    "directml": "DirectML",
    "webgpu": "WebGPU",
    "qnn": "QNN",
    "openvino": "OpenVINO",
    "trtrtx": "TensorRT",
    "tensorrt-rtx": "TensorRT",
    "tensorrt": "TensorRT",
    "vitis": "Vitis AI",
    "vitisai": "Vitis AI",
    "migraphx": "MIGraphX",
    "rocm": "ROCm",
    "coreml": "Core ML",
}
"""ONNX Runtime's execution providers as they stand in the ids of Foundry Local's models, and for a person."""
FOUNDRY_ID = re.compile(
    rf"(?P<name>.+?)-(?P<ep>{'|'.join(sorted(PROVIDERS, key=len, reverse=True))})"
    r"-(?P<device>cpu|gpu|npu)(?::(?P<version>\d+))?",
    re.IGNORECASE,
)
"""`Phi-4-mini-instruct-generic-cpu:5`: name, execution provider, device, version."""


@dataclass(frozen=True)
class Offered:
    """A model on a server."""

    id: str
    loaded: bool | None = None
    """None: the server does not tell."""
    context_tokens: int | None = None
    """The window that it runs with, not the longest that it could have; None: the server does not tell."""
    alias: str | None = None
    """Another name that its server has for it."""

    @property
    def provider(self) -> str | None:
        """What a model of Foundry Local runs on, for a person: `CPU`, `CUDA GPU`, `QNN NPU`; None of other models."""
        parts = FOUNDRY_ID.fullmatch(self.id)
        if parts is None:
            return None
        device = parts["device"].upper()
        provider = PROVIDERS[parts["ep"].lower()]
        if not provider and device == "GPU":
            provider = "WebGPU"  # what its catalogue says of every generic-gpu model
        return f"{provider} {device}".strip()

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "loaded": self.loaded,
            "context_tokens": self.context_tokens,
            "provider": self.provider,
            "alias": self.alias,
        }


@dataclass(frozen=True)
class Server:
    """A model server, and what it offers. Holds no key."""

    base_url: str
    """What a client is given: `http://127.0.0.1:11434/v1`."""
    kind: Kind
    found_by: str
    """`RAG_SLM_BASE_URL`, `FOUNDRY_LOCAL_ENDPOINT`, `foundry service status`, `port 11434`, ..."""
    version: str | None = None
    models: tuple[Offered, ...] = ()
    """Those that it can be asked; models that cannot chat are left out."""
    problem: str | None = None
    """Why its models are not known, for a person."""
    catalogue: tuple[Offered, ...] = field(default=(), repr=False)
    """Those that it could fetch or load first (Foundry Local)."""

    @property
    def title(self) -> str:
        return TITLES[self.kind]

    def to_dict(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "kind": self.kind,
            "title": self.title,
            "found_by": self.found_by,
            "version": self.version,
            "models": [offered.to_dict() for offered in self.models],
            "catalogue": [offered.id for offered in self.catalogue],
            "problem": self.problem,
        }


# One server


async def identify(base_url: str, *, found_by: str, api_key: str | None = None, timeout_s: float = 3) -> Server:
    """What the server at that address is. Never raises and never takes longer than told; `problem` says why not."""
    return (await _look(base_url, found_by, api_key, timeout_s)).server


@dataclass(frozen=True)
class _Seen:
    """What one address turned out to be."""

    servers: tuple[Server, ...]
    """Its doors: one, except for a Foundry Local whose own catalogue has another address than the public one."""
    known: bool = True
    """It is a model server; otherwise something that answers, or nothing."""

    @property
    def server(self) -> Server:
        return next((server for server in self.servers if server.models), self.servers[0])


@dataclass(frozen=True)
class _Problem:
    """What goes wrong, as a sentence goes on after the server's name; and what helps."""

    what: str
    mend: Literal["key", "start", "wait", "check"] = "check"


NO_LIST = _Problem("answers with something that is no list of models")
NOT_JSON = _Problem("answers with something that is not JSON; it seems to be no model server")


@dataclass(frozen=True)
class _Answer:
    """To one GET."""

    status: int = 0
    """0: there was none."""
    body: Any = None
    """Parsed; None where it was no JSON, or no success."""
    software: str = ""
    """As the header Server says."""
    problem: _Problem | None = None

    def listed(self) -> list[dict[str, Any]] | None:
        """The entries of a list as OpenAI has it; None when it is no such list."""
        data = self.body
        if isinstance(data, dict) and "error" not in data and (data.get("object") == "list" or "data" in data):
            # No models are null where the server is written in Go.
            data = data.get("data") or []
        return [one for one in data if isinstance(one, dict)] if isinstance(data, list) else None

    def strings(self) -> set[str] | None:
        """A bare list of ids; None when it is no such list."""
        return {one for one in self.body if isinstance(one, str)} if isinstance(self.body, list) else None

    def told(self, name: str) -> Any:
        """A field of an object; None when there is none."""
        return self.body.get(name) if isinstance(self.body, dict) else None


class _Asking:
    """GETs to one server, which share its key and their time."""

    def __init__(self, client: httpx2.AsyncClient, base_url: str, api_key: str | None, timeout_s: float) -> None:
        self.base_url = base_url
        # Paths of its own are found where its OpenAI paths begin: behind a proxy that need not be the origin.
        self.root = base_url.removesuffix("/v1").removesuffix(LOCAL_CATALOGUE)
        self._client = client
        self._headers = {"Accept": "application/json", "User-Agent": f"smallfirst/{__version__}"}
        # Compressed, two megabytes could become two thousand.
        self._headers["Accept-Encoding"] = "identity"
        self._key = api_key or ""
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._deadline = asyncio.get_running_loop().time() + timeout_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def get(self, address: str) -> _Answer:
        try:
            async with asyncio.timeout(self.left_s):
                return await self._follow(httpx2.URL(address))
        except TimeoutError:
            return _Answer(problem=_Problem(f"did not answer within {self._timeout_s:g} s"))
        except httpx2.ConnectError as error:
            return _Answer(problem=_unconnected(str(error)))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError):
            # The text of these may hold a header, and with it the key.
            return _Answer(problem=_Problem("sent something that is no HTTP answer, or hung up"))

    async def _follow(self, url: httpx2.URL) -> _Answer:
        """A redirect within the server is followed; to another one, nothing that was meant for this one may go."""
        for _ in range(3):
            async with self._client.stream("GET", url, headers=self._headers) as response:
                location = response.headers.get("Location")
                if not (response.is_redirect and location):
                    return await _read(response, self._key)
                target = url.join(location)
            if addresses.identity(addresses.origin(target))[:3] != addresses.identity(addresses.origin(url))[:3]:
                there = f"{target.scheme}://{target.host}"
                away = _Problem(f"sends its visitors on to {there}; if that is right, name it instead")
                return _Answer(response.status_code, problem=away)
            url = target
        return _Answer(response.status_code, problem=_Problem("sends its visitors in circles"))


async def _read(response: httpx2.Response, key: str) -> _Answer:
    status, software = response.status_code, response.headers.get("Server", "")

    def bad(problem: _Problem) -> _Answer:
        return _Answer(status, None, software, problem)

    if status != 200:
        return bad(_refusal(status, bool(key)))
    content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type and "json" not in content_type:
        shown = content_type if content_type in ("text/html", "text/plain") else "something else"
        return bad(_Problem(f"answers with {shown} instead of JSON; it seems to be no model server"))
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return bad(_Problem("sends compressed answers that nobody asked for"))
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MOST_BYTES:
            return bad(_Problem(f"sends more than {MOST_BYTES // 1_000_000} MB where a list is due"))
    try:
        parsed = json.loads(bytes(body))
        # An id or a version would be shown and kept. A short key is none ("ollama"), and may be a part of a word.
        if len(key) >= SHORTEST_KEY and key in json.dumps(parsed, ensure_ascii=False):
            return bad(_Problem("repeats the key that it was sent; it seems to be no model server"))
    except (ValueError, RecursionError):
        return bad(NOT_JSON)
    return _Answer(status, parsed, software)


def _unconnected(reason: str) -> _Problem:
    # Only what is told apart here is repeated; the library's own words are for developers.
    if "CERTIFICATE_VERIFY" in reason:
        return _Problem("shows a certificate that this machine does not trust")
    if "SSL" in reason:
        return _Problem("does not speak TLS; its address may have to begin with http://")
    return _Problem("cannot be reached: nothing listens there", "start")


def _refusal(status: int, keyed: bool) -> _Problem:
    if status in (401, 403):
        return _Problem(f"{'refused the' if keyed else 'wants a'} key (status {status})", "key")
    if status == 404:
        return _Problem("has no list of models (status 404); its address may be wrong")
    if status == 429:
        return _Problem("takes no more requests just now (status 429)", "wait")
    if status == 503:
        return _Problem("is not ready (status 503): it may still be loading its model", "wait")
    return _Problem(f"failed when it was asked for its models (status {status})")


def _failed(server: Server, problem: _Problem | None) -> Server:
    """The server with its problem as a whole sentence or two: who, what, and what to do now."""
    if problem is None:
        return server
    named = server.found_by.startswith("RAG_")
    key = server.found_by.replace("BASE_URL", "API_KEY") if named else "RAG_SLM_API_KEY or RAG_LLM_API_KEY"
    mend = {
        "key": f"Set {key}." if named else f"Name it in RAG_SLM_BASE_URL or RAG_LLM_BASE_URL, with {key}.",
        "start": f"Start that server, or change {server.found_by}." if named else "Start that server.",
        "wait": "Try again in a moment.",
        "check": f"Check {server.found_by}." if named else "Check that server.",
    }[problem.mend]
    who = "Foundry Local" if server.kind == "foundry" else "The server"
    return replace(server, problem=f"{who} at {server.base_url} {problem.what}. {mend}")


async def _look(base_url: str, found_by: str, api_key: str | None, timeout_s: float) -> _Seen:
    def unknown(address: str, problem: str) -> _Seen:
        return _Seen((Server(address, "openai", found_by, problem=problem),), known=False)

    try:
        base_url = addresses.tidy(base_url)
    except UserError as error:
        return unknown("", str(error))
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        return unknown(base_url, f"The key for {base_url} has characters that no request can carry. Copy it once more.")
    secure, local = base_url.startswith("https:"), addresses.is_loopback(base_url)
    async with httpx2.AsyncClient(
        timeout=None,
        follow_redirects=False,
        # A proxy named in the environment must never see a request to this machine.
        trust_env=not local,
        # Without TLS there is nothing to verify, and reading the certificates takes as long as the rest of a search.
        verify=secure,
    ) as client:
        asking = _Asking(client, base_url, api_key, timeout_s)
        return await _recognised(asking, found_by)


async def _recognised(asking: _Asking, found_by: str) -> _Seen:
    """Ask everything by which a kind of server is known at once, then what only that kind can tell."""
    root = asking.root
    addresses = {
        "models": f"{asking.base_url}/models",
        "ollama": f"{root}/api/version",
        "lmstudio": f"{root}/api/v0/models",
        "foundry": f"{root}/status",
        "foundry_cli": f"{root}/openai/status",
    }
    asked = {name: asyncio.create_task(asking.get(address)) for name, address in addresses.items()}
    try:
        await asyncio.wait(asked.values(), timeout=asking.left_s * FIRST_SHARE)
        told = {name: task.result() if task.done() else _Answer() for name, task in asked.items()}
        models = told["models"]
        entries = models.listed() or []
        owners = {entry.get("owned_by") for entry in entries}
        # Where Foundry Local is said to be, what does not show its kind is taken for it.
        kind: Kind = "foundry" if found_by.lower().startswith("foundry") else "openai"
        server = Server(asking.base_url, kind, found_by)
        if "smallfirst" in owners:
            return _Seen((_failed(server, _Problem("is a Small First chat, not a model server")),), known=False)
        if models.software.startswith("llama.cpp") or "llamacpp" in owners:
            found = await _llama(asking, replace(server, kind="llama.cpp"), entries)
            return _Seen((_failed(found, models.problem),))
        if _is_foundry(told["foundry"]):
            return await _foundry(asking, replace(server, kind="foundry"), asked["models"])
        if _is_foundry(told["foundry_cli"]):
            return await _foundry_cli(asking, replace(server, kind="foundry"), asked["models"])
        if (offered := _lmstudio(told["lmstudio"])) is not None:
            return _Seen((replace(server, kind="lmstudio", models=offered),))
        if version := _version(told["ollama"].told("version")):
            ollama = await _ollama(asking, replace(server, kind="ollama", version=version))
            if ollama is not None:
                return _Seen((ollama,))
        if "vllm" in owners:
            return _Seen((await _vllm(asking, replace(server, kind="vllm"), entries),))
        models = await asked["models"]
        return _Seen((_other(server, models),), known=models.listed() is not None)
    finally:
        for task in asked.values():
            task.cancel()
        await asyncio.gather(*asked.values(), return_exceptions=True)


def _offered(
    entries: Iterable[dict[str, Any]], build: Callable[[dict[str, Any], str], Offered | None], name: str = "id"
) -> tuple[Offered, ...]:
    """One of each id, in the server's order; an id that could not be shown is none."""
    models: dict[str, Offered] = {}
    for entry in entries:
        id = entry.get(name)
        if not (isinstance(id, str) and id and id.isprintable() and len(id) <= LONGEST_ID):
            continue
        offered = build(entry, id)
        if offered is not None and (id not in models or (offered.loaded and not models[id].loaded)):
            models[id] = offered
    return tuple(models.values())


def _version(value: Any) -> str | None:
    return value[:40] if isinstance(value, str) and value.isprintable() else None


def _tokens(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else None


def _other(server: Server, models: _Answer) -> Server:
    entries = models.listed()
    if entries is None:
        return _failed(server, models.problem or NO_LIST)

    def offer(entry: dict[str, Any], id: str) -> Offered:
        return Offered(id, None, next(filter(None, (_tokens(entry.get(name)) for name in WINDOWS)), None))

    offered = _offered(entries, offer)
    # A Foundry Local that shows nothing but its models is known by them.
    shown = any(FOUNDRY_ID.fullmatch(one.id) for one in offered)
    return replace(server, kind="foundry" if shown else server.kind, models=offered)


async def _llama(asking: _Asking, server: Server, entries: list[dict[str, Any]]) -> Server:
    props = await asking.get(f"{asking.root}/props")
    settings = props.told("default_generation_settings")
    # Of the one that runs; a server that switches between models says it of each.
    window = _tokens(settings.get("n_ctx")) if isinstance(settings, dict) and len(entries) == 1 else None
    asleep = props.told("is_sleeping") is True

    def offer(entry: dict[str, Any], id: str) -> Offered:
        status, meta = entry.get("status"), entry.get("meta")
        loaded = status.get("value") == "loaded" if isinstance(status, dict) else not asleep
        return Offered(id, loaded, window or (_tokens(meta.get("n_ctx")) if isinstance(meta, dict) else None))

    return replace(server, version=_version(props.told("build_info")), models=_offered(entries, offer))


async def _vllm(asking: _Asking, server: Server, entries: list[dict[str, Any]]) -> Server:
    version = (await asking.get(f"{asking.root}/version")).told("version")
    models = _offered(entries, lambda entry, id: Offered(id, True, _tokens(entry.get("max_model_len"))))
    return replace(server, version=_version(version), models=models)


def _lmstudio(listed: _Answer) -> tuple[Offered, ...] | None:
    entries = listed.listed()
    if entries is None or listed.told("object") != "list" or any("state" not in entry for entry in entries):
        return None

    def offer(entry: dict[str, Any], id: str) -> Offered | None:
        if entry.get("type") not in ("llm", "vlm"):
            return None
        return Offered(id, entry["state"] == "loaded", _tokens(entry.get("loaded_context_length")))

    return _offered(entries, offer)


async def _ollama(asking: _Asking, server: Server) -> Server | None:
    """None: it only has a /api/version, as others do."""
    tags, running = await asyncio.gather(asking.get(f"{asking.root}/api/tags"), asking.get(f"{asking.root}/api/ps"))
    listed = tags.told("models")
    if not isinstance(tags.body, dict) or "models" not in tags.body or not isinstance(listed or [], list):
        return None
    loaded = running.told("models") or ([] if running.status == 200 else None)
    windows: dict[Any, int | None] | None = None
    if isinstance(loaded, list):
        windows = {one.get("name"): _tokens(one.get("context_length")) for one in loaded if isinstance(one, dict)}

    def offer(entry: dict[str, Any], id: str) -> Offered | None:
        details, able = entry.get("details"), entry.get("capabilities")
        family = str(details.get("family")) if isinstance(details, dict) else ""
        # It does not always say what a model can do; these families only turn texts into vectors.
        if "bert" in family or (isinstance(able, list) and "completion" not in able):
            return None
        return Offered(id, None if windows is None else id in windows, windows.get(id) if windows else None)

    entries = [one for one in listed or [] if isinstance(one, dict)]
    return replace(server, models=_offered(entries, offer, "name"))


# Foundry Local


def _is_foundry(status: _Answer) -> bool:
    if not isinstance(status.body, dict):
        return False
    # Its documentation writes them with a capital, its answers without.
    fields = {str(name).lower(): value for name, value in status.body.items()}
    return isinstance(fields.get("endpoints"), list) and not fields.keys().isdisjoint(
        ("pid", "modelcachepath", "modeldirpath")
    )


async def _foundry(asking: _Asking, server: Server, listing: asyncio.Task[_Answer]) -> _Seen:
    """The service inside a program (2.x), and that of the newer command (0.10)."""
    root = asking.root
    local = replace(server, base_url=f"{root}{LOCAL_CATALOGUE}/v1")
    # The first question for the public catalogue takes seconds where there is no internet; the others wait for nothing.
    own, own_loaded, loaded, public = await asyncio.gather(
        asking.get(f"{local.base_url}/models"),
        asking.get(f"{root}{LOCAL_CATALOGUE}/models/loaded"),
        asking.get(f"{root}/models/loaded"),
        listing,
    )
    doors = []
    local = replace(local, models=_foundry_models(own.listed() or [], own_loaded.strings()))
    if asking.base_url != local.base_url:
        entries = public.listed()
        models = _foundry_models(entries or [], loaded.strings())
        if entries is None:
            server = _failed(server, public.problem or NO_LIST)
        elif loaded.strings() is None or any("maxInputTokens" in entry or "parent" in entry for entry in entries):
            server = replace(server, models=models)
        else:
            # All that could be had, and nothing tells what was fetched: only what is loaded is sure to answer.
            ready, rest = _split(models, lambda offered: bool(offered.loaded))
            server = replace(server, models=ready, catalogue=rest)
        if server.models or server.catalogue or not local.models:
            doors.append(server)
    if local.models or not doors:
        doors.append(local if own.listed() is not None else _failed(local, own.problem or NO_LIST))
    return _Seen(tuple(doors))


async def _foundry_cli(asking: _Asking, server: Server, listing: asyncio.Task[_Answer]) -> _Seen:
    """The service of the older command (0.x)."""
    loaded, cached, catalogue, public = await asyncio.gather(
        asking.get(f"{asking.root}/openai/loadedmodels"),
        asking.get(f"{asking.root}/openai/models"),
        asking.get(f"{asking.root}/foundry/list"),
        listing,
    )
    entries = public.listed()
    if entries is None and cached.strings() is None:
        return _Seen((_failed(server, public.problem or NO_LIST),))
    entries = entries or []
    known = {_unversioned(str(entry.get("id"))) for entry in entries}
    entries = entries + [{"id": id} for id in sorted(cached.strings() or ()) if _unversioned(id) not in known]
    told = catalogue.body.get("models") if isinstance(catalogue.body, dict) else catalogue.body
    told = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    about = {_unversioned(str(one.get("name"))): one for one in told}
    described = [{"parent": about.get(_unversioned(str(one.get("id"))), {}).get("alias"), **one} for one in entries]
    models = tuple(
        offered
        for offered in _foundry_models(described, loaded.strings())
        if _chats(about.get(_unversioned(offered.id), {}))
    )
    here = {_unversioned(offered.id) for offered in models}
    rest = _offered(
        (one for one in told if _chats(one) and _unversioned(str(one.get("name"))) not in here),
        lambda entry, id: Offered(id, False, alias=_alias(entry.get("alias"))),
        "name",
    )
    return _Seen((replace(server, models=models, catalogue=rest),))


def _foundry_models(entries: list[dict[str, Any]], loaded: set[str] | None) -> tuple[Offered, ...]:
    names = None if loaded is None else {_unversioned(name) for name in loaded}

    def offer(entry: dict[str, Any], id: str) -> Offered:
        read, written = _tokens(entry.get("maxInputTokens")), _tokens(entry.get("maxOutputTokens"))
        alias = _alias(entry.get("parent"))
        # Both are told, with or without version; some services tell the alias.
        ready = None if names is None else not names.isdisjoint({_unversioned(id), _unversioned(alias or id)})
        return Offered(id, ready, read + written if read and written else None, alias)

    return _offered(entries, offer)


def _alias(value: Any) -> str | None:
    return value if isinstance(value, str) and value and value.isprintable() and len(value) <= LONGEST_ID else None


def _chats(entry: dict[str, Any]) -> bool:
    task = entry.get("task")
    return not isinstance(task, str) or "chat" in task or "completion" in task


def _unversioned(id: str) -> str:
    return re.sub(r":\d+$", "", id).lower()


def _split(
    models: Sequence[Offered], ready: Callable[[Offered], bool]
) -> tuple[tuple[Offered, ...], tuple[Offered, ...]]:
    return tuple(one for one in models if ready(one)), tuple(one for one in models if not ready(one))


async def ask_foundry(timeout_s: float = COMMAND_S) -> list[tuple[str, str]]:
    """What Foundry Local's own command says, if it is installed: the command, and the loopback address that it told.

    Its port is another after each start. Which of the two spellings it knows depends on its version.
    """
    program = shutil.which("foundry")
    # A program of that name in the folder where the user happens to be is nothing that he installed.
    if program is None or not os.path.isabs(program):
        return []
    nouns = ("service", "server")
    said = await asyncio.gather(*(_output([program, noun, "status"], timeout_s) for noun in nouns))
    found = []
    for noun, text in zip(nouns, said, strict=True):
        if (address := _told_address(text)) is not None:
            found.append((f"foundry {noun} status", address))
    return found


# Colours, and links that terminals can show.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_ADDRESS = re.compile(r"http://(?:\[[0-9a-f:.]+\]|[a-z0-9.-]+):\d{1,5}(?!\d)", re.IGNORECASE)


def _told_address(text: str) -> str | None:
    for match in _ADDRESS.finditer(_CONTROL.sub("", text)):
        with suppress(UserError):
            address = addresses.tidy(match[0])
            if addresses.is_loopback(address):
                return address
    return None


async def _output(command: list[str], timeout_s: float) -> str:
    """What a command prints. When its time is over it is ended, with all that it started."""
    # A file and not a pipe: a service that the command leaves behind would hold a pipe open for ever.
    with tempfile.TemporaryFile() as out:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=os.name == "posix",
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except (OSError, NotImplementedError):
            # No program after all, or an event loop that starts none.
            return ""
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                _end(process.pid)
                await process.wait()
        out.seek(0)
        return out.read(64_000).decode(errors="replace")


def _end(pid: int) -> None:
    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.Error:
        family = []
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    for process in family:
        with suppress(psutil.Error):
            process.kill()


# All servers


async def find(settings: Settings, places: Sequence[int] = PLACES) -> list[Server]:
    """Every server that the settings name, and those found on this machine; each once, the named ones first.

    Takes `TOTAL_S` at most. A server elsewhere is asked only if `settings.remote` is "allow".
    """
    deadline = asyncio.get_running_loop().time() + TOTAL_S
    named: dict[Any, tuple[str, str, str | None]] = {}
    results: list[Server | asyncio.Task[list[Server]]] = []

    async def look(found_by: str, address: str, key: str | None, *, searched: bool) -> list[Server]:
        left_s = max(0.5, deadline - asyncio.get_running_loop().time())
        seen = await _look(address, found_by, key, min(COMMAND_S, left_s))
        return [] if searched and not seen.known else list(seen.servers)

    async def command() -> list[Server]:
        told: dict[str, str] = {}
        for how, address in await ask_foundry():
            if addresses.identity(address) not in named:
                told.setdefault(address, how)
        found = await asyncio.gather(*(look(how, address, None, searched=False) for address, how in told.items()))
        return [server for servers in found for server in servers]

    def start(work: Coroutine[Any, Any, list[Server]]) -> None:
        results.append(asyncio.create_task(work))

    for found_by, address, key in _named(settings):
        try:
            base_url = addresses.tidy(address)
        except UserError as error:
            results.append(Server("", "openai", found_by, problem=str(error)))
            continue
        before = named.get(addresses.identity(base_url))
        if before is None or before[2] is None:
            named[addresses.identity(base_url)] = (*(before or (found_by, base_url))[:2], key)
    for found_by, base_url, key in named.values():
        if addresses.is_loopback(base_url) or settings.remote == "allow":
            start(look(found_by, base_url, key, searched=False))
        else:
            kind: Kind = "foundry" if found_by == "FOUNDRY_LOCAL_ENDPOINT" else "openai"
            results.append(Server(base_url, kind, found_by, problem=NOT_ASKED))
    if settings.discover:
        start(command())
        for port in places:
            base_url = f"http://127.0.0.1:{port}/v1"
            if addresses.identity(base_url) not in named:
                start(look(f"port {port}", base_url, None, searched=True))
    tasks = [result for result in results if isinstance(result, asyncio.Task)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    found: dict[Any, Server] = {}
    for result in results:
        for server in result.result() if isinstance(result, asyncio.Task) else [result]:
            # An address that cannot be read is nobody else's.
            found.setdefault(addresses.identity(server.base_url) if server.base_url else server.found_by, server)
    return list(found.values())


def _named(settings: Settings) -> list[tuple[str, str, str | None]]:
    """Setting, address, key."""
    named = []
    for leg in ("slm", "llm"):
        if address := getattr(settings, f"{leg}_base_url"):
            secret = getattr(settings, f"{leg}_api_key")
            named.append((f"RAG_{leg.upper()}_BASE_URL", address, secret.get_secret_value() if secret else None))
    if settings.foundry_endpoint:
        named.append(("FOUNDRY_LOCAL_ENDPOINT", settings.foundry_endpoint, None))
    return named
