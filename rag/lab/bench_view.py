"""How a bench report looks: tables in the terminal, and one HTML page with charts.

Knows what each figure means, and how it differs from what other tools print under a similar name. Measures nothing.
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rag import terminal
from rag.lab import charts, page, speed
from rag.lab.machine import machine
from rag.lab.page import Section
from rag.lab.spread import Spread
from rag.lab.sweep import MEDIUM_TOKENS, AtConcurrency, AtLength, Measured, Report

LENGTH_COLUMNS = (
    "test",
    "tokens",
    "rounds",
    "tokens/s",
    "median",
    "first token, ms",
    "95%",
    "between pieces, ms",
    "95%",
    "CPU s",
    "MB",
)
QUEUE_COLUMNS = ("in our queue, ms", "95%", "computing, ms", "95%")

HOW = (
    "Times begin when a request has been sent and end with the first piece of text, or with the last. A piece is an event"
    " of the stream that carries text; most servers send one for each token, some several tokens together, and a character"
    " that takes several tokens comes once it is whole. So the times between pieces are those between tokens, unless it is"
    " noted that there were fewer pieces than tokens.",
    "pp is the reading of the prompt: its tokens over the time to the first token. tg is writing: the tokens after the"
    " first over the time after the first; @ d is how many tokens had been read before. Tokens/s is the mean of the rounds"
    " and their standard deviation (n - 1), then comes the median. 95% is the 95th percentile, between two values in"
    " proportion; of five rounds it is near the slowest. The prompts are prose with a task, made to length by counting two"
    " of them on this model; the tokens in the tables are what the server counted. Each begins with a number that no other"
    " has, in front of everything, so that no cache holds more of it than the few tokens that each template begins with.",
    "CPU seconds and memory are those of the model server's process while the row was measured, shared out over its"
    " requests; memory is resident, the weights among it, the most that was seen. Of a server that is not ours neither is"
    " known.",
)
TOGETHER = (
    "So many requests were sent at the same moment, and when all had been answered, the next so many. Tokens/s is what all"
    " of them wrote, over the time that all of it took. The first token is what whoever asks sees, the wait for their turn"
    " among it.",
)
QUEUED = (
    "A model that this program runs computes for one request at a time, because on shared cores two at once write fewer"
    " tokens together than one alone. The queue is ours: the wait in it is told apart, and computing is from there to the"
    " first token."
)
UNQUEUED = (
    "A server that was there got all of them at once; how it shares its time, and what waits in it, is its own matter."
)
BROKEN_OFF = "The run was broken off before its end; this is what it had measured."
DIFFERENCES = (
    "llama-bench runs llama.cpp in its own process. This goes over HTTP to a server, through its template, its tokenizer,"
    " its sampler and its stream of events, and asks for the probability of each token and its nearest rivals where the"
    " server gives them, all as the chat does. So it is slower, most of all when a small model writes: there what is done"
    " for each token beside computing it is a large share.",
    "llama-bench's pp reads random tokens and picks none; ours reads text, and its time holds one step of writing and the"
    " way there and back. llama-bench's tg writes random tokens into an empty context unless -d says otherwise; ours writes"
    " what the model says, behind the prompt: compare tg48 @ d1024 with -n 48 -d 1024. Its batches are 2,048 and 512 tokens"
    " unless -b and -ub say otherwise; those of our server are 256.",
    "vLLM's `bench serve` (benchmark_serving) and tools like it: our first token is its TTFT (there the clock starts before"
    " the request is sent; with several at once ours holds the wait in our queue as well), the times between pieces are its"
    " ITL, 1000 ms divided by our tokens/s of writing is its TPOT, the whole request its E2EL, tokens/s of several at once"
    " its output token throughput. Its requests may arrive at random times and it can have the end of an answer ignored;"
    " ours arrive together and end where the model ends.",
)


def show(report: Report) -> None:
    """As tables that fit a narrow terminal, medians and 95th percentiles in one cell."""
    for one in report.models:
        if not (one.lengths or one.concurrency):
            continue
        terminal.out.print(Text(_described(one)))
        if one.lengths:
            _print(("test", "rounds", "tokens", "tokens/s", "median / 95%", "CPU s", "MB"), _lengths_shown(one))
            said = "pp: to the first token. tg: between pieces. CPU s: of a whole request."
            terminal.out.print(said if one.streams else "Times and CPU s are those of a whole request.")
        if one.concurrency:
            waits = ("first token", *(("in queue",) if one.queued else ()), "whole")
            failed = ("failed",) if _refusals(one) else ()
            _print(("once", *failed, "tokens/s", *waits, "CPU s"), _together_shown(one))
            queue = "; the wait in our queue is part of the first token's" if one.queued else ""
            terminal.out.print(f"So many requests at once, median / 95%{queue}.")
        for note in (*one.notes, *_refusals(one)):
            terminal.out.print(note)
    for failure in report.failures:
        terminal.notices.print(failure, markup=False)
    if not (report.complete or report.failures):
        terminal.out.print(BROKEN_OFF)
    if report.models:
        terminal.out.print(told_machine())


def _print(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else cell for cell in row))
    terminal.out.print(table)


def _lengths_shown(one: Measured) -> list[tuple[str | None, ...]]:
    """Reading and writing, as llama-bench has a line for each; or one line of whole requests."""
    rows: list[tuple[str | None, ...]] = []
    for row in one.lengths:
        rounds, used = str(row.rounds), (_number(row.cpu_s, 2), _number(row.used.peak_memory_mb, 0))
        if row.first_token_ms is None:
            rows.append((_whole(row), rounds, _middle(row.input_tokens), None, _both(row.total_ms), *used))
            continue
        read, wrote = row.prefill_tokens_per_s, row.decode_tokens_per_s
        rows.append((row.label, rounds, _middle(row.input_tokens), _rate(read)[0], _both(row.first_token_ms), *used))
        rows.append(
            (
                row.written_label,
                rounds,
                _middle(row.output_tokens),
                _rate(wrote)[0],
                _both(row.inter_token_ms),
                None,
                None,
            )
        )
    return rows


def _together_shown(one: Measured) -> list[tuple[str | None, ...]]:
    return [
        (
            str(row.concurrency),
            *((str(len(row.failures)),) if _refusals(one) else ()),
            _number(row.tokens_per_s, 1),
            _both(row.first_token_ms),
            *((_both(row.queue_ms),) if one.queued else ()),
            _both(row.total_ms),
            _number(row.cpu_s, 2),
        )
        for row in one.concurrency
    ]


def html(report: Report) -> str:
    """One page."""
    known = [one for one in report.models if one.lengths or one.concurrency]
    sections = []
    if any(one.lengths for one in known):
        sections.append(Section("By the length of the prompt", [*_length_charts(known), *_length_tables(known)]))
    if any(one.concurrency for one in known):
        sections.append(Section("By how many ask at once", [*_together_charts(known), *_together_tables(known)]))
    sections += [
        Section("What was measured", [_subjects(known), *map(page.paragraph, _remarks(report))]),
        Section("How it was measured", [*map(page.paragraph, (*HOW, *_how_together(known)))]),
        Section("Where it differs from other tools", [*map(page.paragraph, DIFFERENCES)]),
    ]
    return page.page("How fast the models are", _lead(known), sections, report.to_dict())


def told_machine() -> str:
    """In one line."""
    told = machine()
    return ", ".join(
        f"{name} {', '.join(value) or 'none' if isinstance(value, list | tuple) else value}"
        for name, value in told.items()
    )


def _described(one: Measured) -> str:
    parts = [one.title]
    if one.threads:
        parts.append(f"{one.threads} threads")
    if one.devices:
        parts.append(f"can compute on {', '.join(one.devices)}")
    if one.where != "on this machine":
        parts.append(one.where)
    if one.context_tokens:
        parts.append(f"window {one.context_tokens:,} tokens")
    if one.load_s is not None:
        parts.append(f"loaded in {one.load_s:.1f} s")
    if one.warm_up is not None and one.warm_up.first_ms is not None:
        parts.append(f"first token of the first request after {one.warm_up.first_ms:,.0f} ms")
    return ", ".join(parts)


# By length


def _length_columns(one: Measured) -> tuple[str, ...]:
    if one.streams:
        return LENGTH_COLUMNS
    return ("test", "tokens", "rounds", "whole request, ms", "95%", "CPU s", "MB")


def _length_cells(row: AtLength) -> list[tuple[str | None, ...]]:
    """Reading and writing, as llama-bench has a line for each; or one line of whole requests."""
    usage = (_number(row.cpu_s, 2), _number(row.used.peak_memory_mb, 0))
    if row.first_token_ms is None:
        return [(_whole(row), _middle(row.input_tokens), str(row.rounds), *_pair(row.total_ms), *usage)]
    read = (row.label, _middle(row.input_tokens), str(row.rounds), *_rate(row.prefill_tokens_per_s))
    wrote = (row.written_label, _middle(row.output_tokens), str(row.rounds), *_rate(row.decode_tokens_per_s))
    return [
        (*read, *_pair(row.first_token_ms), None, None, *usage),
        (*wrote, None, None, *_pair(row.inter_token_ms), None, None),
    ]


def _whole(row: AtLength) -> str:
    """`pp64+tg48`: reading and writing in one, as llama-bench calls it."""
    return f"{row.label}+{row.written_label.partition(' ')[0]}"


def _length_charts(known: Sequence[Measured]) -> list[str]:
    figures = []
    for name, y, caption in (
        (
            "first_token_ms",
            "ms to the first token, median",
            "How long the first token takes, by the length of the prompt.",
        ),
        ("prefill_tokens_per_s", "tokens/s read, median", "How fast prompts are read, by their length."),
        (
            "decode_tokens_per_s",
            "tokens/s written, median",
            "How fast answers are written, by the length of the prompt.",
        ),
    ):
        series = {}
        for one in known:
            points = [
                (row.input_tokens.p50, spread.p50)
                for row in one.lengths
                if row.input_tokens is not None and isinstance(spread := getattr(row, name), Spread)
            ]
            if len(points) > 1:
                series[one.title] = points
        if series:
            log_y = name == "first_token_ms"
            svg = charts.lines(series, x="tokens of the prompt", y=y, log_x=True, log_y=log_y)
            figures.append(page.figure(svg, caption))
    return figures


def _length_tables(known: Sequence[Measured]) -> list[str]:
    return [
        page.table(
            _length_columns(one), [cells for row in one.lengths for cells in _length_cells(row)], caption=one.title
        )
        for one in known
        if one.lengths
    ]


# By concurrency


def _concurrency_columns(one: Measured) -> tuple[str, ...]:
    queue = QUEUE_COLUMNS if one.queued else ()
    return (
        "at once", "requests", "failed", "tokens/s", "first token, ms", "95%", *queue, "whole request, ms", "95%", "CPU s",
        "MB",
    )  # fmt: skip


def _concurrency_cells(row: AtConcurrency, *, queued: bool) -> tuple[str | None, ...]:
    return (
        str(row.concurrency),
        str(row.requests),
        str(len(row.failures)),
        _number(row.tokens_per_s, 1),
        *_pair(row.first_token_ms),
        *((*_pair(row.queue_ms), *_pair(row.compute_ms)) if queued else ()),
        *_pair(row.total_ms),
        _number(row.cpu_s, 2),
        _number(row.used.peak_memory_mb, 0),
    )


def _together_charts(known: Sequence[Measured]) -> list[str]:
    figures = []
    throughput = {
        one.title: [(row.concurrency, row.tokens_per_s) for row in one.concurrency if row.tokens_per_s is not None]
        for one in known
    }
    waits = {
        one.title: [
            (row.concurrency, first.p50) for row in one.concurrency if (first := row.first_token_ms) is not None
        ]
        for one in known
    }
    for series, y, log_y, caption in (
        (throughput, "tokens/s written by all", False, "How much is written in all, by how many ask at once."),
        (waits, "ms to the first token, median", True, "How long the first token takes, by how many ask at once."),
    ):
        drawn = {title: points for title, points in series.items() if len(points) > 1}
        if drawn:
            svg = charts.lines(drawn, x="requests at once", y=y, log_x=True, log_y=log_y)
            figures.append(page.figure(svg, caption))
    return figures


def _together_tables(known: Sequence[Measured]) -> list[str]:
    return [
        page.table(
            _concurrency_columns(one),
            [_concurrency_cells(row, queued=one.queued) for row in one.concurrency],
            caption=one.title,
            numbers_from=0,
        )
        for one in known
        if one.concurrency
    ]


def _how_together(known: Sequence[Measured]) -> tuple[str, ...]:
    many = [one for one in known if one.concurrency]
    if not many:
        return ()
    told = (QUEUED,) if any(one.queued for one in many) else ()
    return (*TOGETHER, *told, *((UNQUEUED,) if any(not one.queued for one in many) else ()))


# In words


def _lead(known: Sequence[Measured]) -> str:
    lines = [line for one in known if (line := one.usual) is not None]
    if not lines:
        return "What was measured of each model."
    told = []
    for line in lines:
        wrote = line["decode_tokens_per_s"]
        rate = f" and writes {wrote:,.0f}" if wrote else ""
        told.append(f"{line['model']} on {line['runtime']} reads {line['prefill_tokens_per_s']:,.0f}{rate}")
    return f"Tokens a second, medians, at a prompt of about {lines[0]['input_tokens']:,} tokens: {'; '.join(told)}."


def _subjects(known: Sequence[Measured]) -> str:
    rows = [
        (
            one.model,
            one.runtime,
            one.where,
            ", ".join(one.devices) or None,
            _number(one.threads, 0),
            _number(one.context_tokens, 0),
            _number(one.load_s, 2),
            _number(one.warm_up.first_ms if one.warm_up else None, 0),
            _number(one.peak_memory_mb, 0),
        )
        for one in known
    ]
    head = (
        "model", "runs on", "where", "devices beside the processor", "threads", "window, tokens", "loaded in, s",
        "first token of the first request, ms", "most memory, MB",
    )  # fmt: skip
    return page.table(head, rows, numbers_from=4)


def _remarks(report: Report) -> list[str]:
    plan = report.plan
    told = [told_machine() + "."]
    if plan.prompt:
        told.append(
            f"Asked was, each time behind a number of its own so that no cache holds it: {plan.prompt} An answer had at"
            f" most {speed.WRITTEN_TOKENS} tokens."
        )
    elif plan.lengths:
        fewer = "".join(
            f", but {plan.rounds_of(tokens)} of {tokens:,} tokens"
            for tokens in plan.lengths
            if plan.rounds_of(tokens) < plan.rounds
        )
        told.append(f"{plan.rounds} rounds of each length{fewer}; an answer had at most {speed.WRITTEN_TOKENS} tokens.")
    if plan.concurrency and not plan.prompt:
        told.append(
            f"Several at once read {MEDIUM_TOKENS} tokens each and wrote at most {speed.SHORT_TOKENS}; at least"
            f" {plan.rounds} requests for each number at once."
        )
    told.append("Before the first, each model answered a warm-up that is not counted.")
    for one in report.models:
        told += [f"{one.title}: {note}" for note in (*one.notes, *_refusals(one))]
    return [*told, *report.failures, *(() if report.complete else (BROKEN_OFF,))]


def _refusals(one: Measured) -> list[str]:
    """What requests that failed were told, each once."""
    said = {text: row.concurrency for row in reversed(one.concurrency) for text in row.failures}
    return [f"Failed from {many} at once on: {text}" for text, many in said.items()]


# Cells


def _rate(spread: Spread | None) -> tuple[str | None, str | None]:
    """`436.20 ± 3.10` and the median."""
    if spread is None:
        return None, None
    return f"{spread.mean:,.2f}" + (f" ± {spread.sd:.2f}" if spread.sd is not None else ""), f"{spread.p50:,.1f}"


def _pair(spread: Spread | None) -> tuple[str | None, str | None]:
    """Median and 95th percentile."""
    return (None, None) if spread is None else (_ms(spread.p50), _ms(spread.p95))


def _both(spread: Spread | None) -> str | None:
    """Median and 95th percentile, as short as they can be told."""
    if spread is None:
        return None
    if spread.p95 < 1000:
        return f"{_ms(spread.p50)} / {_ms(spread.p95)} ms"
    digits = 2 if spread.p95 < 10_000 else 1
    return f"{spread.p50 / 1000:,.{digits}f} / {spread.p95 / 1000:,.{digits}f} s"


def _middle(spread: Spread | None) -> str | None:
    return None if spread is None else f"{spread.p50:,.0f}"


def _ms(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"
