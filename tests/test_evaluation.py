"""Data sets read, rankings scored, and what retrieval must reach on real questions."""

import json
import math
from pathlib import Path

import pytest

from rag.cli import main
from rag.corpus.documents import Passage
from rag.errors import UserError
from rag.lab import answers, dataset, evaluation
from rag.lab.answers import Outcome
from rag.lab.dataset import Case
from rag.lab.quotes import Evidence, Text
from rag.lab.recording import Recordings
from rag.settings import Settings

from .own_questions import QUESTIONS as MINE
from .own_questions import documents, written
from .scripted import ScriptedLegs

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the question-answering data is not beside the project")

SQUAD = {
    "data": [
        {
            "title": "Animals",
            "paragraphs": [
                {
                    "context": "Zebras drink at the Mara river.",
                    "qas": [
                        {"id": "1", "question": "Where do zebras drink?", "answers": [{"text": "the Mara river"}]},
                        {"id": "2", "question": "Where do zebras sleep?", "answers": [], "is_impossible": True},
                    ],
                },
                {
                    "context": "Lions sleep in the shade.",
                    "qas": [{"id": "3", "question": "Where do lions sleep?", "answers": [{"text": "in the shade"}]}],
                },
            ],
        }
    ]
}


def beir(folder: Path, passages: int = 3) -> Path:
    (folder / "qrels").mkdir(parents=True)
    lines = [{"_id": f"d{n}", "title": f"Number {n}", "text": f"the word{n} of tea"} for n in range(passages)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    queries = [{"_id": "q1", "text": "word1"}, {"_id": "q2", "text": "tea"}, {"_id": "q3", "text": "not judged"}]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td0\t2\nq2\td2\t1\nq2\td1\t0\n"
    )
    return folder


def test_every_paragraph_of_squad_is_a_passage_and_its_questions_ask_for_it(tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD))
    data = dataset.load(tmp_path / "squad.json")
    assert [p.text for p in dataset.passages(data)] == ["Zebras drink at the Mara river.", "Lions sleep in the shade."]
    assert [(case.relevant, case.answerable) for case in data.cases] == [
        (frozenset({"Animals:0"}), True),
        (frozenset({"Animals:0"}), False),
        (frozenset({"Animals:1"}), True),
    ]


def test_a_beir_folder_is_read_with_its_judgements(tmp_path: Path) -> None:
    data = dataset.load(beir(tmp_path / "b"))
    assert {case.id: case.relevant for case in data.cases} == {"q1": {"d1"}, "q2": {"d0", "d2"}}
    assert [p.text for p in dataset.passages(data)][1] == "Number 1\nthe word1 of tea"


@pytest.mark.parametrize("content", [None, "not json", "{}", '{"data": []}', '{"data": [{"paragraphs": 3}]}'])
def test_what_is_no_data_set_says_what_one_is(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"SQuAD"):
        dataset.load(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"BEIR folder has corpus\.jsonl"):
        dataset.load(tmp_path / "empty")


def test_rankings_are_scored_as_the_textbook_does() -> None:
    found = evaluation.scores([["a", "b", "c"], ["x", "a", "y", "b"], ["x"]], [{"a"}, {"a", "b"}, {"a"}])
    assert found["recall@1"] == pytest.approx((1 + 0 + 0) / 3)
    assert found["recall@3"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["recall@5"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    second = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert found["ndcg@10"] == pytest.approx((1 + second + 0) / 3)


def test_a_report_tells_what_was_measured_on_what(tmp_path: Path, settings: Settings) -> None:
    small = evaluation.retrieval(dataset.load(beir(tmp_path / "small")), settings).to_dict()
    assert small["metrics"]["recall@1"] == pytest.approx(0.75)
    assert small["engine"] == "rank-bm25"
    assert small["passages"] == 3
    assert set(small["plain_bm25"]) < set(small["metrics"])
    large = evaluation.retrieval(dataset.load(beir(tmp_path / "large", 600)), settings).to_dict()
    assert large["engine"] == "tantivy"
    assert large["metrics"]["recall@1"] == pytest.approx(0.75)
    assert large["metrics"]["build_vs_bare"] > 0


# Evidence


def passage(name: str) -> Passage:
    text = f"{name} one. {name} two."
    return Passage(f"{name}:0", name, None, None, (), 0, len(text), text, "en")


def case(*quotes: str) -> Case:
    """It rests on passages by name; "a|b" can be read in either."""
    evidence = tuple(
        Evidence(tuple(place for name in quote.split("|") for place in Text([passage(name)]).locate(name)))
        for quote in quotes
    )
    return Case("?", "?", frozenset(), evidence=evidence)


def ranking(names: str) -> list[Passage]:
    return [passage(name) for name in names]


@pytest.mark.parametrize(
    ("quotes", "found", "precision", "recall"),
    [
        (["a"], "axx", 1, 1),
        (["a"], "xax", 1 / 2, 1),
        (["a"], "xxa", 1 / 3, 1),
        (["a"], "xxxa", 0, 0),
        (["a"], "", 0, 0),
        (["a", "b"], "axb", (1 + 2 / 3) / 2, 1),
        (["a", "b"], "xbx", 1 / 2, 1 / 2),
        (["a", "b", "c", "d"], "abcd", 1, 3 / 4),
        (["a|b"], "xab", (1 / 2 + 2 / 3) / 2, 1),
        (["a|b", "c"], "bxx", 1, 1 / 2),
    ],
)
def test_context_precision_and_recall_are_those_of_the_field(
    quotes: list[str], found: str, precision: float, recall: float
) -> None:
    figures = evaluation.context([case(*quotes)], [ranking(found)], [3])
    assert figures == {"context_precision@3": pytest.approx(precision), "context_recall@3": pytest.approx(recall)}


def test_they_are_told_for_what_each_model_reads_and_for_what_a_search_keeps(settings: Settings) -> None:
    assert evaluation.depths(settings) == [1, 3, 6]
    figures = evaluation.context([case("a"), case("b")], [ranking("xa"), ranking("b")], [1, 3])
    assert figures["context_recall@1"] == 0.5
    assert figures["context_recall@3"] == 1.0
    assert figures["context_precision@3"] == 0.75


def test_questions_with_nothing_to_find_do_not_count(settings: Settings) -> None:
    nothing = Case("none", "?", frozenset(), answerable=False, kind="unanswerable")
    assert evaluation.context([nothing, case("a")], [ranking("x"), ranking("a")], [1])["context_recall@1"] == 1.0
    assert evaluation.context([nothing], [ranking("x")], [1]) == {}
    assert evaluation.context_of([Outcome(nothing, None, ())], settings) == {}


def test_a_set_about_a_folder_is_scored_by_what_turns_find_in_it(tmp_path: Path, settings: Settings) -> None:
    documents(tmp_path)
    found = evaluation.retrieval(dataset.load(written(tmp_path), settings), settings).to_dict()
    assert (found["dataset"], found["questions"], found["counted"], found["passages"]) == ("mine, version 3", 5, 4, 3)
    figures = found["metrics"]
    assert figures["context_recall@1"] == pytest.approx((1 + 1 + 0.5 + 1) / 4), "a comparison rests on two passages"
    assert figures["context_recall@3"] == figures["context_precision@1"] == 1.0, "and the follow-up finds its own"
    assert figures["query_ms_p50"] > 0
    assert "recall@1" not in figures
    assert found["plain_bm25"]["context_recall@1"] < figures["context_recall@1"], (
        "plain BM25 does not know what the follow-up is about"
    )
    assert {what: {part: of["questions"] for part, of in parts.items()} for what, parts in found["parts"].items()} == {
        "kind": {"number": 1, "follow-up": 1, "comparison": 1, "lookup": 1},
        "language": {"en": 4},
    }
    assert found["parts"]["kind"]["comparison"]["context_recall@1"] == 0.5


def test_a_set_without_evidence_cannot_be_searched_for(tmp_path: Path, settings: Settings) -> None:
    documents(tmp_path)
    bare = [{name: value for name, value in question.items() if name != "evidence"} for question in MINE]
    with pytest.raises(UserError, match="mine, version 3 tells no evidence"):
        evaluation.retrieval(dataset.load(written(tmp_path, bare), settings), settings)


def test_without_a_data_set_the_shipped_questions_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("RAG_DOCS", str(tmp_path))
    assert main(["evaluate", "retrieval", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["dataset"].startswith("docs_corpus, version ")
    assert found["counted"] < found["questions"]
    # Far below what was measured: a set or a search that broke would show.
    assert found["metrics"]["context_recall@6"] > 0.8
    assert set(found["parts"]["language"]) == {"en", "zh"}
    assert main(["evaluate", "retrieval", "--docs", str(tmp_path)]) == 2, "they ask of other documents"
    assert "Our own questions are about the shipped documents" in capsys.readouterr().err


async def test_turns_tell_what_they_found_and_what_the_model_was_shown_of_it(
    tmp_path: Path, settings: Settings
) -> None:
    documents(tmp_path)
    data = dataset.load(written(tmp_path), settings)
    legs = ScriptedLegs(["4.2 metres.", "Nils Holm.", "At 21:30.", "Six hours.", "Nils Holm.", "I don't know."])
    legs.slm.context_tokens, legs.slm.pid = 4096, None  # type: ignore[attr-defined]
    legs.llm.context_tokens, legs.llm.pid = 4096, None  # type: ignore[attr-defined]
    kept = Recordings(tmp_path / "answers.sqlite")
    async with answers.opened(data, settings) as library:
        asking = answers.ask(
            data.cases,
            "slm",
            library=library,
            legs=legs,
            settings=settings,
            recordings=kept,  # type: ignore[arg-type]
        )
        outcomes = [outcome async for outcome in asking]
    kept.close()
    figures = evaluation.context_of(outcomes, settings)
    assert figures["context_recall@3"] == 1.0
    assert figures["context_recall_read"] == pytest.approx((1 + 1 + 0.5 + 1) / 4), "the small model reads one passage"
    failed = [Outcome(outcome.case, None, ()) for outcome in outcomes]
    assert evaluation.context_of(failed, settings) == {}


@needs_data
@pytest.mark.parametrize(
    ("name", "least"), [("xquad.en", 0.940), ("xquad.zh", 0.905), ("xquad.de", 0.915), ("xquad.ru", 0.915)]
)
def test_questions_of_four_languages_find_their_paragraph_first(name: str, least: float, settings: Settings) -> None:
    report = evaluation.retrieval(dataset.load(DATA / f"{name}.json"), settings)
    assert report.metrics["recall@1"] >= least
    assert report.languages == (name.removeprefix("xquad."),), "no language was told"


@needs_data
def test_retrieval_is_better_than_plain_bm25_on_squad(settings: Settings) -> None:
    report = evaluation.retrieval(dataset.load(DATA / "squad2-calibration.json"), settings)
    assert report.plain is not None
    for name in ("recall@1", "recall@3"):
        assert report.metrics[name] > report.plain[name]
