"""A pair of models is tried out from end to end, before a server that is scripted: plumbing, never quality."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rag.cli import main
from rag.errors import ModelError, UserError
from rag.lab import dataset, quality_view, samples, trial
from rag.lab.calibration import Goal
from rag.lab.quality import Report
from rag.settings import Mode, Settings

from . import own_questions
from .product import ScriptedServer

ARTICLES, ITEMS = ("Alder", "Birch", "Cedar"), 40


@pytest.fixture(scope="module")
def one_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def server(one_server: ScriptedServer) -> ScriptedServer:
    one_server.reset()
    one_server.script = answer
    return one_server


def answer(model: str, asked: str) -> str:
    """The small model knows every other item, the larger one all."""
    name, number = re.findall(r"heavy is (\w+) (\d+)", asked)[-1]
    if model == "small" and int(number) % 2:
        return "Nobody ever put it upon any scales."
    lead = "Yes. " if model == "large" else ""
    return f"{lead}{name} {number} weighs {int(number) + 100} grams."


@pytest.fixture
def weights(tmp_path: Path) -> dataset.Dataset:
    paragraphs = {
        name: [
            {
                "context": f"{name} {n} weighs {n + 100} grams. It stands beside the {name} hall of the year {n + 1800}.",
                "qas": [{"id": f"{name}{n}", "question": f"How heavy is {name} {n}?", "answers": [{"text": f"{n + 100}"}]}],
            }
            for n in range(ITEMS)
        ]
        for name in ARTICLES
    }  # fmt: skip
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"data": [{"title": name, "paragraphs": held} for name, held in paragraphs.items()]}))
    return dataset.load(path)


@pytest.fixture
def pair(settings: Settings, server: ScriptedServer) -> Settings:
    servers = {"slm_base_url": server.url, "slm_model": "small", "llm_base_url": server.url, "llm_model": "large"}
    return settings.model_copy(update=servers)


async def test_a_trial_asks_once_and_replays_ever_after(
    weights: dataset.Dataset, pair: Settings, server: ScriptedServer, tmp_path: Path
) -> None:
    async def tried(goal: Goal) -> trial.Trial:
        return await trial.run(
            weights, pair, goal, limit=None, llm_limit=160, progress=lambda *_: None, tell=lambda _: None
        )

    made = await tried(Goal())
    assert made.metrics["slm_right_answerable"] == 0.5
    assert made.metrics["llm_right_answerable"] == 1.0
    assert made.metrics["auto_right_answerable"] > 0.9, "what the small model does not know is given away"
    assert made.metrics["auto_llm_calls"] < 0.6
    page = trial.write(made, tmp_path / "report")
    assert "| auto_right_answerable |" in page.read_text()
    assert (tmp_path / "report" / "quality-calls.svg").stat().st_size > 1000

    server.script = lambda model, asked: "This would be another answer."
    again = await tried(Goal(escalation_rate=0.5))
    assert again.metrics["slm_right_answerable"] == 0.5, "nobody was asked again"


async def evaluated(data: dataset.Dataset, settings: Settings, mode: Mode = "slm", **named: Any) -> Report:
    report = Report(mode, settings)
    await trial.evaluate(report, data, settings, progress=lambda *_: None, **named)
    return report


async def test_evaluating_counts_the_mode_that_was_asked_for(weights: dataset.Dataset, pair: Settings) -> None:
    report = await evaluated(weights, pair, limit=20, compare=True)
    assert report.metrics["llm_calls"] == 0.0
    assert set(report.compared) == {"small", "large", "random mix"}
    assert report.compared["large"]["right"] == 1.0
    assert not report.calibrated
    assert report.complete


async def test_answers_are_scored_by_rules_and_by_the_judge_that_was_named(
    weights: dataset.Dataset, pair: Settings, server: ScriptedServer
) -> None:
    graded = []

    def judging(model: str, asked: str) -> str:
        if model != "wise":
            return answer(model, asked)
        graded.append(asked)
        wrong = "Nobody ever" in asked
        return (
            "No idea." if len(graded) < 3 else f'{{"coherence": 5, "factuality": {1 if wrong else 4}, "concision": 5}}'
        )

    server.script = judging
    report = await evaluated(weights, pair, limit=12, judge="wise", judge_url=server.url)
    assert report.judge == {
        "model": "wise", "where": "on this machine", "runs_on": "OpenAI-compatible server", "prompt_version": 1,
    }  # fmt: skip
    assert len(graded) == 13, "one answer got no grades, twice"
    assert report.metrics["grade_unscored"] == pytest.approx(1 / 12)
    assert report.metrics["grade_factuality_auroc"] == 1.0
    assert report.metrics["rubric_factuality_auroc"] == 1.0, "the rules see that, too"
    assert report.metrics["grade_agreement_factuality"] > 0.5
    again = await evaluated(weights, pair, limit=12, judge="wise", judge_url=server.url)
    assert len(graded) == 13, "nobody is asked again"
    assert again.metrics["grade_factuality"] == report.metrics["grade_factuality"]


@pytest.mark.parametrize(
    ("mode", "named", "may"),
    [("slm", "large", True), ("llm", "small", True), ("auto", "large", False), ("slm", "small", False)],
)
async def test_who_is_under_test_does_not_judge(
    mode: Mode, named: str, may: bool, weights: dataset.Dataset, pair: Settings, server: ScriptedServer
) -> None:
    if may:
        grades = '{"coherence": 5, "factuality": 3, "concision": 5}'
        server.script = lambda model, asked: grades if "Grade the answer" in asked else answer(model, asked)
        report = await evaluated(weights, pair, mode, limit=2, judge=named, judge_url=server.url)
        assert all(row.asked for row in report.rows)
        return
    with pytest.raises(UserError, match="cannot judge its own"):
        await evaluated(weights, pair, mode, limit=2, judge=named, judge_url=server.url)
    assert not server.messages, "told before anybody was asked"


async def test_an_answer_that_the_judge_wrote_in_anothers_place_is_not_judged(
    weights: dataset.Dataset, pair: Settings, server: ScriptedServer
) -> None:
    server.script = lambda model, asked: "" if model == "small" else answer(model, asked)
    report = await evaluated(weights, pair, limit=2, judge="large", judge_url=server.url)
    assert [row.to_dict()["model"] for row in report.rows] == ["large", "large"]
    assert not any(row.asked for row in report.rows)
    assert "grade_unscored" not in report.metrics
    assert "0 answers were given to it" in quality_view.notes(report)[0]


async def test_what_was_measured_stays_when_a_run_breaks_off(
    weights: dataset.Dataset, pair: Settings, server: ScriptedServer
) -> None:
    report = Report("slm", pair)

    def stop(what: str, done: int, of: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await trial.evaluate(report, weights, pair, limit=20, progress=stop)
    assert (len(report.rows), report.asked, report.complete) == (3, 20, False)
    assert report.metrics["questions"] == 3
    assert "3 of 20" in quality_view.notes(report)[0]
    assert "rubric_factuality" in report.metrics


async def test_a_judge_that_dies_leaves_the_answers_measured(
    weights: dataset.Dataset, pair: Settings, server: ScriptedServer
) -> None:
    judge = ScriptedServer()
    judge.script = lambda model, asked: '{"coherence": 5, "factuality": 3, "concision": 5}'
    report = Report("slm", pair)

    def die(what: str, done: int, of: int) -> None:
        if what.endswith("judging") and done == 2:
            judge.close()

    with pytest.raises(ModelError, match="The judge did not answer"):
        await trial.evaluate(report, weights, pair, limit=5, judge="wise", judge_url=judge.url, progress=die)
    assert sum(row.grades is not None for row in report.rows) == 2
    assert len(report.rows) == 5
    assert "before the rest was measured" in quality_view.notes(report)[0]


async def test_our_own_questions_are_counted_by_kind_with_what_was_found(
    pair: Settings, server: ScriptedServer, tmp_path: Path
) -> None:
    docs = own_questions.documents(tmp_path)
    data = dataset.load(own_questions.written(tmp_path), pair, docs=docs)
    server.script = lambda model, asked: "The spring tide at Sandvik rises 4.2 metres."
    report = await evaluated(data, pair)
    assert report.parts["kind"]["number"]["right"] == 1
    assert report.metrics["right_unanswerable"] == 0
    assert {"context_precision@1", "context_recall@3", "context_recall_read"} <= set(report.metrics)
    assert report.metrics["right_lookup"] == 0
    found = {sample.id: sample for sample in samples.of(report.outcomes, data)}
    assert found["tide"].reference == "4.2"
    assert found["tide"].response == "The spring tide at Sandvik rises 4.2 metres.", "without its source mark"
    assert len(found["tide"].retrieved_contexts) == pair.slm_passages
    assert any("rises 4.2 metres" in text for text in found["tide"].reference_contexts)
    assert not any("drinks black tea" in text for text in found["keeper"].reference_contexts), "it stands in two places"
    assert (found["none"].reference, found["none"].reference_contexts) == (None, ())


@pytest.fixture
def typed(
    weights: dataset.Dataset, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """`smallfirst evaluate answers` of the pair, as typed."""
    for name, value in (("SLM_MODEL", "small"), ("LLM_MODEL", "large"), ("CACHE_DIR", str(tmp_path / "cache"))):
        monkeypatch.setenv(f"RAG_{name}", value)
    for name in ("SLM", "LLM"):
        monkeypatch.setenv(f"RAG_{name}_BASE_URL", server.url)
    monkeypatch.chdir(tmp_path)
    asked = ("evaluate", "answers", "--dataset", "weights.json", "--mode", "slm", "--limit", "6")
    return lambda *more: main([*asked, *more])


def test_the_command_writes_what_it_was_asked_for(
    typed: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("--json", "--page", "page.html", "--samples", "samples.jsonl") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["right"] for one in told["questions"]].count(True) / 6 == pytest.approx(
        told["metrics"]["right"], abs=1e-3
    )
    assert "Answers to weights.json" in (tmp_path / "page.html").read_text()
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 6
    assert typed() == 0
    assert "rubric_factuality" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured_until_then(
    typed: Callable[..., int], server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(model: str, asked: str) -> str | None:
        if len(server.messages) < 4:
            return answer(model, asked)
        os.kill(os.getpid(), signal.SIGINT)
        return None

    server.script = interrupted
    assert typed("--json", "--page", "page.html") == 130
    printed = capsys.readouterr()
    told = json.loads(printed.out.splitlines()[-1])
    assert (len(told["questions"]), told["asked"], told["complete"]) == (3, 6, False)
    assert printed.err.splitlines()[-1] == "smallfirst: stopped."
    assert "3 of 6 questions were asked" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--judge-url", "http://127.0.0.1:9/v1"), "Name the model with --judge"),
        (("--judge", "small", "--judge-url", "http://127.0.0.1:9/v1"), "cannot judge its own answers"),
        (("--ragas", "/nowhere/python"), "/nowhere/python cannot be run"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    more: tuple[str, ...],
    told: str,
    typed: Callable[..., int],
    server: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert typed(*more) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not server.messages, "before any question was asked"


async def test_a_data_set_of_one_document_cannot_be_tried(pair: Settings, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    asked = {"id": "1", "question": "How heavy is Alder 2?", "answers": [{"text": "102"}]}
    held = {"title": "A", "paragraphs": [{"context": "Alder 2 weighs 102 grams.", "qas": [asked]}]}
    path.write_text(json.dumps({"data": [held]}))
    with pytest.raises(UserError, match="fewer than three documents"):
        await trial.run(
            dataset.load(path), pair, Goal(), limit=None, llm_limit=9, progress=lambda *_: None, tell=lambda _: None
        )
