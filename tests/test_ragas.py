"""Ragas in a process of its own: what it is given, what comes back, and what is told where it is missing.

Ragas itself is too large for a test. In its place stands a library of its names, found by a Python that has it: the child
process, its protocol and the judge's way through it are real.
"""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rag.errors import ModelError, PromptTooLong, RagError, UserError
from rag.lab import dataset, ragas_child, ragas_scores, samples
from rag.lab.answers import Outcome
from rag.lab.ragas_scores import Scores
from rag.lab.samples import Sample
from rag.settings import Settings

from . import own_questions

WHOLE = Sample("a", "Who?", "Anna did.", ("Anna did it.", "Peter did not."), "Anna", ("Anna did it.",), False)
SILENT = Sample("b", "Why?", "Not found.", ("Anna did it.",), "Because", (), True)
UNREAD = Sample("c", "When?", "Not found.", (), "1998", ("In 1998.",), True)

# Each metric asks the judge for its name and gives what it says as a number; the others need none.
RAGAS = """
    import os
    assert os.environ["RAGAS_DO_NOT_TRACK"] == "true", "it would report its use"
    assert os.environ["LANGSMITH_TRACING"] == "false"
    assert not [name for name in os.environ if name.startswith("RAG_")], "keys are none of its business"
    from appdirs import user_data_dir
    assert not os.path.isdir(user_data_dir("ragas")), "it would keep a name for its user"
    print("ragas prints what it likes")
    __version__ = "9.9.9"
"""
METRICS = """
    from ragas.types import Prompt

    class Asking:
        def __init__(self, llm=None):
            self.llm = llm
        def init(self, config): pass
        async def single_turn_ascore(self, sample):
            result = await self.llm.agenerate_text(Prompt(f"{type(self).__name__}: {sample.parts['response']}"), n=3)
            assert self.llm.is_finished(result)
            return result.generations[0][2].text

    class Faithfulness(Asking): pass
    class LLMContextPrecisionWithReference(Asking): pass
    class LLMContextRecall(Asking): pass

    class NonLLMContextPrecisionWithReference(Asking):
        async def single_turn_ascore(self, sample):
            print("in the middle of it")
            return float("nan")

    class NonLLMContextRecall:
        def __init__(self):
            raise ImportError("rapidfuzz is required")
"""
MODULES = {
    "appdirs.py": """
        def user_data_dir(appname):
            return "/"
    """,
    "ragas/__init__.py": RAGAS,
    "ragas/metrics.py": METRICS,
    "ragas/types.py": """
        class Prompt:
            def __init__(self, text): self.text = text
            def to_string(self): return self.text
    """,
    "ragas/dataset_schema.py": """
        class SingleTurnSample:
            def __init__(self, user_input, response, retrieved_contexts, reference=None, reference_contexts=None):
                self.parts = locals()
    """,
    "ragas/run_config.py": """
        class RunConfig:
            def __init__(self, max_retries): pass
    """,
    "ragas/llms/__init__.py": "",
    "ragas/llms/base.py": """
        class BaseRagasLLM:
            def __init__(self, run_config): pass
    """,
    "langchain_core/__init__.py": "",
    "langchain_core/outputs.py": """
        class Generation:
            def __init__(self, text): self.text = text
        class LLMResult:
            def __init__(self, generations): self.generations = generations
    """,
}


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., str]:
    """A Python that has it; `changed` replaces files of it."""

    def made(changed: Mapping[str, str] | None = None) -> str:
        for name, text in {**MODULES, **(changed or {})}.items():
            file = tmp_path / "there" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        program = tmp_path / "python"
        program.write_text(
            f"#!{sys.executable}\nimport runpy, sys\nassert sys.argv[1] == '-I'\n"
            f"sys.path.insert(0, {str(tmp_path / 'there')!r})\nrunpy.run_path(sys.argv[2], run_name='__main__')\n"
        )
        program.chmod(0o755)
        return str(program)

    return made


class ScriptedJudge:
    """Says the same number to each metric."""

    def __init__(self, reply: Callable[[str], str] = lambda prompt: "0.5") -> None:
        self.prompts: list[str] = []
        self.reply = reply

    async def ask(self, messages: list[dict[str, str]], *, max_tokens: int) -> str:
        self.prompts.append(messages[-1]["content"])
        return self.reply(self.prompts[-1])


async def scored(python: str, judge: Any, *given: Sample) -> Scores:
    scores = Scores()
    await ragas_scores.score(scores, given or (WHOLE, SILENT, UNREAD), judge, python=python)
    return scores


async def test_each_metric_is_asked_of_the_samples_that_have_what_it_needs(python: Callable[..., str]) -> None:
    judge = ScriptedJudge()
    scores = await scored(python(), judge)
    assert scores.version == "9.9.9"
    assert scores.by_question == {
        "a": {"faithfulness": 0.5, "context_precision": 0.5, "context_recall": 0.5, "non_llm_context_precision": None},
        "b": {"context_precision": 0.5, "context_recall": 0.5},
    }
    assert judge.prompts[:2] == ["Faithfulness: Anna did.", "LLMContextPrecisionWithReference: Anna did."]
    assert scores.missing == {"non_llm_context_recall": "ImportError: rapidfuzz is required"}
    assert scores.means == {
        "ragas_faithfulness": 0.5, "ragas_context_precision": 0.5, "ragas_context_recall": 0.5,
        "ragas_unscored": pytest.approx(1 / 6),
    }  # fmt: skip
    assert scores.to_dict()["questions"]["context_recall"] == 2


async def test_without_a_judge_only_what_needs_none_is_measured(python: Callable[..., str]) -> None:
    scores = await scored(python(), None, WHOLE)
    assert scores.by_question == {"a": {"non_llm_context_precision": None}}
    assert scores.missing["faithfulness"] == "it asks a judge, and none was named"


async def test_a_judge_that_keeps_to_no_form_costs_one_score(python: Callable[..., str]) -> None:
    def reply(prompt: str) -> str:
        if prompt.startswith("Faith"):
            raise PromptTooLong("It is too long.")
        return "high" if "Recall" in prompt else "1"

    scores = await scored(python(), ScriptedJudge(reply), WHOLE)
    assert scores.by_question["a"] == {
        "faithfulness": None, "context_precision": 1.0, "context_recall": None, "non_llm_context_precision": None,
    }  # fmt: skip
    assert {why.partition(":")[0] for why in scores.why} == {"ValueError"}


async def test_what_was_scored_stays_when_the_judge_dies(python: Callable[..., str]) -> None:
    def reply(prompt: str) -> str:
        if "Recall" in prompt:
            raise ModelError("It died.")
        return "1"

    scores = Scores()
    with pytest.raises(ModelError, match="It died"):
        await ragas_scores.score(scores, [WHOLE], ScriptedJudge(reply), python=python())  # type: ignore[arg-type]
    assert scores.by_question == {"a": {"faithfulness": 1.0, "context_precision": 1.0}}


@pytest.mark.parametrize(
    ("changed", "kind", "told"),
    [
        ({"ragas/__init__.py": "raise ImportError('No module named vertexai')"}, UserError, "no ragas that works .*vertexai.*pip install"),
        ({"ragas/metrics.py": METRICS.replace('print("in the middle of it")', "import os; os._exit(7)")}, RagError, "Ragas stopped"),
    ],
)  # fmt: skip
async def test_a_ragas_that_does_not_work_is_told(
    changed: dict[str, str], kind: type[Exception], told: str, python: Callable[..., str]
) -> None:
    here = python(changed)
    with pytest.raises(kind, match=told):
        await scored(here, ScriptedJudge())
    if kind is UserError:
        with pytest.raises(UserError, match=told):
            await ragas_scores.check(here)
    else:
        await ragas_scores.check(here)


async def test_a_python_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match=r"/nowhere/python cannot be run.*pip install 'smallfirst\[ragas\]'"):
        await scored("/nowhere/python", None)


async def test_a_stopped_run_leaves_no_child_behind(python: Callable[..., str], tmp_path: Path) -> None:
    asked = asyncio.Event()

    class Endless(ScriptedJudge):
        async def ask(self, messages: list[dict[str, str]], *, max_tokens: int) -> str:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    noted = f"import os\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    here = python({"ragas/metrics.py": noted + textwrap.dedent(METRICS)})
    measuring = asyncio.create_task(scored(here, Endless()))
    await asyncio.wait_for(asked.wait(), 20)
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_child_imports_nothing_of_this_package() -> None:
    found = subprocess.run(
        [sys.executable, "-I", "-c", "import sys, runpy; runpy.run_path(sys.argv[1], run_name='child');"
         " print([name for name in sys.modules if name.split('.')[0] in ('rag', 'numpy', 'pydantic')])", ragas_child.__file__],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "[]"


async def test_samples_are_written_in_ragas_own_form(tmp_path: Path, settings: Settings) -> None:
    docs = own_questions.documents(tmp_path)
    data = dataset.load(own_questions.written(tmp_path), settings, docs=docs)
    failed = [Outcome(case, None, (), "It died.") for case in data.cases]
    assert samples.of(failed, data) == []
    path = tmp_path / "samples.jsonl"
    samples.write([WHOLE, SILENT], path)
    whole, silent = map(json.loads, path.read_text().splitlines())
    assert whole == {
        "id": "a", "user_input": "Who?", "response": "Anna did.", "reference": "Anna",
        "retrieved_contexts": ["Anna did it.", "Peter did not."], "reference_contexts": ["Anna did it."],
    }  # fmt: skip
    assert "reference_contexts" not in silent
    with pytest.raises(UserError, match="--samples"):
        samples.write([WHOLE], tmp_path / "no" / "samples.jsonl")
