"""Which settings are given, and which of them nobody knows.

Says names, and that a secret is set; never a value. The one room beside `rag.settings` that looks into the environment.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import SecretStr

from rag.checks.subject import Seen, Subject, note, ok, others_may_read
from rag.settings import Settings


def given(subject: Subject) -> Seen:
    """Which are set; never to what."""
    file = Path(str(Settings.model_config.get("env_file")))
    kept = _env_file(file)
    # What the environment says counts.
    where = dict.fromkeys(kept, " in .env") | {name.upper(): "" for name, value in os.environ.items() if value}
    known = _known_variables()
    names = sorted(name for name in where if name in known)
    unknown = sorted(name for name in where if name.startswith("RAG_") and name not in known)
    shown = ", ".join(f"{name}{' (secret)' if known[name] else ''}{where[name]}" for name in names)
    place = f"{file.absolute()} is read" if file.is_file() else f"no .env file in {Path.cwd()}"
    detail = f"{shown or 'All as they come'}; {place}"
    if unknown:
        mend = " ".join(_nearest(name, known) for name in unknown)
        return note(f"No setting is called {' or '.join(f'{name}{where[name]}' for name in unknown)}; {detail}", mend)
    if any(known.get(name) for name in kept) and others_may_read(file):
        return note(f"Others on this machine may read {file.absolute()}, which holds a secret; {detail}",
                    f"Make it yours alone: chmod 600 {file.absolute()}")  # fmt: skip
    return ok(detail)


def _known_variables() -> dict[str, bool]:
    """By name; is it a secret?"""
    known: dict[str, bool] = {}
    for name, one in Settings.model_fields.items():
        secret = one.annotation == SecretStr | None
        known[f"RAG_{name.upper()}"] = secret
        if isinstance(one.validation_alias, str):
            known[one.validation_alias] = secret  # it has two names
    return known


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"Did you mean {close[0]}?" if close else f"Remove {name}, if it was meant for Small First."


def _env_file(file: Path) -> list[str]:
    """The names in it that have a value."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = (re.match(r"\s*(?:export\s+)?(\w+)\s*=\s*(?!(?:''|\"\")?\s*$)\S", line) for line in lines)
    return [match[1].upper() for match in found if match]
