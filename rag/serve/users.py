"""Who may sign in with a password: names and argon2 hashes in `<data_dir>/users.json`.

`smallfirst users` and a running chat use the file at the same time: every change is made under a lock and replaces the
file whole, and whoever asks sees the newest state. Knows nothing of requests, cookies or conversations.

A user's `generation` is a word by chance that is made anew with every password: what was signed in with a former
password, or by a former user of that name, carries another one.
"""

import json
import os
import secrets
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from filelock import FileLock

from rag.errors import UserError

FILE: Final = "users.json"
SHORTEST: Final = 8
"""Characters of a password."""
LONGEST: Final = 1000
LONGEST_NAME: Final = 64


@dataclass(frozen=True)
class Entry:
    hash: str
    generation: str


class Users:
    """The file of one data folder. Names are taken in any spelling; see `canonical`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._read: tuple[object, dict[str, Entry]] = (None, {})

    def add(self, name: str, password: str) -> str:
        """Returns the name as it is kept. A name that is there already is a UserError."""
        name, entry = self.free(name), _entry(password)
        with self._changing() as entries:
            if name in entries:
                raise self._taken(name)
            entries[name] = entry
        return name

    def change(self, name: str, password: str) -> str:
        """Another password; whoever is signed in with the former one is not any more."""
        name, entry = self.known(name), _entry(password)
        with self._changing() as entries:
            if name not in entries:
                raise self._unknown(name)
            entries[name] = entry
        return name

    def remove(self, name: str) -> str:
        name = canonical(name)
        with self._changing() as entries:
            if entries.pop(name, None) is None:
                raise self._unknown(name)
        return name

    def known(self, name: str) -> str:
        """The name as it is kept; one that is not there is a UserError."""
        name = canonical(name)
        if name not in self._entries():
            raise self._unknown(name)
        return name

    def free(self, name: str) -> str:
        """The name as it would be kept; one that is there already is a UserError."""
        name = canonical(name)
        if name in self._entries():
            raise self._taken(name)
        return name

    def names(self) -> list[str]:
        return sorted(self._entries())

    def generation(self, name: str) -> str | None:
        """None if there is no such user. The name is as it is kept."""
        entry = self._entries().get(name)
        return entry.generation if entry else None

    def verify(self, name: str, password: str) -> tuple[str, str] | None:
        """Name and generation, or None. Slow on purpose, and as slow for a name that nobody has."""
        try:
            name = canonical(name)
        except UserError:
            name = ""
        entry = self._entries().get(name)
        try:
            _hasher().verify(entry.hash if entry else _nobody(), _spelt(password) if len(password) <= LONGEST else "")
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return None
        if entry is None:
            return None
        if _hasher().check_needs_rehash(entry.hash):
            anew = Entry(_hasher().hash(_spelt(password)), entry.generation)
            with self._changing() as entries:
                if entries.get(name) == entry:  # not changed or removed meanwhile
                    entries[name] = anew
        return name, entry.generation

    def _unknown(self, name: str) -> UserError:
        return UserError(f"There is no user {name}. `smallfirst users list` shows who there is.")

    def _taken(self, name: str) -> UserError:
        return UserError(f"There is a user {name} already. `smallfirst users passwd {name}` changes the password.")

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Entry]]:
        """What is done to the entries is kept, unless it raises."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f"{FILE}.lock"), mode=0o600):
                entries = dict(self._entries())
                yield entries
                kept = {name: asdict(entry) for name, entry in sorted(entries.items())}
                replace(self.path, json.dumps(kept, ensure_ascii=False, indent=1).encode())
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}). Check RAG_DATA_DIR.") from None

    def _entries(self) -> dict[str, Entry]:
        """What the file holds now; it is read again only when it is another one."""
        try:
            stat = self.path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if stamp != self._read[0]:
                kept = json.loads(self.path.read_text(encoding="utf-8"))
                self._read = stamp, {str(name): Entry(**entry) for name, entry in kept.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path} cannot be read ({error}). Mend it, or delete it and add the users anew."
            ) from None
        return self._read[1]


def canonical(name: str) -> str:
    """The one spelling of a user's name: NFKC, without case. An impossible name is a UserError."""
    spelt = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()
    if not spelt:
        raise UserError("The name is empty. Give one, as in `smallfirst users add anna`.")
    if len(spelt) > LONGEST_NAME or not spelt.isprintable():
        raise UserError(f"{name!r} cannot be a name: at most {LONGEST_NAME} characters that can be printed.")
    return spelt


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Nobody but its owner may read it."""
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # made with mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def _entry(password: str) -> Entry:
    if len(password) < SHORTEST:
        raise UserError(f"The password is too short. Take at least {SHORTEST} characters.")
    if len(password) > LONGEST:
        raise UserError(f"The password is too long. Take at most {LONGEST} characters.")
    try:
        return Entry(_hasher().hash(_spelt(password)), secrets.token_hex(8))
    except UnicodeEncodeError:
        raise UserError("The password has characters that are none. Type another one.") from None


def _spelt(password: str) -> str:
    """Keyboards put accents differently; the letters are the same."""
    return unicodedata.normalize("NFC", password)


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher()


@cache
def _nobody() -> str:
    """A hash that no password has, to be compared where there is no user."""
    return _hasher().hash(secrets.token_hex(32))
