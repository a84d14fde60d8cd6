"""What could keep the chat from working here: one line for each thing that it needs, ok or what to do.

Repairs nothing, fetches nothing, indexes nothing; sends no text of anybody's, and says a value only where it is no
secret. Each check is a function of its own (`rag.checks`) that may be slow, hang or break without harm to the others.
`CHECKS` lists them, with the words that the README's table of troubles is made of.

A check imports the room that it asks only when it asks: whoever has half of the packages is told which half is missing.
"""

import asyncio
import inspect
import platform
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from rag import __version__
from rag.checks import documents, doors, hardware, models, software, variables
from rag.checks.subject import Seen, Status, Subject, aside, of_text
from rag.errors import RagError
from rag.models.wire import Secret
from rag.settings import Settings

# A child process that only has to import something.
IMPORT_S = 30.0
# Each other check, unless it says otherwise. A folder on a network drive that is gone can hang for ever.
USUAL_S = 10.0
# With `deep`, files are hashed and models are asked.
DEEP_S = 600.0


@dataclass(frozen=True)
class Finding:
    """One line of the report. `mend` says what to do now; empty where nothing needs to be done."""

    name: str
    """Stable, for scripts."""
    title: str
    status: Status
    detail: str
    mend: str = ""

    def to_dict(self) -> dict[str, str]:
        return {
            "name": self.name,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "mend": self.mend,
        }


@dataclass(frozen=True)
class Trouble:
    """A row of the README's table: what somebody sees, what it means, what to do."""

    seen: str
    means: str
    mend: str


@dataclass(frozen=True)
class Check:
    """One look, and the troubles of the README's table that it finds out."""

    name: str
    title: str
    look: Callable[[Subject], Seen | Awaitable[Seen]]
    troubles: tuple[Trouble, ...] = ()
    limit_s: float = USUAL_S
    vital: bool = False
    """A chat that must wait for this as long as the check did could not work."""


async def examine(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    deep: bool = False,
    checks: Sequence[Check] | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Finding]:
    """A finding for each of the `checks`, in their order; without them, for all of `CHECKS`. Never raises.

    `host` and `port` are those that the chat would listen on. `deep` also hashes the model files and asks each model a
    few tiny questions, which takes minutes; `tell` hears of what takes long.
    """
    subject = Subject(settings, host, port, deep, tell or (lambda words: None))
    return await asyncio.gather(*(_examined(check, subject) for check in (CHECKS if checks is None else checks)))


def named(*names: str) -> list[Check]:
    """Those of `CHECKS`, in its order."""
    return [check for check in CHECKS if check.name in names]


def works(findings: Iterable[Finding]) -> bool:
    """Could the chat work?"""
    return not any(finding.status == "bad" for finding in findings)


def to_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """For `--json`."""
    try:
        from rag.lab.machine import machine

        here = machine()
    except ImportError:
        here = {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    return {
        "ok": works(findings),
        "checks": [finding.to_dict() for finding in findings],
        "machine": here,
        "version": __version__,
    }


def show(findings: Sequence[Finding]) -> None:
    """A line for each check; under it what to do, if anything."""
    from rich.console import Console
    from rich.text import Text

    # Not the terminal's: that imports rooms which may be what is missing.
    out = Console(highlight=False, soft_wrap=True)
    styles = {"ok": "green", "note": "yellow", "bad": "bold red"}
    width = max((len(finding.title) for finding in findings), default=0)
    for finding in findings:
        line = Text.assemble((f"{finding.status:<6}", styles[finding.status]), f"{finding.title:<{width + 2}}")
        out.print(line.append(finding.detail))
        if finding.mend:
            out.print(Text(" " * (width + 8) + finding.mend, styles[finding.status]))
    bad = [finding.title for finding in findings if finding.status == "bad"]
    out.print(Text(f"The chat could not work: {', '.join(bad)}." if bad else "The chat can work.", "bold"))


async def _examined(check: Check, subject: Subject) -> Finding:
    """A check that hangs or breaks is a finding, too."""
    limit_s = DEEP_S if subject.deep else check.limit_s
    vital: Status = "bad" if check.vital else "note"
    try:
        async with asyncio.timeout(limit_s):
            if inspect.iscoroutinefunction(check.look):
                seen = await check.look(subject)
            else:
                seen = await aside(lambda: check.look(subject))
    except TimeoutError:
        mend = "See whether a drive or a server hangs, then try again."
        seen = Seen(vital, f"That was not known after {limit_s:g} s", mend)
    except RagError as error:
        seen = of_text(vital, str(error))
    except ModuleNotFoundError as error:
        seen = Seen("note", f"That cannot be looked at: {error.name} is missing", "See the line on packages.")
    except Exception as error:
        # Not what it says, which may quote anything.
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        seen = Seen(vital, f"That cannot be looked at: {why}", "See the other lines first.")
    detail, mend = (_without_secrets(text, subject.settings) for text in (seen.detail, seen.mend))
    return Finding(check.name, check.title, seen.status, detail, mend)


def _without_secrets(text: str, settings: Settings) -> str:
    """No check says one; but a server may have put it into its words, and Python into an error's."""
    values = (getattr(settings, name) for name in Settings.model_fields)
    for secret in (value.get_secret_value() for value in values if isinstance(value, SecretStr)):
        for part in (secret, _password_in(secret)):
            text = Secret(part).removed(text)
    return text


def _password_in(address: str) -> str | None:
    try:
        return urlsplit(address).password
    except ValueError:
        return None


CHECKS: tuple[Check, ...] = (
    Check("python", "Python", software.python),
    Check(
        "environment",
        "Environment",
        software.environment,
        (
            Trouble(
                "`smallfirst: command not found`, or `No module named 'rag'`",
                "The environment that it is installed in is not active in this terminal.",
                "`source .venv/bin/activate` (Windows: `.venv\\Scripts\\activate`), or `make chat`, which needs none.",
            ),
        ),
    ),
    Check(
        "packages",
        "Packages",
        software.packages,
        (
            Trouble(
                "`ModuleNotFoundError`, or an error right after an update",
                "A package is missing, or older than this version needs.",
                "`pip install -e . -c constraints.txt` in the checkout, else `pip install --upgrade smallfirst`.",
            ),
        ),
    ),
    Check("web", "Web server", software.web, limit_s=IMPORT_S, vital=True),
    Check(
        "variables",
        "Settings",
        variables.given,
        (
            Trouble(
                "A setting does nothing",
                "Its name is misspelt, or it stands in a `.env` file of another folder than the one you start in.",
                "The names are listed under [Settings](#settings); the doctor tells the nearest one.",
            ),
        ),
    ),
    Check("folders", "Folders", hardware.folders, vital=True),
    Check(
        "disk",
        "Disk",
        hardware.disk,
        (
            Trouble(
                "`The disk of ... is full`, or `... are free. Free some space`",
                "A model file needs its size twice while it is fetched.",
                "Free some space, or set `RAG_CACHE_DIR` (models) or `RAG_DATA_DIR` (conversations) to another disk.",
            ),
        ),
        vital=True,
    ),
    Check(
        "memory",
        "Memory",
        hardware.memory,
        (
            Trouble(
                "A model `was ended by SIGKILL`",
                "The system ran out of memory.",
                "End other programs, or choose smaller models: `smallfirst models list`.",
            ),
        ),
    ),
    Check(
        "processor",
        "Processor",
        hardware.processor,
        (
            Trouble(
                "A model `was ended by SIGILL`",
                "llama.cpp as it comes uses instructions (AVX2) that this processor lacks.",
                "`smallfirst models build` compiles it for this processor; or name a model server.",
            ),
        ),
        limit_s=IMPORT_S,
    ),
    Check(
        "weights",
        "Model files",
        models.weights,
        (
            Trouble(
                "`the file in the cache was damaged`, or a model `cannot be started`",
                "Its file is not what its publisher signed: the disk, or an interrupted copy.",
                "`smallfirst doctor --deep` hashes the files; delete the one it names, then `smallfirst models pull NAME`.",
            ),
        ),
        vital=True,
    ),
    Check(
        "servers",
        "Model servers",
        models.servers,
        (
            Trouble(
                "`No model server at ...`, or `Neither model answered`",
                "The server that was named or found is not running, or listens on another port.",
                "Start it, or correct `RAG_SLM_BASE_URL` and `RAG_LLM_BASE_URL`; without them the models run here.",
            ),
            Trouble(
                "`... refused the key (status 401)`, or that it wants a key",
                "The server wants a key, or another one.",
                "Set `RAG_SLM_API_KEY` or `RAG_LLM_API_KEY` in the environment or `.env`; the doctor tells which are set.",
            ),
        ),
        limit_s=20,
    ),
    Check(
        "slm",
        "Small model",
        models.slm,
        (
            Trouble(
                "The first answer is slow, later ones are not",
                "The model was just loaded: its weights come from the disk, and what every prompt begins with is"
                " computed once. A model that rested (`RAG_IDLE_UNLOAD_S`) is loaded again.",
                "Wait for it once. The doctor tells whether a server has it loaded, and (Port) how far the chat's own are.",
            ),
            Trouble(
                "No model is called what `RAG_SLM_MODEL` or `RAG_LLM_MODEL` says",
                "No server, and not the list of models that run here, has one of that name; it is never guessed.",
                "Take one of the names that the message lists, or of `smallfirst models list`.",
            ),
        ),
        limit_s=20,
    ),
    Check("llm", "Larger model", models.llm, limit_s=20),
    Check("capabilities", "Server abilities", models.capabilities, limit_s=20),
    Check(
        "window",
        "Context window",
        models.window,
        (
            Trouble(
                "The prompt does not fit the model's window",
                "Passages, earlier turns and the longest answer together are more than the model or its server takes.",
                "Raise `RAG_CONTEXT_TOKENS` (models that run here) or the server's own window; or lower"
                " `RAG_EVIDENCE_TOKENS` and `RAG_LLM_MAX_TOKENS`.",
            ),
        ),
        limit_s=20,
    ),
    Check(
        "documents",
        "Documents",
        documents.documents,
        (
            Trouble(
                "`This is not in your documents`, and it is",
                "The file was not read, or another folder is looked at.",
                "`smallfirst index` tells what became of each file; the doctor tells the folder.",
            ),
        ),
        limit_s=30,
        vital=True,
    ),
    Check("scans", "Scanned pages", documents.scans),
    Check("history", "Conversations", documents.history),
    Check(
        "port",
        "Port",
        doors.port,
        (
            Trouble(
                "`Cannot listen on 127.0.0.1:8000`",
                "Another program has the port, or the chat runs already.",
                "Open http://127.0.0.1:8000, or `smallfirst chat --port 8001`.",
            ),
        ),
    ),
    Check(
        "sign-in",
        "Sign-in",
        doors.sign_in,
        (
            Trouble(
                "`Who reaches 0.0.0.0 would be let in unasked`",
                "On a network the chat must know who comes.",
                "`smallfirst users add NAME`, then `RAG_LOGIN=password smallfirst chat --host 0.0.0.0`; for"
                " `smallfirst serve`, `RAG_API_KEYS`.",
            ),
            Trouble(
                "Status 401, `No API key was sent` or `is not one of RAG_API_KEYS`",
                "Where there are keys, programs need one, on this machine too.",
                "The header `Authorization: Bearer KEY`; in OpenAI's clients, `api_key`.",
            ),
            Trouble(
                "Status 429, `More than 120 requests in a minute`",
                "One caller of the API asked so often.",
                "Wait for as long as `Retry-After` says, or raise `RAG_API_RATE` (0: no limit).",
            ),
        ),
    ),
    Check(
        "origins",
        "Other pages",
        doors.origins,
        (
            Trouble(
                "Status 403, `Pages of '...' may not use this server`, or a CORS error in the browser's console",
                "A page of another address asks; only the chat's own pages may.",
                """`RAG_ALLOWED_ORIGINS=https://our.example` for a page that you trust.""",
            ),
            Trouble(
                "Status 400, `This server is not known as ...`",
                "It was called by a name that is not this machine's, as behind a proxy.",
                """`RAG_ALLOWED_HOSTS=our.example`.""",
            ),
        ),
    ),
    Check(
        "proxies",
        "Proxies",
        doors.proxies,
        (
            Trouble(
                "Small First finds a model server on this machine, and another program does not",
                "A proxy in the environment is asked for requests to this machine, too.",
                "`NO_PROXY=localhost,127.0.0.1,::1`.",
            ),
        ),
    ),
    Check("browsers", "Browsers", doors.browsers),
    Check("foundry", "Foundry Local", models.foundry),
)
