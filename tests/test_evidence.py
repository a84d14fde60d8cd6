"""Which of the hits one model reads."""

from itertools import pairwise

from rag.corpus.analysis import terms
from rag.corpus.documents import Document, Passage, read, split
from rag.corpus.index import BM25Index, Hit, SmallEngine
from rag.turn.evidence import Selection, merge, select

from .conftest import CORPUS

TEXT = (
    "The warranty of the bicycle lasts two years.  It covers the frame.\n\nIt does not cover the tyres, which wear out."
    " The battery has a warranty of its own, which lasts one year and ends when the seal is broken."
)


def passages_of(text: str = TEXT, source: str = "bike.txt", chars: int = 100) -> tuple[Document, list[Passage]]:
    document = read(text.encode(), source)
    return document, split(document, chars)


def chosen(hits: list[Hit], asked: dict[str, float], passages: int = 3, budget_tokens: int = 1000) -> Selection:
    return select(hits, asked, passages=passages, budget_tokens=budget_tokens, tokens=lambda p: len(p.text) // 3)


def test_a_merged_passage_has_true_positions_and_the_documents_text() -> None:
    document, parts = passages_of()
    assert len(parts) > 2
    merged = merge([Hit(parts[1], 2.0), Hit(parts[0], 3.0), Hit(parts[2], 1.0)])
    assert len(merged) == 1, "the piece between two others joins them"
    passage = merged[0].passage
    assert passage.text == document.text[passage.start : passage.end]
    assert passage.start == parts[0].start
    assert passage.end == parts[2].end
    assert merged[0].score == 3.0


def test_positions_stay_true_all_over_the_shipped_documents() -> None:
    joined = 0
    for path in sorted(CORPUS.iterdir()):
        document = read(path.read_bytes(), path.name)
        parts = split(document, 250)
        for first, second in pairwise(parts):
            for hit in merge([Hit(second, 1.0), Hit(first, 0.5)]):
                found, text = hit.passage, document.text[hit.passage.start : hit.passage.end]
                # The kind of white space between two pieces is not kept, its length is.
                assert found.text.split() == text.split()
                assert len(found.text) == len(text)
                joined += found not in (first, second)
    assert joined > 20


def test_overlapping_passages_are_joined_without_repeating_anything() -> None:
    document, _ = passages_of()
    one = Passage(f"{document.id}:0", "bike.txt", None, None, (), 0, 60, document.text[:60], "en")
    two = Passage(f"{document.id}:40", "bike.txt", None, None, (), 40, 100, document.text[40:100], "en")
    assert merge([Hit(two, 1.0), Hit(one, 2.0)])[0].passage.text == document.text[:100]


def test_passages_of_other_headings_pages_and_documents_stay_apart() -> None:
    _, parts = passages_of("# One\n\nAbout cats.\n\n# Two\n\nAbout dogs.", "pets.md")
    assert len(merge([Hit(part, 1.0) for part in parts])) == 2
    _, here = passages_of(source="here.txt")
    _, there = passages_of(source="there.txt")
    assert len(merge([Hit(here[0], 1.0), Hit(there[1], 1.0)])) == 2


def test_what_says_the_same_twice_is_read_once() -> None:
    _, (first, *_) = passages_of(chars=1000)
    _, (copy, *_) = passages_of(TEXT.replace("bicycle", "bike"), "copy.txt", 1000)
    _, (other, *_) = passages_of("Tyres cost 40 euros each in the shop.", "shop.txt")
    selection = chosen([Hit(first, 3.0), Hit(copy, 2.9), Hit(other, 2.8)], {"warranti": 1.0})
    assert [hit.passage.source for hit in selection.hits] == ["bike.txt", "shop.txt"]
    assert selection.left_out == {"duplicate": 1}


def test_rows_that_differ_in_a_number_or_in_a_word_of_the_question_are_not_the_same() -> None:
    rows = [
        Passage(f"{n}:0", "prices.csv", None, None, (), 0, 90, f"The model {name} with a wooden frame and a warranty of two"
                f" years costs {price} euros without the saddle, which is sold apart.", "en")
        for n, (name, price) in enumerate([("Atlas", 300), ("Atlas", 400), ("Borea", 400)])
    ]  # fmt: skip
    assert chosen([Hit(row, 1.0) for row in rows[:2]], {"cost": 1.0}).duplicates == 0
    assert chosen([Hit(row, 1.0) for row in rows[1:]], {"borea": 1.0, "atlas": 1.0}).duplicates == 0
    assert chosen([Hit(row, 1.0) for row in rows[1:]], {"cost": 1.0}).duplicates == 1


def test_a_weak_passage_is_read_only_for_words_that_the_others_lack() -> None:
    _, (best, *_) = passages_of("The warranty lasts two years.", "a.txt")
    _, (weak, *_) = passages_of("A warranty is a promise.", "b.txt")
    _, (fresh, *_) = passages_of("Batteries are replaced in May.", "c.txt")
    asked = {"warranti": 2.0, "batteri": 2.0}
    selection = chosen([Hit(best, 5.0), Hit(weak, 1.0), Hit(fresh, 1.0)], asked)
    assert [hit.passage.source for hit in selection.hits] == ["a.txt", "c.txt"]
    assert selection.left_out == {"adds nothing": 1}


def test_the_best_is_always_read_and_the_leg_sets_the_limits() -> None:
    hits = [Hit(passages_of(f"Number {n} is about bicycle {n}.", f"{n}.txt")[1][0], 1.0) for n in range(5)]
    assert len(chosen(hits, {}, passages=2).hits) == 2
    selection = chosen(hits, {}, budget_tokens=0)
    assert [hit.passage.source for hit in selection.hits] == ["0.txt"]
    assert selection.left_out == {"no room": 4}
    assert chosen([], {}).hits == ()


async def test_fewer_passages_hold_the_same_answer() -> None:
    passages = [p for path in sorted(CORPUS.glob("*.md")) for p in split(read(path.read_bytes(), path.name), 700)]
    index = BM25Index([SmallEngine(passages)])
    sent = 0
    for question, answer in (
        ("What is the default value of k1 in Lucene?", "1.2"),
        ("Who developed BM25?", "Stephen Robertson"),
        ("What does a threshold of 1 do?", "escalates nearly every turn"),
        ("Under which licence is ONNX Runtime published?", "MIT"),
    ):
        hits = await index.search(question, 6)
        asked = {term: index.idf(term) for term in terms(question)}
        selection = chosen(hits, asked, budget_tokens=1200)
        sent += len(selection.hits)
        assert any(answer in hit.passage.text for hit in selection.hits), question
    assert sent < 4 * 3
