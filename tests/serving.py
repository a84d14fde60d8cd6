"""The API before scripted models: what answers behind it, and a socket of its own."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from rag.corpus.library import Library
from rag.metrics import Metrics
from rag.serve.files import Files
from rag.settings import Settings

from .scripted import ScriptedLegs


class ScriptedService:
    """As `rag.serve.service.Service`, but that nothing has to be started; whoever opened the library closes it."""

    def __init__(self, settings: Settings, library: Library, legs: ScriptedLegs, observers: Sequence[Any] = ()) -> None:
        self.settings = settings
        self.library = library
        self.legs = legs
        self.metrics = Metrics(library, legs)  # type: ignore[arg-type]
        self.observers = (*observers, self.metrics)
        self.files = Files(settings)
        self.ending = asyncio.Event()

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self.files.close()


def socket_of_its_own() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    return listening


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """Its address, while it serves on this event loop."""
    opened = socket_of_its_own()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve(sockets=[opened]))
    try:
        yield f"http://127.0.0.1:{opened.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
