"""A pair of models is tried out from end to end, before a server that is scripted: plumbing, never quality."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.lab import dataset, trial
from rag.lab.calibration import Goal
from rag.settings import Settings

from .product import ScriptedServer

ARTICLES, ITEMS = ("Alder", "Birch", "Cedar"), 40


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.script = answer
    yield server
    server.close()


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


async def test_evaluating_counts_the_mode_that_was_asked_for(weights: dataset.Dataset, pair: Settings) -> None:
    report = await trial.evaluate(weights, pair, "slm", limit=20, compare=True, between=None, progress=lambda *_: None)
    assert report.metrics["llm_calls"] == 0.0
    assert set(report.compared) == {"small", "large", "random mix"}
    assert report.compared["large"]["right"] == 1.0
    assert not report.calibrated


async def test_a_data_set_of_one_document_cannot_be_tried(pair: Settings, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    asked = {"id": "1", "question": "How heavy is Alder 2?", "answers": [{"text": "102"}]}
    held = {"title": "A", "paragraphs": [{"context": "Alder 2 weighs 102 grams.", "qas": [asked]}]}
    path.write_text(json.dumps({"data": [held]}))
    with pytest.raises(UserError, match="fewer than three documents"):
        await trial.run(
            dataset.load(path), pair, Goal(), limit=None, llm_limit=9, progress=lambda *_: None, tell=lambda _: None
        )
