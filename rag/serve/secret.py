"""What this server signs with: made once, kept in the data folder, known to nobody else.

Knows no cookie and no link: what is signed, and how long that holds, is `login`'s and `callers`'.
"""

import secrets
from pathlib import Path
from typing import Final

from filelock import FileLock

from rag.errors import UserError
from rag.serve.users import replace

SECRET_FILE: Final = "secret"
SECRET_BYTES: Final = 32


def secret(folder: Path) -> str:
    """In hex. Kept, so that a restart signs nobody out; a folder where that cannot be is a UserError."""
    path = folder / SECRET_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / f"{SECRET_FILE}.lock", mode=0o600):
            if not path.exists():
                replace(path, secrets.token_bytes(SECRET_BYTES))
            kept = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be made or read ({error.strerror}). Check RAG_DATA_DIR.") from None
    if len(kept) != SECRET_BYTES:
        raise UserError(f"{path} is damaged. Delete it; whoever was signed in signs in again.")
    return kept.hex()
