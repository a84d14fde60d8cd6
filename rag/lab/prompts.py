"""What the user wants models to be asked: from the command line, from settings, or from a file.

Knows the two kinds of file and what is wrong with a bad one. Asks nobody.
"""

import json
from pathlib import Path

from rag.errors import UserError
from rag.settings import Settings

DEFAULT = "How does BM25 score a passage, and what do its parameters k1 and b do?"
"""On a document that is shipped."""
KINDS = "Name a text file in UTF-8 with one prompt a line, or a JSON list of them."


def of(typed: str | None, settings: Settings) -> tuple[str, ...]:
    """The prompt that was typed, else that of settings, else one on the shipped documents. Raises UserError."""
    if typed is not None:
        return _checked([typed], "--prompt")
    return _checked([settings.compare_prompt], "COMPARE_PROMPT") if settings.compare_prompt else (DEFAULT,)


def read(path: Path) -> tuple[str, ...]:
    """The prompts of a file, in its order: a JSON list of strings, or one a line. Raises UserError.

    Of lines, blank ones and those that begin with # are skipped.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or type(error).__name__}. {KINDS}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8. {KINDS}") from None
    if "\0" in text:
        raise UserError(f"{path} is not text. {KINDS}")
    # A line may begin with a bracket, too.
    if path.suffix.lower() == ".json" or text.lstrip().startswith("["):
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError) as error:
            if path.suffix.lower() == ".json":
                raise UserError(f"{path} is not JSON ({error}). {KINDS}") from None
        else:
            if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
                raise UserError(f"{path} is JSON, but no list of texts. {KINDS}")
            return _checked(listed, str(path))
    lines = [line.strip() for line in text.splitlines()]
    return _checked([line for line in lines if not line.startswith("#")], str(path))


def _checked(prompts: list[str], source: str) -> tuple[str, ...]:
    found = tuple(stripped for prompt in prompts if (stripped := prompt.strip()))
    if not found:
        raise UserError(f"{source} holds no prompt. Write what both models are to be asked.")
    for prompt in found:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{source} holds characters that are not Unicode: {prompt[:40]!a}. Write them anew."
            ) from None
    return found
