"""A data set's questions, each put to a whole turn: what counts as right, which are asked, and what becomes of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag.errors import ModelUnreachable, UserError
from rag.lab import answers, dataset
from rag.lab.answers import Outcome, failed_too_often, holds_gold, normalised, sample
from rag.lab.dataset import Case, Dataset
from rag.lab.recording import Call, Recordings
from rag.settings import Mode, Settings

from .own_questions import documents, written
from .scripted import Reply, ScriptedLegs

SQUAD = {
    "data": [
        {
            "title": "Zebras",
            "paragraphs": [
                {
                    "context": "Zebras drink at the Mara river every morning. Anna Berg counted 1,204 of them.",
                    "qas": [
                        {"id": "drink", "question": "Where do zebras drink?", "answers": [{"text": "the Mara river"}]},
                        {"id": "count", "question": "Who counted the zebras?", "answers": [{"text": "Anna Berg"}]},
                        {
                            "id": "sleep",
                            "question": "Why do zebras drink at the Nile river?",
                            "answers": [],
                            "is_impossible": True,
                        },
                    ],
                }
            ],
        },
        {
            "title": "Lions",
            "paragraphs": [
                {
                    "context": "Lions sleep under acacia trees.",
                    "qas": [
                        {"id": "lions", "question": "Where do lions sleep?", "answers": [{"text": "acacia trees"}]}
                    ],
                }
            ],
        },
    ]
}


@pytest.fixture
def squad(tmp_path: Path) -> Dataset:
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD))
    return dataset.load(tmp_path / "squad.json")


@pytest.fixture
def mine(tmp_path: Path, settings: Settings) -> Dataset:
    """Questions about a folder; the second one follows another."""
    documents(tmp_path)
    return dataset.load(written(tmp_path), settings)


@pytest.fixture
def recordings(tmp_path: Path) -> Iterator[Recordings]:
    kept = Recordings(tmp_path / "answers.sqlite")
    yield kept
    kept.close()


def scripted(slm: list[Reply | str], llm: list[Reply | str] | None = None) -> ScriptedLegs:
    """Legs that can be recorded."""
    legs = ScriptedLegs(slm, llm or [])
    for leg in (legs.slm, legs.llm):
        leg.context_tokens, leg.pid = 4096, None  # type: ignore[attr-defined]
    return legs


async def outcomes_of(
    squad: Dataset, mode: Mode, legs: ScriptedLegs, settings: Settings, recordings: Recordings
) -> dict[str, Outcome]:
    async with answers.opened(squad, settings) as library:
        asking = answers.ask(
            squad.cases,
            mode,
            library=library,
            legs=legs,
            settings=settings,
            recordings=recordings,  # type: ignore[arg-type]
        )
        return {outcome.case.id: outcome async for outcome in asking}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Mara River!", "mara river"),
        ("  an   “apple”, a day ", "“apple” day"),
        ("1,204", "1204"),
        ("theatre", "theatre"),
        ("", ""),
        ("The", ""),
        ("馬拉河。", "馬拉河。"),
    ],
)
def test_texts_are_normalised_as_squad_does(text: str, plain: str) -> None:
    assert normalised(text) == plain


@pytest.mark.parametrize(
    ("text", "golds", "holds"),
    [
        ("Zebras drink at the Mara River.", ("Mara river",), True),
        ("They drink at a river.", ("the Mara river",), False),
        ("It's in the U.S.A.", ("USA",), True),
        ("1204 zebras", ("1,204",), True),
        ("Paris", ("London", "Paris"), True),
        ("Anything", (), False),
        ("Anything", ("the", "..."), False),
        ("", ("Paris",), False),
        ("斑馬在馬拉河喝水", ("馬拉河",), True),
        ("It was in 1952.", ("5",), False),
        ("They often drink.", ("ten",), False),
    ],
)
def test_an_answer_is_right_that_holds_a_gold_one(text: str, golds: tuple[str, ...], holds: bool) -> None:
    assert holds_gold(text, golds) is holds


def many(count: int = 100, answerable: int = 60) -> Dataset:
    cases = [
        Case(str(n), f"question {n}?", frozenset({f"a:{n}"}), ("x",) if n < answerable else (), n < answerable)
        for n in range(count)
    ]
    return Dataset("many", tuple(cases), lambda: iter(()))


@pytest.mark.parametrize("share", [None, 0.5])
def test_a_sample_is_the_same_each_time_and_a_larger_one_holds_the_smaller(share: float | None) -> None:
    small, large = (sample(many(), limit, answerable=share) for limit in (20, 50))
    assert small == sample(many(), 20, answerable=share)
    assert len(small) == 20
    assert set(small) < set(large)
    assert [int(case.id) for case in large] == sorted(int(case.id) for case in large), "in the set's order"
    assert {case.id for case in small} != {str(number) for number in range(20)}, "not only the first document"


@pytest.mark.parametrize(("share", "yes"), [(0.5, 10), (1.0, 20), (0.0, 0), (0.33, 7)])
def test_a_sample_has_the_share_of_answerable_questions_that_was_asked_for(share: float, yes: int) -> None:
    found = sample(many(), 20, answerable=share)
    assert (len(found), sum(case.answerable for case in found)) == (20, yes)


def test_without_a_limit_all_are_asked() -> None:
    assert sample(many(), None) == sample(many(), 1000) == many().cases


def test_questions_whose_answer_is_not_told_are_not_asked() -> None:
    untold = Case("untold", "?", frozenset({"a:0"}))
    data = Dataset("some", (untold, *many().cases), lambda: iter(()))
    assert untold not in sample(data, None)
    with pytest.raises(UserError, match="tells no answers"):
        sample(Dataset("beir", (untold,) * 3, lambda: iter(())), 10)


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_leaves_nothing_is_told(limit: int) -> None:
    with pytest.raises(UserError, match=f"limit of {limit}"):
        sample(many(), limit)


async def test_the_library_holds_a_document_for_each_article(squad: Dataset, settings: Settings) -> None:
    async with answers.opened(squad, settings) as library:
        assert sorted(hit.passage.source for hit in await library.index.search("zebras lions", 5)) == [
            "Lions.txt", "Zebras.txt",
        ]  # fmt: skip


async def test_right_wrong_and_refused_are_told_apart(
    squad: Dataset, settings: Settings, recordings: Recordings
) -> None:
    said: list[Reply | str] = [
        "Zebras drink at the Mara river.",
        "I don't know.",
        "I don't know.",
        "Lions sleep at noon.",
    ]
    found = await outcomes_of(squad, "slm", scripted(said), settings, recordings)
    assert list(found) == ["drink", "count", "sleep", "lions"], "in order"
    assert {id: (outcome.right, outcome.refused) for id, outcome in found.items()} == {
        "drink": (True, False), "count": (False, True), "sleep": (True, True), "lions": (False, False),
    }  # fmt: skip
    for outcome in found.values():
        assert outcome.error == ""
        assert [call.leg for call in outcome.calls] == ["slm"], "each has its own calls only"
        assert not outcome.escalated
        assert 0 < outcome.ttft_ms <= outcome.total_ms
        assert outcome.compute_s == outcome.calls[0].total_ms / 1000
    assert len(recordings) == 4


async def test_an_answer_where_there_is_none_is_wrong(
    squad: Dataset, settings: Settings, recordings: Recordings
) -> None:
    found = await outcomes_of(squad, "slm", scripted(["They like the Mara river."] * 4), settings, recordings)
    assert not found["sleep"].right
    assert not found["sleep"].refused


async def test_in_auto_the_calls_of_both_models_are_counted(
    squad: Dataset, settings: Settings, recordings: Recordings
) -> None:
    good = "Zebras drink at the Mara river."
    legs = scripted(
        [good, "Peter Smith counted 99 zebras.", "They flee from 77 crocodiles.", "Lions sleep under acacia trees."],
        ["Yes. Anna Berg counted them [1].", "No."],
    )
    found = await outcomes_of(squad, "auto", legs, settings, recordings)
    assert [outcome.right for outcome in found.values()] == [True, True, True, True]
    assert {id for id, outcome in found.items() if outcome.escalated} == {"count", "sleep"}
    assert [call.leg for call in found["count"].calls] == ["slm", "llm"]


async def test_what_was_asked_once_is_not_asked_again(
    squad: Dataset, settings: Settings, recordings: Recordings
) -> None:
    said: list[Reply | str] = ["Zebras drink at the Mara river.", "Anna Berg.", "I don't know.", "Acacia trees."]
    first = await outcomes_of(squad, "slm", scripted(said), settings, recordings)
    legs = scripted([])
    again = await outcomes_of(squad, "slm", legs, settings, recordings)
    assert legs.slm.backend_.asked == []
    assert [outcome.right for outcome in again.values()] == [outcome.right for outcome in first.values()]
    assert [outcome.calls for outcome in again.values()] == [outcome.calls for outcome in first.values()]


async def test_a_question_that_fails_is_an_outcome_and_the_next_is_asked(
    squad: Dataset, settings: Settings, recordings: Recordings
) -> None:
    died = Reply("Zebras", error=ModelUnreachable("It died."))
    legs = scripted([died, "Anna Berg.", "I don't know.", "Acacia trees."])
    legs.llm.failure = ModelUnreachable("No larger one.")
    found = await outcomes_of(squad, "slm", legs, settings, recordings)
    failed = found.pop("drink")
    assert failed.turn is None
    assert "It died." in failed.error
    assert (failed.right, failed.refused, failed.own_ms) == (False, False, 0)
    assert all(outcome.right and not outcome.error for outcome in found.values())


def test_a_server_that_fails_every_question_is_told_after_a_few() -> None:
    case = many().cases[0]
    bad, good = Outcome(case, None, (), "No model there."), Outcome(case, None, ())
    assert failed_too_often([bad] * 4) is None
    assert failed_too_often([bad] * 5 + [good]) is None
    error = failed_too_often([bad] * 5)
    assert error is not None
    assert str(error) == "No model there."


def test_compute_is_processor_time_where_it_is_known() -> None:
    here, there = (Call("slm", "m", 10, 2000, cpu_s, 1, 1, False) for cpu_s in (3.5, None))
    assert Outcome(many().cases[0], None, (here, there)).compute_s == 3.5 + 2.0


# Questions about a folder, in conversations


async def test_a_set_that_asks_of_a_folder_is_asked_of_that_folder_itself(mine: Dataset, settings: Settings) -> None:
    async with answers.opened(mine, settings) as library:
        assert library.folder == mine.folder
        assert library.sources == ["harbour.md", "tea.md"]
        ids = {passage.id for source in library.sources for passage in library.opening(source)}
        assert ids == {passage.id for passage in dataset.passages(mine)}
    assert not settings.cache_dir.exists(), "the user's own index is not touched"


async def test_a_follow_up_is_asked_in_the_conversation_that_it_follows_and_pays_for_itself_only(
    mine: Dataset, settings: Settings, recordings: Recordings
) -> None:
    said = [
        "It rises 4.2 metres.",
        "Nils Holm lights the lamp.",
        "At 21:30.",
        "Six hours.",
        "Nils Holm.",
        "I don't know.",
    ]
    legs = scripted(list(said))
    found = await outcomes_of(mine, "slm", legs, settings, recordings)
    assert list(found) == ["tide", "lamp", "both", "keeper", "none"], "what comes before is no outcome"
    lamp = found["lamp"]
    assert lamp.right
    assert lamp.turn is not None
    assert "lighthouse" in lamp.turn.query, "words of the question before help to search"
    assert [message["content"][:24] for message in legs.slm.backend_.asked[2] if message["role"] == "assistant"] == [
        "Nils Holm lights the lam"
    ], "and the model sees that turn"
    assert len(lamp.calls) == 1
    assert [len(messages) for messages in legs.slm.backend_.asked].count(2) == len(said) - 1, "no other sees one"
    again = await outcomes_of(mine, "slm", scripted([]), settings, recordings)
    assert again["lamp"].calls == lamp.calls


async def test_a_follow_up_to_what_failed_has_failed(mine: Dataset, settings: Settings, recordings: Recordings) -> None:
    died = Reply("Nils", error=ModelUnreachable("It died."))
    legs = scripted(["It rises 4.2 metres.", died, "Six hours.", "Nils Holm.", "I don't know."])
    legs.llm.failure = ModelUnreachable("No larger one.")
    found = await outcomes_of(mine, "slm", legs, settings, recordings)
    assert "It died." in found["lamp"].error
    assert found["lamp"].calls == ()
    assert [id for id, outcome in found.items() if not outcome.right] == ["lamp"]


async def test_what_a_turn_finds_is_known_without_asking_a_model(mine: Dataset, settings: Settings) -> None:
    async with answers.opened(mine, settings) as library:
        found = await answers.searched(mine.cases, library=library, settings=settings)
    by_id = dict(zip((case.id for case in mine.cases), found, strict=True))
    assert [hit.passage.heading[-1] for hit in by_id["tide"][:1]] == ["Tides"]
    assert [hit.passage.heading[-1] for hit in by_id["lamp"][:1]] == ["Lighthouse"]
