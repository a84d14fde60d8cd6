"""The figures of a run, counted by hand, the mixes of single models that they are held against, and how they are shown."""

import json
import re
from collections.abc import Sequence

import pytest

from rag.lab import quality, quality_view, ragas_scores, recording
from rag.lab.answers import Outcome
from rag.lab.dataset import Case
from rag.lab.judge import Grades
from rag.lab.quality import Report, Row
from rag.lab.rubric import Deduction, Scores
from rag.settings import Settings
from rag.trace import Span, Trace
from rag.turn.bill import bill
from rag.turn.cascade import Turn
from rag.turn.confidence import Verdict

SETTINGS = Settings(_env_file=None)  # type: ignore[call-arg]


def outcome(
    id: str,
    answer: str | None,
    calls: Sequence[tuple[str, float]] = (("slm", 1.0),),
    *,
    answerable: bool = True,
    accepted: bool | None = True,
    stopped: bool = False,
    tokens: int = 8,
    error: str = "",
) -> Outcome:
    """`answer` is None for a refusal; the gold one is `gold`. Each call is a leg and its CPU seconds."""
    case = Case(id, "?", frozenset({f"document {id[-1]}:0"}), ("gold",) if answerable else (), answerable)
    made = tuple(
        recording.Call(leg, leg, 100, 1000 * cpu_s, cpu_s, 50, tokens, stopped and leg == "slm") for leg, cpu_s in calls
    )
    verdict = None if accepted is None else Verdict(0.5, 0.5, accepted, "")
    turn = Turn(
        question="?", query="?", mode="auto", answer=answer or "", model="m", where=None, escalated=False,
        refused=answer is None, verdict=verdict, drafts=(), hits=(), citations=(), notes=(), prompts={}, check=None,
        set_aside=None, bill=bill((), Trace(), SETTINGS), fitted=None,
        trace=Trace(spans=[Span("judge", 0, "slm", 2.0), Span("judge", 5, "slm", 3.0)]),
    )  # fmt: skip
    return Outcome(case, None if error else turn, made, error)


BOTH = (("slm", 0.5), ("llm", 3.5))
OUTCOMES = [
    outcome("1", "gold"),
    outcome("2", "lead"),
    outcome("3", "the gold [1]", BOTH, accepted=False),
    outcome("4", None, BOTH, accepted=False, stopped=True),
    outcome("5", None, answerable=False),
    outcome("6", "lead", BOTH, answerable=False, accepted=False, stopped=True),
    outcome("7", "gold", (("llm", 3.0),), accepted=False),
    outcome("8", None, (), error="It died."),
]


def test_the_figures_by_hand() -> None:
    found = quality.figures(OUTCOMES)
    expected = {
        "questions": 8,
        "answerable": 6,
        "right": 4 / 8,
        "right_answerable": 3 / 6,
        "answered_answerable": 5 / 6,
        "refused_unanswerable": 1 / 2,
        "llm_calls": 4 / 8,
        "input_tokens": 50 * 10 / 8,
        "llm_input_tokens": 50 * 4 / 8,
        "output_tokens": 8 * 10 / 8,
        "llm_output_tokens": 8 * 4 / 8,
        "compute_s": 18 / 8,
        "right_per_compute_s": 4 / 18,
        "right_answerable_per_compute_s": 3 / 13,
        "escalated_early": 1.0,
        "kept": 2 / 8,
        "kept_right": 1 / 2,
        "kept_right_answerable": 1 / 2,
        "judge_ms_p50": 5.0,
        "judge_ms_p99": 5.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("stopped", "tokens", "early"), [(True, 16, 1), (True, 17, 0), (False, 16, 1), (False, 17, 0)])
def test_an_escalation_is_early_that_is_decided_by_the_sixteenth_token(
    stopped: bool, tokens: int, early: float
) -> None:
    one = outcome("1", "gold", BOTH, accepted=False, stopped=stopped, tokens=tokens)
    assert quality.figures([one])["escalated_early"] == early


def test_times_are_the_models_and_the_products_own() -> None:
    found = quality.figures([outcome("1", "gold"), outcome("2", "gold", BOTH)])
    assert found["own_ms_p50"] == 8.0
    assert found["ttft_ms_p50"] == 108.0
    assert found["total_ms_p50"] == pytest.approx((1008 + 4008) / 2)


def test_figures_without_a_meaning_are_left_out() -> None:
    found = quality.figures([outcome("1", "gold", (("llm", 1.0),), accepted=None)])
    assert not {"refused_unanswerable", "kept", "judge_ms_p50", "escalated_early"} & set(found)
    assert found["right"] == 1
    assert all(value == value for value in found.values())
    unasked = quality.figures([outcome("1", None, (), answerable=False)])
    assert not {"right_answerable", "right_per_compute_s"} & set(unasked)


def test_a_failed_question_counts_as_wrong_and_not_as_a_refusal() -> None:
    found = quality.figures([outcome("1", "gold"), outcome("2", None, (), error="It died.")])
    assert (found["right"], found["answered_answerable"]) == (0.5, 1.0)
    found = quality.figures([outcome("3", None, (), answerable=False, error="It died.")])
    assert (found["right"], found["refused_unanswerable"]) == (0, 0)


def test_each_share_lies_in_its_interval() -> None:
    many = OUTCOMES * 20
    found, shares = quality.intervals(many), quality.figures(many)
    assert set(found) == {"right", "right_answerable", "refused_unanswerable", "answered_answerable", "llm_calls"}
    for name, (low, high) in found.items():
        assert 0 <= low <= shares[name] <= high <= 1
        assert high - low < 0.35
    assert "refused_unanswerable" not in quality.intervals([outcome("1", "gold")])


@pytest.mark.parametrize(
    ("count", "of", "expected"),
    # The last two are worked examples of Newcombe (1998), table I.
    [(0, 1, (0, 0.7935)), (1, 1, (0.2065, 1)), (81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605))],
)
def test_an_interval_holds_where_questions_are_few_or_all_alike(
    count: int, of: int, expected: tuple[float, float]
) -> None:
    assert quality.interval(count, of) == pytest.approx(expected, abs=5e-5)


def test_a_random_mix_is_the_expectation_between_two_models() -> None:
    small = [outcome("1", "gold"), outcome("2", "lead"), outcome("3", "lead"), outcome("4", "lead", answerable=False)]
    large = [
        outcome(one.case.id, "gold", (("llm", 5.0),), answerable=one.case.answerable, accepted=None) for one in small
    ]
    own, other = quality.figures(small), quality.figures(large)
    for calls, expected in ((0.0, own), (1.0, other)):
        mixed = quality.random_mix(small, large, calls)
        assert {name: mixed[name] for name in quality.MIXED} == {name: expected[name] for name in quality.MIXED}
    mixed = quality.random_mix(small, large, 0.25)
    assert mixed["llm_calls"] == 0.25
    assert mixed["compute_s"] == 0.75 * 1 + 0.25 * 5
    assert mixed["right"] == pytest.approx(0.75 * own["right"] + 0.25 * other["right"])
    assert mixed["right_per_compute_s"] == pytest.approx(mixed["right"] / mixed["compute_s"])


def point(compute_s: float, right: float) -> dict[str, float]:
    return {"compute_s": compute_s, "right_answerable": right}


@pytest.mark.parametrize(
    ("spent", "expected"),
    [(0.9, None), (1, 0.2), (2, 0.35), (3, 0.5), (4, 0.6), (5, 0.7), (9, 0.7)],
)
def test_at_equal_compute_the_best_mix_of_two_models_is_taken(spent: float, expected: float | None) -> None:
    points = [point(1, 0.2), point(3, 0.5), point(5, 0.7)]
    for order in (points, points[::-1]):
        assert quality.at_equal_compute(point(spent, 0.0), order) == (
            None if expected is None else pytest.approx(expected)
        )


def test_at_equal_compute_a_model_that_is_worse_and_dearer_is_passed_over() -> None:
    points = [point(1, 0.2), point(3, 0.1), point(5, 0.6)]
    assert quality.at_equal_compute(point(3, 0.0), points) == pytest.approx(0.4)
    assert quality.at_equal_compute(point(4.9, 0.0), [point(1, 0.9), point(5, 0.6)]) == pytest.approx(0.9)


def row(one: Outcome, factuality: float | None = None, grade: int | None = None, *, asked: bool = False) -> Row:
    scores = Scores(4.0, factuality, 5.0, (Deduction("coherence", 1, "It <breaks> off."),)) if factuality else None
    return Row(one, scores, asked or grade is not None, Grades(3, grade, 3) if grade else None)


def report(outcomes: Sequence[Outcome] = OUTCOMES, **named: object) -> Report:
    told: dict[str, object] = {
        "mode": "auto", "settings": SETTINGS, "dataset": "squad.json", "asked": len(outcomes), "slm": "small",
        "llm": "large", "rows": [row(one) for one in outcomes], "complete": True,
    }  # fmt: skip
    return Report(**{**told, **named})  # type: ignore[arg-type]


def test_scores_and_grades_are_averaged_over_what_was_answered() -> None:
    rows = [
        row(OUTCOMES[0], 5, 5),
        row(OUTCOMES[1], 2, 3),
        row(OUTCOMES[2], 4, asked=True),
        row(OUTCOMES[3], 1),  # a refusal
        row(OUTCOMES[5], 3, 4),  # an answer where there is none
        row(OUTCOMES[7]),  # failed
    ]
    found = quality.scored(rows)
    assert found == pytest.approx(
        {
            "rubric_coherence": 4, "rubric_factuality": 14 / 4, "rubric_concision": 5,
            "grade_coherence": 3, "grade_factuality": 4, "grade_concision": 3,
            "grade_agreement_factuality": 1.0, "grade_unscored": 1 / 4,
            "rubric_factuality_auroc": 1.0, "grade_factuality_auroc": 1.0,
        }
    )  # fmt: skip
    assert quality.scored([row(OUTCOMES[3], 1)]) == {}


def kinds() -> list[Outcome]:
    named = zip(OUTCOMES, ("lookup", "lookup", "number", "number"), ("en", "zh", "en", "en"), strict=False)
    return [
        Outcome(Case("k" + one.case.id, "?", frozenset(), ("gold",), kind=kind, language=tongue), one.turn, one.calls)
        for one, kind, tongue in named
    ]


def test_right_answers_are_counted_by_kind_and_language() -> None:
    told = report(kinds())
    assert told.parts["kind"]["lookup"]["questions"] == 2
    assert {name: told.metrics[name] for name in ("right_lookup", "right_number", "right_en", "right_zh")} == {
        "right_lookup": 0.5, "right_number": 0.5, "right_en": pytest.approx(2 / 3), "right_zh": 0.0,
    }  # fmt: skip
    assert told.intervals["right_zh"][1] > 0.7, "of one question"
    assert not any(name.startswith("right_lookup") for name in report().metrics), "SQuAD tells no kinds"


def test_a_report_is_rounded_and_names_what_it_was_measured_on() -> None:
    told = report(compared={"random mix": {"right": 0.123456}}).to_dict()
    assert (told["dataset"], told["mode"], told["slm"], told["llm"], told["failed"]) == (
        "squad.json", "auto", "small", "large", 1,
    )  # fmt: skip
    assert told["compared"] == {"random mix": {"right": 0.1235}}
    assert told["metrics"]["answered_answerable"] == 0.8333
    assert {"version", "machine", "calibrated", "intervals", "judge", "ragas"} <= set(told)
    assert json.loads(json.dumps(told)) == told


def test_a_report_has_each_question_so_that_it_can_be_looked_at() -> None:
    scores = ragas_scores.Scores("0.4.3", ("faithfulness",), by_question={"1": {"faithfulness": 0.5}})
    told = report(rows=[row(OUTCOMES[0], 5, 4), row(OUTCOMES[3]), row(OUTCOMES[7])], ragas=scores).to_dict()
    first, refused, failed = told["questions"]
    assert (first["id"], first["right"], first["answer"], first["model"]) == ("1", True, "gold", "m")
    assert first["scores"]["factuality"] == 5
    assert first["scores"]["deductions"] == [{"of": "coherence", "points": 1, "why": "It <breaks> off."}]
    assert (first["grades"], first["ragas"]) == (
        {"coherence": 3, "factuality": 4, "concision": 3},
        {"faithfulness": 0.5},
    )
    assert (refused["refused"], refused["escalated"], refused["right"]) == (True, True, False)
    assert (failed["answer"], failed["error"]) == (None, "It died.")
    assert told["metrics"]["ragas_faithfulness"] == 0.5


def test_a_report_is_true_at_any_time() -> None:
    empty = report([], complete=False, asked=40)
    assert empty.to_dict()["metrics"] == {}
    assert "No question was asked" in quality_view.told(empty)
    begun = report(OUTCOMES[:3], complete=False, asked=40)
    assert begun.metrics["questions"] == 3
    assert quality_view.notes(begun) == ["The run broke off: 3 of 40 questions were asked."]
    assert "before the rest" in quality_view.notes(report(OUTCOMES[:3], complete=False))[0]


def test_no_interval_is_told_of_what_was_never_decided() -> None:
    assert "llm_calls" not in report(mode="slm").intervals


@pytest.mark.parametrize("failed", [0, 1])
def test_the_table_has_every_figure_beside_what_it_is_compared_with(
    failed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    told = report(OUTCOMES if failed else OUTCOMES[:7], compared={"random mix": {"right": 0.123456}})
    quality_view.show(told)
    printed = capsys.readouterr()
    lines = {line.split()[1]: line for line in printed.out.splitlines() if len(line.split()) > 1}
    assert set(told.metrics) <= set(lines)
    assert "0.123" in lines["right"]
    assert " to " not in lines["right"], "beside others there is no room for intervals"
    assert "not calibrated" in printed.out
    assert ("got an error" in printed.err) == bool(failed)
    quality_view.show(report(OUTCOMES))
    assert " to " in next(line for line in capsys.readouterr().out.splitlines() if " right " in line)


JUDGE = {"model": "wise", "where": "judge.example", "runs_on": "vLLM", "prompt_version": 1}


def test_the_page_names_the_judge_and_tells_how_far_to_believe_it() -> None:
    rows = [row(OUTCOMES[0], 5, 5), row(OUTCOMES[1], 2, 3), row(OUTCOMES[2], 4, asked=True)]
    page = quality_view.html(report(rows=rows, judge=JUDGE))
    text = re.sub(r"<[^>]+>", " ", page)
    assert (
        "Judge: wise (vLLM, judge.example), prompt 1; 3 answers were given to it and 33% of them got no grades" in text
    )
    assert "Rank correlation with the rules: factuality 1.00" in text
    assert "put a right answer above a wrong one in 100% of the pairs" in text


def test_the_page_has_each_question_with_its_reasons_and_loads_nothing() -> None:
    missing = {"context_recall": "it asks a judge, and none was named"}
    scores = ragas_scores.Scores("0.4.3", ("faithfulness",), missing, by_question={"k1": {"faithfulness": None}})
    rows = [row(one, 3.5) for one in kinds()]
    told = report(rows=rows, ragas=scores, compared={"random mix": {"right": 0.5}})
    page = quality_view.html(told)
    assert "It &lt;breaks&gt; off." in page
    assert "It <breaks> off." not in page
    assert page.count("<details>") == 4
    assert "lookup (2)" in page, "a bar for each kind"
    assert not re.search(r"(?:src|href)=[\"']?[^\"'#]|url\([^#]|@import", page.partition("<script id=data")[0])
    raw = page.partition('type="application/json">')[2].partition("</script>")[0]
    assert json.loads(raw)["metrics"] == told.to_dict()["metrics"]
