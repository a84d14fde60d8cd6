"""A real session of Chainlit without a browser: what its page would be told is recorded.

Chainlit reads its configuration where it is imported, and makes folders there, so that is a temporary folder.
"""

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

_root = tempfile.mkdtemp(prefix="smallfirst-chainlit-")
atexit.register(shutil.rmtree, _root, ignore_errors=True)
os.environ["CHAINLIT_APP_ROOT"] = _root
try:
    import chainlit.data
    from chainlit.config import FILES_DIRECTORY
    from chainlit.context import context, init_ws_context
    from chainlit.message import Message
    from chainlit.session import WebsocketSession
finally:
    # Child processes have roots of their own.
    del os.environ["CHAINLIT_APP_ROOT"]

from .product import client_message  # noqa: E402


@contextmanager
def data_layer(layer: Any) -> Iterator[None]:
    """What Chainlit writes to meanwhile."""
    FILES_DIRECTORY.mkdir(exist_ok=True)
    chainlit.data._data_layer, chainlit.data._data_layer_initialized = layer, True
    try:
        yield
    finally:
        chainlit.data._data_layer, chainlit.data._data_layer_initialized = None, False


class Tab:
    """A page that has just connected; what happens after that happens in its session."""

    def __init__(self, user: Any = None, thread_id: str | None = None) -> None:
        self.told: list[tuple[str, Any]] = []

        async def emit(event: str, data: Any) -> None:
            self.told.append((event, data))

        self.session = WebsocketSession(
            id=str(uuid4()), socket_id=uuid4().hex, emit=emit, emit_call=AsyncMock(), user_env={},
            client_type="webapp", user=user, thread_id=thread_id,
        )  # fmt: skip
        self.enter()

    @property
    def thread_id(self) -> str:
        return str(self.session.thread_id)

    def enter(self) -> None:
        init_ws_context(self.session)

    async def ask(self, text: str, **files: bytes) -> Message:
        """As Chainlit's socket does with a message; files by name, their extension after two underscores."""
        ids = [await self.upload(name.replace("__", "."), data) for name, data in files.items()]
        message = await context.emitter.process_message(client_message(text, ids))
        await asyncio.sleep(0.001)
        return message

    async def upload(self, name: str, data: bytes) -> str:
        mime = {"pdf": "application/pdf", "png": "image/png"}.get(name.rpartition(".")[2], "text/markdown")
        return str((await self.session.persist_file(name, mime, content=data))["id"])

    async def close(self) -> None:
        """With the copies that Chainlit made of its files."""
        await self.session.delete()


async def settled() -> None:
    """Chainlit writes in tasks that nobody awaits."""
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(tasks)


def folder_of(tab: Tab) -> Path:
    """Chainlit's copies of what was uploaded."""
    return Path(tab.session.files_dir)
