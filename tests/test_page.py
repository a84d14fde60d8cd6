import json
import os
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.lab import charts, page

HOSTILE = "</script><script>alert(1)</script><!-- & \" ' <b>"


class _Read(HTMLParser):
    """What a browser would make of a page: its elements, its text, its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"]:
            self.scripts[-1] += data
        else:
            self.words += data


def _page(**more: str) -> str:
    chart = charts.bars({"small": {HOSTILE: 1.0}, "large": {HOSTILE: 2.5}}, unit="seconds")
    parts = [
        page.figure(chart, HOSTILE),
        page.table(["what", HOSTILE], [[HOSTILE, None]], caption=HOSTILE),
        page.side_by_side([(HOSTILE, page.quoted(HOSTILE, [(2, 8)]))]),
        page.folded(HOSTILE, page.paragraph(HOSTILE)),
    ]
    return page.page(HOSTILE, HOSTILE, [page.Section(HOSTILE, parts)], {"said": HOSTILE})


def test_what_a_model_wrote_is_shown_and_never_run() -> None:
    read = _Read(_page())
    data, own = read.scripts
    assert json.loads(data) == {"said": HOSTILE}
    assert "alert" not in own
    assert read.words.count(HOSTILE) >= 8
    assert "b" not in read.tags


def test_a_page_loads_nothing() -> None:
    text = _page()
    assert not re.search(r"\b(?:src|href)\s*=\s*[\"']?(?!#)[a-z/]", text)
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_marks_stand_where_they_were_asked_for() -> None:
    assert page.quoted("ten & two", [(0, 3), (6, 9)]) == (
        "<blockquote><mark>ten</mark> &amp; <mark>two</mark></blockquote>"
    )


def test_numbers_are_set_as_numbers_and_what_is_not_known_as_a_dash() -> None:
    text = page.table(["model", "s"], [["a", 1.5], ["b", None]])
    assert "<td>a</td><td class=number>1.5</td>" in text
    assert "<td class=number>–</td>" in text


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    there = tmp_path / "report.html"
    page.write("first", there)
    page.write("second", there)
    assert there.read_text() == "second"
    with pytest.raises(UserError, match=r"missing/report\.html cannot be written: No such file .*--page"):
        page.write("third", tmp_path / "missing" / "report.html")
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_that_a_page_cannot_be_written_is_said_beforehand(tmp_path: Path) -> None:
    page.check(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot be written: It is a folder"):
        page.check(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        page.check(tmp_path / "missing" / "report.html")


SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    "svg",
    [
        charts.bars({"small": {"first token": 120, "total": 800}, "large": {"total": 2800}}, unit="ms"),
        charts.lines({"small": [(64, 200), (4096, 150)], "large": [(64, 90)]}, x="tokens", y="per s", log_x=True),
        charts.lines({"one": [(1, 0.0), (2, 5.0)]}, x="x", y="y", marks=[(1.5, 2.0, "they meet")]),
    ],
    ids=["bars", "lines", "marks"],
)
def test_a_chart_takes_its_colours_from_the_page_and_keeps_its_letters(svg: str) -> None:
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert "var(--one,#" in svg
    assert not re.search(r":#|=\"#", svg), "a colour of its own would not be dark where the page is"
    assert any(element.text for element in root.iter(f"{SVG}text"))


def test_a_chart_names_its_series_values_and_axes() -> None:
    words = _Read(charts.bars({"small": {"total": 800}, "large": {"total": 2800}}, unit="milliseconds")).words
    for said in ("small", "large", "800", "2,800", "milliseconds"):
        assert said in words
    words = _Read(charts.lines({"a": [(1, 1.0)]}, x="turns a day", y="EUR", marks=[(1, 1.0, "even")])).words
    for said in ("turns a day", "EUR", "even"):
        assert said in words


def _bars(svg: str) -> dict[str, float]:
    """What each bar says of itself, and its length."""
    found = {}
    for rect in ET.fromstring(svg).iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None and title.text:
            found[title.text] = float(rect.attrib["width"])
    return found


def test_a_bar_is_as_long_as_its_value() -> None:
    drawn = _bars(charts.bars({"small": {"total": 800, "first": 100}, "large": {"total": 2400}}, unit="ms"))
    assert drawn["large, total: 2,400 ms"] == pytest.approx(3 * drawn["small, total: 800 ms"], abs=0.2)
    assert drawn["small, total: 800 ms"] == pytest.approx(8 * drawn["small, first: 100 ms"], abs=0.5)
    decades = _bars(charts.bars({"x": {"a": 10, "b": 100, "c": 1000, "d": 1}}, unit="s", log=True))
    assert decades["x, c: 1,000 s"] == pytest.approx(3 * decades["x, a: 10 s"], abs=0.2)
    assert decades["x, d: 1 s"] == 0


def test_points_stand_where_their_figures_are() -> None:
    svg = charts.lines({"a": [(64, 10.0), (256, 20.0), (1024, 40.0)]}, x="tokens", y="s", log_x=True)
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in ET.fromstring(svg).iter(f"{SVG}circle")]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0], abs=0.2)
    assert dots[1][1] - dots[2][1] == pytest.approx(2 * (dots[0][1] - dots[1][1]), abs=0.2)


def test_what_cannot_stand_on_an_axis_is_left_out() -> None:
    svg = charts.lines(
        {"a": [(0, 1.0), (1, 0.0), (10, 5.0)]}, x="x", y="y", log_x=True, log_y=True, marks=[(0, 1, "no")]
    )
    assert len(list(ET.fromstring(svg).iter(f"{SVG}circle"))) == 1
    assert "no<" not in svg
    assert "0 s" in charts.bars({"x": {"nothing": 0, "some": 2}}, unit="s", log=True)
    for empty in (charts.bars({}, unit="s"), charts.lines({"a": []}, x="x", y="y"), charts.bars({"a": {}}, unit="s")):
        assert ET.fromstring(empty).tag == f"{SVG}svg"


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0, 2800, False, [0, 1000, 2000]),
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 7, False, [-2, 0, 2, 4, 6]),
        (1, 20000, True, [1, 10, 100, 1000, 10000]),
        (0.1, 0.6, True, [0.1, 0.2, 0.5]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, log: bool, ticks: list[float]) -> None:
    assert charts._ticks(low, high, log=log) == pytest.approx(ticks)


def test_a_page_is_as_private_as_the_user_wants_files_to_be(tmp_path: Path) -> None:
    there = tmp_path / "report.html"
    before = os.umask(0o077)
    try:
        page.write("new", there)
        assert there.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    page.write("again", there)
    assert there.stat().st_mode & 0o777 == 0o600, "it takes the place of a private one"
