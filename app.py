"""The Chainlit door: turn events in, messages out; no logic of its own.

Knows Chainlit's events and which room answers each. What a turn is, who answers and what is refused are other rooms'
business; so are how an answer grows (`bubble`), what can be done about it (`answer`), and what is kept (`history`).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import chainlit as cl
from chainlit.config import config
from chainlit.server import app as web_app
from chainlit.server import sio
from chainlit.session import WebsocketSession
from chainlit.user_session import user_sessions

from rag import terminal
from rag.errors import RagError, UserError
from rag.lab.labels import FILE, Labels
from rag.serve import callers, exports, history, login, server, sources, status, words
from rag.serve.answer import Answer, text_of
from rag.serve.bubble import Bubble
from rag.serve.conversations import Conversation, Conversations
from rag.serve.hardening import harden
from rag.serve.ports import shown_address
from rag.serve.preferences import Preferences
from rag.serve.reading import Reading, tell_documents
from rag.serve.service import Service
from rag.serve.totals import totals
from rag.settings import Mode, Settings, app_home
from rag.turn import calibration, cascade
from rag.turn.session import Session
from rag.words import language_of, say, told

log = logging.getLogger("smallfirst")

settings = Settings.load()
# The last one added stands outermost: a request is first judged (`harden`, below), then it is asked who sends it.
web_app.add_middleware(words.Tongue)
web_app.add_middleware(callers.Allowance, a_minute=settings.api_rate)
login.install(settings, web_app)
service = Service(settings)
library, legs = service.library, service.legs
kept = history.open_history(settings)
conversations = Conversations(most_documents=settings.session_uploads)
labels = Labels(settings.cache_dir / FILE) if settings.labels else None
pages = sources.Pages(settings)

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


async def open_upload(thread_id: str, source: str, reader: Any) -> sources.Upload | None:
    """An upload as it is kept, for the owner of its conversation and nobody else."""
    if reader is None or await kept.get_thread_author(thread_id) != reader.identifier:
        return None
    for one in await kept.attachments(thread_id):
        if one.source == source and (path := await kept.file(thread_id, one.element_id)):
            return sources.Upload(path, one.report, one.passages)
    return None


routers = (
    status.router(legs, library),
    words.router(),
    history.router(kept),
    sources.router(library, pages, open_upload),
    exports.router(kept),
    *server.routers(service),
)
# Chainlit's own last route answers every other path with its page, so ours must stand before it, in their order.
for router in reversed(routers):
    web_app.include_router(router)
    web_app.router.routes.insert(0, web_app.router.routes.pop())

ESCALATING = {"slm": "chat.escalating_slm", "llm": "chat.escalating_llm"}
ALLOWED = "allows_remote"
COMMENT_CHARS = 500
STARTERS = {
    "Size of Phi-4-mini": "How many parameters does Phi-4-mini have?",
    "Price of tokens": "What is the example price of output tokens?",
    "The name ONNX": "What does the name ONNX stand for?",
    "Cascade or router": "What is the difference between a cascade and a router?",
}


# --- the server ----------------------------------------------------------------------------------------------------


@cl.on_app_startup
async def start() -> None:
    terminal.notices.print(f"Chat at {shown_address(config.run.host, config.run.port)} (Ctrl-C ends it)", markup=False)
    await service.start()


@cl.on_app_shutdown
async def stop() -> None:
    await conversations.close()
    await asyncio.to_thread(pages.close)
    await service.close()
    if labels is not None:
        labels.close()
    await kept.close()


async def leave_deleted(thread_id: str) -> None:
    """A conversation was deleted: its turn ends, and a page that shows it goes to a new one."""
    if (conversation := conversations.of_thread(thread_id)) is None:
        return
    holder, turn = WebsocketSession.get_by_id(conversation.holder), conversation.turn
    conversations.end(conversation.holder)
    if turn is not None:
        await asyncio.wait([turn])
    if holder is not None and sio.manager.is_connected(holder.socket_id, "/"):
        await holder.emit("window_message", {"smallfirst": "deleted"})


kept.deleted = leave_deleted


@cl.data_layer
def data_layer() -> history.Kept:
    return kept


@cl.set_starters
async def starters() -> list[cl.Starter]:
    if settings.docs.resolve() != (app_home() / "docs_corpus").resolve():
        return []  # they ask about the documents that are shipped
    return [cl.Starter(label=label, message=question) for label, question in STARTERS.items()]


# --- a conversation begins, and goes on ----------------------------------------------------------------------------


def user() -> str:
    """Who is signed in; nobody gets as far as this without."""
    return str(cl.context.session.user.identifier)


def language() -> str:
    return language_of(cl.context.session.environ.get("HTTP_ACCEPT_LANGUAGE", ""))


async def preferences() -> Preferences:
    """What the user chose last, as far as it may still be chosen."""
    made = Preferences.of(settings)
    with contextlib.suppress(UserError):
        made = made.chosen(await kept.settings(user()), settings)
    return made


@cl.on_chat_start
async def begin() -> None:
    here = cl.context.session
    chosen = await preferences()
    conversation = conversations.begin(here.id, here.thread_id, Session(library), chosen, language())
    await tell_all(conversation)
    await cl.ChatSettings(form(conversation)).send()


@cl.on_chat_resume
async def resume(thread: dict[str, Any]) -> None:
    """A thread was opened whose owner Chainlit has checked: after a reload, a restart, from the sidebar."""
    here = cl.context.session
    # After a short disconnect Chainlit adds all of them once more.
    cl.chat_context.clear()
    conversation = conversations.of_thread(thread["id"])
    if conversation is None:
        conversation = await reopen(thread)
    elif conversation.holder == here.id:
        if conversation.bubble is not None and conversation.busy:
            thread["steps"].append(conversation.bubble.message.to_dict())
    else:
        await take_over(conversation, thread)
    conversation.language = language()
    await tell_all(conversation)
    # To send it would put the form's values in the place of those that Chainlit has restored.
    await cl.ChatSettings(form(conversation)).refresh()


async def take_over(conversation: Conversation, thread: dict[str, Any]) -> None:
    """Another tab has it, or had it before it was reloaded."""
    if (turn := conversation.turn) is not None:
        # Its words would go to the page that is no more; what was written until now is kept.
        turn.cancel()
        await asyncio.wait([turn])
        thread.update(await kept.get_thread(thread["id"]) or {})
    former = WebsocketSession.get_by_id(conversation.holder)
    conversations.take_over(conversation, cl.context.session.id)
    if former is not None and sio.manager.is_connected(former.socket_id, "/"):
        await former.emit("window_message", {"smallfirst": "moved"})
    elif former is not None:
        user_sessions.pop(former.id, None)
        await former.delete()


async def reopen(thread: dict[str, Any]) -> Conversation:
    """From the history: what was said, what was chosen, the documents with their passages, and what each button knows."""
    here = cl.context.session
    chosen = await preferences()
    with contextlib.suppress(UserError):
        chosen = chosen.chosen(here.chat_settings or {}, settings)
    conversation = conversations.begin(here.id, thread["id"], Session(library), chosen, language())
    if cl.user_session.get(ALLOWED) is True and conversation.session.remote == "ask":
        conversation.session.remote = "allow"
    conversation.restore(thread)
    for attached in await kept.attachments(thread["id"]):
        conversation.attach_again(attached.number, attached.report, attached.passages, attached.element_id)
    return conversation


async def tell_all(conversation: Conversation) -> None:
    await tell_documents(conversation)
    await tell_totals(conversation)


async def tell_totals(conversation: Conversation) -> None:
    """Tell public/totals.js what the conversation has used until now."""
    sums = totals(answer.turn for answer in conversation.answers.values())
    await cl.send_window_message({"smallfirst": "totals", "thread": conversation.thread_id, "totals": sums})


@cl.on_window_message
async def hear(message: Any) -> None:
    """What public/documents.js says. Browser extensions speak this way too, and what the page is told echoes back."""
    conversation = conversations.of(cl.context.session.id)
    if conversation is None:
        return
    match message:
        case {"smallfirst": "remove", "number": int(number)}:
            with contextlib.suppress(UserError):  # removed twice is removed; the list tells
                conversation.remove(number)
                await kept.detach(conversation.thread_id, number)
            await tell_documents(conversation)
        case {"smallfirst": "list"}:
            await tell_all(conversation)


def fitted() -> calibration.Calibration | None:
    """How many passages the larger model reads says nothing of the small one's drafts, so that choice does not count."""
    return calibration.find(legs.slm.model, legs.llm.model, settings)


def form(conversation: Conversation) -> list[Any]:
    elsewhere = next((leg.where for leg in (legs.llm, legs.slm) if leg.leaves), None)
    found = fitted()
    return conversation.preferences.form(
        settings, conversation.language, fitted=found.right.at if found else None, elsewhere=elsewhere
    )


@cl.on_settings_update
async def change_settings(values: dict[str, Any]) -> None:
    conversation = conversations.of(cl.context.session.id)
    if conversation is None:
        return
    try:
        # The values come from the browser; only what the form offers is taken.
        chosen = conversation.preferences.chosen(values, settings)
    except UserError as error:
        await cl.ErrorMessage(told(error.told, conversation.language)).send()
        await cl.ChatSettings(form(conversation)).send()
        return
    receipts = chosen.show_receipts != conversation.preferences.show_receipts
    conversation.choose(chosen)
    await kept.keep_settings(user(), chosen.to_dict())
    if receipts:
        for answer in conversation.answers.values():
            await refresh(conversation, answer)


# --- a turn --------------------------------------------------------------------------------------------------------


@cl.on_message
async def answer_message(message: cl.Message) -> None:
    conversation = conversations.of(cl.context.session.id)
    if conversation is None:
        await cl.ErrorMessage(told(say("chat.moved"), language())).send()
        return
    bubble = new_bubble(conversation, message.id)
    async with under_way(conversation, bubble):
        conversation.session.rewind(message.id)
        conversation.forget_after(message.id, [one.id for one in cl.chat_context.get()])
        uploads = [element for element in message.elements or [] if conversation.first_seen(element.id)]
        asked = bool(message.content.strip())
        if uploads and not await Reading(conversation, kept).run(uploads, asked=asked):
            return
        bubble.start_clock(message.content)
        if asked or not uploads:
            await run_turn(message.content, conversation, bubble)


def new_bubble(conversation: Conversation, question_id: str, *, insisted: bool = False) -> Bubble:
    answer = Answer(str(uuid4()), question_id, conversation.thread_id, insisted=insisted)
    return Bubble(
        answer, conversation.language, flush_s=settings.flush_ms / 1000, props=lambda one: props_of(conversation, one)
    )


def props_of(conversation: Conversation, answer: Answer) -> dict[str, Any]:
    return answer.props(
        legs,
        conversation.session.remote,
        shown=conversation.preferences.show_receipts,
        labels=labels is not None,
        attachments=conversation.session.attachments.sources,
        language=conversation.language,
    )


@contextlib.asynccontextmanager
async def under_way(conversation: Conversation, bubble: Bubble) -> AsyncIterator[None]:
    """One turn of a conversation, which Stop and a closed tab end; whatever goes wrong is told in its bubble."""
    # Chainlit forgets the task of an edited message, so Stop and a closed tab cancel the one that is kept here.
    conversation.turn, conversation.bubble = asyncio.current_task(), bubble
    try:
        yield
    except asyncio.CancelledError:
        await bubble.stop()
        raise
    except RagError as error:
        await bubble.fail(error)
    except Exception as error:
        # Chainlit would show an empty turn.
        log.exception("A turn failed")
        await bubble.fail(RagError(say("chat.failed", kind=type(error).__name__)))
    finally:
        if bubble.answer.turn:
            conversation.answers[bubble.answer.id] = bubble.answer
            await tell_totals(conversation)
        if conversation.turn is asyncio.current_task():
            conversation.turn = conversation.bubble = None


async def run_turn(
    question: str,
    conversation: Conversation,
    bubble: Bubble,
    *,
    mode: Mode | None = None,
    insist: bool = False,
    fresh: bool = False,
) -> None:
    turn_events = cascade.answer(
        question,
        session=conversation.session,
        legs=legs,
        settings=conversation.preferences.applied(settings),
        mode=mode,
        id=bubble.answer.question_id,
        trace=bubble.trace,
        insist=insist,
        fresh=fresh,
        fitted=fitted(),
        observers=service.observers,
    )
    async with contextlib.aclosing(turn_events) as events:
        async for event in events:
            match event:
                case cascade.Phase(detail=detail):
                    bubble.say(detail)
                case cascade.Token(text=text):
                    bubble.add(text)
                case cascade.Retracted():
                    await bubble.take_back()
                case cascade.Escalating(reason=reason, leg=leg):
                    await bubble.start_over(say(ESCALATING[leg], reason=reason))
                case cascade.Failed(error=error):
                    raise error
                case cascade.Answered(turn=turn):
                    await bubble.show(turn)


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
    if here.to_clear:  # a new chat was begun, or another one opened
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

    service.keep(asyncio.create_task(end_if_gone()))


# --- what can be done about an answer ------------------------------------------------------------------------------


async def pressed(action: cl.Action) -> tuple[Conversation, Answer] | None:
    """Whose button it was; None, and somebody is told, for a conversation or an answer that is no more."""
    conversation = conversations.of(cl.context.session.id)
    id = action.payload.get("answer")
    answer = conversation.answers.get(id) if conversation is not None and isinstance(id, str) else None
    if conversation is None or answer is None:
        await cl.context.emitter.send_toast(told(say("chat.gone"), language()), "warning")
        return None
    return conversation, answer


async def refresh(conversation: Conversation, answer: Answer) -> None:
    """Show the receipt as it is now."""
    if answer.element_id is None:
        return
    props = props_of(conversation, answer)
    element = cl.CustomElement(id=answer.element_id, name="Receipt", props=props, display="inline")
    await element.send(for_id=answer.id)


@cl.action_callback("good")
@cl.action_callback("bad")
async def label(action: cl.Action) -> None:
    """A thumb was pressed: it is kept in the place of the other one; the one that is kept is taken back."""
    if (found := await pressed(action)) is None or labels is None:
        return
    conversation, answer = found
    kind: Any = "good" if action.name == "good" else "bad"
    if not answer.answered:
        return
    if answer.kept == kind:
        done = labels.remove(answer.id)
        answer.kept, answer.comment = (None, "") if done else (kind, answer.comment)
    elif done := labels.add(answer.id, answer.turn, kind, answer.comment):
        answer.kept = kind
    if not done:
        await cl.context.emitter.send_toast(told(say("chat.label_failed"), conversation.language), "warning")
    await refresh(conversation, answer)


@cl.action_callback("comment")
async def comment(action: cl.Action) -> None:
    """A word about a thumb."""
    if (found := await pressed(action)) is None or labels is None:
        return
    conversation, answer = found
    text = action.payload.get("comment")
    if answer.kept is None or not isinstance(text, str):
        return
    text = " ".join(text.split())[:COMMENT_CHARS]
    if labels.add(answer.id, answer.turn, answer.kept, text):
        answer.comment = text
    else:
        await cl.context.emitter.send_toast(told(say("chat.label_failed"), conversation.language), "warning")
    await refresh(conversation, answer)


@cl.action_callback("keep_short")
async def keep_short(action: cl.Action) -> None:
    """The small model's answer takes the larger one's place, here and in what the models know of the conversation."""
    if (found := await pressed(action)) is None:
        return
    conversation, answer = found
    if "keep_short" not in answer.offers(legs, conversation.session.remote):
        return
    answer.keep_short()
    earlier = conversation.session.history
    for place, exchange in enumerate(earlier):
        if exchange.id == answer.question_id:
            earlier[place] = replace(exchange, answer=answer.turn["answer"], refused=False)
    for message in cl.chat_context.get():
        if message.id == answer.id:
            message.content, message.metadata, message.elements = text_of(answer.shown), answer.turn, []
            await message.update()
    await refresh(conversation, answer)
    await tell_totals(conversation)


@cl.action_callback("ask_larger")
@cl.action_callback("retry")
async def ask_anew(action: cl.Action) -> None:
    """The question of an answer is asked once more, of the larger model or as it was asked before."""
    if (found := await pressed(action)) is None:
        return
    conversation, answer = found
    if conversation.busy:
        await cl.context.emitter.send_toast(told(say("chat.busy"), conversation.language), "info")
        return
    if action.name not in answer.offers(legs, conversation.session.remote):
        return
    # From here to the task there is no await: a second press finds the conversation busy. The task goes on when the
    # request of this press has been answered, and Stop finds it as it finds that of a message.
    work = ask_larger(conversation, answer) if action.name == "ask_larger" else retry(conversation, answer)
    conversation.turn = cl.context.session.current_task = asyncio.create_task(work)
    service.keep(conversation.turn)


async def ask_larger(conversation: Conversation, answer: Answer) -> None:
    """Both answers stand, one below the other."""
    if legs.llm.leaves and conversation.session.remote == "ask":
        # The button says where the text goes: who presses it allows that for this conversation.
        conversation.session.remote = "allow"
        cl.user_session.set(ALLOWED, True)
    if labels is not None:
        labels.add(answer.id, answer.turn, "asked_larger")
    answer.asked = True
    await refresh(conversation, answer)
    answered = False
    try:
        answered = await asked_anew(conversation, answer, mode="llm", insist=True)
    finally:
        if not answered:
            answer.asked = False  # it was stopped, or failed
            await refresh(conversation, answer)


async def retry(conversation: Conversation, answer: Answer) -> None:
    """The new answer takes the former one's place, if there is one."""
    mode: Mode | None = "llm" if answer.insisted else None
    if await asked_anew(conversation, answer, mode=mode, insist=answer.insisted, fresh=answer.answered):
        conversation.answers.pop(answer.id, None)
        for message in cl.chat_context.get():
            if message.id == answer.id:
                await message.remove()
        await tell_totals(conversation)


async def asked_anew(conversation: Conversation, answer: Answer, **how: Any) -> bool:
    """Was it answered?"""
    question = next((one.content for one in cl.chat_context.get() if one.id == answer.question_id), None)
    if question is None:
        return False  # it was edited away
    await cl.context.emitter.task_start()
    try:
        # As Chainlit does around a message; without it, the answer would have no button to copy it.
        async with cl.Step(name="on_message", type="run", parent_id=answer.question_id):
            bubble = new_bubble(conversation, answer.question_id, insisted=bool(how.get("insist")))
            bubble.start_clock(question)
            async with under_way(conversation, bubble):
                with conversation.asked_anew(answer.question_id):
                    await run_turn(question, conversation, bubble, **how)
            return bubble.answer.answered
    finally:
        await cl.context.emitter.task_end()
