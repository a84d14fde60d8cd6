"""Files that hold kept turns: JSON, JSON lines, and the chat's CSV.

Knows how turns are written down, and what is wrong with a bad file; nothing of what they tell (`receipts`).
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.lab.assumptions import LEGS
from rag.lab.receipts import COUNTED, Turn

OUTCOMES = ("answer", "error", "stopped")
"""One of them every turn has."""


def read(paths: Iterable[Path]) -> list[Turn]:
    """The turns of files, in their order: JSON (a turn, a list, or `turns` of an object), JSON lines, or the chat's CSV.

    UserError names the file, and the line where there is one.
    """
    return [turn for path in paths for turn in _of_file(path)]


def _of_file(path: Path) -> list[Turn]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"The receipts {path} cannot be read: {error.strerror}. Check the name.") from None
    except UnicodeDecodeError:
        raise UserError(f"The receipts {path} are no text in UTF-8. Take the chat's JSON or CSV.") from None
    if text.startswith("asked_at,"):
        turns: list[Turn] = list(_of_csv(text, path))
    else:
        turns = [turn for found, where in _documents(text, path) for turn in _of_json(found, where)]
    if not turns:
        raise UserError(f"The receipts {path} hold no turn. Take the chat's JSON or CSV, or lines of `ask --json`.")
    return turns


def _documents(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """JSON documents, each with where it stands: the whole file, or else each line."""
    try:
        yield json.loads(text), str(path)
        return
    except RecursionError:
        raise UserError(f"The receipts {path} are nested too deeply. Take the chat's JSON or CSV.") from None
    except ValueError:
        pass
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line), f"{path}, line {number}"
        except (ValueError, RecursionError):
            raise UserError(
                f"The receipts {path}, line {number}, are not JSON. Take the chat's JSON or CSV, or lines of `ask --json`."
            ) from None


def _of_json(found: Any, where: str) -> list[Turn]:
    turns = found.get("turns", [found]) if isinstance(found, dict) else found
    if not isinstance(turns, list):
        turns = [turns]
    for turn in turns:
        if not isinstance(turn, dict) or not any(name in turn for name in OUTCOMES):
            raise UserError(f"The receipts {where} hold something that is no turn. Take the chat's JSON or CSV.")
    return turns


def _of_csv(text: str, path: Path) -> Iterator[Turn]:
    """The chat's receipts. They tell the tokens of both models together; so those of a turn that asked both are not known.

    `rag.serve.exports.as_csv` writes them.
    """
    try:
        for row in csv.DictReader(io.StringIO(text, newline="")):
            spans = [
                {"name": name.removesuffix("_ms"), "leg": leg, "duration_ms": float(value)}
                for column, value in row.items()
                if value
                and (leg := str(column).partition(".")[0]) in LEGS
                and (name := column.partition(".")[2]).endswith("_ms")
            ]
            asked = list(dict.fromkeys(span["leg"] for span in spans if span["name"] == "first_token"))
            counts = {name: _cell(row, name) for name in COUNTED}
            drafts = [{"leg": asked[0], "usage": counts}] if len(asked) == 1 and row.get("at_least") == "false" else []
            turn = {
                "asked_at": row["asked_at"],
                "mode": row["mode"],
                "where": row["where"] or None,
                "stopped": row["stopped"] == "true",
                "error": row["error"],
                "answer": row["answer"],
                "drafts": drafts,
                "trace": {"spans": spans},
                "bill": {
                    "energy_j": _cell(row, "energy_j"),
                    "energy_measured": row.get("energy_measured") == "true",
                    "energy_source": row.get("energy_source"),
                },
            }
            yield turn
    except (KeyError, ValueError, csv.Error) as error:
        raise UserError(f"The receipts {path} are not as the chat writes them ({error}). Export them again.") from None


def _cell(row: Mapping[str, str | None], name: str) -> float | None:
    value = row.get(name)
    return float(value) if value else None
