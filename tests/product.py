"""The product as a user starts it, in a process of its own; and a model server that says what a test tells it to."""

import http.server
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

ROOT = Path(__file__).parent.parent
READY_LIMIT_S = 90


@contextmanager
def chat(
    port: int,
    log: Path,
    *,
    ready: bool = True,
    users: Mapping[str, str] | None = None,
    killed: bool = False,
    **environment: str,
) -> Iterator[str]:
    """`smallfirst chat` in a process of its own; yields its address once it listens and, if `ready`, can answer.

    With `users`, names and passwords, it asks for one of them; otherwise whoever is on this machine is let in. What it
    keeps is thrown away with it, unless RAG_DATA_DIR says where. If it is to be `killed`, it cannot say a last word.
    """
    url = f"http://127.0.0.1:{port}"
    headers: dict[str, str] = {}

    def can_answer() -> bool:
        if users and not headers:
            headers.update(signed_in(url, *next(iter(users.items()))))
        with urllib.request.urlopen(urllib.request.Request(f"{url}/status", None, headers), timeout=2) as answer:
            status = json.load(answer)
        return not ready or all(status[leg]["state"] in ("ready", "remote") for leg in ("slm", "llm"))

    with tempfile.TemporaryDirectory(prefix="smallfirst-") as data:
        inherited = {"RAG_DATA_DIR": data, **os.environ, **environment}
        if users is not None:
            inherited["RAG_LOGIN"] = "password"
        for name, password in (users or {}).items():
            smallfirst("users", "add", name, "--password-stdin", typed=password, **inherited)
        with running(["chat", "--no-open", "--port", str(port)], log, can_answer, inherited, killed=killed):
            yield url


@contextmanager
def api(
    port: int, log: Path, *arguments: str, ready: bool = True, **environment: str
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """`smallfirst serve` in a process of its own; yields its address and itself once it lives and, if `ready`, can answer.

    What it keeps is thrown away with it, unless RAG_DATA_DIR says where.
    """
    url = f"http://127.0.0.1:{port}"

    def can_answer() -> bool:
        with urllib.request.urlopen(f"{url}/{'readyz' if ready else 'healthz'}", timeout=2):
            return True

    with tempfile.TemporaryDirectory(prefix="smallfirst-") as data:
        inherited = {"RAG_DATA_DIR": data, **os.environ, **environment}
        with running(["serve", "--port", str(port), *arguments], log, can_answer, inherited) as process:
            yield url, process


@contextmanager
def running(
    command: Iterable[str],
    log: Path,
    can_answer: Callable[[], bool],
    environment: Mapping[str, str],
    *,
    killed: bool = False,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A command of ours from when it can answer (an OSError is a no) until it is no longer needed."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "rag.cli", *command],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + READY_LIMIT_S
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                with suppress(OSError):
                    if can_answer():
                        break
                time.sleep(0.1)
            yield process
        finally:
            if killed:
                process.kill()
            else:
                process.terminate()
            process.wait(20)


def smallfirst(*arguments: str, typed: str = "", **environment: str) -> str:
    """What a command prints that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "rag.cli", *arguments], cwd=ROOT, env={**os.environ, **environment},
        input=f"{typed}\n", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def signed_in(url: str, name: str, password: str) -> dict[str, str]:
    """The Cookie header of somebody who has signed in, for every request and for the socket's handshake."""
    form = urlencode({"username": name, "password": password}).encode()
    with urllib.request.urlopen(f"{url}/login", form, timeout=30) as answer:
        cookie = SimpleCookie(answer.headers["Set-Cookie"])
    return {"Cookie": "; ".join(f"{key}={morsel.value}" for key, morsel in cookie.items())}


class ScriptedServer:
    """An OpenAI-compatible server that writes what a test tells it to: plumbing, never quality.

    `script` gives the words for a model and a question; None means to write without end.
    """

    def __init__(self) -> None:
        self.script: Callable[[str, str], str | None] = lambda model, question: "Nothing was scripted."
        self.messages: list[list[dict[str, str]]] = []
        """Of each request."""
        self.pause_s = 0.0
        """After each word."""
        self.hung_up = threading.Event()
        self.asked = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.messages.append(body["messages"])
                text = server.script(body["model"], body["messages"][-1]["content"])
                server.asked.set()
                self.close_connection = True
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                try:
                    if text is None:
                        while True:
                            self._chunk({"content": "on and "})
                            time.sleep(0.02)
                    for word in text.split(" "):
                        self._chunk({"content": f"{word} "})
                        if server.pause_s:
                            time.sleep(server.pause_s)
                    self._chunk({}, "stop")
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    server.hung_up.set()

            def _chunk(self, delta: dict[str, str], finish: str | None = None) -> None:
                choice = {"index": 0, "delta": delta, "finish_reason": finish}
                body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
                self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
                self.wfile.flush()

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def reset(self) -> None:
        self.messages.clear()
        self.hung_up.clear()
        self.asked.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client_message(text: str, files: Iterable[str] = ()) -> dict[str, Any]:
    """What the page sends over its socket when a person does: the text, and the ids of uploaded files."""
    message = {
        "id": str(uuid4()),
        "name": "user",
        "type": "user_message",
        "output": text,
        "createdAt": "2026-01-01T00:00:00Z",
    }
    return {"message": message, "fileReferences": [{"id": id} for id in files]}
