"""Text to terms, in any language.

One analysis serves passages, questions and answers, so that they can be compared: NFKC, case folding, words of any
script, numbers kept whole ("1,204", "0.75"), two-character shingles where a script writes no spaces between words
(Chinese, Japanese, Thai), Snowball stems for English. It knows no documents and no statistics.
"""

import re
import unicodedata
from collections.abc import Iterator

import Stemmer

# Scripts written without spaces: Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar.
_UNSPACED = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(
    rf"(?P<run>[{_UNSPACED}]+)"
    rf"|(?P<number>\d++(?:[.,]\d++)*+(?![^\W_]))"
    rf"|(?P<word>(?:(?![{_UNSPACED}])[^\W_])+(?:['’](?:(?![{_UNSPACED}])[^\W_])+)?)"
)

# Words that carry no subject: Lucene's English stop set, and the words that only make a sentence a question.
STOP_WORDS = frozenset(
    "a about am an and are as at be been being but by can could describe did do does doing explain for from had has have"
    " he her his how i if in into is it its may me might must my no not of on or our please shall she should so such tell"
    " than that the their them then there these they this those to us was we were what when where which who whom whose"
    " why will with would you your".split()
)

_stem = Stemmer.Stemmer("english")


def words(text: str) -> Iterator[tuple[str, int, int]]:
    """Each word, number or unspaced run as written, with its start and end in `text` (characters, end exclusive)."""
    for match in _TOKEN.finditer(text):
        yield match.group(), match.start(), match.end()


def terms(text: str) -> list[str]:
    """The terms of `text` in order, stop words left out.

    The text is normalised (NFKC) first, so offsets into the result mean nothing in `text`.
    """
    found: list[str] = []
    for match in _TOKEN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        token = match.group()
        if match.lastgroup == "run":
            # Shingles of two need no dictionary, and a query of one character still finds its own.
            found.extend(token[i : i + 2] for i in range(max(1, len(token) - 1)))
        elif match.lastgroup == "number":
            found.append(token.replace(",", ""))
        else:
            word = token.replace("’", "'").removesuffix("'s").replace("'", "")
            if word not in STOP_WORDS:
                found.append(_stem.stemWord(word))
    return found


# A sentence ends at its mark, at a blank line, or where the next line begins a list item, a heading, a quote or a table
# row; a line break alone is only where a file or a PDF was wrapped.
_BREAK = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|(?<=[。！？])|\n\s*\n|\n(?=\s*(?:[-*+#>|]|\d+[.)]\s))")


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end (exclusive) of each sentence in order, white space around it left out."""
    start = 0
    for end, after in [(m.start(), m.end()) for m in _BREAK.finditer(text)] + [(len(text), len(text))]:
        piece = text[start:end]
        if piece.strip():
            yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
        start = after
