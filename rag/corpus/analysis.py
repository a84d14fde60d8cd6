"""Text to terms, in any language.

One analysis serves passages, questions and answers, so that they can be compared: NFKC and case folding; words of any
script, stemmed (Snowball) in the language of their document; identifiers, versions and file names whole and in parts;
shingles of two characters where a script writes no spaces between words (Chinese, Japanese, Korean, Thai and their
like). Knows no documents and no statistics; what is known of each language is `languages`'.

A question is too short to tell its language, so it is analysed in every language that the documents are in: a passage
holds the stems of its own language only, and those of the others find nothing.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from rag.corpus.languages import DEFAULT, ELIDES, KEEPS_MARKS, STOP_WORDS, script_of, scripts, stemmer, tongue_of

VERSION = 3
"""Changes whenever the same text would give other terms: what was indexed with another version is made anew."""

PIECE = "^"
"""Begins a term that stands for some letters of a word; no other term does."""
PIECE_WEIGHT = 0.3
"""What shared letters count beside a shared stem. They join German compounds to their parts, and Russian forms that the
stemmer leaves apart: recall@1 on XQuAD is .942 with them and .937 without in English, .926 and .892 in German, .922 and
.908 in Russian (`smallfirst evaluate retrieval`)."""
BEGINNING_CHARS = 5
GRAM_CHARS = 4
COMPOUNDING = {"de", "nl", "sv", "da", "no", "fi", "hu"}
"""Languages that write compounds as one word: every four letters of a stem are a piece. Elsewhere its beginning is."""

MOST_LANGUAGES = 5
"""In so many languages a question is analysed at most; each makes it longer, and few people's documents are in more."""

# Scripts written without spaces, and Hangul, whose words carry their particles: shingles of two for all of them.
_UNSPACED = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7a3"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff"
)
_RUN_OF_LETTERS = rf"[^\W_{_UNSPACED}]+"
_TOKEN = re.compile(
    rf"(?P<run>[{_UNSPACED}]+)"
    rf"|(?P<number>\d++(?:[.,]\d++)*+(?![^\W_]|[-_@/]\w))"
    rf"|(?P<identifier>_+{_RUN_OF_LETTERS}(?:[-._/@]+{_RUN_OF_LETTERS})*_*"
    rf"|{_RUN_OF_LETTERS}(?:[-._/@]{_RUN_OF_LETTERS})+|{_RUN_OF_LETTERS}(?:\+\+|\#)(?!\w))"
    rf"|(?P<word>{_RUN_OF_LETTERS}(?:['’]{_RUN_OF_LETTERS})*)"
)
_SHINGLE = re.compile(f"[{_UNSPACED}]{{2}}")
_PARTS = re.compile(_RUN_OF_LETTERS)
_WORDS = re.compile(rf"[{_UNSPACED}]+|\d++(?:[.,]\d++)*+(?![^\W_])|{_RUN_OF_LETTERS}(?:['’]{_RUN_OF_LETTERS})?")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_GROUPS = re.compile(r"\d{1,3}(?:,\d{3})+")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
# ASCII that never lies inside a term becomes a space; the bytes of all other characters stay. So bytes.translate and
# split find the words of any UTF-8 text in C.
_SPACES = bytes(c if c > 127 or chr(c).isalnum() or c in b"-._/@+#'," else 32 for c in range(256))


def indexed(text: str, language: str = DEFAULT) -> str:
    """What an index sees of `text`: its terms in order, and pieces of its longer words, joined by single spaces."""
    chunks = text.encode("utf-8", "surrogatepass").translate(_SPACES).replace(b", ", b" ").replace(b". ", b" ").split()
    return " ".join(filter(None, map(_memo(language).__getitem__, chunks)))


def terms(text: str, language: str = DEFAULT) -> list[str]:
    """The terms of `text` in order, stop words left out.

    The text is normalised first (NFKC, case), so offsets into the result mean nothing in `text`.
    """
    return [term for term in indexed(text, language).split() if not term.startswith(PIECE)]


def runs(found: Iterable[str]) -> Iterator[list[str]]:
    """Terms in their order: the shingles of one unspaced run together, every other term alone."""
    run: list[str] = []
    for term in found:
        follows = bool(run) and _SHINGLE.fullmatch(term) is not None and run[-1][-1] == term[0]
        if run and not (follows and _SHINGLE.fullmatch(run[-1])):
            yield run
            run = []
        run.append(term)
    if run:
        yield run


def weighted(text: str, languages: Collection[str] = (DEFAULT,)) -> dict[str, float]:
    """The terms of a question with their weights: how often each stands in it, pieces of words counting less.

    Analysed in each of `languages` (commonest first) that is written in the question's script, or, if these are many, in
    the one that it seems to be in and the commonest MOST_LANGUAGES - 1 others; a term that several give counts once. The
    stop words of the language that it seems to be in are left out of all: an English "the" would be a rare and telling
    word to a Spanish document.
    """
    own, tongues = _tongues(text, languages)
    if len(tongues) > 1:
        dropped = frozenset().union(*(STOP_WORDS[tongue] for tongue in own))
        text = _WORDS.sub(lambda match: " " if match.group().casefold() in dropped else match.group(), text)
    found: dict[str, float] = {}
    for tongue in tongues:
        for term, count in Counter(indexed(text, tongue).split()).items():
            weight = count * (PIECE_WEIGHT if term.startswith(PIECE) else 1.0)
            found[term] = max(found.get(term, 0.0), weight)
    return found


def words(text: str) -> Iterator[tuple[str, int, int]]:
    """Each word, number or unspaced run as written, with its start and end in `text` (characters, end exclusive)."""
    for match in _WORDS.finditer(text):
        yield match.group(), match.start(), match.end()


def _tongues(text: str, languages: Collection[str]) -> tuple[list[str], list[str]]:
    """Languages that the text seems to be in, and those that it is to be analysed in, each once."""
    written = scripts(text)
    # What has no stemmer and no stop words gives the terms that any of them gives.
    fits = [tongue for tongue in languages if tongue in STOP_WORDS and script_of(tongue) in written]
    if len(fits) < 2:
        return fits, fits or [DEFAULT]
    found = [word.casefold() for word, _, _ in words(text)]
    hits = {tongue: sum(word in STOP_WORDS[tongue] for word in found) for tongue in fits}
    most = max(hits.values())
    own = [tongue for tongue in fits if hits[tongue] == most] if most else []
    return own, list(dict.fromkeys([*own[:1], *fits]))[:MOST_LANGUAGES]


class _Memo(dict[bytes, str]):
    """What stands between two spaces, to its terms. A document's words repeat, so most cost one look-up."""

    MOST = 400_000
    LONGEST = 64

    def __init__(self, language: str) -> None:
        self.language = language
        self.of_latin = tongue_of("a", language)

    def __missing__(self, chunk: bytes) -> str:
        out: list[str] = []
        if chunk.isalpha() and (chunk.islower() or chunk.istitle()):  # most words, for which this saves half the time
            self._simple_word(chunk.decode().lower(), self.of_latin, out)
        else:
            text = chunk.decode("utf-8", "surrogatepass")
            if not text.isascii():
                text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
            self._terms(text, out)
        found = " ".join(out)
        if len(chunk) <= self.LONGEST:
            if len(self) >= self.MOST:
                self.clear()
            self[chunk] = found
        return found

    def _terms(self, text: str, out: list[str]) -> None:
        for match in _TOKEN.finditer(text):
            token = match.group()
            match match.lastgroup:
                case "run":
                    # Shingles of two need no dictionary, and a query of one character still finds its own.
                    out.extend(token[i : i + 2] for i in range(max(1, len(token) - 1)))
                case "number":
                    out.extend(_number(token))
                case "identifier":
                    whole = token.casefold()
                    out.append(whole if whole.isascii() else _fold(whole, self.language))
                    for part in _PARTS.findall(token):
                        self._word(part, out)
                case _:
                    self._word(token, out)

    def _word(self, word: str, out: list[str]) -> None:
        """A word, and the parts of one in camel case."""
        if not word.islower() and len(humps := _CAMEL.split(word)) > 1:
            for hump in humps:
                self._word(hump, out)
        word = word.casefold().replace("’", "'")
        tongue = tongue_of(word, self.language)
        if "'" in word:
            if tongue in ELIDES:
                for part in word.split("'"):
                    self._simple_word(part, tongue, out)
                return
            word = word.removesuffix("'s").replace("'", "")
        self._simple_word(word, tongue, out)

    def _simple_word(self, word: str, tongue: str, out: list[str]) -> None:
        """A word in lower case without marks, as its stem and the stem's pieces."""
        if not word or word in STOP_WORDS.get(tongue, ()):
            return
        if word.isdecimal():
            out.append(word)
            return
        snowball = stemmer(tongue)
        stem = snowball.stemWord(word) if snowball else word
        if not stem.isascii():
            stem = _fold(stem, tongue)
        out.append(stem)
        if not stem.isalpha():
            return  # 3200 is no form of 3201, nor gpt4 of gpt41
        if tongue in COMPOUNDING:
            out.extend([PIECE + stem[i : i + GRAM_CHARS] for i in range(len(stem) - GRAM_CHARS + 1)])
        elif len(stem) >= BEGINNING_CHARS:
            out.append(PIECE + stem[:BEGINNING_CHARS])


def _number(token: str) -> Iterator[str]:
    """A number in one form, and a version also by its beginnings: 3.11.7 is found by 3.11."""
    plain = token.replace(",", "") if _GROUPS.fullmatch(token) else token.replace(",", ".")
    yield plain
    parts = plain.split(".")
    for length in range(2, len(parts)):
        yield ".".join(parts[:length])


def _fold(word: str, tongue: str) -> str:
    if tongue in KEEPS_MARKS:
        return word
    bare = "".join(c for c in unicodedata.normalize("NFD", word) if c not in _MARKS)
    return unicodedata.normalize("NFC", bare).replace("ł", "l").replace("ø", "o").replace("đ", "d")


# Accents of alphabets; a breve stays, because й is not и.
_MARKS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0307\u0308\u030a\u030b\u030c\u0327\u0328\u0323\u0326")

_MEMOS: dict[str, _Memo] = {}


def _memo(tongue: str) -> _Memo:
    found = _MEMOS.get(tongue)
    return found if found is not None else _MEMOS.setdefault(tongue, _Memo(tongue))


# A sentence ends at its mark, at a blank line, or where the next line begins a list item, a heading, a quote or a table
# row; a line break alone is only where a file or a PDF was wrapped. An initial or a title ends none.
_BREAK = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|vs)\.)(?<!\bMrs\.)[\"'”’)\]]*\s+|(?<=[。！？])"
    r"|\n\s*\n|\n(?=\s*(?:[-*+#>|]|\d+[.)]\s))"
)


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end (exclusive) of each sentence in order, white space around it left out."""
    start = 0
    for end, after in [(m.start(), m.end()) for m in _BREAK.finditer(text)] + [(len(text), len(text))]:
        piece = text[start:end]
        if piece.strip():
            yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
        start = after
