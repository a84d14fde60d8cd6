"""The message about uploads: which is being read and for how long, then what became of each.

Knows Chainlit's uploaded files and one conversation. How a file is read is the reader's business.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import chainlit as cl

from rag.corpus.documents import Ingest, shown
from rag.errors import DocumentError
from rag.serve.conversations import Conversation
from rag.serve.history import Kept
from rag.words import Said, say, told


class Reading:
    """What is attached is kept in the history as well, so that it need not be read again."""

    def __init__(self, conversation: Conversation, history: Kept) -> None:
        self._conversation = conversation
        self._history = history
        self._message: Any = cl.Message("", author="Documents")
        self._failures: list[str] = []

    async def run(self, uploads: list[Any], *, asked: bool) -> bool:
        """Read them one after another; False if that was stopped, which the message then tells."""
        before = self._conversation.last_number
        stopped = False
        for number, upload in enumerate(uploads, 1):
            name = plain(shown(upload.name))
            phase = say("chat.reading", name=name)
            if len(uploads) > 1:
                phase = say("chat.reading_of", name=name, number=number, count=len(uploads))
            try:
                async with self._progress(phase):
                    await self._attach(upload)
            except DocumentError as error:
                self._fail(say("chat.not_attached", why=plain(str(error))))
            except OSError as error:
                self._fail(say("chat.not_attached", why=say("chat.not_whole", name=name, why=error.strerror or error)))
            except asyncio.CancelledError:
                stopped = True
                break
        await self._finish(before, stopped=stopped, asked=asked)
        return not stopped

    def _fail(self, said: Said) -> None:
        self._failures.append(self._told(said))

    def _told(self, said: Said) -> str:
        return told(said, self._conversation.language)

    async def _attach(self, upload: Any) -> Ingest:
        """Chainlit deletes the file when it likes, so it is read at once."""
        conversation = self._conversation
        data = await asyncio.to_thread(Path(upload.path).read_bytes)
        former = conversation.number_of(upload.name)
        reading = asyncio.create_task(asyncio.to_thread(conversation.attach, data, upload.name))
        try:
            report = await asyncio.shield(reading)
        except asyncio.CancelledError:
            # A thread cannot be cancelled. Whether the document is attached is known only when it has ended.
            while not reading.done():
                conversation.session.attachments.stop()
                await asyncio.wait([reading], timeout=0.1)
            if reading.exception() is None:
                await self._keep(upload, reading.result(), former)
            raise
        await self._keep(upload, report, former)
        return report

    async def _keep(self, upload: Any, report: Ingest, former: int | None) -> None:
        """`former` is the number of the document whose place it takes."""
        conversation = self._conversation
        if former is not None:
            await self._history.detach(conversation.thread_id, former)
        passages = conversation.session.attachments.opening(report.source)
        number = conversation.last_number
        await self._history.attach(conversation.thread_id, number, report.source, upload.id, report, passages)

    @contextlib.asynccontextmanager
    async def _progress(self, phase: Said) -> AsyncIterator[None]:
        async def show() -> None:
            await self._message.stream_token(f"{self._told(phase)} …", is_sequence=True)
            seconds = 0
            while True:
                await asyncio.sleep(1)
                seconds += 1
                await self._message.stream_token(
                    self._told(say("chat.phase", what=phase, seconds=seconds)), is_sequence=True
                )

        showing = asyncio.create_task(show())
        try:
            yield
        finally:
            showing.cancel()
            await asyncio.wait([showing])

    async def _finish(self, before: int, *, stopped: bool, asked: bool) -> None:
        attached = self._conversation.documents(after=before)
        lines = list(self._failures)
        if attached:
            lines.insert(0, self._told(say("chat.attached", count=len(attached))))
            self._message.elements = [
                cl.CustomElement(name="Attachments", props={"documents": attached}, display="inline")
            ]
        if stopped:
            lines.append(self._told(say("chat.stopped_reading_some" if attached else "chat.stopped_reading")))
        elif attached and not asked:
            lines.append(self._told(say("chat.ask_about", count=len(attached))))
        self._message.content = "\n\n".join(lines)
        reports = self._conversation.reports(after=before)
        self._message.metadata = {"documents": [report.to_dict() for report in reports]}
        # First the list, so that the message finds its documents in it.
        await tell_documents(self._conversation)
        await self._message.send()


async def tell_documents(conversation: Conversation) -> None:
    """Tell public/documents.js what is attached."""
    await cl.send_window_message({"smallfirst": "conversation", "documents": conversation.documents()})


def plain(text: str) -> str:
    """So that the page's Markdown shows it as it is: __init__.py is a name, not bold."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", text)
