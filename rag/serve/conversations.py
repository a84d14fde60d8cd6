"""Which conversation a browser tab is in, and how the tab finds it again after a reload.

Chainlit begins a new session at each load of its page and keeps the former one until its timeout, with nobody in it. Here
a conversation has a holder (the id of a Chainlit session) and a key that only its own tab knows; whoever shows the key
becomes the holder. Knows nothing of Chainlit's events, nor of what is said in a conversation.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from rag.corpus.documents import Ingest, shown
from rag.errors import DocumentError, UserError
from rag.turn.session import Session


class Conversation:
    """A session as one tab has it: its key, its turn under way, and a number for each attached document.

    The numbers tell a document from an earlier one of the same name, whose report may still stand in the chat.
    """

    def __init__(self, session: Session, holder: str, most_documents: int) -> None:
        self.session = session
        self.holder = holder
        self.key = secrets.token_urlsafe(32)
        self.turn: asyncio.Task[Any] | None = None
        self._most = most_documents
        self._last = 0
        self._numbers: dict[str, int] = {}
        self._seen: set[str] = set()

    @property
    def busy(self) -> bool:
        """A turn is under way."""
        return self.turn is not None and not self.turn.done()

    @contextlib.contextmanager
    def asked_anew(self, id: str) -> Iterator[None]:
        """Around a turn that answers an earlier question again: its exchange takes the place of the former one.

        The turn knows of the conversation what came before that question; what came after stays. If nothing is
        answered, the former exchange stays too.
        """
        former = list(self.session.history)
        self.session.rewind(id)
        place = len(self.session.history)
        try:
            yield
        finally:
            answered = len(self.session.history) > place
            self.session.history.extend(former[place + answered :])

    def first_seen(self, upload_id: str) -> bool:
        """An edited question brings its files again; one that was read, and perhaps removed since, is not read twice."""
        first = upload_id not in self._seen
        self._seen.add(upload_id)
        return first

    def attach(self, data: bytes, source: str) -> Ingest:
        """Read an upload and make it searchable; blocks. Raises DocumentError."""
        attached = self.session.attachments.sources
        if source not in attached and len(attached) >= self._most:
            raise DocumentError(
                f"{shown(source)} is one too many: at most {self._most} documents in one conversation. Remove one first."
            )
        report = self.session.attachments.add(data, source)
        self._last += 1
        self._numbers[source] = self._last
        return report

    def remove(self, number: int) -> None:
        """Forget a document; a number that stands for none is a UserError."""
        for source, its_number in self._numbers.items():
            if its_number == number:
                del self._numbers[source]
                self.session.attachments.remove(source)
                return
        raise UserError("That document is no longer attached.")

    @property
    def last_number(self) -> int:
        """Of the newest document; 0 before the first."""
        return self._last

    def reports(self, after: int = 0) -> list[Ingest]:
        """What is attached, in order; only what is newer than the number `after`."""
        return [report for report in self.session.attachments.reports if self._numbers.get(report.source, 0) > after]

    def documents(self, after: int = 0) -> list[dict[str, Any]]:
        """The same, for a list with a way to remove each."""
        return [
            {
                "number": self._numbers[report.source],
                "source": shown(report.source),
                "told": report.line.removeprefix(f"{shown(report.source)}: "),
            }
            for report in self.reports(after)
        ]

    def close(self) -> None:
        if self.turn is not None:
            self.turn.cancel()
        self.session.attachments.close()


class Conversations:
    """All that are alive. A conversation ends with its holder."""

    def __init__(self, most_documents: int) -> None:
        self._most = most_documents
        self._of: dict[str, Conversation] = {}

    def __len__(self) -> int:
        return len(self._of)

    def begin(self, holder: str, session: Session) -> Conversation:
        self.end(holder)
        self._of[holder] = conversation = Conversation(session, holder, self._most)
        return conversation

    def of(self, holder: str) -> Conversation | None:
        return self._of.get(holder)

    def take_over(self, key: str, holder: str) -> tuple[Conversation, str] | None:
        """The conversation of that key goes to `holder`, whose own ends. Returns it with its former holder.

        None, and nothing changes, if there is no such key or the holder has it already.
        """
        asked = key.encode("utf-8", "surrogatepass")
        found = next((one for one in self._of.values() if secrets.compare_digest(one.key.encode(), asked)), None)
        if found is None or found.holder == holder:
            return None
        former = found.holder
        self.end(holder)
        del self._of[former]
        found.holder = holder
        self._of[holder] = found
        return found, former

    def end(self, holder: str) -> None:
        """What the holder had attached is forgotten, and its memory freed."""
        conversation = self._of.pop(holder, None)
        if conversation is not None:
            conversation.close()
