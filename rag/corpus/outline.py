"""Where a text's parts begin and end: headings, tables, and how its lines hang together.

Knows the headings of Markdown (with Setext and HTML ones), reStructuredText and Org, and the long tables of Markdown.
Offsets only: it changes no text, knows no files, and cuts nothing to a size.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Form = Literal["prose", "lines"]
HEADER_CHARS = 200
"""Column names in a heading, longest. A row is searched and shown together with it."""
LONG_TABLE_CHARS = 2000
"""From here on a table's later rows are out of sight of its header, so the header becomes their heading."""


@dataclass(frozen=True)
class Section:
    """A stretch of text under one heading, on one page; the heading's own line is left out."""

    start: int
    end: int
    heading: tuple[str, ...] = ()
    """Outermost first."""
    page: int | None = None
    form: Form = "prose"
    """In prose a line break may only be where the line was full; in lines each stands for itself (code, rows, logs)."""


@dataclass(frozen=True)
class _Heading:
    start: int
    end: int
    title: tuple[int, int]
    """Start and end of the words inside the markup."""
    level: int


# Alternatives in one expression, so that what looks like a heading inside a code block, a comment or the front matter
# is passed over with it.
_MARKDOWN = re.compile(
    r"""
    \A---[ \t]*\n(?:[^\n]*\n){0,200}?(?:---|\.\.\.)[ \t]*$
    | ^[ ]{0,3}(?P<ticks>`{3,}|~{3,}).*?(?:^[ ]{0,3}(?P=ticks)[`~]*[ \t]*$|\Z)
    | <!--.*?-->
    | ^[ ]{0,3}(?P<atx>\#{1,6})[ \t]+(?P<atx_title>[^\n]*?)(?:[ \t]+\#+)?[ \t]*$
    | (?:\A|(?<=\n\n)|(?<=\A\n))[ ]{0,3}(?![-*+>|#]|\d+[.)][ ])
      (?P<setext_title>[^\s|][^\n|]*)\n[ ]{0,3}(?P<rule>={2,}|-{2,})[ \t]*$
    | <h(?P<html>[1-6])\b[^<>]{0,200}>(?P<html_title>.{0,500}?)</h(?P=html)>
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
_RST = re.compile(
    r"^(?:(?P<over>([=\-~^\"'`#*+.:_])\2{2,})[ \t]*\n[ \t]*)?"
    r"(?P<title>\S[^\n]*)\n(?P<rule>([=\-~^\"'`#*+.:_])\5{2,})[ \t]*$",
    re.MULTILINE,
)
_ORG = re.compile(r"^(?P<stars>\*+)[ \t]+(?:(?:TODO|DONE)[ \t]+)?(?P<title>[^\n]*?)(?:[ \t]+:[\w@#%:]+:)?[ \t]*$", re.M)
_TABLE = re.compile(
    r"^[ \t]*(?P<header>[^\n]*\|[^\n]*)\n[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[-: \t]*)*\n"
    r"(?P<rows>(?:[^\n]*\|[^\n]*(?:\n|\Z))+)",
    re.MULTILINE,
)
# Marks around words, not words: emphasis, code ticks, tags, a link's target, an anchor's name.
_MARKUP = re.compile(
    r"\*\*|__(?=\w)|(?<=\w)__|`|<[^<>]{0,200}>|!?\[([^\[\]]*)\]\([^()\s]*\)|[ \t]*\{#[^{}\s]*\}[ \t]*$"
)


def markdown(text: str, start: int = 0, end: int | None = None, page: int | None = None) -> Iterator[Section]:
    """The sections of a stretch of Markdown in order; the rows of a long table make one of their own."""
    part = text[start:end]
    headings = []
    for match in _MARKDOWN.finditer(part):
        if match["atx"]:
            headings.append(_Heading(*match.span(), match.span("atx_title"), len(match["atx"])))
        elif match["rule"]:
            headings.append(_Heading(*match.span(), match.span("setext_title"), 1 if match["rule"][0] == "=" else 2))
        elif match["html"]:
            headings.append(_Heading(*match.span(), match.span("html_title"), int(match["html"])))
    for section in _nested(part, headings, page):
        for piece in _tables_apart(part, section):
            yield replace(piece, start=start + piece.start, end=start + piece.end)


def rst(text: str) -> Iterator[Section]:
    """The sections of reStructuredText. A rule's character means the level at which the file first used it."""
    styles: list[tuple[str, bool]] = []
    headings = []
    for match in _RST.finditer(text):
        # Docutils wants the rule as long as the title; shorter ones are transitions and drawings.
        if len(match["rule"]) < len(match["title"].rstrip()) or not re.search(r"\w", match["title"]):
            continue
        style = (match["rule"][0], match["over"] is not None)
        if style not in styles:
            styles.append(style)
        headings.append(_Heading(*match.span(), match.span("title"), styles.index(style) + 1))
    return _nested(text, headings, None)


def org(text: str) -> Iterator[Section]:
    headings = [_Heading(*m.span(), m.span("title"), len(m["stars"])) for m in _ORG.finditer(text) if m["title"]]
    return _nested(text, headings, None)


def header(cells: Iterable[str]) -> str:
    """A table's column names as one heading, not longer than HEADER_CHARS."""
    names = " | ".join(cell for cell in cells if cell)
    return names if len(names) <= HEADER_CHARS else names[: HEADER_CHARS - 1].rstrip(" |") + "…"


def _nested(text: str, headings: Sequence[_Heading], page: int | None) -> Iterator[Section]:
    path: list[tuple[int, str]] = []
    start = 0
    for number, heading in enumerate(headings):
        yield Section(start, heading.start, tuple(title for _, title in path), page)
        path = [entry for entry in path if entry[0] < heading.level]
        start = heading.end
        following = headings[number + 1] if number + 1 < len(headings) else None
        below = text[heading.end : following.start if following else None]
        if not below.strip() and (following is None or following.level <= heading.level):
            # Neither text nor a deeper heading would carry its words, so they are the text.
            yield Section(*heading.title, tuple(title for _, title in path), page)
        title = " ".join(_MARKUP.sub(r"\1", text[slice(*heading.title)]).split())
        if title:
            path.append((heading.level, title))
    yield Section(start, len(text), tuple(title for _, title in path), page)


def _tables_apart(text: str, section: Section) -> Iterator[Section]:
    if "|" not in text[section.start : section.end] or section.end - section.start < LONG_TABLE_CHARS:
        yield section
        return
    start = section.start
    for match in _TABLE.finditer(text, section.start, section.end):
        names = header(cell.strip() for cell in match["header"].strip().strip("|").split("|"))
        if len(match["rows"]) < LONG_TABLE_CHARS or not names:
            continue
        # A header that had to be shortened stays in the text as well, so that no column is lost.
        rows = match.start("header") if names.endswith("…") else match.start("rows")
        yield replace(section, start=start, end=min(rows, match.start()))
        yield replace(section, start=rows, end=match.end(), heading=(*section.heading, names), form="lines")
        start = match.end()
    yield replace(section, start=start)
