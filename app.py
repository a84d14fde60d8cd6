"""The Chainlit door: turn events in, messages out; no logic of its own.

Knows how a turn looks in the chat. What a turn is, who answers and what is refused are other rooms' business.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import chainlit as cl
from chainlit.chat_context import chat_contexts
from chainlit.config import config
from chainlit.input_widget import RadioGroup
from chainlit.server import app as web_app
from chainlit.server import sio
from chainlit.session import WebsocketSession
from chainlit.user_session import user_sessions

from rag import terminal
from rag.corpus.documents import Ingest, shown
from rag.corpus.library import Library
from rag.errors import DocumentError, RagError, UserError
from rag.lab.labels import FILE, Kind, Labels
from rag.models.legs import Legs
from rag.serve import api, status
from rag.serve.conversations import Conversation, Conversations
from rag.serve.hardening import harden
from rag.settings import MODES, Mode, Settings, app_home
from rag.trace import Trace
from rag.turn import cascade
from rag.turn.session import Session

log = logging.getLogger("smallfirst")

settings = Settings.load()
library = Library(settings)
legs = Legs(settings)
conversations = Conversations(most_documents=settings.session_uploads)
labels = Labels(settings.cache_dir / FILE) if settings.labels else None
background: set[asyncio.Task[Any]] = set()
following: list[asyncio.Task[None]] = []

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
THUMBS: tuple[tuple[Kind, str, str], ...] = (
    ("good", "thumbs-up", "Good answer. Kept on this machine only"),
    ("bad", "thumbs-down", "Bad answer. Kept on this machine only"),
)
# A folder of scans would push everything else out of the terminal.
REPORTS_SHOWN = 20
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
    host = f"[{config.run.host}]" if ":" in config.run.host else config.run.host
    terminal.notices.print(f"Chat at http://{host}:{config.run.port} (Ctrl-C ends it)", markup=False)

    async def show() -> None:
        await terminal.show_starting(legs.slm)
        await terminal.show_starting(legs.llm)

    # The first look at the folder must not be over before somebody waits for its end.
    keep(asyncio.create_task(tell_documents()))
    following.append(asyncio.create_task(library.watch()))
    keep(asyncio.create_task(show()))
    keep(asyncio.create_task(legs.start(pull_llm=settings.pull_llm)))


async def tell_documents() -> None:
    """In the terminal, once the folder has been looked at: what can be asked about, and what cannot."""
    begun = False
    async with contextlib.aclosing(library.changes()) as changes:
        async for _ in changes:
            if begun and library.reading is None:
                break
            begun = True
    incomplete = [report.line for report in library.reports if report.error or report.skipped or report.blank_pages]
    for line in incomplete[:REPORTS_SHOWN]:
        terminal.notices.print(line, markup=False)
    if len(incomplete) > REPORTS_SHOWN:
        terminal.notices.print(f"{len(incomplete) - REPORTS_SHOWN:,} more were not read whole.", markup=False)
    size = f"{library.files:,} documents, {len(library.index):,} passages"
    terminal.notices.print(f"{size} in {library.folder}", markup=False)


@cl.on_app_shutdown
async def stop() -> None:
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)
    await asyncio.to_thread(library.close)
    await legs.close()
    if labels is not None:
        labels.close()


@cl.set_starters
async def starters() -> list[cl.Starter]:
    if settings.docs.resolve() != (app_home() / "docs_corpus").resolve():
        return []  # they ask about the documents that are shipped
    return [cl.Starter(label=label, message=question) for label, question in STARTERS.items()]


@cl.on_chat_start
async def begin() -> None:
    conversation = conversations.begin(cl.context.session.id, Session(library, settings.mode))
    await show_documents(conversation)
    await show_settings(conversation)


async def show_settings(conversation: Conversation) -> None:
    mode = conversation.session.mode
    await cl.ChatSettings([RadioGroup(id="mode", label="Who answers", items=MODE_LABELS, initial_value=mode)]).send()


async def show_documents(conversation: Conversation) -> None:
    """Tell public/documents.js what is attached, and the key with which the tab comes back after a reload."""
    page = {"smallfirst": "conversation", "key": conversation.key, "documents": conversation.documents()}
    await cl.send_window_message(page)


@cl.on_window_message
async def hear(message: Any) -> None:
    """What public/documents.js says. Browser extensions speak this way too, and what the page is told echoes back."""
    conversation = conversations.of(cl.context.session.id)
    if conversation is None:
        return
    match message:
        case {"smallfirst": "resume", "key": str(key)}:
            await resume(key)
        case {"smallfirst": "remove", "number": int(number)}:
            with contextlib.suppress(UserError):  # removed twice is removed; the list tells
                conversation.remove(number)
            await show_documents(conversation)
        case {"smallfirst": "list"}:
            await show_documents(conversation)


async def resume(key: str) -> None:
    """A tab was reloaded: Chainlit has begun a new session, which goes on with what the tab showed before."""
    here = cl.context.session
    if (taken := conversations.take_over(key, here.id)) is None:
        return
    conversation, former_id = taken
    if (turn := conversation.turn) is not None:
        # Its words would go to the page that is no more; what was written until now is kept.
        turn.cancel()
        await asyncio.wait([turn])
    here.has_first_interaction = True
    messages = chat_contexts[here.id] = chat_contexts.pop(former_id, []) + chat_contexts.get(here.id, [])
    former = WebsocketSession.get_by_id(former_id)
    if former is not None and sio.manager.is_connected(former.socket_id, "/"):
        await former.emit("window_message", {"smallfirst": "moved"})
    elif former is not None:
        user_sessions.pop(former_id, None)
        await former.delete()
    # Uploaded files went with the former session. The parents are runs, which are not shown.
    receipts = [e.to_dict() for m in messages for e in getattr(m, "elements", ()) if isinstance(e, cl.CustomElement)]
    steps = [{**message.to_dict(), "parentId": None} for message in messages]
    thread: Any = {"id": here.thread_id, "steps": steps, "elements": receipts, "metadata": {}}
    await cl.context.emitter.resume_thread(thread)
    for message in messages:
        for action in getattr(message, "actions", ()):
            await action.send(for_id=message.id)
    await show_documents(conversation)
    await show_settings(conversation)


@cl.on_settings_update
async def change_settings(values: dict[str, Any]) -> None:
    # The values come from the browser; only what the form offers is taken.
    mode = values.get("mode")
    if mode not in MODES:
        await cl.ErrorMessage(f"There is no mode {mode!r}. Choose one of: {', '.join(MODES)}.").send()
        return
    if (conversation := conversations.of(cl.context.session.id)) is not None:
        conversation.session.mode = mode


@cl.on_message
async def answer(message: cl.Message) -> None:
    conversation = conversations.of(cl.context.session.id)
    if conversation is None:
        await cl.ErrorMessage("This conversation went on in another tab. Reload this page to begin a new one.").send()
        return
    bubble = Bubble(message.id)
    async with under_way(conversation, bubble):
        conversation.session.rewind(message.id)
        uploads = [element for element in message.elements or [] if conversation.first_seen(element.id)]
        asked = bool(message.content.strip())
        if uploads and not await Reading(conversation).run(uploads, asked=asked):
            return
        bubble.start_clock()  # reading is not the answer's time
        if asked or not uploads:
            await run_turn(message.content, conversation.session, bubble)


@contextlib.asynccontextmanager
async def under_way(conversation: Conversation, bubble: "Bubble") -> AsyncIterator[None]:
    """One turn of a conversation, which Stop and a closed tab end; whatever goes wrong is told in its bubble."""
    # Chainlit forgets the task of an edited message, so Stop and a closed tab cancel the one that is kept here.
    conversation.turn = asyncio.current_task()
    try:
        yield
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
        if conversation.turn is asyncio.current_task():
            conversation.turn = None


@cl.action_callback("good")
@cl.action_callback("bad")
async def label(action: cl.Action) -> None:
    """A thumb was pressed: it is kept in the place of the other one; the one that is kept is taken back."""
    said = Answer.of(action)
    if said is None or labels is None or said.turn is None:
        return
    kind: Kind = "good" if action.name == "good" else "bad"
    if said.kept == kind:
        said.kept = None if labels.remove(said.id) else kind
    elif labels.add(said.id, said.turn, kind):
        said.kept = kind
    else:
        await cl.context.emitter.send_toast("This could not be kept. The terminal says why.", "warning")
    await said.show_actions()


@cl.action_callback("ask_larger")
async def ask_larger(action: cl.Action) -> None:
    """The question of an answer is asked once more, of the larger model."""
    conversation, said = conversations.of(cl.context.session.id), Answer.of(action)
    if conversation is None or conversation.busy or said is None or said.turn is None or not said.may_ask_larger:
        return
    # From here to the task there is no await: a second press finds the conversation busy. The task goes on when the
    # request of this press has been answered, and Stop finds it as it finds that of a message.
    conversation.turn = cl.context.session.current_task = asyncio.create_task(ask_again(conversation, said))
    keep(conversation.turn)


async def ask_again(conversation: Conversation, said: "Answer") -> None:
    assert said.turn is not None, "only an answer has the button"
    if labels is not None:
        labels.add(said.id, said.turn, "asked_larger")
    answered = False
    await cl.context.emitter.task_start()
    try:
        said.may_ask_larger = False
        await said.show_actions()
        # As Chainlit does around a message; without it, the answer would have no button to copy it.
        async with cl.Step(name="on_message", type="run", parent_id=said.question_id):
            bubble = Bubble(said.question_id, insists=True)
            async with under_way(conversation, bubble):
                with conversation.asked_anew(said.question_id):
                    await run_turn(said.turn["question"], conversation.session, bubble, mode="llm", insist=True)
                answered = bubble.turn is not None
    finally:
        if not answered:
            said.may_ask_larger = True  # it was stopped, or failed
            await said.show_actions()
        await cl.context.emitter.task_end()


@cl.on_stop
async def stop_turn() -> None:
    # Chainlit has said so in a message of its own, in English, before this; the answer itself says it in its place.
    for message in cl.chat_context.get()[-1:]:
        if message.content == "Task manually stopped.":
            await message.remove()
    conversation = conversations.of(cl.context.session.id)
    if conversation is None or conversation.turn is None:
        return
    if conversation.turn is not cl.context.session.current_task:
        conversation.turn.cancel()


@cl.on_chat_end
async def leave() -> None:
    """Every disconnect ends here, a short one too: work and documents end only if nobody comes back in time."""
    here = cl.context.session
    conversation = conversations.of(here.id)
    if conversation is None or not isinstance(here, WebsocketSession):
        return
    if here.to_clear:  # a new chat was begun
        if conversation.turn is not None:
            # What it says last would bring back the session's folder and messages after Chainlit has deleted them.
            conversation.turn.cancel()
            await asyncio.wait([conversation.turn])
        conversations.end(here.id)
        return
    turn, socket_id = conversation.turn, here.socket_id

    async def end_if_gone() -> None:
        if turn is not None:
            await asyncio.wait([turn], timeout=settings.disconnect_grace_s)
            if here.socket_id == socket_id and conversations.of(here.id) is conversation:
                turn.cancel()
        await asyncio.sleep(config.project.session_timeout)
        if here.socket_id == socket_id and conversations.of(here.id) is conversation:
            conversations.end(here.id)

    keep(asyncio.create_task(end_if_gone()))


async def run_turn(
    question: str, session: Session, bubble: "Bubble", *, mode: Mode | None = None, insist: bool = False
) -> None:
    turn_events = cascade.answer(
        question,
        session=session,
        legs=legs,
        settings=settings,
        mode=mode,
        id=bubble.question_id,
        trace=bubble.trace,
        insist=insist,
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


class Reading:
    """The message about uploads: which is being read and for how long, then what became of each."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._message = cl.Message("", author="Documents")
        self._failures: list[str] = []

    async def run(self, uploads: list[Any], *, asked: bool) -> bool:
        """Read them one after another; False if that was stopped, which the message then tells."""
        before = self._conversation.last_number
        stopped = False
        for number, upload in enumerate(uploads, 1):
            place = f" ({number} of {len(uploads)})" if len(uploads) > 1 else ""
            try:
                async with self._progress(f"Reading {plain(shown(upload.name))}{place}"):
                    await self._attach(upload)
            except DocumentError as error:
                self._failures.append(f"Not attached. {plain(str(error))}")
            except OSError as error:
                name = plain(shown(upload.name))
                self._failures.append(f"Not attached. {name} did not arrive whole ({error.strerror}). Add it again.")
            except asyncio.CancelledError:
                stopped = True
                break
        await self._finish(before, stopped=stopped, asked=asked)
        return not stopped

    async def _attach(self, upload: Any) -> Ingest:
        """Chainlit deletes the file when it likes, so it is read at once."""
        data = await asyncio.to_thread(Path(upload.path).read_bytes)
        reading = asyncio.create_task(asyncio.to_thread(self._conversation.attach, data, upload.name))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            # A thread cannot be cancelled. Whether the document is attached is known only when it has ended.
            while not reading.done():
                self._conversation.session.attachments.stop()
                await asyncio.wait([reading], timeout=0.1)
            reading.exception()
            raise

    @contextlib.asynccontextmanager
    async def _progress(self, words: str) -> AsyncIterator[None]:
        async def show() -> None:
            began = time.monotonic()
            await self._message.stream_token(f"{words} …", is_sequence=True)
            while True:
                await asyncio.sleep(1)
                await self._message.stream_token(f"{words} … {time.monotonic() - began:.0f} s", is_sequence=True)

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
            lines.insert(0, "1 document attached." if len(attached) == 1 else f"{len(attached)} documents attached.")
            self._message.elements = [
                cl.CustomElement(name="Attachments", props={"documents": attached}, display="inline")
            ]
        if stopped:
            lines.append(
                "Stopped reading. What is not listed here is not attached." if attached else "Stopped reading."
            )
        elif attached and not asked:
            lines.append("Ask something about it." if len(attached) == 1 else "Ask something about them.")
        self._message.content = "\n\n".join(lines)
        reports = self._conversation.reports(after=before)
        self._message.metadata = {"documents": [report.to_dict() for report in reports]}
        # First the list, so that the message finds its documents in it.
        await show_documents(self._conversation)
        await self._message.send()


def plain(text: str) -> str:
    """So that the page's Markdown shows it as it is: __init__.py is a name, not bold."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", text)


def by_larger(turn: cascade.Turn) -> bool:
    """Another model may have stood in for it."""
    return turn.escalated or (turn.mode == "llm" and all(draft.leg == "llm" for draft in turn.drafts))


class Answer(cl.Message):
    """An answer with what can be done about it: a thumb, and to ask the larger model.

    What the page sends back of a button names the message and decides nothing: all else stands here.
    """

    def __init__(self, question_id: str) -> None:
        super().__init__("")
        self.question_id = question_id
        self.turn: dict[str, Any] | None = None
        """None until it is answered, and where it never was."""
        self.kept: Kind | None = None
        """The thumb that is kept."""
        self.may_ask_larger = False
        self._showing = asyncio.Lock()

    @classmethod
    def of(cls, action: cl.Action) -> "Answer | None":
        """The answer under which the button stands; None if it is no more, or in a conversation that went elsewhere."""
        id = action.payload.get("answer")
        return next((said for said in cl.chat_context.get() if isinstance(said, cls) and said.id == id), None)

    async def show_actions(self) -> None:
        async with self._showing:  # two presses at once would leave two rows
            await self.remove_actions()
            self.actions = self.offered()
            for action in self.actions:
                await action.send(for_id=self.id)

    def offered(self) -> list[cl.Action]:
        if self.turn is None:
            return []
        payload = {"answer": self.id}
        actions = []
        if labels is not None:
            for kind, icon, tooltip in THUMBS:
                kept = self.kept == kind
                actions.append(
                    cl.Action(
                        name=kind,
                        payload=payload,
                        icon=icon,
                        label=f"Kept: {kind}" if kept else "",
                        tooltip="Kept on this machine. Press to take it back" if kept else tooltip,
                    )
                )
        if self.may_ask_larger:
            anyway = " anyway" if self.turn["refused"] else ""
            # Nothing leaves this machine unawares.
            where = f" (sends text to {legs.llm.where})" if legs.llm.remote else ""
            actions.append(
                cl.Action(
                    name="ask_larger",
                    payload=payload,
                    icon="arrow-up-right",
                    label=f"Ask the larger model{anyway}{where}",
                    tooltip=f"Asks {legs.llm.model} the same question",
                )
            )
        return actions


class Bubble:
    """One answer in the chat, as it grows: what is being done, then the text, then the receipt.

    Text is sent in batches, because the browser renders the whole answer again for each: thousands of small ones take it
    longer than the model.
    """

    def __init__(self, question_id: str, *, insists: bool = False) -> None:
        self.question_id = question_id
        self.trace = Trace()
        self.text = ""
        self.turn: cascade.Turn | None = None
        self._insists = insists
        self._message = Answer(question_id)
        self._sent = 0
        self._pump: asyncio.Task[None] | None = None
        self._shows_text = False

    def start_clock(self) -> None:
        self.trace = Trace()

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
        self.turn = turn
        self._message.turn = self._message.metadata = turn.to_dict()
        self._message.elements = [cl.CustomElement(name="Receipt", props=turn.to_dict(), display="inline")]
        # Where nothing was found, or the larger model has just refused, asking it brings nothing new.
        refused = turn.refused and bool(turn.hits) and not self._insists
        self._message.may_ask_larger = refused or not (turn.refused or by_larger(turn))
        self._message.actions = self._message.offered()
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
