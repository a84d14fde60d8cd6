"""One server, many ways to misbehave: each becomes one of our errors or a whole answer, and none hangs."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import openai
import pytest

from rag.errors import ModelBroke, ModelError, ModelRefused, ModelSilent, ModelTimeout, ModelUnreachable
from rag.models.backend import Backend, Delta, Draft, Limits, Usage, Waiting
from rag.models.cores import Cores
from rag.trace import Trace

Answer = Callable[[asyncio.StreamWriter, dict[str, Any]], Awaitable[None]]
MESSAGES = [{"role": "user", "content": "hi"}]
HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content} if content is not None else {}, "finish_reason": finish}
    choice.update(more.pop("choice", {}))
    body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


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


def status(code: int, body: bytes = b'{"error":{"message":"because"}}') -> bytes:
    return (
        b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % (code, len(body))
        + body
    )


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
    assert str(caught.value).endswith((".", "because"))


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
