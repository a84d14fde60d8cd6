"""Markers in the answer to passages; what is unsupported.

A marker is `[n]`, n being the number of a passage that the model was shown. One that names no such passage is taken out
of the text and counted. Where a model writes none, the passage that supports the answer best is cited for it. Knows
nothing of scores or models.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rag.corpus.analysis import sentences, terms
from rag.corpus.documents import Passage
from rag.corpus.index import Hit, terms_of

Idf = Callable[[str], float]

_MARKER = re.compile(r"[ \t]*\[(\d+(?:\s*,\s*\d+)*)\]")
# The end of a text that more text could make a marker.
_OPEN = re.compile(r"\s*(?:\[[\d\s,]{0,40})?\Z")


@dataclass(frozen=True)
class Citation:
    """One passage that an answer leans on, and its sentence that supports the answer best."""

    marker: int
    passage: Passage
    start: int
    """Of the quote in the document, characters."""
    end: int
    quote: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "marker": self.marker,
            "source": self.passage.source,
            "page": self.passage.page,
            "heading": list(self.passage.heading),
            "start": self.start,
            "end": self.end,
            "quote": self.quote,
        }


@dataclass(frozen=True)
class Cited:
    """An answer whose every marker resolves."""

    text: str
    citations: tuple[Citation, ...]
    """In the order of their markers."""
    invented: int
    """Markers of the model's that named no passage; they are not in `text`."""


def resolve(answer: str, evidence: Sequence[Hit], idf: Idf) -> Cited:
    """Check the markers of an answer against the passages that its model was shown, numbered from 1."""
    used: dict[int, str] = {}
    invented = 0
    pieces: list[str] = []
    position = 0
    for match in _MARKER.finditer(answer):
        numbers = [int(number) for number in match.group(1).split(",")]
        valid = [number for number in numbers if 1 <= number <= len(evidence)]
        invented += len(numbers) - len(valid)
        before = answer[position : match.start()]
        pieces.append(before)
        pieces.extend(f" [{number}]" for number in valid)
        for number in valid:
            # What a marker supports is the text since the one before it.
            used[number] = f"{used.get(number, '')} {before}"
        position = match.end()
    pieces.append(answer[position:])
    text = "".join(pieces).strip()
    if not used:
        best = _best_support(text, evidence, idf)
        if best is not None:
            used[best] = text
            text = f"{text} [{best}]"
    citations = tuple(_cite(number, evidence[number - 1].passage, used[number], idf) for number in sorted(used))
    return Cited(text, citations, invented)


class Marks:
    """The same for a text while it is written: what may be part of a marker is held back until that is known."""

    def __init__(self, passages: int) -> None:
        """So many passages the model was shown."""
        self._passages = passages
        self._held = ""

    def add(self, text: str) -> str:
        """What can be shown now."""
        self._held += text
        open_ = _OPEN.search(self._held)
        assert open_ is not None, "it matches nothing, too"
        ready, self._held = self._held[: open_.start()], self._held[open_.start() :]
        return _MARKER.sub(self._valid, ready)

    def rest(self) -> str:
        """What was held back; nothing follows."""
        held, self._held = self._held, ""
        return _MARKER.sub(self._valid, held)

    def _valid(self, match: re.Match[str]) -> str:
        numbers = (int(number) for number in match.group(1).split(","))
        return "".join(f" [{number}]" for number in numbers if 1 <= number <= self._passages)


def _best_support(text: str, evidence: Sequence[Hit], idf: Idf) -> int | None:
    """Number of the passage that holds most of the text's terms, by idf; None when none holds any."""
    weights = [
        sum(idf(term) for term in terms_of(hit.passage).intersection(terms(text, hit.passage.language)))
        for hit in evidence
    ]
    best = max(range(len(weights)), key=weights.__getitem__, default=None)
    return None if best is None or weights[best] == 0 else best + 1


def _cite(number: int, passage: Passage, claim: str, idf: Idf) -> Citation:
    found = set(terms(claim, passage.language))

    def support(span: tuple[int, int]) -> float:
        return sum(idf(term) for term in found.intersection(terms(passage.text[slice(*span)], passage.language)))

    start, end = max(list(sentences(passage.text)) or [(0, len(passage.text))], key=support)
    return Citation(number, passage, passage.start + start, passage.start + end, passage.text[start:end])
