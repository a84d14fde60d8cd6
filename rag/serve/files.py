"""Files that programs upload, in OpenAI's format: `/v1/files`; and how they join a conversation.

Knows what a file must be to be taken, who reads it, and which files a request means. How they lie on the disk is
`file_store`'s. Each owner sees only what is theirs; for everybody else it is not there.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal, TypeVar

from fastapi import APIRouter, Form, Query, Request, UploadFile
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, Field

from rag.corpus.documents import Ingest, Passage, shown
from rag.corpus.library import new_reader
from rag.corpus.pages import is_pdf
from rag.corpus.reader import Reader
from rag.errors import DocumentError
from rag.serve import documents
from rag.serve.api_errors import ApiError, ApiRoute, declared
from rag.serve.ending import in_thread, while_there
from rag.serve.file_store import File, FileStore
from rag.serve.media import EXTENSIONS, USUAL
from rag.serve.visitors import VISITOR
from rag.settings import Settings
from rag.turn.session import Session

log = logging.getLogger("smallfirst")

FOLDER: Final = "api"
"""In the data folder."""
READERS: Final = 2
"""Uploads that are read at the same time, each by a process of its own; further ones wait."""
NAME_CHARS: Final = 255
CONVERSATION_CHARS: Final = 255
# OpenAI's: an hour, and thirty days.
SOONEST_S: Final = 3600
LATEST_S: Final = 2_592_000
MOST_LISTED: Final = 10_000

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
T = TypeVar("T")


class Files:
    """What programs have uploaded. `clock` tells Unix time, s.

    A disk that fails is an ApiError of 500, whichever of these meets it.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.store = FileStore(settings.data_dir / FOLDER, clock)
        # The one that read last is taken first, as its process may still be there.
        self._readers: asyncio.LifoQueue[Reader] = asyncio.LifoQueue()
        self._all_readers = [new_reader(settings) for _ in range(READERS)]
        for reader in self._all_readers:
            self._readers.put_nowait(reader)

    def close(self) -> None:
        """End what is being read."""
        for reader in self._all_readers:
            reader.close()

    async def add(
        self,
        owner: str,
        filename: str,
        data: bytes,
        *,
        purpose: str,
        conversation: str | None = None,
        expires_after_s: int | None = None,
    ) -> File:
        """Read it and keep it. Raises ApiError for what cannot be taken, DocumentError for what cannot be read.

        Cancelled, it ends the reading, and keeps nothing.
        """
        self.check_name(filename)
        self.check_size(filename, len(data))
        if len(await self.all(owner)) >= self.settings.api_files:
            raise self._full()
        report, passages = await self._read(data, filename)
        with self._disk():
            file = await asyncio.to_thread(
                self.store.keep, owner, data, report, passages, purpose=purpose, conversation=conversation,
                expires_after_s=expires_after_s, most=self.settings.api_files,
            )  # fmt: skip
        if file is None:  # others came while it was read
            raise self._full()
        return file

    async def all(self, owner: str) -> list[File]:
        """The oldest first."""
        with self._disk():
            return await asyncio.to_thread(self.store.all, owner)

    def find(self, owner: str, id: str) -> File:
        """Raises ApiError (404) where that owner has none of that id."""
        with self._disk():
            file = self.store.find(owner, id)
        if file is None:
            raise _unknown(id)
        return file

    async def remove(self, owner: str, id: str) -> None:
        """Raises ApiError (404) where that owner has none of that id."""
        with self._disk():
            if not await asyncio.to_thread(self.store.remove, owner, id):
                raise _unknown(id)

    async def content(self, owner: str, id: str) -> tuple[File, bytes]:
        """Raises ApiError (404) where that owner has none of that id."""
        file = self.find(owner, id)
        with self._disk():
            data = await asyncio.to_thread(self.store.content, owner, file)
        if data is None:
            raise _unknown(id)
        return file, data

    async def attach(
        self, owner: str, session: Session, *, ids: Sequence[str] = (), conversation: str | None = None
    ) -> dict[str, str]:
        """Let a session's answers come from a conversation's files, and from those of the ids, without reading them anew.

        Of two of one name, the newest stands for it, but one that is named by its id goes before. Returns the id of each
        by its name. Raises ApiError: 404, or 400 for more files than anybody can have here.
        """
        ids = list(dict.fromkeys(ids))
        if len(ids) > self.settings.api_files:
            most = f"at most {self.settings.api_files:,} files (RAG_API_FILES)"
            raise ApiError(400, f"messages: One request can name {most}.", param="messages")
        return await asyncio.to_thread(self._attach, owner, session, ids, conversation) if ids or conversation else {}

    def check_name(self, filename: str) -> None:
        """Raises ApiError (400) for a name that cannot be kept, or that tells of a kind that cannot be read."""
        if not filename.strip():
            raise _refused("The uploaded file has no name. Send one: `filename` in the part's Content-Disposition.")
        if "\0" in filename or any("\ud800" <= character <= "\udfff" for character in filename):
            raise _refused(f"The name {shown(filename)} holds characters that no name can have. Rename the file.")
        if len(filename) > NAME_CHARS:
            raise _refused(f"The name {shown(filename)} is too long: at most {NAME_CHARS} characters. Rename the file.")
        if PurePosixPath(filename.replace("\\", "/")).suffix.lower() not in EXTENSIONS:
            usual = ", ".join(USUAL)
            raise _refused(
                f"{shown(filename)} is not of a kind that can be read here. Save it as one of {usual}, then add it."
            )

    def check_size(self, filename: str, size: int) -> None:
        """Raises ApiError (400, 413) for nothing and for too much, bytes."""
        if not size:
            raise _refused(f"{shown(filename)} is empty: there is nothing in it to answer from.")
        if size > self.settings.upload_mb * 1_000_000:
            most = f"at most {self.settings.upload_mb} MB (RAG_UPLOAD_MB)"
            raise _refused(f"{shown(filename)} is too large: {most}.", status=413)

    async def _read(self, data: bytes, filename: str) -> tuple[Ingest, list[Passage]]:
        reader = await self._readers.get()
        try:
            # Until its thread has ended, a reader is not free for another file.
            return await in_thread(lambda: reader.read(data, filename), reader.stop)
        finally:
            self._readers.put_nowait(reader)

    def _attach(self, owner: str, session: Session, ids: Sequence[str], conversation: str | None) -> dict[str, str]:
        attached, ids_of = [], {}
        with self._disk():
            for file in self._meant(owner, ids, conversation).values():
                passages = self.store.passages(owner, file)
                if passages is not None:
                    attached.append((file.report, passages))
                    ids_of[file.report.source] = file.id
                elif file.id in ids:  # it went a moment ago
                    raise _unknown(file.id)
        session.attachments.restore_all(attached)
        return ids_of

    def _meant(self, owner: str, ids: Sequence[str], conversation: str | None) -> dict[str, File]:
        """By name; blocks."""
        kept = self.store.all(owner) if conversation else []
        named = sorted((self.find(owner, id) for id in ids), key=lambda file: (file.created, file.id))
        return {file.filename: file for file in [*(one for one in kept if one.conversation == conversation), *named]}

    def _full(self) -> ApiError:
        most = f"{self.settings.api_files:,} (RAG_API_FILES)"
        return _refused(f"You keep as many files here as you may: {most}. Delete one, then add this.")

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.error("Uploaded files in %s: %s", self.store.folder, error)
            why = f"Files cannot be kept or read here just now ({error.strerror or type(error).__name__})."
            mend = "Make the folder of RAG_DATA_DIR writable and see that the disk has room, or set it to another."
            raise ApiError(500, f"{why} {mend}") from error


def _refused(why: str, status: int = 400) -> ApiError:
    return ApiError(status, why, param="file")


def _unknown(id: str) -> ApiError:
    why = f"There is no file {shown(id)} here, or it is no longer."
    return ApiError(404, f"{why} GET /v1/files lists yours.", param="file_id")


# --- The wire ---


class FileDetails(BaseModel):
    passages: int
    pages: int
    conversation: str | None
    note: str | None
    """What of it was not read, for people."""


class FileObject(BaseModel):
    """OpenAI's File, and what became of the document."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None
    smallfirst: FileDetails

    @classmethod
    def of(cls, file: File) -> "FileObject":
        report = file.report
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=file.created_at,
            expires_at=file.expires_at,
            filename=file.filename,
            purpose=file.purpose,
            smallfirst=FileDetails(
                passages=report.passages,
                pages=report.pages,
                conversation=file.conversation,
                note=report.line if report.skipped or report.blank_pages else None,
            ),
        )


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def _seconds(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and SOONEST_S <= int(text) <= LATEST_S):
        raise ApiError(
            400, f"expires_after[seconds] is a whole number from {SOONEST_S} (an hour) to {LATEST_S} (thirty days).",
            param="expires_after.seconds",
        )  # fmt: skip
    return int(text)


def _anchor(value: object) -> object:
    if value != "created_at":
        raise ApiError(400, "expires_after[anchor] can only be created_at.", param="expires_after.anchor")
    return value


# Both say themselves what is wrong: FastAPI's words name no parameter that is written with brackets.
Seconds = Annotated[int, Field(ge=SOONEST_S, le=LATEST_S), BeforeValidator(_seconds)]
Anchor = Annotated[Literal["created_at"], BeforeValidator(_anchor)]

WRONG: Final = declared(400, 401, 404, 413, 429, 500)


def router(files: Files) -> APIRouter:
    routes = APIRouter(route_class=ApiRoute, prefix="/v1/files", tags=["files"])

    @routes.post("", responses=WRONG)
    async def create(
        request: Request,
        file: UploadFile,
        purpose: Annotated[Purpose, Form()] = "user_data",
        conversation: Annotated[str | None, Form(max_length=CONVERSATION_CHARS)] = None,
        anchor: Annotated[Anchor | None, Form(alias="expires_after[anchor]")] = None,
        seconds: Annotated[Seconds | None, Form(alias="expires_after[seconds]")] = None,
    ) -> FileObject:
        """Upload a document; it is read at once. With a `conversation`, every request of that name answers from it."""
        if (anchor is None) != (seconds is None):
            raise ApiError(400, "expires_after needs both its anchor and its seconds.", param="expires_after")
        if len((await request.form()).getlist("file")) > 1:
            raise _refused("One request takes one file. Send the others in requests of their own.")
        name = file.filename or ""
        files.check_name(name)
        files.check_size(name, file.size or 0)
        adding = files.add(
            VISITOR.get().owner, name, await file.read(), purpose=purpose, conversation=conversation or None,
            expires_after_s=seconds,
        )  # fmt: skip
        try:
            kept = await while_there(request.receive, adding)
        except DocumentError as error:
            raise _refused(str(error)) from None
        if kept is None:
            raise ApiError(499, "The client hung up.")  # nobody is left to read it
        return FileObject.of(kept)

    @routes.get("", responses=WRONG)
    async def index(
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = MOST_LISTED,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> FileList:
        """Your files, the newest first unless `order` is asc; `after` is the id of the last one that you know."""
        kept = await files.all(VISITOR.get().owner)
        if order == "desc":
            kept.reverse()
        if after is not None:
            places = [place for place, file in enumerate(kept) if file.id == after]
            if not places:
                raise ApiError(
                    404, f"There is no file {shown(after)} to go on after. List from the start.", param="after"
                )
            kept = kept[places[0] + 1 :]
        kept = [file for file in kept if purpose is None or file.purpose == purpose]
        data = [FileObject.of(file) for file in kept[:limit]]
        return FileList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(kept) > limit,
        )

    @routes.get("/{file_id}", responses=WRONG)
    def retrieve(file_id: str) -> FileObject:
        return FileObject.of(files.find(VISITOR.get().owner, file_id))

    @routes.delete("/{file_id}", responses=WRONG)
    async def delete(file_id: str) -> FileDeleted:
        await files.remove(VISITOR.get().owner, file_id)
        return FileDeleted(id=file_id)

    @routes.head("/{file_id}/content", include_in_schema=False)
    @routes.get("/{file_id}/content", response_class=Response, responses={**documents.SENT, **WRONG})
    async def content(file_id: str) -> Response:
        """The bytes as they were uploaded."""
        file, data = await files.content(VISITOR.get().owner, file_id)
        name = PurePosixPath(file.filename.replace("\\", "/")).name
        pdf = is_pdf(data[:1024], PurePosixPath(name).suffix.lower())
        return documents.served(data, name, pdf=pdf, texts_inline=True)

    return routes
