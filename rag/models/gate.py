"""A gate before a server that lets everybody in: whoever knows the key passes, and from then on bytes are only carried.

Knows the head of an HTTP request and one key. Knows nothing of what the server behind it serves: answers stream through
as they come, and when the client closes its connection, the one to the server is closed at once, which is how these
servers learn to stop computing.

A connection is asked for the key once. Whoever opened it knows the key, so the later requests on it need not be read.
"""

import asyncio
import hmac
import json
from contextlib import suppress

HEAD_BYTES = 64 << 10
HEAD_TIMEOUT_S = 10
# What a refused client had still to say is read, so that it reads our refusal and not a reset connection.
REFUSED_BYTES = 1 << 20
REFUSED_TIMEOUT_S = 1
CHUNK_BYTES = 64 << 10


class Gate:
    """Listens on 127.0.0.1 and passes on to one server."""

    def __init__(self, host: str, port: int, key: str) -> None:
        """`host` and `port`: of the server behind the gate."""
        self._behind = host, port
        self._expected = f"Bearer {key}".encode()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> int:
        """Begin to listen; the port."""
        self._server = await asyncio.start_server(self._receive, "127.0.0.1", 0, limit=HEAD_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Stop listening, and end what is under way."""
        if self._server is not None:
            self._server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A coroutine and not a task, because what asyncio makes of a cancelled one differs from version to version.
        connection = asyncio.create_task(self._serve(reader, writer), name="through the gate")
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        await asyncio.wait([connection])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_TIMEOUT_S)
            if not self._knows_the_key(head):
                await _refuse(reader, writer, 401, "This server needs its key.")
                return
            try:
                server_reader, server_writer = await asyncio.open_connection(*self._behind)
            except OSError:
                await _refuse(reader, writer, 502, "The model's server does not listen.")
                return
            try:
                server_writer.write(head)
                await _carry_both(reader, writer, server_reader, server_writer)
            finally:
                # Not `close`, which would first send what nobody waits for any more.
                server_writer.transport.abort()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever that was has gone, or does not speak HTTP
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _knows_the_key(self, head: bytes) -> bool:
        names_and_values = (line.partition(b":") for line in head.split(b"\r\n")[1:])
        given = [value.strip() for name, _, value in names_and_values if name.lower() == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


async def _carry_both(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    server_reader: asyncio.StreamReader,
    server_writer: asyncio.StreamWriter,
) -> None:
    """Until either side closes."""
    ways = [
        asyncio.create_task(_carry(reader, server_writer), name="to the server"),
        asyncio.create_task(_carry(server_reader, writer), name="to the client"),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while chunk := await source.read(CHUNK_BYTES):
        sink.write(chunk)
        await sink.drain()


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int, message: str) -> None:
    """An error in the shape that OpenAI's clients know."""
    body = json.dumps({"error": {"message": message, "type": "refused_at_the_gate", "code": None}}).encode()
    phrase = {401: "Unauthorized", 502: "Bad Gateway"}[status]
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    await writer.drain()
    writer.write_eof()
    with suppress(TimeoutError):
        async with asyncio.timeout(REFUSED_TIMEOUT_S):
            read_bytes = 0
            while read_bytes < REFUSED_BYTES and (chunk := await reader.read(CHUNK_BYTES)):
                read_bytes += len(chunk)
