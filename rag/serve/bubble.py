"""One answer in the chat, as it grows: what is being done with a running clock, then the text, then the receipt.

Knows how Chainlit shows a message. Text is sent in batches, because the browser renders the whole answer again for each:
thousands of small ones take it longer than the model.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any

import chainlit as cl

from rag.errors import RagError
from rag.serve.answer import Answer, text_of
from rag.trace import Trace
from rag.turn.cascade import Turn
from rag.words import say, told

# A text that takes another's place does so at its first sentence: until then the other can still be read.
_SENTENCE = re.compile(r"[.!?…](?=\s)|[。！？]|\n\s*\n")
HELD_CHARS = 240
TICK_S = 1.0


class Bubble:
    """`props` gives the receipt's props for the answer as it is then."""

    def __init__(
        self,
        answer: Answer,
        language: str,
        *,
        flush_s: float,
        props: Callable[[Answer], dict[str, Any]],
    ) -> None:
        self.answer = answer
        self.question = ""
        self.trace = Trace()
        self.text = ""
        self._language = language
        self._flush_s = flush_s
        self._props = props
        self.message: Any = cl.Message("", id=answer.id)
        self._sent = 0
        self._pump: asyncio.Task[None] | None = None
        self._clock: asyncio.Task[None] | None = None
        self._phase = self._reason = ""
        self._news = asyncio.Event()
        self._shows_text = False
        self._replaced = ""
        """The text that this one takes the place of, for as long as it can be seen."""

    def start_clock(self, question: str) -> None:
        """What came before, such as the reading of an upload, is not the answer's time."""
        self.question = question
        self.trace = Trace()

    def say(self, phase: str) -> None:
        """Show what is being done, and for how long the whole turn has, until there is text."""
        self._phase = self._told(phase)
        self._news.set()
        if not self._shows_text and self._clock is None:
            self._clock = asyncio.create_task(self._tick())

    def add(self, text: str) -> None:
        self.text += text
        if self._pump is None and self._may_show:
            self._pump = asyncio.create_task(self._flush())

    async def start_over(self, reason: str) -> None:
        """What was shown does not stand: it is dimmed, with the reason, until another text takes its place."""
        await self._stop_all()
        self._replaced = self.text or self._replaced
        self.text, self._sent, self._shows_text = "", 0, False
        self._reason = self._told(reason)
        self.say("")

    async def take_back(self) -> None:
        """What was shown was no answer, only thought aloud."""
        await self._stop_all()
        self.text, self._sent, self._shows_text = "", 0, False
        self.say("")

    async def show(self, turn: Turn) -> None:
        self.answer.take(turn, self._language)
        await self.finish(text_of(self.answer.shown))

    async def stop(self) -> None:
        """What was written stays, with the time that it took; a draft that was to be replaced stays dimmed."""
        self._end({"stopped": True, "answer": self.text})
        await self.finish(f"{self.text or self._quoted}\n\n*{self._told(say('chat.stopped'))}*".strip())

    async def fail(self, error: RagError) -> None:
        text = self._told(error.told)
        self.message.is_error = True
        self._end({"error": str(error), "answer": self.text})
        await self.finish("\n\n".join(part for part in (self.text, text) if part))

    def _end(self, what: dict[str, Any]) -> None:
        shown = {"question": self.question, **what, "trace": self.trace.to_dict()}
        self.answer.turn = {**shown, "id": self.answer.question_id}
        self.answer.shown = shown

    async def finish(self, content: str) -> None:
        await self._stop_all()
        self.message.content = content
        self.message.metadata = self.answer.turn
        receipt: Any = cl.CustomElement(name="Receipt", props=self._props(self.answer), display="inline")
        self.answer.element_id = receipt.id
        self.message.elements = [receipt]
        await self.message.send()

    def _told(self, text: str) -> str:
        return told(text, self._language)

    @property
    def _may_show(self) -> bool:
        if not self._replaced:
            return True
        return len(self.text) > HELD_CHARS or _SENTENCE.search(self.text) is not None

    @property
    def _quoted(self) -> str:
        """The draft that is to be replaced. Markdown shows a quote apart, and public/small-first.css dims it."""
        return "\n".join(f"> {row}" for row in self._replaced.strip().split("\n")) if self._replaced else ""

    async def _tick(self) -> None:
        while True:
            self._news.clear()
            seconds = int(self.trace.now_ms() / 1000)
            line = " · ".join(filter(None, (self._reason, self._phase)))
            line = self._told(say("chat.phase", what=line, seconds=seconds)) if seconds else line
            # Chainlit adds a cursor, which ends no emphasis that follows a full stop or an ellipsis.
            line = f"*{line}*" if seconds else f"*{line}* …"
            await self.message.stream_token(f"{self._quoted}\n\n{line}".strip(), is_sequence=True)
            # A new phase is shown at once; the same one once a second.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._news.wait()

    async def _flush(self) -> None:
        while self._sent < len(self.text):
            # The first text takes the place of the phase; the rest is added to it.
            piece, first = self.text[self._sent :], not self._shows_text
            self._sent, self._shows_text = len(self.text), True
            self._replaced = self._reason = ""
            if first:
                await self._stop(self._clock)
                self._clock = None
            await self.message.stream_token(piece, is_sequence=first)
            # The longer the answer, the more each batch costs the browser.
            await asyncio.sleep(self._flush_s * (1 + len(self.text) / 4000))
        self._pump = None

    async def _stop_all(self) -> None:
        # The first one may be about to end the second.
        for task in (self._pump, self._clock):
            await self._stop(task)
        self._pump = self._clock = None

    @staticmethod
    async def _stop(task: "asyncio.Task[None] | None") -> None:
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
