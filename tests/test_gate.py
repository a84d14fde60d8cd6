"""The gate, before a server of the test's own: real sockets on both sides."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from rag.models.gate import HEAD_BYTES, Gate

PATIENCE_S = 60
KEY = "the key"
RIGHT = f"Authorization: Bearer {KEY}\r\n"
Behind = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def behind_a_gate(server: Behind) -> AsyncIterator[Callable[[], Awaitable[Streams]]]:
    """Yields what connects to the gate."""
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    gate = Gate("127.0.0.1", listening.sockets[0].getsockname()[1], KEY)
    port = await gate.open()
    opened: list[asyncio.StreamWriter] = []

    async def connect() -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        opened.append(writer)
        return reader, writer

    try:
        async with asyncio.timeout(PATIENCE_S):
            yield connect
    finally:
        for writer in opened:
            writer.close()
        await gate.close()
        listening.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1000):
        writer.write(chunk)
    writer.close()


async def nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raise AssertionError("nothing may pass")


def request(headers: str = RIGHT, body: bytes = b"") -> bytes:
    return f"POST /v1/chat HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def test_whoever_knows_the_key_passes_and_nothing_is_changed() -> None:
    async with behind_a_gate(echo) as connect:
        reader, writer = await connect()
        for sent in (request(body=b"\x00\r\n\r\n\xff"), b"and what follows on the same connection"):
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent


async def test_a_header_is_read_as_http_writes_it() -> None:
    async with behind_a_gate(echo) as connect:
        reader, writer = await connect()
        sent = request(f"aUTHORIZATION:Bearer {KEY}  \r\n")
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "Authorization: Bearer another\r\n",
        f"Authorization: Basic {KEY}\r\n",
        f"X-Authorization: Bearer {KEY}\r\n",
        f"Authorization: Bearer {KEY}\r\nAuthorization: Bearer another\r\n",
        f"Authorization: Bearer {KEY} and more\r\n",
        "Authorization: Bearer \r\n",
    ],
)
async def test_whoever_does_not_is_refused_and_reaches_nobody(headers: str) -> None:
    async with behind_a_gate(nobody) as connect:
        reader, writer = await connect()
        # Large enough that the refusal comes while it is still being sent.
        writer.write(request(headers, b"x" * 300_000))
        answer = await reader.read()
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert "key" in json.loads(body)["error"]["message"]


async def test_an_answer_comes_as_it_is_written() -> None:
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"one")
        await go_on.wait()
        writer.write(b"two")
        writer.close()

    async with behind_a_gate(slow) as connect:
        reader, writer = await connect()
        writer.write(request())
        assert await reader.readexactly(3) == b"one"
        go_on.set()
        assert await reader.read() == b"two"


async def test_a_client_that_leaves_is_gone_for_the_server_at_once() -> None:
    left = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            while True:
                writer.write(b"on and ")
                await writer.drain()
                await asyncio.sleep(0)
        except OSError:
            left.set()

    async with behind_a_gate(endless) as connect:
        reader, writer = await connect()
        writer.write(request())
        await reader.readexactly(20)
        writer.close()
        await left.wait()


async def test_a_client_that_leaves_before_the_first_byte_is_noticed_too() -> None:
    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        with suppress(OSError):
            await reader.read()
        left.set()
        writer.close()

    arrived = asyncio.Event()
    async with behind_a_gate(silent) as connect:
        _, writer = await connect()
        writer.write(request())
        await arrived.wait()
        writer.close()
        await left.wait()


async def test_large_answers_arrive_whole() -> None:
    large = bytes(range(256)) * 20_000

    async def generous(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(large)
        await writer.drain()
        writer.close()

    async with behind_a_gate(generous) as connect:
        reader, writer = await connect()
        writer.write(request())
        assert await reader.read() == large


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost", b"x" * (2 * HEAD_BYTES)])
async def test_what_is_no_request_is_hung_up_on(said: bytes) -> None:
    async with behind_a_gate(nobody) as connect:
        reader, writer = await connect()
        writer.write(said)
        writer.write_eof()
        with suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_a_server_that_does_not_listen_is_said_so() -> None:
    listening = await asyncio.start_server(nobody, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    listening.close()
    await listening.wait_closed()
    gate = Gate("127.0.0.1", port, KEY)
    reader, writer = await asyncio.open_connection("127.0.0.1", await gate.open())
    writer.write(request())
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    writer.close()
    await gate.close()
    assert answer.startswith(b"HTTP/1.1 502 ")
