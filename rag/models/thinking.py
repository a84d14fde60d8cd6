"""Telling a model's thoughts from its answer, in a stream of text that may be cut anywhere: Splitter.

Knows the marks that models put around their thoughts, and where they put them. Knows nothing of servers, tokens or time.
Many servers tell thoughts apart themselves and send them in a field of their own; these are the models behind servers
that do not:

    <think> ... </think>        DeepSeek-R1, Qwen3, Phi-4-mini-reasoning; with a template that ends the prompt with the
                                first mark, only the second one is written
    <thought>, <thinking>       the same under other names
    [THINK] ... [/THINK]        Magistral
    <|channel>thought ...       Gemma 4, up to <channel|>
    <|channel|>analysis ...     gpt-oss (harmony): messages in channels, of which `final` is the answer
    analysis ... assistantfinal the same, where the server left out the marks and kept the words between them

Only the beginning of an answer, white space aside, opens a thought: an answer that speaks of <think> is left alone.
"""

import re
from functools import cache
from typing import Literal

# The mark that opens, and the one that closes.
PAIRS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "[THINK]": "[/THINK]",
    "<|channel>": "<channel|>",
}
LONE = PAIRS["<think>"]
# https://github.com/openai/harmony/blob/main/docs/format.md
HEADERS = ("<|channel|>", "<|start|>")
MESSAGE = "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
# A header is a role, a channel and perhaps a type of content; what is longer speaks of these marks.
HEADER_CHARS = 120
# What remains of harmony without its marks. A capital follows at once, which no sentence does.
BARE = "analysis"
BARE_FINAL = "assistantfinal"
OPENERS = (*PAIRS, *HEADERS, LONE, BARE)
FIRST = frozenset(opener[0] for opener in OPENERS)

State = Literal["start", "thought", "header", "answer", "over"]
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class Splitter:
    """Text goes in piece by piece; what belongs to the answer comes out, as soon as that is certain.

    It is held back only while it may be the beginning of a mark, and white space before the first word.
    """

    def __init__(self, *, opened: bool = False) -> None:
        """`opened`: the prompt ended with the mark that opens a thought. If no other comes, it was an answer after all."""
        self.thought = False
        """There was a thought that is more than white space."""
        self.lone = False
        """A thought was closed that the prompt had opened."""
        self.retracted = False
        """With the last piece it turned out that all text before belonged to a thought. Whoever reads it, resets it."""
        self._state: State = "thought" if opened else "start"
        self._presumed = opened
        self._closers: tuple[str, ...] = (LONE,) if opened else ()
        self._held = ""
        self._said: list[str] = []
        """The text since the beginning, as long as that matters: while its thought may yet be closed."""
        self._followed = False
        """A thought came before: the answer's white space is none of its own."""

    @property
    def thinking(self) -> bool:
        """Is what comes now a thought, as far as can be told?"""
        return self._state in ("thought", "header")

    @property
    def held(self) -> str:
        """What is held back."""
        return self._held

    def told_apart(self) -> None:
        """The server sends thoughts in a field of their own, so nothing need be presumed of its text."""
        self._followed = self.thought = True
        if self._presumed and not self._said and not self._held:
            self._presumed, self._state, self._closers = False, "start", ()

    def feed(self, piece: str) -> str:
        if self._state == "answer" and not self._held and "<" not in piece:
            if not self._closers:
                return piece
            self._said.append(piece)
            return piece
        text, self._held = self._held + piece, ""
        out = ""
        # Each step takes what it can and says whether there is more to do.
        while text:
            before = len(text), self._state
            if self._state == "start":
                text = self._start(text)
            elif self._state == "thought":
                text = self._think(text)
            elif self._state == "header":
                text = self._header(text)
            elif self._state == "answer":
                said, text = self._answer(text)
                out = said if self.retracted else out + said
            else:
                return out
            if (len(text), self._state) == before:
                self._held = text
                break
        return out

    def end(self) -> str:
        """The stream has ended: what was held back, if it is the answer's."""
        held, self._held = self._held, ""
        if self._state == "answer" and held == LONE and self._closes(""):
            self._retract()
            return ""
        if self._state == "thought" and self._presumed:
            # It never closed what it was thought to have opened; unless it opened it itself.
            text = "".join(self._said) + held
            if not text.lstrip().startswith("<think>"):
                self._presumed, self.thought = False, False
                return text
        return held if self._state in ("start", "answer") else ""

    def _start(self, text: str) -> str:
        stripped = text.lstrip()
        if not stripped:
            return self._trimmed(text)
        if stripped[0] in FIRST:
            for opener in OPENERS:
                if len(stripped) < len(opener):
                    if opener.startswith(stripped):
                        return self._trimmed(text)
                elif stripped.startswith(opener):
                    rest = stripped[len(opener) :]
                    if opener in PAIRS:
                        return self._open((PAIRS[opener],), rest)
                    if opener in HEADERS:
                        self._state = "header"
                        return stripped
                    if opener == LONE:
                        # The prompt had opened a thought, and there was none.
                        self.lone = self._followed = True
                        return rest
                    if not rest:
                        return self._trimmed(text)
                    if rest[0].isupper() and not self._followed:
                        return self._open((BARE_FINAL,), rest)
        self._state = "answer"
        # The mark that closes counts only where nothing was opened.
        self._closers = () if self._followed else (LONE,)
        return stripped if self._followed else text

    def _trimmed(self, text: str) -> str:
        return text.lstrip() if self._followed else text

    def _open(self, closers: tuple[str, ...], rest: str) -> str:
        self._state, self._closers = "thought", closers
        return rest

    def _think(self, text: str) -> str:
        found = _first(text, self._closers)
        if found is None:
            keep = _beginning(text, self._closers)
            self._note(text[: len(text) - keep])
            return text[len(text) - keep :] if keep else ""
        at, mark = found
        self._note(text[:at])
        self.lone = self.lone or self._presumed
        self._presumed, self._followed = False, True
        self._said.clear()
        if mark == BARE_FINAL:
            self._state, self._closers = "answer", ()
        elif mark in HEADERS:
            self._state = "header"
            return text[at:]
        else:
            self._state, self._closers = "start", ()
        return text[at + len(mark) :]

    def _note(self, thought: str) -> None:
        if self._presumed:
            self._said.append(thought)
        if not self.thought and thought.strip():
            self.thought = True

    def _header(self, text: str) -> str:
        at = text.find(MESSAGE)
        if at < 0:
            if len(text) > HEADER_CHARS:
                self._state, self._closers = "answer", ()
            return text
        channel = _CHANNEL.search(text[:at])
        rest = text[at + len(MESSAGE) :]
        if channel is None or channel[1] == "final":
            self._state, self._closers, self._followed = "answer", (*ENDS, *HEADERS), True
            return rest
        return self._open((*ENDS, *HEADERS), rest)

    def _answer(self, text: str) -> tuple[str, str]:
        """What is the answer's for certain, and the rest."""
        if not self._closers:
            return text, ""
        found = _first(text, self._closers)
        if found is None:
            keep = _beginning(text, self._closers)
            sure = text[: len(text) - keep]
            self._said.append(sure)
            return sure, text[len(sure) :]
        at, mark = found
        if mark != LONE:
            self._state = "over"
            return text[:at], ""
        after = text[at + len(mark) :]
        self._said.append(text[:at])
        if not after:
            return text[:at], mark
        if self._closes(after):
            self._retract()
            return "", after
        self._said.append(mark)
        return text[: at + len(mark)], after

    def _closes(self, after: str) -> bool:
        """Does that mark close what the prompt opened? A model writes it on its own line; an answer only speaks of it."""
        before = "".join(self._said)
        alone = before.rstrip(" \t").endswith("\n") and (not after or after[0].isspace())
        return alone and "<think" not in before and before.count("```") % 2 == 0

    def _retract(self) -> None:
        self.thought = self.lone = self.retracted = self._followed = True
        self._said.clear()
        self._state, self._closers = "start", ()


def _first(text: str, marks: tuple[str, ...]) -> tuple[int, str] | None:
    """The mark that comes first, and where."""
    found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(found, default=None)


def _beginning(text: str, marks: tuple[str, ...]) -> int:
    """How many characters at the end of the text may be the beginning of a mark."""
    tail = text[1 - _longest(marks) :]
    for at, character in enumerate(tail):
        # Almost no character begins a mark.
        if character in BEGINNINGS and any(mark.startswith(tail[at:]) for mark in marks):
            return len(tail) - at
    return 0


@cache
def _longest(marks: tuple[str, ...]) -> int:
    return max(map(len, marks))


BEGINNINGS = frozenset(mark[0] for mark in (*PAIRS.values(), *ENDS, *HEADERS, BARE_FINAL))
