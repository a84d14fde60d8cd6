"""Headings and tables: what is one, what only looks like one, and that no word falls between them."""

import pytest

from rag.corpus.outline import HEADER_CHARS, Section, markdown, org, rst


def found(text: str, sections: list[Section]) -> dict[str, tuple[str, ...]]:
    """First word of each section that has one, with its headings."""
    parts = [(text[s.start : s.end].split(), s.heading) for s in sections]
    return {words[0]: heading for words, heading in parts if words}


def of(text: str) -> dict[str, tuple[str, ...]]:
    return found(text, list(markdown(text)))


def test_headings_make_a_path() -> None:
    assert of("intro\n# A\none\n## B\ntwo\n# C\nthree\n### D\nfour\n") == {
        "intro": (),
        "one": ("A",),
        "two": ("A", "B"),
        "three": ("C",),
        "four": ("C", "D"),
    }


def test_underlined_and_html_headings_count() -> None:
    assert of("Top\n===\none\n\nNext\n---\ntwo\n\n<h2 align='center'>Third <b>one</b></h2>\nthree\n") == {
        "one": ("Top",),
        "two": ("Top", "Next"),
        "three": ("Top", "Third one"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "```\n# no heading\n```\nx",
        "~~~\n# no\n\n# no\n",
        "<!-- # no\n# no heading -->",
        "---\ntitle: no heading\n---\nx",
        "a paragraph\nof two lines\n---\nx",
        "- item\n---\nx",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "#hashtag and\n#!shebang",
        "    # indented code",
    ],
)
def test_what_only_looks_like_a_heading_is_none(text: str) -> None:
    assert {section.heading for section in markdown(text)} == {()}
    assert sum(s.end - s.start for s in markdown(text)) == len(text)


def test_marks_are_taken_off_a_heading_and_names_kept_whole() -> None:
    text = "# The **bold** `max_tokens` of [C#](http://x/y) ##\nx\n# C#\ny"
    assert of(text) == {"x": ("The bold max_tokens of C#",), "y": ("C#",)}


def test_a_heading_with_nothing_below_it_is_text_unless_a_deeper_one_carries_it() -> None:
    assert of("# A\n## B\none\n## Alone\n# Last") == {"one": ("A", "B"), "Alone": ("A",), "Last": ()}


def test_a_long_table_has_its_column_names_as_heading() -> None:
    rows = "".join(f"| Article {n} | {n} |\n" for n in range(200))
    text = f"# Prices\nbefore\n\n| Name | Price |\n|---|--:|\n{rows}\nafter\n"
    sections = [s for s in markdown(text) if text[s.start : s.end].strip()]
    assert [s.heading for s in sections] == [("Prices",), ("Prices", "Name | Price"), ("Prices",)]
    assert [text[s.start : s.end].strip() for s in sections] == ["before", rows.strip(), "after"]
    assert [s.form for s in sections] == ["prose", "lines", "prose"]


def test_column_names_too_long_for_a_heading_stay_in_the_text() -> None:
    names = [f"the column with the number {n}" for n in range(20)]
    rows = "".join(f"| {' | '.join('x' for _ in names)} |\n" for _ in range(200))
    text = f"| {' | '.join(names)} |\n|{'---|' * 20}\n{rows}"
    section = next(s for s in markdown(text) if s.heading)
    assert len(section.heading[-1]) <= HEADER_CHARS
    assert "number 19" in text[section.start : section.end]


def test_rst_levels_are_what_the_file_uses_first() -> None:
    text = "=====\nTitle\n=====\n\nintro\n\nPart\n====\n\none\n\nSub\n---\n\ntwo\n\nOther\n=====\n\nthree\n\n----\n\nx::\n\n  y\n"
    sections = list(rst(text))
    assert text[sections[-1].start : sections[-1].end].endswith("----\n\nx::\n\n  y\n")
    assert found(text, sections) == {
        "intro": ("Title",),
        "one": ("Title", "Part"),
        "two": ("Title", "Part", "Sub"),
        "three": ("Title", "Other"),
    }


def test_org_stars_are_levels() -> None:
    text = "* A\none\n** TODO B :tag:\ntwo\n* C\nthree\n"
    assert found(text, list(org(text))) == {"one": ("A",), "two": ("A", "B"), "three": ("C",)}


def test_positions_hold_inside_a_longer_text() -> None:
    text = "# not this\n" * 3 + "# A\none"
    sections = list(markdown(text, start=33, page=4))
    assert [(text[s.start : s.end].strip(), s.heading, s.page) for s in sections if s.heading] == [("one", ("A",), 4)]
