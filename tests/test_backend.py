"""One server, many ways to misbehave: each becomes one of our errors or a whole answer, and none hangs."""

import asyncio
import itertools
import json
import math
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import openai
import pytest

from rag.errors import (
    ModelBroke,
    ModelError,
    ModelRefused,
    ModelSilent,
    ModelTimeout,
    ModelUnknown,
    ModelUnreachable,
    PromptTooLong,
)
from rag.models import backend as module
from rag.models.backend import Backend, Delta, Draft, Limits, Piece, Reading, Thinking, Usage, Waiting
from rag.models.capabilities import EMBEDDED, Capabilities
from rag.models.cores import Cores
from rag.trace import Trace

from .wire.servers import KINDS, serving, wire

Answer = Callable[[asyncio.StreamWriter, dict[str, Any]], Awaitable[None]]
MESSAGES = [{"role": "user", "content": "hi"}]
HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content} if content is not None else {}, "finish_reason": finish}
    choice.update(more.pop("choice", {}))
    body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def status(code: int, body: bytes = b'{"error":{"message":"because"}}', **headers: str) -> bytes:
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()).encode()
    return (
        b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
        % (code, len(body), more)
        + body
    )


WHOLE = [
    event("Hel", choice={"logprobs": {"content": [{"token": "Hel", "logprob": -0.1, "top_logprobs": [{"token": "Hel", "logprob": -0.1}]}]}}),
    event("lo", choice={"logprobs": {"content": [{"token": "lo", "logprob": -0.2, "top_logprobs": []}]}}),
    event(finish="stop"),
    event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}),
    b"data: [DONE]\n\n",
]  # fmt: skip


class Server:
    """Answers every request with `answer`; remembers what was asked and whether the client hung up."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.hung_up = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        body = json.loads(await reader.readexactly(length))
        self.requests.append(body)
        answering = asyncio.create_task(self.answer(writer, body))
        hanging_up = asyncio.create_task(reader.read())
        await asyncio.wait([answering, hanging_up], return_when=asyncio.FIRST_COMPLETED)
        if hanging_up.done():
            self.hung_up.set()
            answering.cancel()
        hanging_up.cancel()
        writer.close()


async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keeps the connection open, and closes it when the next request comes: as a server does that was idle too long."""
    for number in range(2):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(one.split(b":")[1]) for one in head.split(b"\r\n") if one.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        if number == 0:
            body = b"".join(WHOLE)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
    writer.close()


async def test_a_request_on_a_connection_that_the_server_gave_up_is_sent_once_more() -> None:
    listener = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    backend = Backend("slm", "m", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", limits=Limits(2, 2, 2))
    try:
        for _ in range(3):
            pieces = [piece async for piece in backend.stream(MESSAGES, max_tokens=5, trace=Trace())]
            assert isinstance(pieces[-1], Draft)
    finally:
        await backend.close()
        listener.close()


async def test_a_server_that_never_answers_on_any_connection_is_asked_twice_at_most() -> None:
    connections = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    backend = Backend("slm", "m", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", limits=Limits(2, 2, 2))
    try:
        with pytest.raises(ModelBroke):
            [piece async for piece in backend.stream(MESSAGES, max_tokens=5, trace=Trace())]
    finally:
        await backend.close()
        listener.close()
    assert connections == 2


@asynccontextmanager
async def served(answer: Answer, **options: Any) -> AsyncIterator[tuple[Backend, Server]]:
    server = Server(answer)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    backend = Backend(
        "slm", "m", f"http://127.0.0.1:{port}/v1", limits=options.pop("limits", Limits(2, 2, 2)), **options
    )
    try:
        yield backend, server
    finally:
        await backend.close()
        listener.close()


def sends(*pieces: bytes, then: float | None = 0) -> Answer:
    """Send the pieces; then close, or with None stay silent."""

    async def answer(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then is None:
            await asyncio.Event().wait()

    return answer


async def collect(backend: Backend, trace: Trace | None = None) -> tuple[str, Draft]:
    pieces = [piece async for piece in backend.stream(MESSAGES, max_tokens=5, trace=trace or Trace())]
    draft = pieces[-1]
    assert isinstance(draft, Draft)
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta)), draft


async def test_a_whole_answer_with_logprobs_usage_and_times() -> None:
    trace = Trace()
    async with served(sends(HEADERS, *WHOLE)) as (backend, server):
        text, draft = await collect(backend, trace)
    assert text == draft.text == "Hello"
    assert [token.logprob for token in draft.tokens] == [-0.1, -0.2]
    assert draft.usage == Usage(7, 2)
    assert draft.finish_reason == "stop"
    assert [span.name for span in trace.spans] == ["request", "first_token", "completion"]
    assert all(span.duration_ms is not None for span in trace.spans)
    starts = [span.start_ms for span in trace.spans]
    assert starts == sorted(starts)
    assert server.requests[0]["temperature"] == 0
    assert "frequency_penalty" not in server.requests[0], "some local servers refuse penalties"


async def test_the_request_is_sent_before_the_server_answers() -> None:
    async def slow(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        await asyncio.sleep(0.2)  # the server's thinking, headers held back
        writer.write(HEADERS + b"".join(WHOLE))
        await writer.drain()

    trace = Trace()
    async with served(slow) as (backend, _):
        await collect(backend, trace)
    request, first = trace.find("request"), trace.find("first_token")
    assert request is not None
    assert first is not None
    assert first.duration_ms > 150 > request.duration_ms  # type: ignore[operator]


async def test_usage_logprobs_and_choices_may_be_missing() -> None:
    async with served(sends(HEADERS, event(choices=[]), event("Hi"), event(finish="stop"), b"data: [DONE]\n\n")) as (
        backend,
        _,
    ):
        _, draft = await collect(backend)
    assert (draft.text, draft.tokens, draft.usage) == ("Hi", (), None)


async def test_a_server_that_refuses_logprobs_is_asked_without_and_remembered() -> None:
    async def picky(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        if body.get("logprobs"):
            text = b'{"error":{"message":"logprobs is not supported"}}'
            writer.write(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % len(text)
                + text
            )
        else:
            writer.write(HEADERS + b"".join(WHOLE[2:]).replace(b'"delta": {}', b'"delta": {"content": "Hi"}'))
        await writer.drain()

    async with served(picky) as (backend, server):
        await collect(backend)
        await collect(backend)
    assert ["logprobs" in request for request in server.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (sends(status(401)), ModelRefused, "RAG_SLM_API_KEY"),
        (sends(status(404)), ModelRefused, "RAG_SLM_MODEL"),
        (sends(status(400)), ModelRefused, "because"),
        (sends(status(429)), ModelRefused, "Wait a little"),
        (sends(status(500)), ModelRefused, "failed (status 500)"),
        (sends(HEADERS, event("Hel")), ModelBroke, "middle of its answer"),
        (sends(HEADERS, event("Hel"), b"data: {torn\n\n"), ModelBroke, "no chat completion"),
        (sends(HEADERS, event("Hel"), b'data: {"error":{"message":"out of memory","code":500}}\n\n'), ModelRefused, "out of memory"),
        (sends(HEADERS, event(finish="stop"), b"data: [DONE]\n\n"), ModelSilent, "empty answer"),
        (sends(HEADERS, event("  \n"), event(finish="stop")), ModelSilent, "empty answer"),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>hello</html>"), ModelBroke, ""),
        (sends(HEADERS, b"<!doctype html><title>hello</title>"), ModelBroke, "hello"),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello"), ModelBroke, "no chat completion (hello). Check the address, RAG_SLM_BASE_URL"),
        (sends(HEADERS, b'data: {"hello": "world"}\n\ndata: [DONE]\n\n'), ModelBroke, "no chat completion"),
        (sends(HEADERS, b'{"hello": "world"}'), ModelBroke, "no chat completion"),
        (sends(HEADERS, b'{"choices": [{"mess'), ModelBroke, "no chat completion"),
        (sends(HEADERS, b"[" * 100_000), ModelBroke, "no chat completion"),
        (sends(HEADERS, b"data: 7\n\n"), ModelBroke, "no chat completion"),
        (sends(HEADERS, event("Hel")[:40]), ModelBroke, "in the middle"),
        (sends(HEADERS, event("Hel"), event("lo")[:40]), ModelBroke, "in the middle"),
        (sends(HEADERS, b": ping\n\n"), ModelBroke, "in the middle"),
        (sends(HEADERS, event("Hel"), event(finish="error")), ModelBroke, "in the middle"),
        (sends(HEADERS, event(choices=[]), b"data: [DONE]\n\n"), ModelBroke, "no chat completion"),
        (sends(HEADERS, event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 0}), b"data: [DONE]\n\n"), ModelSilent, "empty"),
        (sends(HEADERS, b"data: [DONE]\n\n"), ModelSilent, "empty answer"),
        (sends(HEADERS, event(finish="tool_calls", choice={"delta": {"tool_calls": [{"index": 0}]}})), ModelSilent, "asked for a tool"),
        (sends(HEADERS, event(finish="content_filter")), ModelSilent, "filter"),
        (sends(HEADERS, b'event: error\ndata: {"message":"out of memory"}\n\n'), ModelRefused, "out of memory"),
        (sends(HEADERS, b'error: {"code":500,"message":"out of memory","type":"server_error"}\n\n'), ModelRefused, "out of memory"),
        (sends(HEADERS, b'data: {"object":"error","message":"out of memory","code":50002}\n\n'), ModelRefused, "out of memory"),
        (sends(HEADERS, b'data: {"error":"out of memory"}\n\n'), ModelRefused, "out of memory"),
        (sends(HEADERS, b'{"error":"Unexpected endpoint or method. (POST /chat/completions)"}'), ModelRefused, "RAG_SLM_BASE_URL"),
        (sends(status(404, b'{"detail":"Not Found"}')), ModelRefused, "RAG_SLM_BASE_URL"),
        (sends(status(404, b"404 page not found")), ModelRefused, "RAG_SLM_BASE_URL"),
        (sends(status(405)), ModelRefused, "RAG_SLM_BASE_URL"),
        (sends(status(400, b'{"error":{"message":"Model m must be loaded"}}')), ModelRefused, "Load it, or set RAG_SLM_MODEL"),
        (sends(status(403, b"no")), ModelRefused, "RAG_SLM_API_KEY"),
        (sends(status(422, b'{"detail":[{"loc":["body","messages"],"msg":"bad"}]}')), ModelRefused, "messages: bad"),
        (sends(status(500, b"<html>oops</html>")), ModelRefused, "oops"),
        (sends(status(502, b"")), ModelRefused, "failed (status 502): X."),
        (sends(status(204, b"")), ModelBroke, "in the middle"),
        (sends(), ModelBroke, "in the middle"),
        (sends(b"garbage\r\n\r\n"), ModelBroke, ""),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: text/event-stream\r\n\r\n", event("Hel")), ModelBroke, "middle"),
    ],
)  # fmt: skip
async def test_each_misbehaviour_is_one_of_our_errors(answer: Answer, error: type[ModelError], says: str) -> None:
    async with served(answer) as (backend, _):
        with pytest.raises(error) as caught:
            await collect(backend)
    assert says in str(caught.value)
    assert str(caught.value).endswith("."), "what to do now"


@pytest.mark.parametrize("pieces", [(), (HEADERS,), (HEADERS, event("Hel"))], ids=["no byte", "headers only", "midway"])
async def test_a_stall_is_a_timeout(pieces: tuple[bytes, ...]) -> None:
    async with served(sends(*pieces, then=None), limits=Limits(1, 0.2, 0.2)) as (backend, _):
        with pytest.raises(ModelTimeout):
            await collect(backend)


async def test_nobody_listening_says_what_to_start_or_set() -> None:
    backend = Backend("llm", "m", "http://127.0.0.1:9/v1")
    with pytest.raises(ModelUnreachable, match=r"http://127\.0\.0\.1:9/v1.*RAG_LLM_BASE_URL"):
        await collect(backend)


@pytest.mark.parametrize("pieces", [(), (HEADERS, event("Hel"))], ids=["before the first token", "midway"])
async def test_cancelling_hangs_up_at_once(pieces: tuple[bytes, ...]) -> None:
    async with served(sends(*pieces, then=None), limits=Limits(5, 60, 60)) as (backend, server):
        task = asyncio.create_task(collect(backend))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_closing_the_stream_hangs_up_and_frees_the_cores() -> None:
    cores = Cores()
    async with served(sends(HEADERS, event("Hel"), then=None), cores=cores) as (backend, server):
        async with aclosing(backend.stream(MESSAGES, max_tokens=5, trace=Trace())) as pieces:
            assert await anext(pieces) == Delta("Hel")
        await asyncio.wait_for(server.hung_up.wait(), 5)
        async with asyncio.timeout(5), cores.claim():
            pass


async def test_one_model_computes_at_a_time_and_the_other_is_told_that_it_waits() -> None:
    cores = Cores()
    async with served(sends(HEADERS, *WHOLE), cores=cores) as (backend, server):
        seen: list[object] = []
        async with cores.claim():
            stream = backend.stream(MESSAGES, max_tokens=5, trace=Trace())
            seen.append(await anext(stream))
            assert server.requests == []
        seen.extend([piece async for piece in stream])
    assert seen[0] == Waiting(1)
    assert "Hello" in "".join(piece.text for piece in seen if isinstance(piece, Delta))


def test_every_error_of_the_client_is_translated() -> None:
    """A new class in the client must be thought about: it would otherwise reach the user as a bug."""
    classes = [thing for thing in list(vars(openai).values()) if isinstance(thing, type)]
    errors = [thing for thing in classes if issubclass(thing, Exception) and not issubclass(thing, Warning)]
    assert len(errors) > 10
    unknown = [error for error in errors if not issubclass(error, openai.OpenAIError)]
    assert unknown == [openai.InvalidWebhookSignatureError], "no part of a chat completion"


# --- more than one request -------------------------------------------------------------------------------------------


def turns(*answers: Answer) -> Answer:
    """Each request gets the next answer, and the last one those that follow."""
    left = list(answers)

    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(writer, body)

    return answer


def refuses(*fields: str, says: Callable[[str], Any], code: int = 400) -> Answer:
    """A server that answers as soon as none of those fields is sent."""

    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        named = next((name for name in fields if name in body), None)
        said = says(named) if named else None
        await sends(status(code, json.dumps(said).encode()) if said else HEADERS + b"".join(WHOLE))(writer, body)

    return answer


def openai_says(message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


async def pieces_of(backend: Backend, trace: Trace | None = None, **options: Any) -> list[Piece]:
    options = {"max_tokens": 5, "trace": trace or Trace(), **options}
    return [piece async for piece in backend.stream(MESSAGES, **options)]


# --- waits -----------------------------------------------------------------------------------------------------------


def drips(*first: bytes, again: bytes) -> Answer:
    """Send the first pieces; then the other one again and again."""

    async def answer(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        writer.write(b"".join(first))
        while True:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(0.01)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        drips(b"HTTP/1.1 200 OK\r\nX-Slow: ", again=b"x"),
        drips(b"HTTP/1.1 400 X\r\nContent-Length: 900000\r\n\r\n", again=b"x"),
        drips(HEADERS, again=b": ping\n\n"),
        drips(HEADERS, again=event(choice={"delta": {"role": "assistant", "content": None}})),
        drips(HEADERS, again=event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 0})),
        drips(HEADERS, again=event(choices=[], prompt_progress={"total": 100, "processed": 10})),
        drips(HEADERS, event("Hel"), again=b": ping\n\n"),
        drips(HEADERS, event("Hel"), again=b" "),
        sends(HEADERS, event("Hel")[:40], then=None),
        sends(HEADERS, b'{"choices": [', then=None),
    ],
    ids=["headers", "error", "comments", "roles", "usage", "no progress", "comments midway", "spaces", "half", "whole"],
)
async def test_what_is_no_news_does_not_make_anybody_wait_longer(answer: Answer) -> None:
    async with served(answer, limits=Limits(1, 0.3, 0.3)) as (backend, server):
        with pytest.raises(ModelTimeout, match="RAG_STALL_TIMEOUT_S"):
            async with asyncio.timeout(10):
                await collect(backend)
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_a_prompt_that_is_read_on_and_on_may_take_its_time() -> None:
    async def reads(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(HEADERS)
        for done in range(10):
            writer.write(event(choices=[], prompt_progress={"total": 10, "processed": done}))
            await writer.drain()
            await asyncio.sleep(0.1)
        await sends(*WHOLE)(writer, body)

    async with served(reads, limits=Limits(1, 0.5, 0.5)) as (backend, _):
        pieces = await pieces_of(backend)
    assert [piece.share for piece in pieces if isinstance(piece, Reading)] == [done / 10 for done in range(10)]
    assert isinstance(pieces[-1], Draft)


async def test_somebody_who_reads_slowly_is_no_stalling_server() -> None:
    async with served(sends(HEADERS, *WHOLE), limits=Limits(1, 0.2, 0.2)) as (backend, _):
        stream = backend.stream(MESSAGES, max_tokens=5, trace=Trace())
        pieces = [await anext(stream)]
        await asyncio.sleep(0.4)
        pieces.extend([piece async for piece in stream])
    assert isinstance(pieces[-1], Draft)


@pytest.mark.parametrize(
    "tail",
    [
        sends(HEADERS, *WHOLE[:3], then=None),
        drips(HEADERS, *WHOLE[:3], again=b": ping\n\n"),
        drips(HEADERS, *WHOLE, again=b"x"),
        sends(HEADERS, *WHOLE[:3], b"data: {torn\n\n", then=None),
        sends(HEADERS, *WHOLE[:3], b'data: {"error":"too late"}\n\n', then=None),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", *WHOLE[:3]),
    ],
    ids=["silence", "comments", "noise after the end", "garbage", "error", "torn off"],
)
async def test_an_answer_that_has_ended_is_whole_whatever_comes_after(tail: Answer) -> None:
    async with served(tail, limits=Limits(1, 0.4, 0.4)) as (backend, _):
        text, draft = await collect(backend)
    assert (text, draft.text, draft.finish_reason, len(draft.tokens)) == ("Hello", "Hello", "stop", 2)


async def test_nobody_waits_long_for_what_follows_the_last_word() -> None:
    async with served(sends(HEADERS, *WHOLE[:3], then=None), limits=Limits(1, 60, 60)) as (backend, _):
        async with asyncio.timeout(20):
            assert (await collect(backend))[1].text == "Hello"


async def test_one_connection_serves_many_questions() -> None:
    connections = 0

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                await reader.readexactly(
                    next(int(one.split(b":")[1]) for one in lines if one.startswith(b"content-length"))
                )
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for piece in WHOLE:
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await writer.drain()
                await asyncio.sleep(0.02)  # the end comes after the last word
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        writer.close()

    listener = await asyncio.start_server(keep, "127.0.0.1", 0)
    backend = Backend("slm", "m", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", limits=Limits(2, 2, 2))
    try:
        for _ in range(3):
            await collect(backend)
    finally:
        await backend.close()
        listener.close()
    assert connections == 1


# --- shapes of a stream ----------------------------------------------------------------------------------------------


async def test_a_stream_may_be_cut_anywhere_and_its_lines_end_in_any_way() -> None:
    body = b"\xef\xbb\xbf: hello\n\nid: 7\n" + b"".join(WHOLE).replace(b"Hel", "Grüße, ".encode()).replace(
        b"data: ", b"data:"
    )
    ways = [body, body.replace(b"\n", b"\r\n"), body.replace(b"\n", b"\r"), body.replace(b"\n\n", b"\n"), body.rstrip()]
    for way, size in itertools.product(ways, (1, 7, 64, len(body))):
        pieces = [way[at : at + size] for at in range(0, len(way), size)]

        async def answer(writer: asyncio.StreamWriter, _: dict[str, Any], pieces: list[bytes] = pieces) -> None:
            writer.write(HEADERS)
            for piece in pieces:
                writer.write(piece)
                if len(pieces) < 100:
                    await writer.drain()
                    await asyncio.sleep(0)

        async with served(answer) as (backend, _):
            text, draft = await collect(backend)
        assert text == draft.text == "Grüße, lo"
        assert draft.usage == Usage(7, 2)


def whole_answer(**more: Any) -> bytes:
    entries = [{"token": word, "logprob": -0.1, "top_logprobs": []} for word in ("Hel", "lo")]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello"},
        "logprobs": {"content": entries},
        "finish_reason": "length",
    }
    choice.update(more)
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}).encode()


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "text/plain; charset=utf-8"])
async def test_an_answer_in_one_piece_is_an_answer(kind: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n\n  ".encode()
    async with served(sends(head, whole_answer()[:30], whole_answer()[30:])) as (backend, _):
        text, draft = await collect(backend)
    assert (text, draft.text, draft.finish_reason, draft.usage) == ("Hello", "Hello", "length", Usage(7, 2))
    assert [token.text for token in draft.tokens] == ["Hel", "lo"]


async def test_an_answer_in_one_piece_may_hold_its_thoughts() -> None:
    thought = whole_answer(message={"content": "<think>Hm.</think>\nHello"}, logprobs=None)
    async with served(sends(HEADERS, thought)) as (backend, _):
        pieces = await pieces_of(backend)
    assert pieces[0] == Delta("Hello")
    apart = whole_answer(message={"content": "Hello", "reasoning_content": "Hm."}, logprobs=None)
    async with served(sends(HEADERS, apart)) as (backend, _):
        pieces = await pieces_of(backend)
    assert pieces[:2] == [Thinking(), Delta("Hello")]


async def test_a_stream_under_the_content_type_of_json_is_a_stream() -> None:
    head = HEADERS.replace(b"text/event-stream", b"application/json")
    async with served(sends(head, *WHOLE)) as (backend, _):
        assert (await collect(backend))[1].text == "Hello"


async def test_odd_chunks_are_read_for_what_they_hold() -> None:
    """Roles alone, nothing at all, several choices, parts of content, counts in each chunk or with holes in them."""
    odd = [
        event(choice={"delta": {"role": "assistant", "content": None}}),
        event(choice={"delta": None}),
        event(choice={"index": 1, "delta": {"content": "other"}}),
        event(choices=None),
        event(choices=[7]),
        event(choices="no"),
        event("Hel", usage={"prompt_tokens": 7, "completion_tokens": 1}, model="another-name"),
        event(choice={"delta": {"content": [{"type": "text", "text": "l"}, {"type": "thinking", "thinking": []}, 7]}}),
        event(choices=[{"index": 1, "delta": {"content": "x"}}, {"index": 0, "delta": {"content": "o"}}]),
        event(choice={"delta": {"content": 7}}, usage={"prompt_tokens": None, "completion_tokens": None}),
        event(choice={"delta": {"refusal": "."}}),
        event(usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": None}),
        b"data: null\n\ndata:\n\n",
        event(finish="stop", usage=None),
        event(choices=[], usage={"prompt_tokens": 7}),
        event(choices=[], usage="many"),
    ]
    async with served(sends(HEADERS, *odd)) as (backend, _):
        text, draft = await collect(backend)
    assert text == draft.text == "Hello."
    assert (draft.usage, draft.finish_reason, draft.model) == (Usage(7, 3), "stop", "m")


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("stop", "stop"), ("length", "length"), ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("tool_calls", "stop"),
        ("content_filter", "content_filter"), ("eos_token", "stop"), ("something new", "stop"),
    ],
)  # fmt: skip
async def test_each_reason_to_stop_is_one_that_is_known(reason: str, kept: str) -> None:
    async with served(sends(HEADERS, event("Hello", finish=reason))) as (backend, _):
        assert (await collect(backend))[1].finish_reason == kept


async def test_done_after_some_text_is_a_reason_to_stop() -> None:
    done = b"data: [DONE]\n\n"
    async with served(sends(HEADERS, event("Hello"), done)) as (backend, _):
        assert (await collect(backend))[1].finish_reason == "stop"
    full = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 5})
    async with served(sends(HEADERS, event("Hello"), full, done)) as (backend, _):
        assert (await collect(backend))[1].finish_reason == "length"


async def test_bytes_that_are_no_text_and_halves_of_characters_become_characters() -> None:
    torn = [
        event("Hel").replace(b"Hel", b"H\xff\xfel"),
        event("x").replace(b'"x", "object"', b'"y", "object"').replace(b'"content": "x"', rb'"content": "\ud83e"'),
        event("x").replace(b'"content": "x"', rb'"content": "\udd93 "'),
        event("x").replace(b'"content": "x"', rb'"content": "\udd93!"'),
        event(finish="stop"),
    ]
    async with served(sends(HEADERS, *torn)) as (backend, _):
        text, draft = await collect(backend)
    assert text == draft.text == "H\ufffd\ufffdl🦓 \ufffd!"
    text.encode()


async def test_an_event_without_end_is_given_up() -> None:
    async def floods(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        writer.write(HEADERS + b"data: ")
        while True:
            writer.write(b"x" * 100_000)
            await writer.drain()

    async with served(floods, limits=Limits(2, 20, 20)) as (backend, server):
        with pytest.raises(ModelBroke, match="more than 10 MB"):
            await collect(backend)
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_an_error_without_end_is_given_up() -> None:
    async def floods(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        writer.write(b"HTTP/1.1 500 X\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b"oops " * 20_000)
            await writer.drain()

    async with served(floods, limits=Limits(2, 20, 20)) as (backend, server):
        with pytest.raises(ModelRefused, match="failed") as caught:
            await collect(backend)
        await asyncio.wait_for(server.hung_up.wait(), 5)
    assert len(str(caught.value)) < 600


async def test_a_server_that_never_stops_is_cut_off() -> None:
    async with served(drips(HEADERS, again=event("on and ") * 10)) as (backend, server):
        text, draft = await collect(backend)
        await asyncio.wait_for(server.hung_up.wait(), 5)
    assert draft.finish_reason == "length"
    assert 5 < text.count("on and") < 100
    assert draft.text == text


async def test_nor_one_that_never_stops_thinking_in_long_pieces() -> None:
    thinks = event(choice={"delta": {"reasoning": "on and " * 1000}})
    async with served(drips(HEADERS, again=thinks)) as (backend, server):
        with pytest.raises(ModelSilent, match="RAG_SLM_MAX_TOKENS"):
            await collect(backend)
        await asyncio.wait_for(server.hung_up.wait(), 5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if wire(kind)["chat"]["events"]])
async def test_each_known_server_gives_a_whole_answer(kind: str) -> None:
    chat = wire(kind)["chat"]
    model = (chat.get("models") or ["any"])[0]
    async with serving(kind) as address:
        backend = Backend("slm", model, address.v1, limits=Limits(2, 2, 2), runs_on=kind)
        try:
            pieces = await pieces_of(backend)
            if chat.get("unknown_model"):
                backend.model = "no-such-model"
                with pytest.raises(ModelRefused, match=r"no-such-model at .*RAG_SLM_MODEL"):
                    await pieces_of(backend)
        finally:
            await backend.close()
    draft = pieces[-1]
    assert isinstance(draft, Draft)
    assert draft.text.strip()
    assert draft.text == "".join(piece.text for piece in pieces if isinstance(piece, Delta))
    assert (len(draft.tokens) > 0) == chat["logprobs"]
    assert draft.finish_reason in ("stop", "length")
    assert (draft.model, draft.to_dict()["runs_on"]) == (model, kind)


# --- thoughts --------------------------------------------------------------------------------------------------------


def token(text: str, logprob: Any = -0.1, **more: Any) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, **more}


def written(text: str, *entries: dict[str, Any], delta: dict[str, Any] | None = None) -> bytes:
    entries = entries or (token(text),)
    return event(
        choice={"delta": {"content": text} if delta is None else delta, "logprobs": {"content": list(entries)}}
    )


STOP = event(finish="stop")
THOUGHTS = {
    "tags": [written(text) for text in ("<thi", "nk>", "Hm", ".", "</think>", "\n\n", "Hel", "lo")],
    "tags in one token each": [written(text) for text in ("<think>", "Hm.", "</think>\n\n", "Hello")],
    "cut inside of tokens": [written("<think>Hm.</th"), written("ink>\nHel", token("ink>\n"), token("Hel")), written("lo")],
    "reasoning_content": [written("", token("Hm."), delta={"reasoning_content": "Hm."}), written("Hel"), written("lo")],
    "reasoning": [written("", token("Hm."), delta={"reasoning": "Hm.", "content": ""}), written("\n\nHello", token("\n\n"), token("Hello"))],
    "parts": [written("", token("Hm."), delta={"content": [{"type": "thinking", "thinking": "Hm."}]}), written("Hello")],
    "harmony": [written(text) for text in (
        "<|channel|>", "analysis", "<|message|>", "Hm.", "<|end|>", "<|start|>", "assistant", "<|channel|>", "final",
        "<|message|>", "Hel", "lo", "<|return|>")],
    "harmony without its marks": [written(text) for text in ("analysis", "We", " think.", "assistant", "final", "Hel", "lo")],
    "blank ones": [written(text) for text in ("<think>", "\n\n", "</think>", "\n\n", "Hel", "lo")],
}  # fmt: skip


@pytest.mark.parametrize("kind", list(THOUGHTS))
async def test_thoughts_are_told_and_neither_shown_nor_counted(kind: str) -> None:
    trace = Trace()
    usage = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 9})
    async with served(sends(HEADERS, *THOUGHTS[kind], STOP, usage)) as (backend, _):
        pieces = await pieces_of(backend, trace)
    assert pieces[0] == Thinking()
    assert sum(isinstance(piece, Thinking) for piece in pieces) == 1
    draft = pieces[-1]
    assert isinstance(draft, Draft)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Delta)) == draft.text == "Hello"
    assert "".join(token.text for token in draft.tokens).strip() == "Hello"
    deltas = [token for piece in pieces if isinstance(piece, Delta) for token in piece.tokens]
    assert "".join(token.text for token in deltas).strip() == "Hello"
    assert draft.usage == Usage(7, 9)
    assert [span.name for span in trace.spans] == ["request", "first_token", "thinking", "completion"]
    ends = [span.end_ms for span in trace.spans]
    assert all(ends)
    assert ends == sorted(ends)  # type: ignore[type-var]


async def test_that_a_model_thinks_is_told_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "THINKING_EVERY_S", 0.1)

    async def thinks(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(HEADERS)
        for _ in range(50):
            writer.write(event(choice={"delta": {"reasoning_content": "Hm. "}}))
            await writer.drain()
            await asyncio.sleep(0.01)
        await sends(*WHOLE)(writer, body)

    began = time.monotonic()
    async with served(thinks) as (backend, _):
        pieces = await pieces_of(backend, max_tokens=100)
    took_s = time.monotonic() - began
    assert 2 <= sum(isinstance(piece, Thinking) for piece in pieces) <= took_s / 0.1 + 1


@pytest.mark.parametrize(
    "thought",
    [
        [event("<think>"), event("Hm. Hm.")],
        [event(choice={"delta": {"reasoning_content": "Hm."}})],
        [event("<|channel|>analysis<|message|>Hm.")],
    ],
)
@pytest.mark.parametrize(
    ("reason", "says"),
    [("length", "used up its 5 tokens while it was thinking"), ("stop", "stopped while it was thinking")],
)
async def test_a_model_that_only_thinks_says_so_and_names_the_setting(
    thought: list[bytes], reason: str, says: str
) -> None:
    async with served(sends(HEADERS, *thought, event(finish=reason))) as (backend, _):
        with pytest.raises(ModelSilent, match=says) as caught:
            await collect(backend)
    assert "RAG_SLM_MAX_TOKENS" in str(caught.value)


async def test_a_thought_that_the_prompt_opened_is_taken_back_once_and_not_shown_again() -> None:
    lone = [written(text) for text in ("I won", "der.\n", "</think>", "\n\n", "Hel", "lo")]
    trace = Trace()
    async with served(sends(HEADERS, *lone, STOP)) as (backend, _):
        first = await pieces_of(backend, trace)
        again = await pieces_of(backend)
    assert first[:2] == [Delta("I won", first[0].tokens), Delta("der.\n", first[1].tokens)]  # type: ignore[union-attr]
    assert first[2] == Thinking(retract=True)
    assert [piece.text for piece in first[3:] if isinstance(piece, Delta)] == ["Hel", "lo"] or "".join(
        piece.text for piece in first[3:] if isinstance(piece, Delta)
    ) == "Hello"
    assert [span.name for span in trace.spans] == ["request", "first_token", "thinking", "completion"]
    assert again[0] == Thinking()
    assert [piece.text for piece in again if isinstance(piece, Delta)] == ["Hel", "lo"]
    for draft in (first[-1], again[-1]):
        assert isinstance(draft, Draft)
        assert draft.text == "Hello"
        assert [token.text for token in draft.tokens] == ["Hel", "lo"]


async def test_an_answer_that_speaks_of_thoughts_is_shown_as_it_is() -> None:
    text = "A model writes <think> first.\n</think> ends it."
    async with served(sends(HEADERS, *[written(word) for word in text.split(" ")], STOP)) as (backend, _):
        pieces = await pieces_of(backend)
    draft = pieces[-1]
    assert isinstance(draft, Draft)
    assert draft.text == text.replace(" ", "")
    assert len(draft.tokens) == len(text.split(" "))
    assert not any(isinstance(piece, Thinking) for piece in pieces)


# --- logprobs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        [written("Hel"), event("lo")],
        [event("Hel"), written("lo")],
        [written("Hel"), event("lo", choice={"logprobs": None})],
        [written("Hel"), event("lo", choice={"logprobs": {"content": None}})],
        [written("Hel"), event("lo", choice={"logprobs": {"content": []}})],
        [written("Hel"), event("lo", choice={"logprobs": {"tokens": ["lo"]}})],
        [written("Hel"), written("lo", token("lo", math.nan))],
        [written("Hel"), written("lo", token("lo", -math.inf))],
        [written("Hel"), written("lo", token("lo", None))],
        [written("Hel"), written("lo", token("lo", "0.1"))],
        [written("Hel"), written("lo", {"token": 7, "logprob": -0.1})],
        [written("Hel"), written("lo", "lo")],  # type: ignore[arg-type]
        [written("Hel"), written("lo there", token("lo"))],
        [written("Hel"), written("lo", token("la"))],
        [written("Hel", token("Hel"), token("p")), written("lo")],
    ],
)
async def test_some_logprobs_are_not_taken_for_all(pieces: list[bytes]) -> None:
    async with served(sends(HEADERS, *pieces, STOP)) as (backend, _):
        text, draft = await collect(backend)
    assert text == draft.text
    assert draft.tokens == ()


@pytest.mark.parametrize(
    ("pieces", "tokens"),
    [
        ([written("Hel", token("Hel", 0.0001)), written("lo", token("lo", -1))], ["Hel", "lo"]),
        ([written(" Hel", token("Hel")), written("lo\n", token("lo"))], ["Hel", "lo"]),
        ([written("Hello", token("Hel"), token("lo")), written("", token("<|im_end|>"))], ["Hel", "lo"]),
        ([written("Hello", token("Hel"), token("lo"), token("</s>"))], ["Hel", "lo"]),
        ([written("", token("Hel"), delta={"content": ""}), written("Hello", token("lo"))], ["Hel", "lo"]),
        ([written("Hel <b", token("Hel"), token(" <b")), written(">lo", token(">"), token("lo"))], ["Hel", " <b", ">", "lo"]),
        ([written("<b>", token("<b"), token(">")), written("Hi")], ["<b", ">", "Hi"]),
        ([written("ї", token("\ufffd"), token("\ufffd")), written("жак")], ["\ufffd", "\ufffd", "жак"]),
        ([written("ї", token("\\xd1", bytes=[0xD1]), token("\\x97", bytes=[0x97])), written("ж", token("ж", bytes=[0xD0, 0xB6]))], ["\ufffd", "\ufffd", "ж"]),
        ([written("Hi", token("Hi", bytes="none")), written("!", token("!", bytes=[999, "x"]))], ["Hi", "!"]),
    ],
)  # fmt: skip
async def test_tokens_that_make_up_the_text_are_kept(pieces: list[bytes], tokens: list[str]) -> None:
    async with served(sends(HEADERS, *pieces, STOP)) as (backend, _):
        text, draft = await collect(backend)
    assert text == draft.text
    assert [token.text for token in draft.tokens] == tokens
    assert all(token.logprob <= 0 for token in draft.tokens)


async def test_a_piece_that_came_without_its_tokens_ends_what_is_told_of_them() -> None:
    for first, rest in (("x", [("x", 1), ("b", 0), ("c", 0)]), ("a", [("ab", 0), ("c", 0)])):
        async with served(sends(HEADERS, written(first), event("b"), written("c"), STOP)) as (backend, _):
            deltas = [piece for piece in await pieces_of(backend) if isinstance(piece, Delta)]
        assert [(delta.text, len(delta.tokens)) for delta in deltas] == rest
    torn = written("Hello", token("Hel"), token("lo", math.nan))
    async with served(sends(HEADERS, torn, STOP)) as (backend, _):
        assert (await pieces_of(backend))[0] == Delta("Hello")


async def test_rivals_that_say_nothing_are_left_out() -> None:
    odd = [token("b", math.nan), token("c", None), 7, {"token": None, "logprob": -1}]
    top = [token("a", -0.1), *odd, token("f", -3), token("g", -4)]
    pieces = [written("a", token("a", top_logprobs=top)), written("b", token("b", top_logprobs=None))]
    async with served(sends(HEADERS, *pieces, STOP)) as (backend, _):
        first, second = (await collect(backend))[1].tokens
    assert (first.top, first.top_texts) == ((-0.1,), ("a",)), "of the five that were asked for"
    assert second.top == ()


async def test_half_a_character_in_a_token_can_be_written_down() -> None:
    half = token("x").copy() | {"token": "\ud83e"}
    pieces = [written("x", token("x", top_logprobs=[token("x"), half])), written("🦓", half, half)]
    async with served(sends(HEADERS, *pieces, STOP)) as (backend, _):
        draft = (await collect(backend))[1]
    assert draft.text == "x🦓"
    assert [one.text for one in draft.tokens] == ["x", "\ufffd", "\ufffd"]
    assert draft.tokens[0].top_texts == ("x", "\ufffd")


# --- errors that have names ------------------------------------------------------------------------------------------

TOO_LONG = {
    "Foundry Local": ({"error": {"message": "The request requires 9036 total tokens (9031 input + 5 output) and the limit is 8192", "type": "invalid_request_error", "code": None}}, (9036, 8192)),
    "llama.cpp": ({"error": {"code": 400, "message": "request (4031 tokens) exceeds the available context size (2048 tokens), try increasing it", "type": "exceed_context_size_error", "n_prompt_tokens": 4031, "n_ctx": 2048}}, (4031, 2048)),
    "llama.cpp, 2025": ({"error": {"code": 500, "message": "the request exceeds the available context size. try increasing the context size or enable context shift", "type": "exceed_context_size_error", "n_prompt_tokens": 1407, "n_ctx": 256}}, (1407, 256)),
    "Ollama": ({"error": {"message": "the input length exceeds the context length", "type": "api_error", "param": None, "code": None}}, (None, None)),
    "vLLM": ({"object": "error", "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the messages, 100 in the completion). Please reduce the length of the messages or completion.", "type": "BadRequestError", "param": None, "code": 400}, (5000, 4096)),
    "vLLM, 2026": ({"error": {"message": "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context length is 4096 tokens and your request has 30 input tokens (8192 > 4096 - 30).", "type": "BadRequestError", "param": None, "code": 400}}, (30, 4096)),
    "OpenAI": ({"error": {"message": "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 477469 tokens. Please reduce the length of the messages.", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}}, (477469, 272000)),
    "LM Studio": ({"error": {"message": "Trying to keep the first 10136 tokens when context the overflows. However, the model is loaded with context length of only 7866 tokens, which is not enough."}}, (10136, 7866)),
    "llama-cpp-python": ({"error": {"message": "Requested tokens (2285) exceed context window of 2048", "type": "internal_server_error", "param": None, "code": None}}, (2285, 2048)),
    "only text": ({"error": "prompt is too long"}, (None, None)),
}  # fmt: skip


@pytest.mark.parametrize("server", list(TOO_LONG))
@pytest.mark.parametrize("as_event", [True, False], ids=["inside", "status"])
async def test_a_prompt_that_is_too_long_is_told_as_that(server: str, as_event: bool) -> None:
    body, (needed, window) = TOO_LONG[server]
    data = json.dumps(body).encode()
    answer = sends(HEADERS, b"data: " + data + b"\n\n") if as_event else sends(status(400, data))
    async with served(answer) as (backend, asked):
        with pytest.raises(PromptTooLong) as caught:
            await collect(backend)
        assert backend.context_tokens == window, "the next prompt is made to fit"
    assert len(asked.requests) == 1
    text = str(caught.value)
    assert text.endswith(
        "Shorten the question, attach less, lower RAG_EVIDENCE_TOKENS, or choose a model with a larger window."
    )
    assert (f"{needed} tokens" in text) == (needed is not None)
    assert (str(window) in text) == (window is not None)


async def test_a_window_that_is_known_stays_what_it_is() -> None:
    answer = sends(status(400, json.dumps(TOO_LONG["vLLM"][0]).encode()))
    async with served(answer, context_tokens=2048) as (backend, _):
        with pytest.raises(PromptTooLong):
            await collect(backend)
        assert backend.context_tokens == 2048


async def test_silence_after_a_prompt_as_long_as_the_window_means_that_it_was_too_long() -> None:
    """LM Studio, as its users report."""
    answer = sends(
        HEADERS, event(finish="stop"), event(choices=[], usage={"prompt_tokens": 4096, "completion_tokens": 0})
    )
    async with served(answer, context_tokens=4096) as (backend, _):
        with pytest.raises(PromptTooLong, match="4096"):
            await collect(backend)


KEY = "sk-planted/2749+secret&=="


@pytest.mark.parametrize(
    "form", [KEY, quote(KEY, safe=""), f"Bearer {KEY}", KEY.replace("/", "\\/"), f"x{KEY}" * 50, "a " * 149 + KEY]
)
@pytest.mark.parametrize("code", [200, 302, 400, 401, 404, 422, 429, 500])
async def test_a_key_that_comes_back_in_an_error_is_not_repeated(form: str, code: int) -> None:
    body = json.dumps({"error": {"message": f"bad: {form}"}}).encode()
    answer = (
        sends(HEADERS, b"data: " + body + b"\n\n")
        if code == 200
        else sends(status(code, body, Location=f"http://x/{form}"))
    )
    async with served(answer, api_key=KEY) as (backend, _):
        with pytest.raises(ModelRefused) as caught:
            await collect(backend)
        said = f"{caught.value} {vars(backend)!r}"
    assert KEY[:12] not in said
    assert KEY[-12:] not in said
    assert quote(KEY, safe="")[:14] not in said
    assert KEY[:12] not in "".join(traceback.format_exception(caught.value))


async def test_what_is_too_short_for_a_key_is_not_looked_for() -> None:
    async with served(sends(status(500)), api_key="m") as (backend, _):
        with pytest.raises(ModelRefused, match="m at http"):
            await collect(backend)


@pytest.mark.parametrize("key", ["line\nbreak-in-it", "ключ-in-it"])
async def test_a_key_that_cannot_be_sent_says_so(key: str) -> None:
    async with served(sends(HEADERS, *WHOLE), api_key=key) as (backend, _):
        with pytest.raises(ModelRefused, match="RAG_SLM_API_KEY") as caught:
            await collect(backend)
    assert "in-it" not in str(caught.value)


async def test_an_address_with_a_password_is_not_repeated() -> None:
    backend = Backend("slm", "m", "http://user:word@127.0.0.1:9/v1")
    try:
        with pytest.raises(ModelUnreachable, match=r"http://127\.0\.0\.1:9/v1") as caught:
            await collect(backend)
    finally:
        await backend.close()
    assert "word" not in str(caught.value)


async def test_neither_text_nor_key_follows_where_a_server_points() -> None:
    async with served(sends(HEADERS, *WHOLE)) as (other, elsewhere):
        for code in (301, 302, 303, 307, 308):
            async with served(sends(status(code, b"", Location=other.base_url)), api_key=KEY) as (backend, _):
                with pytest.raises(ModelRefused, match=f"{other.base_url} .*RAG_SLM_BASE_URL"):
                    await collect(backend)
    assert elsewhere.requests == []


async def test_nothing_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "planted-in-the-environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Planted: planted-in-the-environment")
    heads: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(HEADERS + b"".join(WHOLE))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(listen, "127.0.0.1", 0)
    backend = Backend("slm", "m", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", api_key="mine")
    try:
        await collect(backend)
    finally:
        await backend.close()
        listener.close()
    assert b"planted" not in heads[0]
    assert b"authorization: bearer mine" in heads[0].lower()
    assert b"stainless" not in heads[0].lower(), "nor what machine this is"


# --- names of models -------------------------------------------------------------------------------------------------


def knows(*models: str, code: int = 404) -> Answer:
    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        if body["model"] in models:
            await sends(HEADERS, *WHOLE)(writer, body)
        else:
            said = openai_says(f"The model `{body['model']}` does not exist.", "model")
            await sends(status(code, json.dumps(said).encode()))(writer, body)

    return answer


@pytest.mark.parametrize("code", [404, 400])
async def test_a_model_that_has_another_id_now_is_looked_up_once_and_remembered(code: int) -> None:
    asked = 0

    async def resolve() -> str:
        nonlocal asked
        asked += 1
        return "m:2"

    async with served(knows("m:2", code=code), resolve=resolve) as (backend, server):
        drafts = [(await collect(backend))[1] for _ in range(2)]
    assert [draft.model for draft in drafts] == ["m:2", "m:2"]
    assert backend.model == "m:2"
    assert [request["model"] for request in server.requests] == ["m", "m:2", "m:2"]
    assert asked == 1


async def test_a_model_that_is_not_there_under_any_name_is_unknown() -> None:
    async def again() -> str:
        return "m"

    async def another() -> str:
        return "also gone"

    async def none() -> str:
        raise ModelUnknown("There are a, b and c. Set RAG_SLM_MODEL.")

    async with served(knows()) as (backend, server):
        with pytest.raises(ModelUnknown, match="RAG_SLM_MODEL") as caught:
            await collect(backend)
        assert caught.value.status == 404
        assert len(server.requests) == 1
    for resolve, requests in ((again, 1), (another, 2), (none, 1)):
        async with served(knows(), resolve=resolve) as (backend, server):
            with pytest.raises(ModelUnknown, match="RAG_SLM_MODEL"):
                await collect(backend)
            assert len(server.requests) == requests


async def test_looking_a_model_up_does_not_take_for_ever() -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    async with served(knows(), resolve=never, limits=Limits(1, 0.2, 0.2)) as (backend, _):
        with pytest.raises(ModelTimeout):
            await collect(backend)


# --- busy servers ----------------------------------------------------------------------------------------------------

BUSY = b'{"error":{"message":"Rate limit reached"}}'
LOADING = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'


def in_a_moment() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)


@pytest.mark.parametrize(
    ("busy", "again_s"),
    [
        (status(429, BUSY, Retry_After="0.05"), 0.05),
        (status(429, BUSY, Retry_After="0"), 0.01),
        (status(429, BUSY, Retry_After="-7"), 0.01),
        (status(429, BUSY, Retry_After_ms="50"), 0.05),
        (status(429, BUSY, Retry_After=in_a_moment()), None),
        (status(503, b"", Retry_After="0.05"), 0.05),
        (status(503, LOADING, Retry_After="0.05"), 0.05),
        (status(503, LOADING), module.LOADING_S),
    ],
)
async def test_a_busy_server_is_asked_again_when_it_wants(busy: bytes, again_s: float | None) -> None:
    trace = Trace()
    async with served(turns(sends(busy), sends(HEADERS, *WHOLE)), retry_after_s=2) as (backend, server):
        pieces = await pieces_of(backend, trace)
    waiting = pieces[0]
    assert isinstance(waiting, Waiting)
    assert waiting.ahead == 1
    assert waiting.again_s is not None
    assert waiting.again_s == again_s or (again_s is None and 0 < waiting.again_s <= 1)
    assert isinstance(pieces[-1], Draft)
    assert len(server.requests) == 2
    assert [span.name for span in trace.spans] == ["request", "queue", "request", "first_token", "completion"]
    assert all(span.duration_ms is not None for span in trace.spans)


async def test_a_server_that_loads_its_model_is_asked_as_long_as_settings_allow() -> None:
    async with served(
        turns(*[sends(status(503, LOADING, Retry_After="0.05"))] * 4, sends(HEADERS, *WHOLE)), retry_after_s=2
    ) as (backend, server):
        await collect(backend)
        assert len(server.requests) == 5
    async with served(sends(status(503, LOADING, Retry_After="0.05")), retry_after_s=0.2) as (backend, server):
        with pytest.raises(ModelRefused, match=r"still loading its model \(status 503\).*RAG_RETRY_AFTER_S"):
            await collect(backend)
        assert 2 < len(server.requests) < 6


@pytest.mark.parametrize(
    ("busy", "requests", "says"),
    [
        (status(429, BUSY, Retry_After="3600"), 1, "Rate limit reached. It wants to be asked again after 3600 s: ask then, or raise RAG_RETRY_AFTER_S."),
        (status(429, BUSY, Retry_After="0.05"), 2, "It wants to be asked again after 0 s"),
        (status(429, BUSY, Retry_After="soon"), 1, "Wait a little, then ask again."),
        (status(429, BUSY, Retry_After="nan"), 1, "Wait a little, then ask again."),
        (status(429, BUSY, Retry_After="Sun, 99 Foo"), 1, "Wait a little, then ask again."),
        (status(503, b"overloaded"), 1, "overloaded. Wait a little, then ask again."),
    ],
)  # fmt: skip
async def test_a_server_that_stays_busy_says_for_how_long(busy: bytes, requests: int, says: str) -> None:
    async with served(sends(busy), retry_after_s=2) as (backend, server):
        with pytest.raises(ModelRefused) as caught:
            await collect(backend)
    assert says in str(caught.value)
    assert len(server.requests) == requests


async def test_a_wait_for_a_busy_server_can_be_broken_off() -> None:
    async with served(sends(status(429, BUSY, Retry_After="60")), retry_after_s=100) as (backend, server):
        async with aclosing(backend.stream(MESSAGES, max_tokens=5, trace=Trace())) as pieces:
            assert await anext(pieces) == Waiting(1, 60)
            assert backend.streaming == 1
        assert backend.streaming == 0
        assert len(server.requests) == 1


# --- fields that a server refuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "instead", "says", "code"),
    [
        ("logprobs", None, lambda name: openai_says("You are not allowed to request logprobs from this model"), 403),
        ("logprobs", None, lambda name: openai_says("Logprobs is not enabled for this model"), 400),
        ("logprobs", None, lambda name: openai_says("logprobs is not supported for models created with logits_all=False"), 500),
        ("top_logprobs", None, lambda name: openai_says("top_logprobs must be between 0 and 4", name), 400),
        ("temperature", None, lambda name: openai_says("Unsupported value: 'temperature' does not support 0 with this model.", name), 400),
        ("stream_options", None, lambda name: {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": {"temperature": 0}}]}, 422),
        ("stream_options", None, lambda name: openai_says("Unknown parameter", "stream_options.include_usage"), 400),
        ("max_tokens", "max_completion_tokens", lambda name: openai_says("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", name), 400),
        ("max_tokens", "max_completion_tokens", lambda name: {"error": "max_tokens is not supported, use max_completion_tokens"}, 400),
        ("stream_options", None, lambda name: {"error": {"message": "bad request"}}, 400),
        ("logprobs", None, lambda name: {"error": {"message": "bad request"}}, 422),
    ],
)  # fmt: skip
async def test_what_a_server_refuses_is_not_sent_to_it_again(
    field: str, instead: str | None, says: Callable[[str], Any], code: int
) -> None:
    async with served(refuses(field, says=says, code=code)) as (backend, server):
        for _ in range(2):
            assert (await collect(backend))[1].text == "Hello"
    *tried, second, third = server.requests
    assert all(field in request for request in tried[:1])
    assert len(tried) <= 2
    for request in (second, third):
        assert field not in request
        assert instead is None or request[instead] == 5
        others = {"logprobs", "temperature", "stream_options", "max_tokens"} - {field}
        assert others <= set(third), "the others may have been left out for nothing"


async def test_two_refused_fields_are_both_learnt() -> None:
    async with served(refuses("stream_options", "logprobs", says=lambda _: {"error": "no"})) as (backend, server):
        for _ in range(3):
            await collect(backend)
        last = server.requests[-1]
        before = len(server.requests)
        await collect(backend)
    assert not {"stream_options", "logprobs", "top_logprobs"} & set(last)
    assert {"temperature", "max_tokens"} <= set(last)
    assert len(server.requests) == before + 1


@pytest.mark.parametrize("says", [lambda name: openai_says("Unknown parameter", name), lambda _: {"error": "no"}])
async def test_a_seed_is_sent_when_it_is_asked_for_and_given_up_when_it_is_refused(says: Callable[[str], Any]) -> None:
    async with served(sends(HEADERS, *WHOLE)) as (backend, server):
        await pieces_of(backend)
        await pieces_of(backend, seed=7)
    assert [request.get("seed") for request in server.requests] == [None, 7]
    async with served(refuses("seed", says=says)) as (backend, server):
        for _ in range(2):
            assert isinstance((await pieces_of(backend, seed=7))[-1], Draft)
    assert ["seed" in request for request in server.requests] == [True, False, False]
    assert {"temperature", "logprobs", "max_tokens"} <= set(server.requests[-1])


async def test_a_server_that_refuses_to_stream_is_asked_for_the_whole() -> None:
    async def whole_only(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        said = json.dumps(openai_says("stream is not supported", "stream")).encode()
        await sends(status(400, said) if body["stream"] else HEADERS + whole_answer())(writer, body)

    async with served(whole_only) as (backend, server):
        assert (await collect(backend))[1].text == "Hello"
    assert [request["stream"] for request in server.requests] == [True, False]
    assert "stream_options" not in server.requests[1]


@pytest.mark.parametrize(
    ("says", "requests"),
    [
        ("max_tokens is too large: 9000. This model supports at most 4096 completion tokens", 1),
        ("The stream of messages makes no sense", 1),
        ("everything is wrong", 3),
    ],
)
async def test_a_request_that_is_refused_whatever_is_left_out_ends_with_the_first_reason(
    says: str, requests: int
) -> None:
    async with served(sends(status(400, json.dumps(openai_says(says)).encode()))) as (backend, server):
        with pytest.raises(ModelRefused, match=says):
            await collect(backend)
    assert len(server.requests) == requests
    assert all("max_tokens" in request for request in server.requests)


async def test_nothing_is_sent_that_is_known_to_be_refused() -> None:
    known = Capabilities(
        refuses=frozenset({"temperature", "logprobs", "stream_options", "max_tokens"}),
        length_field="max_completion_tokens",
    )
    async with served(sends(HEADERS, *WHOLE), capabilities=known) as (backend, server):
        await collect(backend)
        backend.capabilities = Capabilities(logprobs=False)
        await collect(backend)
        backend.capabilities = Capabilities(logprobs=True, refuses=frozenset({"top_logprobs"}))
        await collect(backend)
    assert set(server.requests[0]) == {"model", "messages", "stream", "max_completion_tokens"}
    assert set(server.requests[1]) == {"model", "messages", "stream", "max_tokens", "temperature", "stream_options"}
    assert server.requests[2]["logprobs"] is True
    assert "top_logprobs" not in server.requests[2]
    assert not any({"frequency_penalty", "presence_penalty"} & set(request) for request in server.requests)


async def test_progress_is_asked_of_those_who_tell_it_and_for_long_prompts() -> None:
    long = [{"role": "user", "content": "word " * 500}]
    async with served(sends(HEADERS, *WHOLE), capabilities=EMBEDDED) as (backend, server):
        for messages in (long, MESSAGES):
            async for _ in backend.stream(messages, max_tokens=5, trace=Trace()):
                pass
        backend.capabilities = Capabilities(prompt_progress=False)
        async for _ in backend.stream(long, max_tokens=5, trace=Trace()):
            pass
    assert ["return_progress" in request for request in server.requests] == [True, False, False]


# --- a life ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [200, 404, 405, 501])
async def test_a_server_that_does_not_list_its_models_can_be_connected_to(code: int) -> None:
    async with listing(status(code, b"[]")) as backend:
        await backend.connect()


@pytest.mark.parametrize(("code", "says"), [(401, "RAG_SLM_API_KEY"), (500, "failed"), (302, "points to")])
async def test_a_server_that_refuses_everybody_cannot(code: int, says: str) -> None:
    async with listing(status(code)) as backend:
        with pytest.raises(ModelRefused, match=says):
            await backend.connect()


async def test_connecting_to_silence_has_an_end() -> None:
    async with listing(None, limits=Limits(0.3, 0.3, 0.3)) as backend:
        with pytest.raises(ModelTimeout):
            await backend.connect()


@asynccontextmanager
async def listing(answer: bytes | None, limits: Limits | None = None) -> AsyncIterator[Backend]:
    """A server that answers every GET so, or with None never."""
    asked = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        if answer is None:
            await reader.read()
        writer.write(answer or b"")
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    backend = Backend(
        "slm", "m", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", limits=limits or Limits(2, 2, 2)
    )
    try:
        yield backend
        assert asked.is_set()
    finally:
        await backend.close()
        listener.close()


async def test_a_backend_that_was_closed_meanwhile_says_to_ask_again() -> None:
    async with served(sends(HEADERS, *WHOLE)) as (backend, _):
        await backend.close()
        with pytest.raises(ModelUnreachable, match="Ask again"):
            await collect(backend)


async def test_closing_in_the_middle_of_an_answer_breaks_it_off() -> None:
    async with served(sends(HEADERS, event("Hel"), then=None), limits=Limits(5, 60, 60)) as (backend, _):
        stream = backend.stream(MESSAGES, max_tokens=5, trace=Trace())
        assert await anext(stream) == Delta("Hel")
        assert backend.streaming == 1
        await backend.close()
        with pytest.raises(ModelBroke):
            async with asyncio.timeout(5):
                await anext(stream)
        assert backend.streaming == 0
