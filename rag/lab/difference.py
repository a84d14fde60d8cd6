"""Two texts, word by word: how much they share, and where they differ.

Knows words; nothing of what they mean. Where no spaces stand between words, as in Chinese, each character is one.
"""

import re
from difflib import SequenceMatcher

from rag.lab.answers import UNSPACED

Range = tuple[int, int]
"""Of characters, [start, end)."""

_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_EDGES = re.compile(r"^\W+|\W+$")


def similarity(one: str, other: str) -> float:
    """2 x words in common, in order / words of both, 0 to 1; two empty texts are the same (difflib's ratio)."""
    return SequenceMatcher(None, [word for word, _ in _words(one)], [word for word, _ in _words(other)], False).ratio()


def differences(one: str, other: str) -> tuple[list[Range], list[Range]]:
    """The ranges of each text that the other lacks, in order, neighbouring words in one range."""
    first, second = _words(one), _words(other)
    matcher = SequenceMatcher(None, [word for word, _ in first], [word for word, _ in second], False)
    changes = [places for kind, *places in matcher.get_opcodes() if kind != "equal"]
    return (
        [_range(first[start:end]) for start, end, _, _ in changes if start < end],
        [_range(second[start:end]) for _, _, start, end in changes if start < end],
    )


def _range(words: list[tuple[str, Range]]) -> Range:
    return words[0][1][0], words[-1][1][1]


def _words(text: str) -> list[tuple[str, Range]]:
    """Each word as it is compared, without case and the marks around it, and where it stands."""
    return [(_EDGES.sub("", one[0]).casefold() or one[0], one.span()) for one in _WORD.finditer(text)]
