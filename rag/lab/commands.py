"""The lab's commands in the terminal: evaluate, calibrate, compare, bench, cost.

Knows their arguments, and that whatever was measured is shown however the measuring ended: by Ctrl-C, or by a model that
died. What is measured, and how, is each room's own. Nothing heavy is imported before a command runs.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from rag.errors import UserError
from rag.settings import MODES, Settings

Turns = Callable[[], list[dict[str, Any]]]
"""Gives the dictionaries of kept turns, oldest first."""


class AddCommand(Protocol):
    """Adds a command to the program: its name, what runs it, one line of help, and parsers whose arguments it shares."""

    def __call__(
        self, name: str, run: Any, help: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser: ...


def add(
    command: AddCommand,
    as_json: argparse.ArgumentParser,
    docs: argparse.ArgumentParser,
    *,
    kept_turns: Turns,
) -> None:
    """Add the lab's commands; `kept_turns` is asked when receipts of the chat are wanted."""
    as_page = argparse.ArgumentParser(add_help=False)
    as_page.add_argument("--page", type=Path, metavar="FILE", help="write the report as one HTML file")

    pair = argparse.ArgumentParser(add_help=False)
    pair.add_argument("--slm", metavar="NAME", help="the small model (RAG_SLM_MODEL)")
    pair.add_argument("--llm", metavar="NAME", help="the larger model (RAG_LLM_MODEL)")

    _add_compare(command("compare", _compare, "ask both models the same, side by side", docs, pair, as_page, as_json))
    _add_bench(command("bench", _bench, "measure how fast models are, or this product's own share", as_page, as_json))

    evaluate = command("evaluate", None, "measure retrieval, or whole answers, on a set of questions")
    kinds = evaluate.add_subparsers(required=True, metavar="WHAT", dest="what")
    sets = argparse.ArgumentParser(add_help=False)
    sets.add_argument(
        "--dataset",
        type=Path,
        metavar="PATH",
        help="a SQuAD JSON file, a BEIR folder, or questions of your own (default: ours, over the shipped documents)",
    )
    retrieval = kinds.add_parser(
        "retrieval", help="recall@k, MRR, nDCG, time and memory", parents=[docs, sets, as_json]
    )
    retrieval.set_defaults(run=_evaluate_retrieval)
    answers = kinds.add_parser(
        "answers",
        help="right, refused, escalated; time, tokens and compute",
        parents=[docs, sets, pair, as_page, as_json],
    )
    answers.set_defaults(run=_evaluate_answers)
    _add_answers(answers)

    _add_calibrate(
        command("calibrate", _calibrate, "fit the small model's confidence to a set of questions", pair, as_json)
    )
    cost = command("cost", _cost, "what turns cost here and in a cloud, and when a machine pays", as_page, as_json)
    cost.set_defaults(kept_turns=kept_turns)
    _add_cost(cost)


def _run(measuring: Coroutine[Any, Any, None], finish: Callable[[], None]) -> None:
    """Measure, then show; also what there is when the measuring broke off, whose error then goes on."""
    try:
        asyncio.run(measuring)
    finally:
        finish()


def _limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, metavar="N", help="so many questions, the same ones each time")


# compare


def _add_compare(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--prompt", metavar="TEXT", help="what both are asked (COMPARE_PROMPT)")
    asked.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line, or a JSON list")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="warm runs of each (default: %(default)s)")
    parser.add_argument(
        "--retrieve",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put passages of the documents before both (default: yes)",
    )
    parser.add_argument("--refine", action="store_true", help="also have the larger model refine the small one's draft")


def _compare(arguments: argparse.Namespace) -> None:
    raise UserError("compare is not there yet.")


# bench


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, metavar="N", help="pairs of requests (default: 20), or timings (3)")
    parser.add_argument(
        "--backend",
        choices=("all", "embedded", "native", "foundry", "servers"),
        help="instead: tokens a second of each model on each runtime",
    )


def _bench(arguments: argparse.Namespace) -> None:
    from rag.lab import bench, speed

    settings = Settings.load()
    if arguments.backend is not None:
        rounds = 3 if arguments.rounds is None else arguments.rounds
        speeds = asyncio.run(speed.measure(settings, arguments.backend, rounds))
        if arguments.json:
            print(json.dumps(speed.report(speeds, rounds)))
        else:
            speed.show(speeds, rounds)
        return
    report = asyncio.run(bench.run(settings, rounds=20 if arguments.rounds is None else arguments.rounds))
    if arguments.json:
        print(json.dumps(report.to_dict()))
    else:
        bench.show(report)


# evaluate


def _evaluate_retrieval(arguments: argparse.Namespace) -> None:
    from rag.lab import dataset, evaluation

    if arguments.dataset is None:
        raise UserError("Name a data set with --dataset.")
    report = evaluation.retrieval(dataset.load(arguments.dataset), Settings.load(docs=arguments.docs))
    if arguments.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        evaluation.show(report)


def _add_answers(parser: argparse.ArgumentParser) -> None:
    _limit(parser)
    parser.add_argument("--mode", choices=MODES, default="auto", help="who answers (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="also ask each model alone, and tell a random mix")
    parser.add_argument("--between", metavar="NAME", help="with --compare: one model more, alone")


def _evaluate_answers(arguments: argparse.Namespace) -> None:
    asyncio.run(_evaluate_answers_of(arguments))


async def _evaluate_answers_of(arguments: argparse.Namespace) -> None:
    from rag import terminal
    from rag.lab import dataset, quality, trial

    if arguments.dataset is None:
        raise UserError("Name a data set with --dataset.")
    settings = Settings.load(slm_model=arguments.slm, llm_model=arguments.llm)
    with terminal.counting() as progress:
        report = await trial.evaluate(
            dataset.load(arguments.dataset),
            settings,
            arguments.mode,
            limit=arguments.limit,
            compare=arguments.compare,
            between=arguments.between,
            progress=progress,
        )
    if arguments.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        quality.show(report)


# calibrate


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", type=Path, metavar="PATH", required=True, help="a SQuAD JSON file")
    _limit(parser)
    parser.add_argument(
        "--llm-limit", type=int, default=400, metavar="N", help="questions for the larger model (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("calibration"), help="where the report goes")
    parser.add_argument("--labels", action="store_true", help="also learn from what was said of answers in the chat")
    goals = parser.add_argument_group("where the line is drawn (one of)")
    for name, help in (
        ("--quality", "least calls that keep this share of the larger model's right answers (default: 0.95)"),
        ("--escalation-rate", "this share of the questions goes to the larger model"),
        ("--risk", "at most this share of the questions is answered wrong by the small model"),
        ("--call-cost", "what a call to the larger model costs, in right answers"),
    ):
        goals.add_argument(name, type=float, metavar="SHARE", help=help)


def _calibrate(arguments: argparse.Namespace) -> None:
    asyncio.run(_calibrate_pair(arguments))


async def _calibrate_pair(arguments: argparse.Namespace) -> None:
    from rag import terminal
    from rag.lab import calibration, dataset, labels, trial
    from rag.turn.calibration import own_path

    settings = Settings.load(slm_model=arguments.slm, llm_model=arguments.llm)
    goal = calibration.Goal(arguments.quality, arguments.escalation_rate, arguments.risk, arguments.call_cost)
    said: list[dict[str, Any]] = []
    if arguments.labels:
        with closing(labels.Labels(settings.cache_dir / labels.FILE)) as held:
            said = held.rows()
    with terminal.counting() as progress:
        made = await trial.run(
            dataset.load(arguments.dataset),
            settings,
            goal,
            limit=arguments.limit,
            llm_limit=arguments.llm_limit,
            labels=said,
            progress=progress,
            tell=lambda words: terminal.notices.print(words, markup=False),
        )
    page = trial.write(made, arguments.out)
    path = own_path(made.fitted.slm, made.fitted.llm, settings)
    made.fitted.save(path)
    if arguments.json:
        print(json.dumps({**made.to_dict(), "calibration": str(path), "report": str(page)}, ensure_ascii=False))
        return
    trial.show(made)
    terminal.out.print(f"The pair is calibrated; the chat uses it from its next start: {path}")
    terminal.out.print(f"Report: {page}")


# cost


def _add_cost(parser: argparse.ArgumentParser) -> None:
    pass


def _cost(arguments: argparse.Namespace) -> None:
    raise UserError("cost is not there yet.")
