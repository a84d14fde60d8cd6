"""Who reaches the chat, and how: its port, who is let in, whose pages may open it, and what browsers there are.

Opens no door: a port that is free is let go at once.
"""

import http.client
import json
import os
import re
import shutil
import socket
import sys
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

from rag.checks.subject import LEGS, SPOKEN, Seen, Subject, bad, note, of_text, ok, without_password
from rag.errors import RagError

COMMANDS = {
    "Chromium": ("chromium", "chromium-browser"),
    "Google Chrome": ("google-chrome", "google-chrome-stable", "chrome"),
    "Microsoft Edge": ("microsoft-edge", "microsoft-edge-stable", "msedge"),
    "Firefox": ("firefox", "firefox-esr"),
    "Brave": ("brave-browser", "brave"),
    "Vivaldi": ("vivaldi", "vivaldi-stable"),
}
"""Browsers, as they are called on a PATH."""
FOLDERS = {
    "Google Chrome": ("Google Chrome.app", "Google/Chrome"),
    "Microsoft Edge": ("Microsoft Edge.app", "Microsoft/Edge"),
    "Firefox": ("Firefox.app", "Mozilla Firefox"),
    "Safari": ("Safari.app",),
}
"""The same below the folders where macOS and Windows keep programs."""
PROGRAM_FILES = ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANSWER_S = 2.0
ANSWER_BYTES = 1_000_000


def port(subject: Subject) -> Seen:
    host, wanted = subject.host, subject.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            if sys.platform != "win32":
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
        return ok(f"{host}:{wanted} is free")
    except OSError as error:
        why = error.strerror or type(error).__name__
    if (state := _own_chat(host, wanted)) is not None:
        return ok(f"The chat runs at {host}:{wanted}{state}")
    if _asked(host, wanted, "/healthz").keys() == {"status", "version"}:
        why = "`smallfirst serve` listens there"
    other = wanted + 1 if 1024 <= wanted < 65535 else 8000
    return bad(f"{host}:{wanted} cannot be listened on: {why}",
               f"End what uses it, or choose another: smallfirst chat --port {other}")  # fmt: skip


def _own_chat(host: str, port: int) -> str | None:
    """A word on the Small First that listens there; None where it is somebody else."""
    status = _asked(host, port, "/status")
    if {"slm", "llm", "documents"} <= set(status):
        return "".join(f", {SPOKEN[leg]} {status[leg]['state']}" for leg in LEGS)
    if "turn.neither" in _asked(host, port, "/words?language=en"):  # which can be read by who is not signed in
        return ", and asks who comes to sign in"
    return None


def _asked(host: str, port: int, path: str) -> dict[str, dict[str, str]]:
    """The JSON object that is answered there; empty where there is none."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    # http.client knows no proxies.
    connection = http.client.HTTPConnection(here, port, timeout=ANSWER_S)
    with suppress(OSError, ValueError, http.client.HTTPException), closing(connection):
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read(ANSWER_BYTES))
        return answer if isinstance(answer, dict) else {}
    return {}


def sign_in(subject: Subject) -> Seen:
    from rag.serve import login
    from rag.serve.users import Users

    settings = subject.settings
    try:
        login.check(settings, subject.host)
    except RagError as error:
        return of_text("bad", str(error))
    match settings.login:
        case "auto":
            who = f"Whoever is on this machine is let in, and nobody else: the chat listens on {subject.host}"
        case "password":
            who = f"By password; {len(Users(settings.data_dir).names())} may"
        case "header":
            who = f"A proxy says who it is, in {settings.login_header}; it must delete that header from clients"
    keys = len(settings.api_keys)
    return ok(f"{who}; of the API, who has {'the key' if keys == 1 else f'one of {keys} keys'}, too" if keys else who)


def origins(subject: Subject) -> Seen:
    """Whose pages may open the chat (CORS), and by which names it may be called."""
    hosts, allowed = subject.settings.allowed_hosts, subject.settings.allowed_origins
    wrong = [f"RAG_ALLOWED_ORIGINS has {one!r}" for one in allowed if not re.fullmatch(r"https?://[^/?#*]+/?", one)]
    wrong += [f"RAG_ALLOWED_HOSTS has {one!r}" for one in hosts if not re.fullmatch(r"\*|[0-9A-Za-z._-]+", one)]
    if wrong:
        return note(f"{'; '.join(wrong)}: no browser ever says that",
                    "Origins look like https://our.example, hosts like our.example; commas between several.")  # fmt: skip
    detail = f"Refused, but for {', '.join(allowed)}" if allowed else "Refused; the chat's own may open it"
    if "*" in hosts:
        return note(f"{detail}; any name may lead here, also one that another site gave to this machine's address",
                    "List the names in RAG_ALLOWED_HOSTS instead of *.")  # fmt: skip
    return ok(f"{detail}{'; it is also called ' if hosts else ''}{', '.join(hosts)}")


def proxies(subject: Subject) -> Seen:
    """Small First never sends a request to this machine through one; others do what the environment says."""
    named = {kind: url for kind, url in urllib.request.getproxies().items() if kind in ("http", "https", "all")}
    if not named:
        return ok("None is named in the environment")
    detail = ", ".join(f"{without_password(url)} for {kind}" for kind, url in sorted(named.items()))
    caught = [host for host in ("127.0.0.1", "localhost") if not urllib.request.proxy_bypass(host)]
    if caught:
        return note(f"{detail}; other programs than Small First ask it for {' and '.join(caught)}, too",
                    "For those: NO_PROXY=localhost,127.0.0.1,::1")  # fmt: skip
    return ok(f"{detail}; not for this machine")


def browsers(subject: Subject) -> Seen:
    """Those that are installed; what each could do is known to its page only."""
    homes = [Path("/Applications"), *(Path(os.environ[one]) for one in PROGRAM_FILES if one in os.environ)]
    found = [name for name, commands in COMMANDS.items() if any(map(shutil.which, commands))]
    found += [
        name for name, paths in FOLDERS.items() if any((home / path).exists() for home in homes for path in paths)
    ]
    needs = "a model in the page itself needs WebAssembly, and WebGPU to be fast"
    if subject.host not in LOOPBACK:
        needs += ", which browsers give to https and localhost only"
    if not found:
        return note(f"None was found on this machine; {needs}", "Open the chat from another machine, or install one.")
    return ok(f"{', '.join(dict.fromkeys(found))}; {needs}")
