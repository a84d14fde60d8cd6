"""For whoever watches over servers: `GET /healthz` (it runs), `/readyz` (a question could be answered now), `/metrics`.

Knows what a turn would find if it began now, as `turn/cascade.py` decides it: which model is asked first, who stands in,
and who is waited for. The first two are open to whoever can reach the server, so they tell neither paths and addresses, nor
names of documents or models, nor what a server said; the terminal and `smallfirst doctor` do.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from rag import __version__
from rag.corpus.library import Library
from rag.models.legs import Answering
from rag.serve.api_errors import ApiRoute
from rag.serve.service import Service
from rag.settings import Settings

RETRY_S: Final = 5
"""What loads is loaded within seconds; what is fetched is worth a look as often."""
NO_STORE: Final[Mapping[str, str]] = {"Cache-Control": "no-store"}
SPOKEN: Final = {"slm": "small model", "llm": "larger model"}
DOING: Final = {"fetching": "being fetched", "verifying": "being verified", "loading": "being loaded"}


class Health(BaseModel):
    status: Literal["ok"]
    version: str


class Check(BaseModel):
    """One thing that answers are made with. Unless it is ok, `detail` is a sentence on why not."""

    status: Literal["ok", "degraded", "failed", "not needed"]
    """degraded: questions are answered, less well than they might be. failed: without it none is."""
    detail: str = ""


class Checks(BaseModel):
    documents: Check
    slm: Check
    llm: Check


class Readiness(BaseModel):
    status: Literal["ready", "not ready"]
    reasons: list[str]
    """Why it is not ready; of one that is, what is degraded."""
    checks: Checks


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=ApiRoute, tags=["health"])
    told: dict[int | str, dict[str, Any]] = {
        503: {"model": Readiness, "description": "No question could be answered now; the reasons say why."}
    }
    exposition = {
        "text/plain": {"schema": {"type": "string"}},
        "application/openmetrics-text": {"schema": {"type": "string"}},
    }

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", response_model=Health, summary="Does the process serve?")
    async def healthz() -> Response:
        return JSONResponse(Health(status="ok", version=__version__).model_dump(), headers=NO_STORE)

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", response_model=Readiness, responses=told, summary="Could a question be answered now?")
    async def readyz() -> Response:
        found = look(service)
        if found.status == "ready":
            return JSONResponse(found.model_dump(), headers=NO_STORE)
        return JSONResponse(found.model_dump(), 503, headers={**NO_STORE, "Retry-After": str(RETRY_S)})

    @routes.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={
            200: {"content": exposition, "description": "For a Prometheus server."},
            401: {"description": "There are keys (RAG_API_KEYS), and none of them was sent."},
            429: {"description": "Too many unknown keys came from this address."},
        },
        summary="Counts, times and gauges",
    )
    async def metrics(request: Request) -> Response:
        # On the event loop, whose turns it looks at; it takes a few milliseconds.
        text, content_type = service.metrics.exposition(request.headers.get("accept", ""))
        return Response(text, headers={**NO_STORE, "Content-Type": content_type, "Vary": "Accept"})

    return routes


def look(service: Service) -> Readiness:
    """What would become of a question in the mode of settings, if it were asked now."""
    checks = Checks(documents=_documents(service.library), **_models(service))
    each = (checks.documents, checks.slm, checks.llm)
    failed = [check.detail for check in each if check.status == "failed"]
    degraded = [check.detail for check in each if check.status == "degraded"]
    return Readiness(status="not ready" if failed else "ready", reasons=failed or degraded, checks=checks)


def _documents(library: Library) -> Check:
    passages, reading = len(library.index), library.reading
    if reading is not None and reading.total:
        progress = f"The documents are being read: {reading.done:,} of {reading.total:,} that are new or changed."
        return Check(status="degraded" if passages else "failed", detail=progress)
    if passages:
        return Check(status="ok")
    if not library.looked:
        return Check(status="failed", detail="The documents have not been looked at yet.")
    empty = "No document could be read, or there is none: every answer is that nothing was found."
    return Check(status="degraded", detail=empty)


def _models(service: Service) -> dict[str, Check]:
    """By leg."""
    settings, legs = service.settings, service.legs
    mode = settings.mode
    first: Answering = legs.llm if mode == "llm" else legs.slm
    second: Answering = legs.slm if mode == "llm" else legs.llm
    why_not, why_not_second = _why_not(first, settings), _why_not(second, settings)
    other = _askable(second, settings)
    if why_not_second:
        waits = _waited_for(second, settings)
        meanwhile = "Questions that need it wait." if waits else f"The {SPOKEN[first.name]} answers alone."
        detail = why_not_second if why_not else f"{why_not_second} {meanwhile}"
        other = (
            Check(status="degraded", detail=detail)
            if mode == "auto"
            else Check(status="not needed", detail=why_not_second)
        )
    elif mode != "auto" and not why_not:
        other = Check(status="ok")
    if not why_not:
        return {first.name: _askable(first, settings), second.name: other}
    stands_in = not why_not_second and not _waited_for(first, settings) and not (mode == "slm" and second.leaves)
    if stands_in:
        detail = f"{why_not} The {SPOKEN[second.name]} stands in."
        return {first.name: Check(status="degraded", detail=detail), second.name: other}
    return {first.name: Check(status="failed", detail=why_not), second.name: other}


def _askable(leg: Answering, settings: Settings) -> Check:
    """Of one that is there: may it be asked?"""
    if not leg.leaves or settings.remote == "allow":
        return Check(status="ok")
    detail = (
        f"The {SPOKEN[leg.name]} is on another machine: only who allows that in a conversation of the chat is answered"
        " by it. Set RAG_REMOTE=allow to allow it everywhere."
    )
    return Check(status="degraded", detail=detail)


def _why_not(leg: Answering, settings: Settings) -> str:
    """Why it could not be asked now; empty if it could."""
    the, phase = f"The {SPOKEN[leg.name]}", leg.state.phase
    if leg.leaves and settings.remote == "never":
        return f"{the} is on another machine, where no text may be sent (RAG_REMOTE=never)."
    if leg.state.at_hand:
        return ""
    if phase in DOING:
        done, total = leg.state.done_bytes, leg.state.total_bytes
        share = f" ({done / 1e6:,.0f} of {total / 1e6:,.0f} MB)" if total else ""
        return f"{the} is {DOING[phase]}{share}."
    if phase == "absent" and leg.installed:
        return f"{the} has not been started yet."
    if phase == "absent":
        return f"{the} has not been fetched; `smallfirst models` lists what can be."
    return f"{the} does not answer; `smallfirst doctor` says why."


def _waited_for(leg: Answering, settings: Settings) -> bool:
    """A turn waits for what is on its way, and nobody stands in; but the larger model may be too long in coming."""
    if leg.leaves and settings.remote == "never":
        return False
    phase = leg.state.phase
    if phase == "absent":
        return leg.name == "slm" or leg.installed
    return phase == "loading" or (leg.name == "slm" and phase in ("fetching", "verifying"))
