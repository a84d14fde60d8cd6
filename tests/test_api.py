"""The OpenAI wire format, spoken by OpenAI's own client to the real routes, with scripted models behind."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx2
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from rag.errors import ModelUnreachable
from rag.serve import api
from rag.serve.files import Files
from rag.settings import Settings

from .conftest import open_library, until
from .scripted import Reply, ScriptedLegs

QUESTION = "Where do zebras drink?"
GOOD = "Zebras drink at the Mara river."


@asynccontextmanager
async def served(tmp_path: Path, settings: Settings, legs: ScriptedLegs) -> AsyncIterator[openai.AsyncOpenAI]:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "animals.md").write_text("Zebras drink at the Mara river every morning.")
    app = FastAPI()
    library = open_library(tmp_path / "docs", tmp_path / "cache")
    service = SimpleNamespace(settings=settings, library=library, legs=legs, observers=())
    app.include_router(api.router(service, Files(settings)))  # type: ignore[arg-type]
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    try:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


async def ask(client: openai.AsyncOpenAI, model: str, stream: bool, *earlier: str) -> tuple[str, object]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(earlier)]
    messages.append({"role": "user", "content": QUESTION})
    if not stream:
        whole = await client.chat.completions.create(model=model, messages=messages)  # type: ignore[call-overload]
        return whole.choices[0].message.content, whole
    text, last = "", None
    chunks = await client.chat.completions.create(  # type: ignore[call-overload]
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            text += chunk.choices[0].delta.content
        last = chunk if chunk.choices else last
    return text, last


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_with_its_source_and_its_turn(tmp_path: Path, settings: Settings, stream: bool) -> None:
    async with served(tmp_path, settings, ScriptedLegs([GOOD], [])) as client:
        text, last = await ask(client, "smallfirst-slm", stream)
    assert text == f"{GOOD} [1]"
    assert last.smallfirst["citations"][0]["source"] == "animals.md"  # type: ignore[attr-defined]
    assert last.choices[0].finish_reason == "stop"  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_rejected_draft_never_reaches_a_client_but_counts_in_usage(
    tmp_path: Path, settings: Settings, stream: bool
) -> None:
    legs = ScriptedLegs(["Zebras drink there since 1974."], [f"{GOOD} [1]"])
    async with served(tmp_path, settings, legs) as client:
        text, last = await ask(client, "smallfirst-auto", stream)
    assert text == f"{GOOD} [1]"
    if not stream:
        assert last.usage.prompt_tokens == 200  # type: ignore[attr-defined]


async def test_models_are_the_three_modes(tmp_path: Path, settings: Settings) -> None:
    async with served(tmp_path, settings, ScriptedLegs()) as client:
        assert [m.id for m in (await client.models.list()).data] == [
            "smallfirst-auto",
            "smallfirst-slm",
            "smallfirst-llm",
        ]


async def test_earlier_messages_are_the_history(tmp_path: Path, settings: Settings) -> None:
    legs = ScriptedLegs([], [GOOD])
    async with served(tmp_path, settings, legs) as client:
        await ask(client, "smallfirst-llm", False, "What are zebras?", "Striped animals.")
    assert {"role": "assistant", "content": "Yes. Striped animals."} in legs.llm.backend_.asked[0]


@pytest.mark.parametrize("stream", [False, True])
async def test_mistakes_and_failures_have_their_status(tmp_path: Path, settings: Settings, stream: bool) -> None:
    legs = ScriptedLegs()
    legs.slm.failure = legs.llm.failure = ModelUnreachable("Nobody there.")
    async with served(tmp_path, settings, legs) as client:
        with pytest.raises(openai.BadRequestError, match="There is no model 'gpt-9'"):
            await ask(client, "gpt-9", stream)
        with pytest.raises(openai.InternalServerError, match="Nobody there") as caught:
            await ask(client, "smallfirst-auto", stream)
        assert caught.value.status_code == 503


@pytest.mark.parametrize(
    "body",
    [b"{torn", b"[]", b"{}", b'{"model":"smallfirst-slm","messages":[]}', b'{"model":7,"messages":[{"role":"x"}]}'],
)
async def test_a_malformed_body_is_a_400_in_openais_shape(tmp_path: Path, settings: Settings, body: bytes) -> None:
    async with served(tmp_path, settings, ScriptedLegs()) as client, httpx2.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"{client.base_url}chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_ends_the_work(tmp_path: Path, settings: Settings, stream: bool) -> None:
    legs = ScriptedLegs([Reply(GOOD, hold=asyncio.Event())], [])
    async with served(tmp_path, settings, legs) as client:
        task = asyncio.create_task(ask(client, "smallfirst-slm", stream))
        await until(lambda: bool(legs.slm.backend_.asked))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: legs.slm.backend_.stopped == 1)
