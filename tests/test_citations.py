"""Every marker resolves."""

import pytest

from rag.corpus.documents import Passage
from rag.corpus.index import BM25Index, Hit, SmallEngine
from rag.turn.citations import Marks, resolve

TEXTS = ["Zebras drink at dawn. Lions watch them.", "Acacia trees grow slowly. Their wood is hard."]
PASSAGES = [Passage(str(i), f"{i}.md", None, None, (), 100, 100 + len(t), t, "en") for i, t in enumerate(TEXTS)]
HITS = [Hit(passage, 1.0) for passage in PASSAGES]
IDF = BM25Index([SmallEngine(PASSAGES)]).idf


def test_markers_resolve_to_the_sentence_that_supports_them() -> None:
    cited = resolve("Acacia wood is hard [2]. Lions watch zebras [1].", HITS, IDF)
    assert cited.text == "Acacia wood is hard [2]. Lions watch zebras [1]."
    assert [(c.marker, c.quote) for c in cited.citations] == [(1, "Lions watch them."), (2, "Their wood is hard.")]
    for citation in cited.citations:
        offset = citation.passage.start
        assert citation.passage.text[citation.start - offset : citation.end - offset] == citation.quote


def test_invented_markers_are_removed_and_counted() -> None:
    cited = resolve("Zebras drink at dawn [1, 9] [0].", HITS, IDF)
    assert (cited.text, cited.invented) == ("Zebras drink at dawn [1].", 2)


def test_an_answer_without_markers_cites_what_supports_it_best() -> None:
    cited = resolve("Their wood is very hard.", HITS, IDF)
    assert cited.text == "Their wood is very hard. [2]"
    assert cited.citations[0].passage.source == "1.md"


def test_an_answer_that_nothing_supports_cites_nothing() -> None:
    cited = resolve("Parliament voted yesterday.", HITS, IDF)
    assert (cited.text, cited.citations) == ("Parliament voted yesterday.", ())
    assert resolve("Anything [1]", [], IDF).citations == ()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    "text",
    [
        "Zebras drink [1]. Lions [2][7] sleep [1, 2,9 ].",
        "[1] first, and an open [ at the end [",
        "a list [1, 2\n, 3] over lines  [2] and two blanks",
        "no number [a], [1a], [] and [1",
        "trailing blanks [1]   ",
        "trailing lines\n\n",
        " [",
    ],
)
def test_a_text_that_is_written_in_pieces_has_the_marks_of_the_whole(text: str, size: int) -> None:
    cited = resolve(text, HITS, IDF)
    whole, added = cited.text, [f" [{c.marker}]" for c in cited.citations]
    marks = Marks(len(HITS))
    shown = [marks.add(text[start : start + size]) for start in range(0, len(text), size)]
    for number in range(len(shown)):
        assert whole.startswith("".join(shown[: number + 1]).strip()), "nothing that was shown is taken back"
    together = ("".join(shown) + marks.rest()).strip()
    assert whole in (together, together + "".join(added)), "but for the one that is added where none was written"
