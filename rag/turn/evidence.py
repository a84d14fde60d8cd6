"""Hits to the passages that one model reads: fewer tokens, same answer.

What says the same twice is read once, neighbours in a document become one longer passage, and a passage is added only
while it brings words of the question that the others lack, or scores nearly as well as the best. Knows passages and
their terms; how they are worded for a model, and what a token is, is `prompt`'s.
"""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from rag.corpus.documents import Passage
from rag.corpus.index import Hit, terms_of

SAME = 0.8
"""Of the terms of the shorter passage, the share from which two say the same. benchmarks/evidence.md has the figures."""
FAIR = 0.6
"""A passage with this share of the best score may hold the answer as well."""
NEW = 0.3
"""A passage that scores less must add this share of the question's words, by what they tell."""


@dataclass(frozen=True)
class Selection:
    """What is read, and how many of the hits are not, and why."""

    hits: tuple[Hit, ...]
    """Best first; a merged one stands where its best part stood."""
    merged: int = 0
    """Hits that became part of another one."""
    duplicates: int = 0
    adds_nothing: int = 0
    no_room: int = 0
    """For want of tokens, or because the model reads no more passages."""

    @property
    def left_out(self) -> dict[str, int]:
        counts = {"duplicate": self.duplicates, "adds nothing": self.adds_nothing, "no room": self.no_room}
        return {reason: count for reason, count in counts.items() if count}


def select(
    hits: Sequence[Hit],
    asked: Mapping[str, float],
    *,
    passages: int,
    budget_tokens: int,
    tokens: Callable[[Passage], int],
) -> Selection:
    """Choose from `hits`, best first, at most `passages` of them and about `budget_tokens`; the best is always there.

    `asked` are the question's terms and what each tells; `tokens` is what a passage costs.
    """
    whole = sum(asked.values())
    chosen: list[Hit] = []
    seen: list[Set[str]] = []
    covered: set[str] = set()
    used = duplicates = adds_nothing = no_room = 0
    for hit in hits:
        found = terms_of(hit.passage)
        wanted = found & asked.keys()
        if any(_same(found, other) and not wanted - other for other in seen):
            duplicates += 1
            continue
        if chosen:
            new = sum(asked[term] for term in wanted - covered)
            if hit.score < FAIR * chosen[0].score and new < NEW * whole:
                adds_nothing += 1
                continue
            if len(chosen) >= passages or used + tokens(hit.passage) > budget_tokens:
                no_room += 1
                continue
        chosen.append(hit)
        seen.append(found)
        covered |= wanted
        used += tokens(hit.passage)
    joined = merge(chosen)
    return Selection(joined, len(chosen) - len(joined), duplicates, adds_nothing, no_room)


def merge(hits: Sequence[Hit]) -> tuple[Hit, ...]:
    """Neighbours under one heading of one page become one hit, with the better score."""
    found: list[Hit] = []
    for hit in hits:
        place = len(found)
        for number in range(len(found) - 1, -1, -1):
            first, second = sorted((found[number].passage, hit.passage), key=lambda passage: passage.start)
            if (text := _joined(first, second)) is not None:
                passage = replace(first, end=max(first.end, second.end), text=text)
                hit = Hit(passage, max(hit.score, found[number].score))
                # The new one may reach another neighbour, so it is looked at again.
                del found[number]
                place = number
        found.insert(place, hit)
    return tuple(found)


def _same(one: Set[str], other: Set[str]) -> bool:
    """Do two passages say the same? Never when the numbers differ: rows of a table have all their words in common."""
    if not one or not other:
        return not one
    if len(one & other) < SAME * min(len(one), len(other)):
        return False
    return not any(character.isdigit() for term in one - other for character in term)


# A space between sentences, a line break between lines, a blank line between paragraphs: a heading would be longer.
_GAPS = {1: " ", 2: "\n\n"}


def _joined(first: Passage, second: Passage) -> str | None:
    """The text from the one's start to the other's end; None when what lies between them is not known.

    White space between two pieces is not kept anywhere; it is as long as it was, so that all positions stay true.
    """
    if _place(first) != _place(second):
        return None
    gap = second.start - first.end
    if gap <= 0:
        return first.text + second.text[-gap:] if second.end > first.end else first.text
    if gap not in _GAPS:
        return None
    lines = gap == 1 and all(re.search(r"[^\n]\n[^\n]", passage.text) for passage in (first, second))
    return first.text + ("\n" if lines else _GAPS[gap]) + second.text


def _place(passage: Passage) -> tuple[object, ...]:
    return passage.id.rpartition(":")[0], passage.source, passage.page, passage.heading
