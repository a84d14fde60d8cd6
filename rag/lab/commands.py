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

Progress = Callable[[str, int, int], None]
"""What is being done, how many of how many are done."""
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
        "retrieval",
        help="context precision and recall, or recall@k, MRR, nDCG; time and memory",
        parents=[docs, sets, as_json],
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


def _run(
    arguments: argparse.Namespace,
    measure: Callable[[Progress], Coroutine[Any, Any, None]],
    *,
    measured: Callable[[], object],
    told: Callable[[], dict[str, Any]],
    show: Callable[[], None],
    html: Callable[[], str],
) -> None:
    """Measure behind a progress bar, then show as the arguments say; also what was `measured` when that broke off, whose
    error then goes on."""
    from rag import terminal
    from rag.lab import page

    if arguments.page is not None:
        page.check(arguments.page)

    async def counted() -> None:
        with terminal.counting() as progress:
            await measure(progress)

    try:
        asyncio.run(counted())
    finally:
        if measured():
            if arguments.json:
                print(json.dumps(told(), ensure_ascii=False))
            else:
                show()
            if arguments.page is not None:
                page.write(html(), arguments.page)
                terminal.notices.print(f"Report: {arguments.page}", markup=False)


def _limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, metavar="N", help="so many questions, the same ones each time")


# compare


def _add_compare(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--prompt", metavar="TEXT", help="what both are asked (COMPARE_PROMPT)")
    asked.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line, or a JSON list")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="rounds, each cold and warm (default: %(default)s)"
    )
    parser.add_argument(
        "--retrieve",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put passages of the documents before both (default: yes)",
    )
    parser.add_argument("--refine", action="store_true", help="also have the larger model refine the small one's draft")


def _compare(arguments: argparse.Namespace) -> None:
    from rag.lab import compare, compare_view, prompts
    from rag.lab.comparison import Plan, Report

    settings = Settings.load(docs=arguments.docs, slm_model=arguments.slm, llm_model=arguments.llm)
    asked = prompts.of(arguments.prompt, settings) if arguments.prompts is None else prompts.read(arguments.prompts)
    report = Report(Plan(asked, arguments.repeat, arguments.retrieve, arguments.refine))

    _run(
        arguments,
        lambda progress: compare.run(report, settings, progress=progress),
        measured=lambda: not report.empty,
        told=report.to_dict,
        show=lambda: compare_view.show(report),
        html=lambda: compare_view.html(report),
    )


# bench


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "pp64 is reading 64 tokens, tg48 @ d64 writing up to 48 behind them, both in tokens/s, mean and standard deviation,"
        " named as llama-bench names them. Unlike llama-bench this goes over HTTP, through the server's template, tokenizer"
        " and sampler, it reads text and not random tokens, and a pp time holds one step of writing. First token, between"
        " pieces and whole request are what vLLM's bench calls TTFT, ITL and E2EL. The page of --page tells the rest."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--turns", action="store_true", help="this product instead: its share of a turn, in pairs, its start and memory"
    )
    what.add_argument(
        "--backend",
        choices=("all", "embedded", "native", "foundry", "servers"),
        help="each model on each of these runtimes, with prompts of 1,024 tokens",
    )
    parser.add_argument(
        "--models",
        metavar="A,B",
        help="which models (BENCH_MODELS; default: the pair of the chat, or all of --backend)",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="requests for each figure (BENCH_ROUNDS), or pairs (default: 20)"
    )
    parser.add_argument("--lengths", metavar="N,N", help="tokens of the prompts (default: 64,256,1024,4096), or none")
    parser.add_argument(
        "--concurrency", metavar="N,N", help="how many requests at once (default: 1,2,4,8,16,32), or none"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="one prompt in place of these lengths (BENCH_PROMPT)")


def _bench(arguments: argparse.Namespace) -> None:
    if arguments.turns:
        _bench_turns(arguments)
        return
    from rag.lab import bench, bench_view, sweep

    settings = Settings.load()
    given = settings.bench_models if arguments.models is None else arguments.models
    models = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if arguments.models is not None and not models:
        raise UserError("--models names no model. Write their names with commas between them.")
    survey = arguments.backend
    plan = sweep.Plan.of(
        settings,
        rounds=arguments.rounds,
        lengths=arguments.lengths,
        concurrency=arguments.concurrency,
        prompt=arguments.prompt,
        survey=survey is not None,
    )
    report = sweep.Report(plan)

    _run(
        arguments,
        lambda progress: bench.run(report, settings, models=models, survey=survey, progress=progress),
        measured=lambda: report.rows,
        told=report.to_dict,
        show=lambda: bench_view.show(report),
        html=lambda: bench_view.html(report),
    )


def _bench_turns(arguments: argparse.Namespace) -> None:
    from rag.lab import overhead, overhead_view

    for name in ("models", "lengths", "concurrency", "prompt"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} is about models, and --turns measures the product. Leave one of them out.")
    settings = Settings.load()
    rounds: int | None = arguments.rounds
    if rounds is None:
        rounds = settings.bench_rounds if "bench_rounds" in settings.model_fields_set else overhead.ROUNDS
    if rounds < 1:
        raise UserError(f"--rounds is {rounds}; at least 1 is needed.")
    report = overhead.Report()

    _run(
        arguments,
        lambda progress: overhead.run(report, settings, rounds, progress=progress),
        measured=lambda: report.starts_s,
        told=report.to_dict,
        show=lambda: overhead_view.show(report),
        html=lambda: overhead_view.html(report),
    )


# evaluate


def _evaluate_retrieval(arguments: argparse.Namespace) -> None:
    from rag.lab import dataset, evaluation

    settings = Settings.load()
    report = evaluation.retrieval(dataset.load(arguments.dataset, settings, docs=arguments.docs), settings)
    if arguments.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        evaluation.show(report)


def _add_answers(parser: argparse.ArgumentParser) -> None:
    _limit(parser)
    parser.add_argument("--mode", choices=MODES, default="auto", help="who answers (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="also ask each model alone, and tell a random mix")
    parser.add_argument("--between", metavar="NAME", help="with --compare: one model more, alone")
    parser.add_argument(
        "--judge", metavar="NAME", help="a model that also grades the answers, none of those under test"
    )
    parser.add_argument("--judge-url", metavar="URL", help="its OpenAI-compatible server (key: RAG_JUDGE_API_KEY)")
    parser.add_argument(
        "--ragas",
        metavar="PYTHON",
        nargs="?",
        const="",
        help="also ragas' metrics, by the Python that has it (default: this one, with smallfirst[ragas])",
    )
    parser.add_argument(
        "--samples", type=Path, metavar="FILE", help="write the answers as ragas reads them, JSON lines"
    )


def _evaluate_answers(arguments: argparse.Namespace) -> None:
    from rag.lab import dataset, page, quality, quality_view, samples, trial

    if arguments.judge_url is not None and arguments.judge is None:
        raise UserError("--judge-url is the address of a judge. Name the model with --judge.")
    if arguments.between is not None and not arguments.compare:
        raise UserError("--between names one model more to compare with. Add --compare.")
    if arguments.samples is not None:
        page.check(arguments.samples, "--samples")
    settings = Settings.load(slm_model=arguments.slm, llm_model=arguments.llm)
    asked = dataset.load(arguments.dataset, settings, docs=arguments.docs)
    report = quality.Report(arguments.mode, settings)

    try:
        _run(
            arguments,
            lambda progress: trial.evaluate(
                report,
                asked,
                settings,
                limit=arguments.limit,
                compare=arguments.compare,
                between=arguments.between,
                judge=arguments.judge,
                judge_url=arguments.judge_url,
                ragas=arguments.ragas,
                progress=progress,
            ),
            measured=lambda: report.rows,
            told=report.to_dict,
            show=lambda: quality_view.show(report),
            html=lambda: quality_view.html(report),
        )
    finally:
        if report.rows and arguments.samples is not None:
            samples.write(samples.of(report.outcomes, asked), arguments.samples)


# calibrate


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", type=Path, metavar="PATH", required=True, help="a SQuAD JSON file, or questions of your own"
    )
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
            dataset.load(arguments.dataset, settings),
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
    from rag.lab.assumptions import KNOBS
    from rag.lab.prices import SHIPPED

    parser.add_argument(
        "--receipts",
        type=Path,
        metavar="FILE",
        nargs="*",
        action="extend",
        help="go from turns that were kept: the chat's JSON or CSV, or lines of `ask --json`; without FILE, from the"
        " conversations that are kept here",
    )
    parser.add_argument(
        "--cloud",
        metavar="MODEL",
        action="append",
        default=[],
        help="compare with this model of the price table, or all (default: the cheapest and the dearest)",
    )
    parser.add_argument("--prices", type=Path, metavar="FILE", default=SHIPPED, help="another price table")
    parser.add_argument("--prices-path", action="store_true", help="tell where the shipped one is, to copy and edit it")
    parser.add_argument(
        "--currency", metavar="NAME", help="of your prices; nothing is converted (default: the table's)"
    )
    group = parser.add_argument_group("what is assumed, or told by receipts, unless it is given")
    for knob in KNOBS:
        default = "" if knob.default is None else f" (default: {knob.default:g})"
        group.add_argument(knob.flag, type=float, metavar="N", help=f"{knob.unit}: {knob.what}{default}")


def _cost(arguments: argparse.Namespace) -> None:
    from datetime import date

    from rag import terminal
    from rag.lab import cost, cost_view, page, prices, receipt_files, receipts
    from rag.lab.assumptions import KNOBS

    if arguments.prices_path:
        print(prices.SHIPPED)
        return
    settings = Settings.load()
    told = None
    if arguments.receipts is not None:
        files = arguments.receipts
        told = receipts.from_turns(receipt_files.read(files) if files else arguments.kept_turns())
    report = cost.report(
        {knob.name: getattr(arguments, knob.name) for knob in KNOBS},
        receipts=told,
        prices=prices.load(arguments.prices),
        today=date.today(),
        watts=settings.watts,
        clouds=arguments.cloud,
        currency=arguments.currency,
        table=arguments.prices,
    )
    if arguments.page is not None:
        page.write(cost_view.html(report), arguments.page)
    if arguments.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
        return
    cost_view.show(report)
    if arguments.page is not None:
        terminal.out.print(f"Report: {arguments.page}")
