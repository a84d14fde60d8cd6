"""One answer as it comes: its text without what was thought before it, and the tokens that it is made of.

Knows events and tokens. Knows no server, no time and no errors; nothing of whether the answer is good. Whoever judges an
answer by its tokens must be able to trust that none is missing, so all of them are here or none.
"""

import math
import re
from contextlib import suppress
from dataclasses import dataclass

from rag.models import wire
from rag.models.thinking import Splitter

TOP_LOGPROBS = 5
# A server that ignores the longest answer is cut off. Some send every character for itself.
PIECES_A_TOKEN = 8
PIECES_AT_LEAST = 64
CHARS_A_PIECE = 64


@dataclass(frozen=True)
class Token:
    """One token as the server reported it."""

    text: str
    logprob: float
    """Natural logarithm of its probability, at most 0."""
    top: tuple[float, ...] = ()
    """Logprobs of the most probable tokens in its place, best first, at most `TOP_LOGPROBS`."""
    top_texts: tuple[str, ...] = ()
    """Those tokens."""


@dataclass(frozen=True)
class Usage:
    """Tokens read and written, as the server counted them. What was thought counts as written."""

    input_tokens: int
    output_tokens: int

    def to_dict(self) -> dict[str, int]:
        return {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}


@dataclass(frozen=True)
class Delta:
    """Text as it comes, and the tokens that the server reported with it."""

    text: str
    tokens: tuple[Token, ...] = ()


class Answer:
    """What has come of one answer, and what of it is the answer's."""

    def __init__(self, max_tokens: int, splitter: Splitter) -> None:
        self.max_tokens = max_tokens
        self.text: list[str] = []
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.written = 0
        """Pieces, thoughts among them; a long one counts for several."""
        self.begun = False
        self.news = self.thinking = self.retracted = False
        """Of the event that was taken last: did it say anything; was it thought; and with it all before?"""
        self._most = max(PIECES_A_TOKEN * max_tokens, PIECES_AT_LEAST)
        self._splitter = splitter
        self._tokens: list[Token] = []
        self._held: tuple[Token, ...] = ()
        """Tokens of text that is still held back."""
        self._sound = True
        """Every piece of text came with its tokens."""
        self._half = ""

    @property
    def endless(self) -> bool:
        return self.written > self._most

    @property
    def thought(self) -> bool:
        return self._splitter.thought

    @property
    def opened(self) -> bool:
        """The prompt had opened a thought."""
        return self._splitter.lone

    def take(self, one: wire.Event) -> Delta | None:
        """One event's share: text that is the answer's for certain, with its tokens."""
        self.begun = True
        content, apart = wire.said(one)
        self.finish_reason = wire.finish(one) or self.finish_reason
        new = _tokens_of(entries) if (entries := wire.logprobs(one)) else ()
        self.thinking, self.retracted = apart, False
        self.news = apart or bool(content) or bool(new)
        if self.news:
            self.written += 1 + len(content) // CHARS_A_PIECE
            if self.endless:
                self.finish_reason = "length"
        if apart:
            self._splitter.told_apart()
        if not content:
            self._held = () if apart else self._held + new
            return None
        if self._half or not content.isascii():
            content = self._characters(content)
        splitter = self._splitter
        before = len(splitter.held)
        text = splitter.feed(content)
        if splitter.thinking:
            self.thinking = True
        if splitter.retracted:
            splitter.retracted = False
            self.thinking = self.retracted = True
            self.text.clear()
            self._tokens.clear()
            self._sound = True
        if not text:
            self._held = self._held + new if splitter.held else ()
            return None
        if text is not content or self._held:
            self._sound = self._sound and bool(new)
            new, self._held = self._held + new, ()
            if splitter.thought or splitter.lone or len(text) + len(splitter.held) < before + len(content):
                # Something was no part of the answer.
                new = _ending(new, text + splitter.held)
        return self._said(text, new)

    def end(self) -> Delta | None:
        """The stream has ended: what was held back."""
        text = self._splitter.end()
        if self._splitter.retracted:
            self.text.clear()
            return None
        if not text:
            return None
        held, self._held = self._held, ()
        return self._said(text, held)

    def _said(self, text: str, new: tuple[Token, ...]) -> Delta:
        self.text.append(text)
        self._tokens.extend(new)
        if not new:
            self._sound = False
        return Delta(text, new if self._sound else ())

    def _characters(self, content: str) -> str:
        """Whole characters: some servers cut one in the middle, as two escapes in two events."""
        content, self._half = self._half + content, ""
        if "\ud800" <= content[-1] <= "\udbff":
            content, self._half = content[:-1], content[-1]
        return _paired(content)

    def covering(self, text: str) -> tuple[Token, ...]:
        """The tokens of all of the text; none, where some are missing: a part must not be taken for the whole."""
        tokens = self._tokens
        if "".join([token.text for token in tokens]) == text:
            return tuple(tokens)
        while tokens and _SPECIAL.fullmatch(tokens[-1].text):
            tokens = tokens[:-1]  # the one that ends the answer
        told, wanted = _squeezed("".join([token.text for token in tokens])), _squeezed(text)
        if told == wanted:
            return tuple(tokens)
        if REPLACEMENT in told:
            # Characters that were cut in two; each half may stand for one.
            pattern = _HALVES.sub(lambda halves: f"[^\\x00-\\x7f]{{0,{len(halves[0])}}}", re.escape(told))
            if re.fullmatch(pattern, wanted):
                return tuple(tokens)
        return ()


REPLACEMENT = "\ufffd"
_HALVES = re.compile(f"{REPLACEMENT}+")
_SPECIAL = re.compile(r"<[^<>\s]{1,40}>")


def _tokens_of(entries: list[wire.Event]) -> tuple[Token, ...]:
    """All of them, or none."""
    tokens = tuple([token for entry in entries if (token := _token(entry)) is not None])
    return tokens if len(tokens) == len(entries) else ()


def _token(entry: object) -> Token | None:
    """One entry of logprobs; None where it tells no probability."""
    if not isinstance(entry, dict):
        return None
    text, logprob = entry.get("token"), _logprob(entry)
    if not isinstance(text, str) or logprob is None:
        return None
    raw = entry.get("bytes")
    if isinstance(raw, list) and len(raw) != len(text):
        # Half a character, which servers write in their own ways.
        with suppress(TypeError, ValueError):
            text = bytes(raw).decode("utf-8", "replace")
    top = entry.get("top_logprobs")
    values: list[float] = []
    names: list[str] = []
    for rival in top[:TOP_LOGPROBS] if isinstance(top, list) else ():
        value = _logprob(rival) if isinstance(rival, dict) else None
        if value is not None and isinstance(name := rival.get("token"), str):
            values.append(value)
            names.append(name if name.isascii() else _paired(name))
    return Token(text if text.isascii() else _paired(text), logprob, tuple(values), tuple(names))


def _logprob(entry: wire.Event) -> float | None:
    value = entry.get("logprob")
    return min(0.0, value) if isinstance(value, float | int) and math.isfinite(value) else None


def _paired(text: str) -> str:
    """Without halves of characters, which nobody could write down again."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _ending(tokens: tuple[Token, ...], text: str) -> tuple[Token, ...]:
    """The last of the tokens, as many as the text is made of; all it takes, or none."""
    rest = _squeezed(text)
    for at in range(len(tokens) - 1, -1, -1):
        word = _squeezed(tokens[at].text)
        if not rest.endswith(word) and not word.endswith(rest):
            return ()
        rest = rest[: max(0, len(rest) - len(word))]
        if not rest:
            return tokens[at:]
    return ()
