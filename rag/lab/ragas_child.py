"""Scores samples with ragas, in a process of its own.

Run by whichever Python has ragas, so it imports nothing of this package.

Speaks JSON, one document a line. It is sent the samples once; it tells what it can measure, prompts for the judge, each of
which is answered before it goes on, and the scores:

    in   {"samples": [{"user_input": ..., "asks": ["faithfulness", ...], ...}], "judge": true}
    out  {"ragas": "0.4.3", "metrics": ["faithfulness", ...], "missing": {"non_llm_context_recall": "why"}}
    out  {"prompt": "..."}                    in   {"text": "..."}
    out  {"sample": 0, "metric": "faithfulness", "score": 0.5, "why": ""}        score null: ragas could make none
    out  {"end": true}

It needs no network: the judge is asked by the parent, what ragas and its libraries report of their use is switched off, and
metrics that would fetch a model (embeddings) are not among these. Its exit status is 3 where this Python has no ragas that
can be used.
"""

import asyncio
import importlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Name, ragas' class, and whether it asks the judge.
METRICS = (
    ("faithfulness", "Faithfulness", True),
    ("context_precision", "LLMContextPrecisionWithReference", True),
    ("context_recall", "LLMContextRecall", True),
    ("non_llm_context_precision", "NonLLMContextPrecisionWithReference", False),
    ("non_llm_context_recall", "NonLLMContextRecall", False),
)
NO_RAGAS = 3
QUIET = {
    "RAGAS_DO_NOT_TRACK": "true",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    # What libraries print must not stand between our lines.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**line: Any) -> None:
        channel.write(json.dumps(line) + "\n")
        channel.flush()

    def hear() -> Any:
        line = sys.stdin.readline()
        if not line:
            sys.exit(1)  # nobody waits for the scores any more
        return json.loads(line)

    def ask(prompt: str) -> str:
        tell(prompt=prompt)
        return str(hear()["text"])

    os.environ.update(QUIET)  # read when ragas is imported
    warnings.simplefilter("ignore")
    with suppress(ImportError):
        # It makes up a name for its user and keeps it on the disk, reported or not; nothing can be kept here.
        folders: Any = importlib.import_module("appdirs")
        folders.user_data_dir = lambda *_, **__: f"{os.devnull}/none"
    try:
        version = importlib.import_module("ragas").__version__
        known = importlib.import_module("ragas.metrics")
        sample_of = importlib.import_module("ragas.dataset_schema").SingleTurnSample
        # Whoever asks the judge knows better when to ask again.
        once = importlib.import_module("ragas.run_config").RunConfig(max_retries=1)
        judge = _judge(ask, once)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(NO_RAGAS)
    wanted = hear()
    metrics, missing = {}, {}
    for name, kind, asks in METRICS:
        if asks and not wanted["judge"]:
            missing[name] = "it asks a judge, and none was named"
            continue
        try:
            metrics[name] = getattr(known, kind)(**({"llm": judge} if asks else {}))
            metrics[name].init(once)
        except Exception as error:
            metrics.pop(name, None)
            missing[name] = f"{type(error).__name__}: {error}"
    tell(ragas=version, metrics=list(metrics), missing=missing)
    for number, sample in enumerate(wanted["samples"]):
        asked = sample.pop("asks")
        for name, metric in metrics.items():
            if name not in asked:
                continue
            score, why = None, ""
            try:
                measured = float(asyncio.run(metric.single_turn_ascore(sample_of(**sample))))
                score = None if math.isnan(measured) else measured
            except Exception as error:
                why = f"{type(error).__name__}: {error}"[:200]
            tell(sample=number, metric=name, score=score, why=why)
    tell(end=True)


def _judge(ask: Callable[[str], str], once: Any) -> Any:
    """The judge as ragas sees a model."""
    outputs = importlib.import_module("langchain_core.outputs")
    base: Any = importlib.import_module("ragas.llms.base").BaseRagasLLM

    class Piped(base):  # type: ignore[misc]
        def generate_text(self, prompt: Any, n: int = 1, *_: Any, **__: Any) -> Any:
            # The judge says the same each time, so it is asked once for all of them.
            text = ask(prompt.to_string())
            return outputs.LLMResult(generations=[[outputs.Generation(text=text)] * n])

        async def agenerate_text(self, prompt: Any, n: int = 1, *_: Any, **__: Any) -> Any:
            return self.generate_text(prompt, n)

        def is_finished(self, response: Any) -> bool:
            return True

    return Piped(run_config=once)


if __name__ == "__main__":
    main()
