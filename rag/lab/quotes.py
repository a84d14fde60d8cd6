"""Where the words stand that an answer rests on: Place, Evidence, Text; and which passages hold them.

Knows passages and their positions; knows no questions. Words are compared without case, spaces, line breaks, dashes,
quotation marks and marks of emphasis, so that a quote is found in a page that breaks a word at its edge.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rag.corpus.documents import Passage


@dataclass(frozen=True)
class Place:
    """One place where a quote stands."""

    source: str
    spans: tuple[tuple[int, int], ...]
    """Start and end in the document, in characters; one for each passage that holds part of it."""

    def touches(self, passage: Passage) -> bool:
        """Does the passage hold any of it?"""
        return passage.source == self.source and any(
            start < passage.end and passage.start < end for start, end in self.spans
        )

    def held_by(self, passages: Sequence[Passage]) -> bool:
        """Do the passages together hold all of it?"""
        own = [passage for passage in passages if passage.source == self.source]
        return all(any(p.start <= start and end <= p.end for p in own) for start, end in self.spans)


@dataclass(frozen=True)
class Evidence:
    """One thing that the right answer rests on."""

    places: tuple[Place, ...]
    """Where it can be read; any one of them will do."""

    def touches(self, passage: Passage) -> bool:
        return any(place.touches(passage) for place in self.places)

    def held_by(self, passages: Sequence[Passage]) -> bool:
        return any(place.held_by(passages) for place in self.places)


class Text:
    """The passages of one document, searched for quotes."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self._passages = sorted(passages, key=lambda passage: passage.start)
        kept: list[str] = []
        self._at: list[tuple[int, int]] = []
        """Of each kept character: which passage holds it, and where it stands in the document."""
        for number, passage in enumerate(self._passages):
            for place, character in enumerate(passage.text):
                for plain in _plain(character):
                    kept.append(plain)
                    self._at.append((number, passage.start + place))
        self._text = "".join(kept)

    def locate(self, quote: str) -> tuple[Place, ...]:
        """Every place of the quote, in order; none where it does not stand here."""
        wanted = "".join(map(_plain, quote))
        found: list[Place] = []
        at = self._text.find(wanted) if wanted else -1
        while at >= 0:
            spans: dict[int, tuple[int, int]] = {}
            for number, position in self._at[at : at + len(wanted)]:
                start, _ = spans.get(number, (position, 0))
                spans[number] = (start, position + 1)
            found.append(Place(self._passages[0].source, tuple(spans.values())))
            at = self._text.find(wanted, at + 1)
        return tuple(found)


# Besides spaces and dashes: emphasis, quotation marks, the soft hyphen, the minus sign.
_SET_ONLY = frozenset("*`\"'“”‘’„«»「」\u00ad\u2212")


def _plain(character: str) -> str:
    """What of a character is compared: nothing of those that only set a text."""
    if character.isspace() or character in _SET_ONLY or unicodedata.category(character) == "Pd":
        return ""
    return unicodedata.normalize("NFKC", character).casefold()
