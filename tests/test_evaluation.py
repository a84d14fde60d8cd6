"""Data sets read, rankings scored, and what retrieval must reach on real questions."""

import json
import math
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.lab import dataset, evaluation
from rag.settings import Settings

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
