"""Conversations that outlast the process: what was said, the files that were added, and what each user chose.

`open_history` chooses where: one SQLite file in the data folder (`History`), or a Postgres server. Chainlit writes to
either through its own interface; `Kept` names what this project asks of them besides. `router` serves the files, each to
the owner of its conversation. Knows nothing of models, turns or how a chat looks.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from chainlit.auth import get_current_user, reuseable_oauth
from chainlit.config import config
from chainlit.element import ElementDict
from chainlit.types import PaginatedResponse, Pagination, ThreadDict, ThreadFilter
from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import FileResponse

from rag.corpus.documents import Ingest, Passage, shown
from rag.errors import UserError
from rag.serve.history_records import Attached
from rag.serve.history_sqlite import History
from rag.serve.media import FILE_POLICY, MEDIA_TYPES
from rag.settings import Settings

__all__ = ["Attached", "History", "Kept", "open_history", "router"]


class Kept(Protocol):
    """What this project asks of a history besides what Chainlit does. Users are named by their identifiers."""

    deleted: Callable[[str], Awaitable[None]] | None
    """Told the id of each conversation that is gone, so that nobody goes on in it."""

    async def attach(
        self, thread_id: str, number: int, source: str, element_id: str, report: Ingest, passages: list[Passage]
    ) -> None:
        """Keep a document as it was read. One of the same number or name takes the earlier one's place."""

    async def detach(self, thread_id: str, number: int) -> None:
        """Forget the document's text; its file stays for as long as a message shows it."""

    async def attachments(self, thread_id: str) -> list[Attached]:
        """By number."""

    async def file(self, thread_id: str, element_id: str) -> Path | None:
        """The bytes of an uploaded file."""

    async def settings(self, user: str) -> dict[str, Any]: ...

    async def keep_settings(self, user: str, values: dict[str, Any]) -> None:
        """They take the place of the former ones."""

    async def get_element(self, thread_id: str, element_id: str) -> ElementDict | None: ...

    async def get_thread(self, thread_id: str) -> ThreadDict | None:
        """None also if nothing was said in it yet."""

    async def thread_ids(self) -> list[str]:
        """Of all users' conversations, the oldest first."""

    async def get_thread_author(self, thread_id: str) -> str:
        """The owner's identifier; "" if there is no such conversation, or nobody owns it."""

    async def list_threads(self, pagination: Pagination, filters: ThreadFilter) -> PaginatedResponse[ThreadDict]:
        """A user's conversations, the one used last first, without what was said in them."""

    async def update_thread(
        self,
        thread_id: str,
        name: str | None = None,
        user_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
    ) -> None: ...

    async def delete_thread(self, thread_id: str) -> None:
        """With all that belongs to it. Raises UserError."""

    async def close(self) -> None:
        """What was asked for before is still written."""


def open_history(settings: Settings) -> Kept:
    """The history that the settings choose. Blocks, and raises UserError if it cannot be used."""
    if settings.database_url is None:
        return History(settings.data_dir)
    try:
        from rag.serve.postgres import PostgresHistory
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise UserError(
            "RAG_DATABASE_URL needs the package asyncpg. Install it with: pip install 'smallfirst[postgres]'"
        ) from None
    return PostgresHistory.open(settings.database_url.get_secret_value(), settings.data_dir)


def router(history: Kept) -> APIRouter:
    """`GET /history/<thread id>/<element id>`: an uploaded file, for the owner of its conversation only.

    To everybody else it is not there.
    """
    routes = APIRouter(prefix=config.run.root_path.rstrip("/"))

    @routes.get("/history/{thread_id}/{element_id}")
    async def uploaded(thread_id: str, element_id: str, token: str | None = Depends(reuseable_oauth)) -> FileResponse:
        try:
            user = await get_current_user(token or "")
        except HTTPException:
            user = None
        path = None
        if user is not None and await history.get_thread_author(thread_id) == user.identifier:
            path = await history.file(thread_id, element_id)
        if path is None:
            raise HTTPException(404, "There is no such file.")
        name = shown(await _name(history, thread_id, element_id))
        return FileResponse(
            path,
            # By the name, as for an upload: what a sender calls a page is never run in this server's name.
            media_type=MEDIA_TYPES.get(Path(name).suffix.lower(), "application/octet-stream"),
            filename=name,
            headers={
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": FILE_POLICY,
                "Cache-Control": "private, no-store",
            },
        )

    return routes


async def _name(history: Kept, thread_id: str, element_id: str) -> str:
    element = await history.get_element(thread_id, element_id)
    if element is not None:
        return element["name"]
    # The message that showed it was removed; the document is still attached.
    attached = await history.attachments(thread_id)
    return next((one.source for one in attached if one.element_id == element_id), element_id)
