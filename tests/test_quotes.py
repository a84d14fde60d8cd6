"""Quotes in passages: where they stand, however a page sets them, and which passages hold them."""

import pytest

from rag.corpus.documents import Passage
from rag.lab.quotes import Evidence, Place, Text


def passages(*texts: str, source: str = "a.pdf") -> list[Passage]:
    """One after another, with one character between them."""
    found, at = [], 0
    for text in texts:
        found.append(Passage(f"a:{at}", source, None, None, (), at, at + len(text), text, "en"))
        at += len(text) + 1
    return found


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("A tide of 4.2 metres.", "tide of 4.2 metres"),
        ("A tide\nof 4.2\n  metres.", "tide of 4.2 metres"),
        ("per kilowatt-\nhour", "kilowatt-hour"),
        ("per kilowatthour", "kilowatt-hour"),
        ("the \u201cold\u201d harbour\u2019s wall", 'the "old" harbour\'s wall'),
        ("- **Token**: a token is `text`.", "Token: a token is text"),
        ("about −0.105", "about -0.105"),
        ("ＢＭ２５ is old", "bm25"),
        ("共用的文件資料夾由 RAG_DOCS 指定。", "文件資料夾由RAG_DOCS指定"),
    ],
)
def test_a_quote_is_found_however_it_is_set(text: str, quote: str) -> None:
    (place,) = Text(passages(text)).locate(quote)
    ((start, end),) = place.spans
    assert place.source == "a.pdf"
    assert text[start:end].strip('"“”`*') == text[start:end], "neither more nor less than the quote"
    assert len(text[start:end]) >= len(quote) - 2


@pytest.mark.parametrize("quote", ["a tide of 4.3 metres", "", " - ", "metres of tide"])
def test_what_does_not_stand_there_is_not_found(quote: str) -> None:
    assert Text(passages("A tide of 4.2 metres.")).locate(quote) == ()
    assert Text([]).locate(quote) == ()


def test_a_quote_over_an_edge_is_held_by_both_passages_together_only() -> None:
    first, second, third = passages("The tide rises", "4.2 metres.", "It turns.")
    (place,) = Text([third, first, second]).locate("tide rises 4.2 metres")
    assert place.spans == ((4, 14), (15, 25))
    assert [place.touches(passage) for passage in (first, second, third)] == [True, True, False]
    assert place.held_by([second, third, first])
    assert not place.held_by([first, third])


def test_neighbours_that_were_joined_hold_what_their_parts_did() -> None:
    first, second = passages("The tide rises", "4.2 metres.")
    (place,) = Text([first, second]).locate("rises 4.2 metres")
    joined = Passage("a:0", "a.pdf", None, None, (), 0, second.end, "The tide rises\n4.2 metres.", "en")
    assert place.held_by([joined])


def test_the_same_position_of_another_document_holds_nothing() -> None:
    (place,) = Text(passages("The tide.")).locate("tide")
    (other,) = passages("The tide.", source="b.pdf")
    assert not place.touches(other)
    assert not place.held_by([other])


def test_evidence_may_be_read_in_any_of_its_places() -> None:
    first, second = passages("It is 4.2 m.", "Again 4.2 m.")
    evidence = Evidence(Text([first, second]).locate("4.2 m"))
    assert evidence.places == (Place("a.pdf", ((6, 11),)), Place("a.pdf", ((19, 24),)))
    assert evidence.held_by([second])
    assert evidence.touches(first)
    assert not evidence.held_by([])
