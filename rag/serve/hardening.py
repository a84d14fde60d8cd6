"""What the web server must refuse.

`harden(app, sio)` is called once, when app.py is loaded and before the server listens. Nearly everything is one ASGI
middleware, the `Gate` (rag/serve/gate.py), which stands before all routes and knows only paths, headers and bodies.
Five things cannot be seen from there and are put into Chainlit 2.12 itself, here; each is looked for first, and if it
is not where it was, the server does not start: an upgrade must not reopen a hole in silence.

It knows nothing of models, documents or turns, and decides nothing about who may sign in: that is rag/serve/login.py,
whose Door stands behind the Gate. It does not limit how often someone asks, and it does not replace TLS.

What belongs to one user and is asked for by another, Chainlit itself refuses in most places: lists, conversations,
elements, names, uploads, files, actions, and sockets with somebody's session or kept conversation (tests/test_login.py
asks for each). Where it does not, the table says so.

The holes that are closed, by the Gate, here, or by both, each shown open and closed in tests/test_hardening.py:

    here  sessionId becomes a folder's name that is deleted later     only UUIDs connect; the folder is checked again
    both  threadId is written into SQL text                           only UUIDs, wherever a request carries one
    Gate  any site's page may open the WebSocket                      Origin must be this server's own
    both  any site's page may read REST answers, with cookies         the same, and no CORS answer
    Gate  another name that resolves to 127.0.0.1 (DNS rebinding)     Host must be a name of this machine
    both  uploads are served as what their sender called them         typed by extension, attachment, nosniff, sandbox
    Gate  uploads are read whole before their size is looked at       Content-Length first, then counted as they come
    here  an empty upload is an internal error                        refused in words
    Gate  any number of uploads                                       counted for each conversation, over reloads
    here  a conversation that is not kept yet can be joined           only its own user's sockets may name it
    Gate  elements, thumbs and shares are written for anybody         404: this project uses none of these routes
    Gate  a token can be renewed for ever                             404, and there is no OAuth either
    Gate  long polling is served, frames of it are not followed       404: sockets only
    Gate  pictures in an answer load from anywhere                    Content-Security-Policy
    here  the page itself calls font and style servers                those lines are taken out of it
    Gate  the list of all routes is public                            404
    Gate  a newline ends an address, and no pattern knows it          400, whatever control character it is
    here  messages of a closed conversation stay in memory            forgotten with the session
"""

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware

from rag.serve.gate import EXPOSED, Gate, Rules, Uploads
from rag.serve.ids import is_uuid, is_uuid_or_empty
from rag.serve.media import EXTENSIONS, MEDIA_TYPES, USUAL

FOREIGN_LINK: Final = re.compile(r"""<link\b[^>]*\bhref=["'](?:https?:)?//[^>]*>\s*""")


class Unhardened(RuntimeError):
    """Chainlit is not built as this module expects; starting it would leave a hole open."""


def harden(
    app: Starlette,
    sio: Any,
    *,
    listen: str | None = None,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    extensions: Iterable[str] = EXTENSIONS,
    upload_mb: int = 10,
    session_uploads: int = 20,
    message_bytes: int = 200_000,
    body_bytes: int = 2_000_000,
) -> None:
    """Close Chainlit's server to strangers. A second call, as after a reload in watch mode, does nothing.

    `listen` is the address listened on (Chainlit's own setting if None); `message_bytes` the longest WebSocket frame.
    Raises `Unhardened` if Chainlit is not built as expected.
    """
    if getattr(app.state, "hardened", False):
        return

    # Importing Chainlit reads a configuration and makes folders where it runs, so it waits until someone hardens it.
    from chainlit import server
    from chainlit.chat_context import chat_contexts
    from chainlit.config import FILES_DIRECTORY, config
    from chainlit.session import WebsocketSession, ws_sessions_id

    rules = Rules(
        listen=listen or config.run.host,
        root_path=config.run.root_path.rstrip("/"),
        allowed_hosts=frozenset(host.lower() for host in allowed_hosts),
        allowed_origins=frozenset(origin.rstrip("/") for origin in allowed_origins),
        extensions=tuple(extension.lower() for extension in extensions),
        upload_bytes=upload_mb * 1_000_000,
        session_uploads=session_uploads,
        body_bytes=body_bytes,
    )
    uploads = Uploads(rules.session_uploads)

    def thread_of(session_id: str) -> str | None:
        session = WebsocketSession.get_by_id(session_id)
        return None if session is None else str(session.thread_id)

    check_connections(sio, WebsocketSession, ws_sessions_id)
    check_uploads(server, rules)
    keep_page_at_home(server)
    forget_sessions(WebsocketSession, chat_contexts, FILES_DIRECTORY)
    answer_no_foreign_page(app, rules.allowed_origins)

    expect(hasattr(sio.eio, "max_http_buffer_size"), "the socket server's max_http_buffer_size")
    sio.eio.max_http_buffer_size = message_bytes

    expect(app.middleware_stack is None, "an application that has not answered a request yet")
    app.add_middleware(Gate, rules=rules, uploads=uploads, thread_of=thread_of)
    app.state.hardened = True


def expect(found: bool, what: str) -> None:
    if not found:
        from chainlit.version import __version__

        raise Unhardened(
            f"Chainlit {__version__} does not have {what} where version 2.12 has it, so it cannot be secured. "
            "Install chainlit==2.12.0, or bring rag/serve/hardening.py up to date."
        )


def check_connections(sio: Any, session_class: Any, sessions: Any) -> None:
    """Only well-formed ids reach Chainlit's connect handler: it makes a path of one and SQL of the other.

    It asks whose a kept conversation is, but one without a message is kept nowhere yet: whoever names it would be in it.
    """
    connect: Callable[..., Awaitable[Any]] | None = sio.handlers.get("/", {}).get("connect")
    expect(
        connect is not None and list(inspect.signature(connect).parameters) == ["sid", "environ", "auth"],
        "its socket connect handler",
    )
    expect(isinstance(sessions, dict) and callable(getattr(session_class, "get", None)), "the list of its sessions")
    assert connect is not None
    from socketio.exceptions import ConnectionRefusedError as Refused  # this one's text reaches the client

    def stranger_in_thread(here: Any) -> bool:
        return any(
            other.thread_id == here.thread_id and user_of(other) != user_of(here) for other in list(sessions.values())
        )

    async def checked(sid: str, environ: dict[str, Any], auth: object = None) -> Any:
        why = bad_connection(auth, parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        if why is not None:
            raise Refused(why)
        connected = await connect(sid, environ, auth)
        session = session_class.get(sid)
        if session is not None and stranger_in_thread(session):
            await session.delete()
            raise Refused("This conversation is another user's.")
        return connected

    sio.on("connect", checked)


def user_of(session: Any) -> str | None:
    return session.user.identifier if session.user else None


def bad_connection(auth: object, query: Mapping[str, list[str]]) -> str | None:
    """Why a socket's first packet is refused, or None. Chainlit takes all these values as they come."""
    if not isinstance(auth, dict):
        return "No session was named."
    if not is_uuid(auth.get("sessionId")) or not all(is_uuid(value) for value in query.get("sessionId", [])):
        return "sessionId is not a UUID."
    threads = [auth.get("threadId"), *query.get("threadId", [])]
    if not all(is_uuid_or_empty(value) for value in threads):
        return "threadId is not a UUID."
    if auth.get("clientType") not in ("webapp", "copilot"):
        return "clientType is neither webapp nor copilot."
    if not isinstance(auth.get("chatProfile") or "", str):
        return "chatProfile is not a text."
    try:
        environment = json.loads(auth.get("userEnv") or "{}")
    except (TypeError, ValueError, RecursionError):
        return "userEnv is not JSON."
    return None if isinstance(environment, dict) else "userEnv is not a JSON object."


def check_uploads(server: Any, rules: Rules) -> None:
    """Chainlit's check of an upload believes the type that the sender declares, and lets an empty file through to an
    internal error. Ours comes before it: it looks at the name and the size, and sets the type from the name."""
    original = getattr(server, "validate_file_upload", None)
    expect(
        callable(original)
        and list(inspect.signature(original).parameters) == ["file", "spec"]
        and "validate_file_upload" in server.upload_file.__code__.co_names,
        "its check of uploaded files",
    )
    paths = {getattr(route, "path", None) for route in server.router.routes}
    root = rules.root_path
    expect({f"{root}/project/file", f"{root}/project/file/{{file_id}}"} <= paths, "its routes for uploaded files")
    assert original is not None

    def validate(file: Any, spec: Any = None) -> None:
        name = file.filename or ""
        extension = PurePosixPath(name.replace("\\", "/")).suffix.lower()
        if extension not in rules.extensions:
            usual = [one for one in USUAL if one in rules.extensions] or rules.extensions
            raise ValueError(
                f"{name} is not of a kind that can be read here. Save it as one of {', '.join(usual)}, then add it."
            )
        if not file.size:
            raise ValueError(f"{name} is empty: there is nothing in it to answer from.")
        if file.size > rules.upload_bytes:
            raise ValueError(f"{name} is too large: at most {rules.upload_bytes / 1_000_000:g} MB.")
        # Chainlit stores and serves the file under this type.
        file.headers = Headers({"content-type": MEDIA_TYPES.get(extension, "application/octet-stream")})
        original(file, spec)

    server.validate_file_upload = validate


def keep_page_at_home(server: Any) -> None:
    """Chainlit's page opens connections to font and style servers, whoever they tell of it. The policy stops the style
    sheets, not the connections, so the lines themselves go."""
    original = getattr(server, "get_html_template", None)
    expect(callable(original) and "get_html_template" in server.serve.__code__.co_names, "the making of its page")
    assert original is not None

    def page(root_path: str) -> str:
        return FOREIGN_LINK.sub("", original(root_path))

    server.get_html_template = page


def forget_sessions(session_class: Any, chat_contexts: Any, files_directory: Any) -> None:
    """Chainlit keeps a deleted session's messages for as long as it runs; and what it deletes is checked once more."""
    delete = getattr(session_class, "delete", None)
    expect(
        inspect.iscoroutinefunction(delete) and isinstance(getattr(session_class, "files_dir", None), property),
        "the deletion of a session",
    )
    expect(isinstance(chat_contexts, dict), "the messages of its sessions")
    assert delete is not None

    async def delete_and_forget(session: Any) -> None:
        if not is_uuid(session.id) or session.files_dir.parent != files_directory:
            raise PermissionError(f"Refused to delete {session.files_dir}: not a session's folder.")
        try:
            await delete(session)
        finally:
            chat_contexts.pop(session.id, None)

    session_class.delete = delete_and_forget


def answer_no_foreign_page(app: Starlette, allowed_origins: Collection[str]) -> None:
    """Chainlit's default answers every Origin with leave to read, cookies included."""
    middleware: list[Any] = app.user_middleware
    cors = [entry for entry in middleware if entry.cls is CORSMiddleware]
    expect(len(cors) == 1 and "allow_origins" in cors[0].kwargs, "its CORS middleware")
    cors[0].kwargs.update(allow_origins=sorted(allowed_origins), expose_headers=list(EXPOSED))
    # Before the door: a page of a named origin must be able to read why it is not let in, and asks first without a key.
    middleware.remove(cors[0])
    middleware.insert(0, cors[0])
