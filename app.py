"""The Chainlit door: turn events in, messages out; no logic of its own.

Knows how a turn looks in the chat. What a turn is, who answers and what is refused are other rooms' business.
"""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

import chainlit as cl
from chainlit.config import config
from chainlit.input_widget import RadioGroup
from chainlit.server import app as web_app
from chainlit.server import sio

from rag import terminal
from rag.corpus.library import Library
from rag.errors import DocumentError, RagError
from rag.models.legs import Legs
from rag.serve import api, status
from rag.serve.hardening import harden
from rag.settings import MODES, Settings, app_home
from rag.trace import Trace
from rag.turn import cascade
from rag.turn.session import Session

log = logging.getLogger("smallfirst")

settings = Settings.load()
library = Library(settings.docs, passage_chars=settings.passage_chars)
legs = Legs(settings)
background: set[asyncio.Task[Any]] = set()

# The page's own limit, so that a file too large is refused before it is sent.
if uploads := config.features.spontaneous_file_upload:
    uploads.max_size_mb = settings.upload_mb
harden(
    web_app,
    sio,
    allowed_hosts=settings.allowed_hosts,
    allowed_origins=settings.allowed_origins,
    upload_mb=settings.upload_mb,
    session_uploads=settings.session_uploads,
)
for router in (status.router(legs, library), api.router(legs, library, settings)):
    web_app.include_router(router)
    # Chainlit's own last route answers every other path with its page, so ours must stand before it.
    web_app.router.routes.insert(0, web_app.router.routes.pop())

MODE_LABELS = {
    "Auto: the small model first, the larger one when needed": "auto",
    "SLM: the small model only": "slm",
    "LLM: the larger model only": "llm",
}
STARTERS = {
    "Size of Phi-4-mini": "How many parameters does Phi-4-mini have?",
    "Price of tokens": "What is the example price of output tokens?",
    "The name ONNX": "What does the name ONNX stand for?",
    "Cascade or router": "What is the difference between a cascade and a router?",
}


def keep(task: "asyncio.Task[Any]") -> None:
    """The event loop holds tasks weakly; one that nobody awaits must be held until it is done."""
    background.add(task)
    task.add_done_callback(background.discard)


@cl.on_app_startup
async def start() -> None:
    for report in library.reports:
        if report.error is not None:
            terminal.notices.print(report.line, markup=False)
    size = f"{library.files} documents, {len(library.index):,} passages"
    terminal.notices.print(f"{size} in {library.folder}", markup=False)
    host = f"[{config.run.host}]" if ":" in config.run.host else config.run.host
    terminal.notices.print(f"Chat at http://{host}:{config.run.port} (Ctrl-C ends it)", markup=False)

    async def show() -> None:
        await terminal.show_starting(legs.slm)
        await terminal.show_starting(legs.llm)

    keep(asyncio.create_task(show()))
    keep(asyncio.create_task(legs.start(pull_llm=settings.pull_llm)))


@cl.on_app_shutdown
async def stop() -> None:
    await legs.close()


@cl.set_starters
async def starters() -> list[cl.Starter]:
    if settings.docs.resolve() != (app_home() / "docs_corpus").resolve():
        return []  # they ask about the documents that are shipped
    return [cl.Starter(label=label, message=question) for label, question in STARTERS.items()]


@cl.on_chat_start
async def begin() -> None:
    cl.user_session.set("session", Session(library, settings.mode))
    await cl.ChatSettings(
        [RadioGroup(id="mode", label="Who answers", items=MODE_LABELS, initial_value=settings.mode)]
    ).send()


@cl.on_settings_update
async def change_settings(values: dict[str, Any]) -> None:
    # The values come from the browser; only what the form offers is taken.
    mode = values.get("mode")
    if mode not in MODES:
        await cl.ErrorMessage(f"There is no mode {mode!r}. Choose one of: {', '.join(MODES)}.").send()
        return
    cl.user_session.get("session").mode = mode


@cl.on_message
async def answer(message: cl.Message) -> None:
    # Chainlit forgets the task of an edited message, so Stop and a closed tab cancel the one that is kept here.
    cl.user_session.set("task", asyncio.current_task())
    bubble = Bubble()
    try:
        await run_turn(message, bubble)
    except asyncio.CancelledError:
        await bubble.stop()
        raise
    except RagError as error:
        await bubble.fail(str(error))
    except Exception as error:
        # Chainlit would show an empty turn.
        log.exception("A turn failed")
        await bubble.fail(
            f"Small First itself failed ({type(error).__name__}). The terminal has the details. Ask again."
        )
    finally:
        cl.user_session.set("task", None)


@cl.on_stop
async def stop_turn() -> None:
    # Chainlit has said so in a message of its own, in English, before this; the answer itself says it in its place.
    for message in cl.chat_context.get()[-1:]:
        if message.content == "Task manually stopped.":
            await message.remove()
    task = cl.user_session.get("task")
    if task is not None and task is not cl.context.session.current_task:
        task.cancel()


@cl.on_chat_end
async def leave() -> None:
    """Every disconnect ends here, a short one too: the turn's work ends only if nobody comes back in time."""
    task, session = cl.user_session.get("task"), cl.context.session
    if task is None:
        return
    socket_id = session.socket_id

    async def end_if_gone() -> None:
        await asyncio.wait([task], timeout=settings.disconnect_grace_s)
        if session.socket_id == socket_id:
            task.cancel()

    keep(asyncio.create_task(end_if_gone()))


async def run_turn(message: cl.Message, bubble: "Bubble") -> None:
    session: Session = cl.user_session.get("session")
    session.rewind(message.id)
    lines = [await attach(session, element) for element in message.elements or []]
    if not message.content.strip() and lines:
        await bubble.finish("\n".join([*lines, "", "Ask something about it."]))
        return
    if lines:
        await cl.Message("\n".join(lines), author="Documents").send()

    turn_events = cascade.answer(
        message.content, session=session, legs=legs, settings=settings, id=message.id, trace=bubble.trace
    )
    async with contextlib.aclosing(turn_events) as events:
        async for event in events:
            match event:
                case cascade.Phase(detail=detail):
                    await bubble.say(detail)
                case cascade.Token(text=text):
                    bubble.add(text)
                case cascade.Escalating(reason=reason):
                    await bubble.start_over(f"Asking the other model: {reason}")
                case cascade.Failed(error=error):
                    raise error
                case cascade.Answered(turn=turn):
                    await bubble.show(turn)


async def attach(session: Session, element: Any) -> str:
    """Read one upload at once: Chainlit deletes its file when it likes."""
    try:
        data = await asyncio.to_thread(Path(element.path).read_bytes)
        report = await asyncio.to_thread(session.attachments.add, data, element.name)
    except DocumentError as error:
        return f"Not attached. {error}"
    except OSError as error:
        return f"Not attached. {element.name} did not arrive whole ({error.strerror}). Add it again."
    return f"Attached {report.line}."


class Bubble:
    """One answer in the chat, as it grows: what is being done, then the text, then the receipt.

    Text is sent in batches, because the browser renders the whole answer again for each: thousands of small ones take it
    longer than the model.
    """

    def __init__(self) -> None:
        self.trace = Trace()
        self.text = ""
        self._message = cl.Message("")
        self._sent = 0
        self._pump: asyncio.Task[None] | None = None
        self._shows_text = False

    async def say(self, phase: str) -> None:
        """Show what is being done, until there is text."""
        if not self.text:
            await self._message.stream_token(f"{phase} …", is_sequence=True)

    def add(self, text: str) -> None:
        self.text += text
        if self._pump is None:
            self._pump = asyncio.create_task(self._flush())

    async def start_over(self, phase: str) -> None:
        """What was shown does not stand."""
        await self._stop_pump()
        self.text, self._sent, self._shows_text = "", 0, False
        await self.say(phase)

    async def show(self, turn: cascade.Turn) -> None:
        sources = "  \n".join(f"[{c.marker}] {c.passage.place}" for c in turn.citations)
        notes = "\n\n".join(f"*{note}*" for note in turn.notes)
        self._message.metadata = turn.to_dict()
        self._message.elements = [cl.CustomElement(name="Receipt", props=turn.to_dict(), display="inline")]
        await self.finish("\n\n".join(part for part in (turn.answer, sources, notes) if part))

    async def stop(self) -> None:
        """What was written stays, with the time that it took."""
        props = {"stopped": True, "trace": self.trace.to_dict()}
        self._message.elements = [cl.CustomElement(name="Receipt", props=props, display="inline")]
        await self.finish(f"{self.text}\n\n*Stopped.*".strip())

    async def fail(self, text: str) -> None:
        self._message.is_error = True
        self._message.metadata = {"error": text, "trace": self.trace.to_dict()}
        await self.finish("\n\n".join(part for part in (self.text, text) if part))

    async def finish(self, content: str) -> None:
        await self._stop_pump()
        self._message.content = content
        if not self._message.metadata:
            self._message.metadata = {"trace": self.trace.to_dict()}
        await self._message.send()

    async def _flush(self) -> None:
        while self._sent < len(self.text):
            # The first text takes the place of the phase; the rest is added to it.
            piece, first = self.text[self._sent :], not self._shows_text
            self._sent, self._shows_text = len(self.text), True
            await self._message.stream_token(piece, is_sequence=first)
            # The longer the answer, the more each batch costs the browser.
            await asyncio.sleep(settings.flush_ms / 1000 * (1 + len(self.text) / 4000))
        self._pump = None

    async def _stop_pump(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
            self._pump = None
