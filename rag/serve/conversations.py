"""Which conversation a browser tab is in, and who takes it over when its page is loaded again.

Chainlit begins a new session at each load of its page and keeps the former one until its timeout, with nobody in it. Here
a conversation has a holder (the id of a Chainlit session) and the id of its thread in the history; who opens the thread
becomes the holder, once Chainlit has seen that the thread is his. Knows nothing of Chainlit's events.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rag.corpus.documents import Ingest, Passage, shown
from rag.errors import DocumentError, UserError
from rag.serve.answer import Answer
from rag.serve.preferences import Preferences
from rag.turn.session import Exchange, Session

CLOSE_S = 2.0


class Conversation:
    """A session as one tab has it: what was chosen, its answers, its turn under way, and a number for each document.

    The numbers tell a document from an earlier one of the same name, whose report may still stand in the chat.
    """

    def __init__(
        self,
        session: Session,
        preferences: Preferences,
        holder: str,
        thread_id: str,
        language: str,
        most_documents: int,
    ) -> None:
        self.session = session
        self.holder = holder
        self.thread_id = thread_id
        self.language = language
        """Of who reads it."""
        self.answers: dict[str, Answer] = {}
        """By the ids of their messages, in the order in which they stand."""
        self.preferences = preferences
        session.mode, session.remote = preferences.mode, preferences.remote
        self.turn: asyncio.Task[Any] | None = None
        self.bubble: Any = None
        """The answer that is being written, as the door shows it."""
        self._most = most_documents
        self._last = 0
        self._numbers: dict[str, int] = {}
        self._seen: set[str] = set()

    def choose(self, preferences: Preferences) -> None:
        self.session.mode = preferences.mode
        # What one conversation was allowed by a button stays, until somebody chooses otherwise.
        if self.preferences.remote != preferences.remote:
            self.session.remote = preferences.remote
        self.preferences = preferences

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

    def restore(self, thread: Mapping[str, Any]) -> None:
        """What was asked and answered, from a thread of the history: steps in their order, and elements."""
        receipts = {one["forId"]: one for one in thread.get("elements") or () if one.get("name") == "Receipt"}
        questions = {step["id"]: step["output"] for step in thread["steps"] if step["type"] == "user_message"}
        exchanges: dict[str, Exchange] = {}
        for step in thread["steps"]:
            receipt = receipts.get(step["id"], {})
            answer = Answer.of_step(step, receipt.get("props") or {})
            if answer is None:
                continue
            answer.element_id = receipt.get("id")
            self.answers[answer.id] = answer
            question, turn = questions.get(answer.question_id), answer.turn
            # Of two answers to one question, the models know the later one.
            if question is not None and turn.get("answer"):
                query = turn.get("query") or question
                exchanges[answer.question_id] = Exchange(
                    answer.question_id, question, query, turn["answer"], bool(turn.get("refused"))
                )
        self.session.history[:] = [exchanges[id] for id in questions if id in exchanges]

    def forget_after(self, question_id: str, messages: Sequence[str]) -> None:
        """An edited question took with it what stood below it: only answers among `messages` are left."""
        left = set(messages)
        self.answers = {id: one for id, one in self.answers.items() if id in left and one.question_id != question_id}

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

    def attach_again(self, number: int, report: Ingest, passages: list[Passage], upload_id: str) -> None:
        """A document that was read in an earlier run; `number` is the one that it had."""
        self._seen.add(upload_id)
        self.session.attachments.restore(report, passages)
        self._numbers[report.source] = number
        self._last = max(self._last, number)

    def number_of(self, source: str) -> int | None:
        """None for what is not attached."""
        return self._numbers.get(source)

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

    def begin(
        self, holder: str, thread_id: str, session: Session, preferences: Preferences, language: str
    ) -> Conversation:
        self.end(holder)
        conversation = Conversation(session, preferences, holder, thread_id, language, self._most)
        self._of[holder] = conversation
        return conversation

    def of(self, holder: str) -> Conversation | None:
        return self._of.get(holder)

    def of_thread(self, thread_id: str) -> Conversation | None:
        """The living conversation of a thread."""
        return next((one for one in self._of.values() if one.thread_id == thread_id), None)

    def take_over(self, conversation: Conversation, holder: str) -> None:
        """It goes to `holder`, whose own ends."""
        if conversation.holder == holder:
            return
        self.end(holder)
        self._of.pop(conversation.holder, None)
        conversation.holder = holder
        self._of[holder] = conversation

    async def close(self) -> None:
        """Turns under way say what they have before they end."""
        turns = [one.turn for one in self._of.values() if one.turn is not None]
        for turn in turns:
            turn.cancel()
        if turns:
            await asyncio.wait(turns, timeout=CLOSE_S)
        for holder in list(self._of):
            self.end(holder)

    def end(self, holder: str) -> None:
        """What the holder had attached is forgotten, and its memory freed."""
        conversation = self._of.pop(holder, None)
        if conversation is not None:
            conversation.close()
