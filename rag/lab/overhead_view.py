"""How the report on the product's own share looks: a table in the terminal, and one HTML page.

Knows what each figure means. Measures nothing.
"""

from rich.table import Table

from rag import __version__, terminal
from rag.lab import charts, page
from rag.lab.bench_view import BROKEN_OFF, told_machine
from rag.lab.overhead import QUESTION, Report
from rag.lab.page import Section

ROWS = (
    ("installed size, without weights", "installed_mb", "{:,.0f} MB"),
    ("start to ready, nothing to fetch", "start_s", "{:.1f} s"),
    ("resident memory, idle, without the model servers", "memory_mb", "{:,.0f} MB"),
    ("most resident memory during the pairs, without the model server", "own_peak_memory_mb", "{:,.0f} MB"),
    ("CPU time of a pair, without the model server", "own_cpu_s_per_pair", "{:.3f} s"),
    ("turn's own work before the request", "turn_before_request_ms", "{:.1f} ms"),
)
PAIRED = (
    ("first token of the bare request", "bare_first_token_ms", "{:,.1f} ms"),
    ("first token through the API", "first_token_ms", "{:,.1f} ms"),
    ("  ours minus bare", "overhead_ms", "{:,.1f} ms"),
    ("  ours over bare", "ratio", "{:.2f}"),
    ("whole answer, ours minus bare", "whole_answer_overhead_ms", "{:,.1f} ms"),
    ("between pieces, bare", "bare_inter_token_ms", "{:,.1f} ms"),
    ("between pieces, ours", "inter_token_ms", "{:,.1f} ms"),
)
HOW = (
    "The product was started as a user would start it, in a process of its own with no conversation, and asked over its"
    " HTTP API. Each pair is the bare request, the same messages sent straight to the same model server, and then the same"
    " question through the product, with search, prompt and citations; so both meet the same machine within a second. The"
    " first pair reads the prompt and is not counted: in the others the server finds it in its cache, where our own share"
    " shows most. Ours minus bare, and ours over bare, are of each pair; of these the median and the 95th percentile are"
    " told.",
    "Memory and CPU time of the product are those of its process and its children, less those of the model server, which is"
    " one of them; CPU time is that of both requests of a pair, of which only one passes through the product.",
)


def show(report: Report) -> None:
    """As a table; nothing where nothing was measured."""
    if not report.starts_s:
        return
    metrics = report.metrics
    title = f"Small First {__version__}, {report.model}, {len(report.pairs)} pairs, {len(report.starts_s)} starts"
    table = Table("what", title=title)
    table.add_column("median", justify="right")
    table.add_column("95%", justify="right")
    for what, median, high in _rows(metrics):
        table.add_row(what, median, high or "")
    terminal.out.print(table)
    if not report.complete:
        terminal.out.print(BROKEN_OFF)
    terminal.out.print(told_machine())


def html(report: Report) -> str:
    """One page."""
    metrics = report.metrics
    parts = [page.table(("what", "median", "95%"), _rows(metrics))]
    if report.pairs:
        numbers = range(1, len(report.pairs) + 1)
        series = {
            "through the API": [
                (number, pair.ours.first_ms) for number, pair in zip(numbers, report.pairs, strict=True)
            ],
            "bare request": [(number, pair.bare.first_ms) for number, pair in zip(numbers, report.pairs, strict=True)],
        }
        svg = charts.lines(series, x="pair", y="ms to the first token")
        parts.append(page.figure(svg, "The first token, pair by pair."))
    lead = "What the product itself adds to the model that it asks."
    if (added := metrics.get("overhead_ms")) is not None:
        lead = (
            f"The product adds {added:.1f} ms to a first token that takes {metrics['bare_first_token_ms']:.1f} ms without"
            f" it: {metrics['ratio']:.2f} times as long."
        )
    sections = [
        Section("What was measured", parts),
        Section(
            "How it was measured",
            [
                *map(page.paragraph, HOW),
                page.paragraph(f"Asked was: {QUESTION}"),
                *(() if report.complete else (page.paragraph(BROKEN_OFF),)),
                page.paragraph(f"{report.model}; {told_machine()}."),
            ],
        ),
    ]
    return page.page("What the product itself costs", lead, sections, report.to_dict())


def _rows(metrics: dict[str, float]) -> list[tuple[str, str, str | None]]:
    """What, median or only figure, 95th percentile where there is one; of what was measured."""
    rows: list[tuple[str, str, str | None]] = []
    for what, name, form in (*ROWS, *PAIRED):
        if name in metrics:
            high = metrics.get(f"{name}_p95")
            rows.append((what, form.format(metrics[name]), None if high is None else form.format(high)))
    return rows
