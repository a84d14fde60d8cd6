"""Whether it runs, and whether a question could be answered now; asked of the real application, with scripted models."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rag import __version__
from rag.corpus.library import Library, Progress
from rag.errors import ModelUnreachable
from rag.models.state import State
from rag.serve.readiness import look
from rag.serve.server import application
from rag.settings import Mode, Settings
from rag.turn import cascade
from rag.turn.cascade import Answered
from rag.turn.session import Session

from .scripted import ScriptedLegs
from .serving import ScriptedService

READY = State("ready")
GONE = State("failed", detail="No model server at http://secret.host:1234/v1, and no /secret/weights.gguf.")
FETCHING = State("fetching", 12_000_000, 105_000_000)
ABSENT = State("absent", detail="Not fetched. To have it: smallfirst models pull /secret/weights.gguf")


def service_of(
    tmp_path: Path, *, text: str = "Zebras drink at the Mara river.", read: bool = True, **chosen: Any
) -> Any:
    docs = tmp_path / "secretfolder"
    docs.mkdir()
    if text:
        (docs / "secretfile.txt").write_text(text)
    settings = Settings(_env_file=None, cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", docs=docs, **chosen)  # type: ignore[call-arg]
    library, legs = Library(settings), ScriptedLegs(["Zebras drink at the Mara river."] * 2, ["At the Mara river."] * 2)
    if read:
        library.update()
    return ScriptedService(settings, library, legs)


@asynccontextmanager
async def asking(service: Any) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(application(service, "127.0.0.1"))
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client
    finally:
        service.library.close()


async def test_it_is_alive_whatever_else_is_missing(tmp_path: Path) -> None:
    service = service_of(tmp_path, read=False)
    service.legs.slm.state = service.legs.llm.state = GONE
    async with asking(service) as client:
        for method in ("GET", "HEAD"):
            answer = await client.request(method, "/healthz")
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "no-store"
        assert (await client.get("/healthz")).json() == {"status": "ok", "version": __version__}


async def test_it_is_ready_when_documents_and_models_are(tmp_path: Path) -> None:
    async with asking(service_of(tmp_path)) as client:
        answer = await client.get("/readyz")
        assert (await client.head("/readyz")).status_code == 200
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    ok = {"status": "ok", "detail": ""}
    assert answer.json() == {"status": "ready", "reasons": [], "checks": {"documents": ok, "slm": ok, "llm": ok}}


async def test_readiness_follows_the_state_of_a_model_and_says_when_to_ask_again(tmp_path: Path) -> None:
    service = service_of(tmp_path)
    service.legs.slm.state = FETCHING
    async with asking(service) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["status"] == "not ready"
        assert answer.json()["reasons"] == ["The small model is being fetched (12 of 105 MB)."]
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["cache-control"] == "no-store"
        service.legs.slm.state = State("loading")
        assert (await client.get("/readyz")).json()["reasons"] == ["The small model is being loaded."]
        service.legs.slm.state = State("resting")
        assert (await client.get("/readyz")).status_code == 200, "it is loaded again in a moment"


STATES = {"ready": READY, "gone": GONE, "fetching": FETCHING, "absent": ABSENT}


@pytest.mark.parametrize(
    ("mode", "slm", "llm", "checks"),
    [
        ("auto", "ready", "ready", "ok ok"),
        ("auto", "ready", "absent", "ok degraded"),
        ("auto", "ready", "gone", "ok degraded"),
        ("auto", "gone", "ready", "degraded ok"),
        ("auto", "fetching", "ready", "failed ok"),
        ("auto", "gone", "gone", "failed degraded"),
        ("slm", "ready", "gone", "ok not needed"),
        ("slm", "gone", "ready", "degraded ok"),
        ("llm", "gone", "ready", "not needed ok"),
        ("llm", "ready", "fetching", "ok degraded"),
        ("llm", "ready", "absent", "ok degraded"),
        ("llm", "ready", "gone", "ok degraded"),
        ("llm", "gone", "gone", "not needed failed"),
    ],
)
async def test_it_is_ready_exactly_when_a_turn_would_be_answered_now(
    tmp_path: Path, mode: Mode, slm: str, llm: str, checks: str
) -> None:
    service = service_of(tmp_path, mode=mode)
    for leg, state in ((service.legs.slm, slm), (service.legs.llm, llm)):
        leg.state, leg.installed = STATES[state], state != "absent"
        leg.failure = None if state == "ready" else ModelUnreachable("It is not there.")
    found = look(service)
    assert f"{found.checks.slm.status} {found.checks.llm.status}" == checks
    assert (found.status == "not ready") == ("failed" in checks)
    assert bool(found.reasons) == ("failed" in checks or "degraded" in checks)

    # And a turn agrees. A leg that is on its way here never comes, as in a real turn it would for a long while.
    session = Session(service.library, mode)
    events = cascade.answer("Where do zebras drink?", session=session, legs=service.legs, settings=service.settings)
    last = [event async for event in events][-1]
    waited = slm == "fetching" and mode == "auto"
    assert isinstance(last, Answered) == (found.status == "ready" or waited)
    service.library.close()


@pytest.mark.parametrize(
    ("remote", "mode", "ready", "reason"),
    [
        ("allow", "llm", True, None),
        ("allow", "slm", True, None),
        ("ask", "llm", True, "RAG_REMOTE=allow"),
        ("never", "llm", True, "The small model stands in."),
        ("never", "auto", True, "The small model answers alone."),
        ("never", "slm", True, None),
    ],
)
async def test_a_model_elsewhere_counts_only_as_far_as_text_may_be_sent_there(
    tmp_path: Path, remote: Any, mode: Mode, ready: bool, reason: str | None
) -> None:
    service = service_of(tmp_path, remote=remote, mode=mode)
    service.legs.llm.leaves, service.legs.llm.state = True, State("remote")
    found = look(service)
    assert (found.status == "ready") == ready
    assert found.reasons == [] if reason is None else reason in found.reasons[0]
    service.legs.slm.state = GONE
    assert look(service).status == ("not ready" if remote == "never" or mode == "slm" else "ready")
    service.library.close()


async def test_a_larger_model_that_is_nearly_there_is_waited_for_and_one_that_is_not_is_done_without(
    tmp_path: Path,
) -> None:
    service = service_of(tmp_path)
    service.legs.llm.state = State("loading")
    assert look(service).reasons == ["The larger model is being loaded. Questions that need it wait."]
    service.legs.llm.state = FETCHING
    alone = "The larger model is being fetched (12 of 105 MB). The small model answers alone."
    assert look(service).reasons == [alone]
    service.library.close()


async def test_documents_that_nobody_has_looked_at_are_a_reason_and_an_empty_folder_is_none(tmp_path: Path) -> None:
    service = service_of(tmp_path, text="", read=False)
    async with asking(service) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reasons"] == ["The documents have not been looked at yet."]
        service.library.update()
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        assert "nothing was found" in answer.json()["reasons"][0]


async def test_documents_that_are_being_read_are_waited_for_only_while_there_is_nothing_else(tmp_path: Path) -> None:
    service = service_of(tmp_path, read=False)
    seen: list[Any] = []

    def reading(progress: Progress) -> None:
        if progress.total:
            seen.append(look(service))

    service.library.update(reading)
    assert seen[0].status == "not ready"
    assert seen[0].reasons == ["The documents are being read: 0 of 1 that are new or changed."]
    seen.clear()
    (tmp_path / "secretfolder" / "more.txt").write_text("Lions sleep under acacia trees.")
    service.library.update(reading)
    assert seen[0].status == "ready"
    assert seen[0].checks.documents.status == "degraded"
    service.library.close()


async def test_an_index_that_was_kept_is_ready_before_the_folder_is_looked_at_again(tmp_path: Path) -> None:
    service = service_of(tmp_path)
    service.library.close()
    service.library = Library(service.settings)
    assert look(service).status == "ready"
    service.library.close()


async def test_neither_paths_nor_addresses_nor_names_are_told(tmp_path: Path) -> None:
    service = service_of(tmp_path)
    async with asking(service) as client:
        for state in (GONE, ABSENT, FETCHING, State("loading")):
            service.legs.slm.state = service.legs.llm.state = state
            service.legs.slm.installed = service.legs.llm.installed = False
            text = (await client.get("/readyz")).text
            assert "secret" not in text
            assert "scripted" not in text
            for reason in httpx2.Response(200, text=text).json()["reasons"]:
                assert reason.endswith("."), "a sentence"


async def test_the_schema_tells_every_answer(tmp_path: Path) -> None:
    service = service_of(tmp_path)
    async with asking(service) as client:
        schema = (await client.get("/v1/openapi.json")).json()
    paths = schema["paths"]
    assert set(paths["/readyz"]["get"]["responses"]) == {"200", "503"}
    ready = schema["components"]["schemas"]["Readiness"]
    assert set(ready["required"]) == {"status", "reasons", "checks"}
    for status in ("200", "503"):
        shape = paths["/readyz"]["get"]["responses"][status]["content"]["application/json"]["schema"]
        assert shape == {"$ref": "#/components/schemas/Readiness"}
    assert set(paths["/healthz"]["get"]["responses"]) == {"200"}
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {
        "text/plain",
        "application/openmetrics-text",
    }
