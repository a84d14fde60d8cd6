"""The figures of a run, counted by hand, and the mixes of single models that they are held against."""

from collections.abc import Sequence

import pytest

from rag.lab import quality, recording
from rag.lab.answers import Outcome
from rag.lab.dataset import Case
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
    assert "refused_unanswerable" not in quality.intervals([outcome("1", "gold")])


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


def report(failed: int = 0) -> quality.Report:
    return quality.Report(
        dataset="squad.json", mode="auto", slm="small", llm="large", metrics=quality.figures(OUTCOMES),
        intervals=quality.intervals(OUTCOMES), compared={"random mix": {"right": 0.123456}}, calibrated=False,
        failed=failed,
    )  # fmt: skip


def test_a_report_is_rounded_and_names_what_it_was_measured_on() -> None:
    told = report(1).to_dict()
    assert (told["dataset"], told["mode"], told["slm"], told["llm"], told["failed"]) == (
        "squad.json", "auto", "small", "large", 1,
    )  # fmt: skip
    assert told["compared"] == {"random mix": {"right": 0.1235}}
    assert told["metrics"]["answered_answerable"] == 0.8333
    assert {"version", "machine", "calibrated"} <= set(told)


@pytest.mark.parametrize("failed", [0, 1])
def test_the_table_has_every_figure_beside_what_it_is_compared_with(
    failed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    quality.show(report(failed))
    printed = capsys.readouterr()
    lines = {line.split()[1]: line for line in printed.out.splitlines() if len(line.split()) > 1}
    assert set(report().metrics) <= set(lines)
    assert "0.123" in lines["right"]
    assert " to " in lines["right"]
    assert "not calibrated" in printed.out
    assert ("got an error" in printed.err) == bool(failed)
