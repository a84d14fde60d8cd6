"""Model files, model servers, and whether the two models that are wanted are to be had.

Asks the rooms of `rag.models`. Starts no model, and asks one only for a `deep` look.
"""

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rag.checks.subject import (
    LEGS,
    SPOKEN,
    Seen,
    Status,
    Subject,
    aside,
    bad,
    mb,
    note,
    of_text,
    ok,
    together,
    version_of,
)
from rag.errors import RagError, UserError
from rag.settings import Settings

if TYPE_CHECKING:
    from rag.models.capabilities import Capabilities
    from rag.models.places import Hosted, LegName
    from rag.models.weights import Weights

FOUNDRY = "To have it: pip install 'smallfirst[foundry]'"
# A question, and what stands between the parts of a prompt.
QUESTION_TOKENS = 160
# A passage's number and source.
MARK_TOKENS = 40


# --- files -----------------------------------------------------------------------------------------------------------


async def weights(subject: Subject) -> Seen:
    """Of the models that llama.cpp runs here. A start hashes none that has not changed; `deep` does."""
    settings, seen = subject.settings, list[Seen]()
    for leg, (path, one) in (await subject.embedded()).items():
        if one is not None and path is not None and subject.deep:
            subject.tell(f"Hashing {one.filename}, {mb(one.size_bytes)}")
        seen.append(await aside(lambda leg=leg, path=path, one=one: _file(leg, path, one, settings, subject.deep)))  # type: ignore[misc]
    return together(seen) if seen else ok("None is needed: all models are elsewhere")


def _file(leg: "LegName", path: Path | None, one: "Weights | None", settings: Settings, deep: bool) -> Seen:
    if one is None:
        assert path is not None, "a model without an entry in the catalogue is a file of the user's"
        return _own_file(path)
    if path is None:
        return _not_installed(leg, one, settings)
    return _hashed(path, one) if deep else ok(f"{one.name} is here and verified")


def _own_file(path: Path) -> Seen:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        return bad(f"{path} is no GGUF file", "Name another, or a model of: smallfirst models list")
    return ok(f"{path}, {mb(path.stat().st_size)}")


def _not_installed(leg: "LegName", one: "Weights", settings: Settings) -> Seen:
    path, pull = settings.cache_dir / one.filename, f"smallfirst models pull {one.name}"
    if path.is_file() and (size := path.stat().st_size) != one.size_bytes:
        return note(f"{path} is damaged: it has {size:,} bytes, and {one.size_bytes:,} are right",
                    f"The chat fetches it again when it starts; or at once: {pull}")  # fmt: skip
    if path.is_file():
        return note(f"{path} has changed since it was verified",
                    f"The chat verifies it again when it starts; or at once: {pull}")  # fmt: skip
    if leg == "llm" and not settings.pull_llm:
        return note(f"{one.name} is not here, and RAG_PULL_LLM=false: the small model answers alone", pull)
    return note(f"{one.name} is not here yet, {mb(one.size_bytes)}", f"The chat fetches it when it starts; or: {pull}")


def _hashed(path: Path, one: "Weights") -> Seen:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == one.sha256:
        return ok(f"{one.name} is here, and its bytes are the publisher's")
    # Its size and time are those of the file that was verified, so that no start would notice.
    return bad(f"{path} is damaged: its SHA-256 is {digest[:12]}…, and its publisher gives {one.sha256[:12]}…",
               f"Delete it, and fetch it again: smallfirst models pull {one.name}")  # fmt: skip


# --- servers ---------------------------------------------------------------------------------------------------------


async def servers(subject: Subject) -> Seen:
    """Each that is named or found. Whether one is missed, the checks of the two models tell."""
    from rag.models.discovery import NOT_ASKED

    seen = []
    for server in await subject.servers():
        version = f" {server.version}" if server.version else ""
        who = f"{server.title}{version} at {server.base_url} ({server.found_by})"
        if server.problem is None or server.models:
            ids = (f"{one.id}, loaded" if one.loaded else one.id for one in server.models)
            seen.append(ok(f"{who}: {'; '.join(ids) or 'no models'}"))
        elif server.problem == NOT_ASKED:
            seen.append(ok(f"{who}: {NOT_ASKED}"))
        else:
            seen.append(of_text("note", server.problem))
    if seen:
        return together(seen)
    return ok("None was found" if subject.settings.discover else "None is named, and RAG_DISCOVER=false")


async def slm(subject: Subject) -> Seen:
    return await _wanted(subject, "slm")


async def llm(subject: Subject) -> Seen:
    return await _wanted(subject, "llm")


async def _wanted(subject: Subject, leg: "LegName") -> Seen:
    """Is the model to be had, where, and by which name?"""
    from rag.models.places import Embedded, Hosted

    # Auto begins with the small model, and can go on without the larger one.
    missed: Status = "bad" if leg == ("llm" if subject.settings.mode == "llm" else "slm") else "note"
    try:
        place, more = await subject.place(leg)
    except UserError as error:
        return of_text("bad", str(error))  # the chat would not start
    except RagError as error:
        return of_text(missed, str(error))
    if isinstance(place, Hosted):
        return _on_server(subject, place, missed, more)
    runner = "llama.cpp" if isinstance(place, Embedded) else "Foundry Local's library"
    return ok(f"{place.model}, run here by {runner}", more)


def _on_server(subject: Subject, place: "Hosted", missed: Status, more: str) -> Seen:
    from rag.models.addresses import is_loopback
    from rag.models.discovery import NOT_ASKED

    server, remote = place.server, subject.settings.remote
    detail = f"{place.model} at {server.base_url} ({place.runs_on})"
    if not is_loopback(server.base_url):
        if remote == "never":
            return Seen(missed, f"{detail}: on another machine, and RAG_REMOTE=never",
                        "Set RAG_REMOTE=ask, or name a server on this machine.")  # fmt: skip
        how = "always" if remote == "allow" else "once somebody allowed it in the conversation"
        detail += f"; text goes to that machine {how}"
    if server.problem is not None and not server.models and server.problem != NOT_ASKED:
        # Some tell nobody which models they have, and answer none the less.
        silent = any(words in server.problem for words in ("has no list of models", "no more requests"))
        return of_text("note" if silent else missed, server.problem)
    if next((one.loaded for one in server.models if one.id == place.model), None) is False:
        return note(f"{detail}; it is not loaded just now", "The first answer waits until it is. Or load it there now.")
    return ok(detail, more)


async def capabilities(subject: Subject) -> Seen:
    """Of models on servers: what the chat has tried, or what is tried now."""
    from rag.models.addresses import is_loopback

    seen = []
    for leg, place in (await _hosted(subject)).items():
        known = _tried(subject, place)
        if subject.deep and (subject.settings.remote == "allow" or is_loopback(place.server.base_url)):
            subject.tell(f"Trying what {place.model} at {place.server.base_url} can do")
            try:
                known = await _probed(subject, leg, place)
            except RagError as error:
                seen.append(of_text("note", str(error)))
                continue
        seen.append(ok(f"{place.model}: {_spelled(known) if known else 'not tried yet, which the chat does'}"))
    return together(seen) if seen else ok("Known, of what runs here")


async def _hosted(subject: Subject) -> "dict[LegName, Hosted]":
    from rag.models.places import Hosted

    found: dict[LegName, Hosted] = {}
    for leg in LEGS:
        with suppress(RagError):
            place, _ = await subject.place(leg)
            if isinstance(place, Hosted):
                found[leg] = place
    return found


def _tried(subject: Subject, place: "Hosted") -> "Capabilities | None":
    from rag.models.capabilities import Tried

    return Tried(subject.settings.cache_dir).get(place.server.base_url, place.model, place.server.version)


async def _probed(subject: Subject, leg: "LegName", place: "Hosted") -> "Capabilities":
    from rag.models.capabilities import Tried, probe

    settings, server = subject.settings, place.server
    # The user's key is for the server that he named, and for no other.
    secret = getattr(settings, f"{leg}_api_key") if place.named else None
    key = secret.get_secret_value() if secret else None
    found = await probe(server.base_url, place.model, api_key=key, context_tokens=place.context_tokens)
    Tried(settings.cache_dir).put(server.base_url, place.model, server.version, found)
    return found


def _spelled(known: "Capabilities") -> str:
    told = [
        "streams" if known.stream else "does not stream",
        f"logprobs of the best {known.top_logprobs or 1}" if known.logprobs else "no logprobs",
    ]
    if known.cancels is not None:
        told.append("stops when nobody listens" if known.cancels else "computes on when nobody listens")
    if known.tokens_per_s:
        told.append(f"{known.tokens_per_s:,.0f} tokens/s")
    if known.refuses:
        told.append(f"refuses {', '.join(sorted(known.refuses))}")
    return ", ".join(told)


async def window(subject: Subject) -> Seen:
    """Is there room for what each model is to read and write?"""
    windows: dict[LegName, int] = dict.fromkeys(await subject.embedded(), subject.settings.context_tokens)
    hosted = await _hosted(subject)
    for leg, place in hosted.items():
        known = _tried(subject, place)
        if told := place.context_tokens or (known.context_tokens if known else None):
            windows[leg] = told
    seen = [_room(leg, windows[leg], leg in hosted, subject.settings) for leg in LEGS if leg in windows]
    return together(seen) if seen else ok("The servers do not tell theirs")


def _room(leg: "LegName", tokens: int, hosted: bool, settings: Settings) -> Seen:
    from rag.turn.prompt import estimate_tokens, opening

    large = leg == "llm"
    begins = opening(large=large, examples=not large, checks=large and settings.check, language="")
    writes: int = getattr(settings, f"{leg}_max_tokens")
    room = tokens - writes - QUESTION_TOKENS - sum(estimate_tokens(one["content"]) for one in begins)
    passage = settings.passage_chars // 3 + MARK_TOKENS
    wanted = min(settings.evidence_tokens, getattr(settings, f"{leg}_passages") * passage)
    detail = f"{SPOKEN[leg]} {tokens:,} tokens"
    if room >= wanted:
        return ok(detail)
    larger = "Give it a larger window on its server" if hosted else "Raise RAG_CONTEXT_TOKENS"
    mend = f"{larger}, or lower RAG_{leg.upper()}_MAX_TOKENS (now {writes:,})."
    if room <= 0:
        return bad(f"{detail}, which leaves none for passages", mend)
    return note(f"{detail}, which leaves {room:,} for passages, and {wanted:,} are wanted", mend)


def foundry(subject: Subject) -> Seen:
    from rag.models import foundry

    parts = []
    if command := shutil.which("foundry"):
        parts.append(f"its command is {command}")
    if foundry.installed():
        parts.append(f"its library is here, {version_of('foundry-local-sdk')}")
    return ok("; ".join(parts)) if parts else ok("Not installed, and not needed", FOUNDRY)
