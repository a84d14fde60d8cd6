"""A comparison as a person sees it: tables in the terminal, one HTML page, and its result in a sentence.

Knows how figures are worded; measures nothing.
"""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from rag import terminal
from rag.lab import charts
from rag.lab.comparison import FIGURES, LEGS, TEMPERATURE, Refinement, Report, Run, blended
from rag.lab.difference import differences
from rag.lab.machine import machine
from rag.lab.page import Section, figure, folded, page, paragraph, quoted, side_by_side, table
from rag.models.legs import SPOKEN
from rag.models.places import LegName

ANSWERS_SHOWN = 5
"""In the terminal; the page and the JSON have all."""
TITLE_CHARS = 90
BLENDED = {"tokens_per_s": "blended_"}
# Of a ratio that is nearer to 1 nothing is said.
AS_MUCH = 0.05

NAMES = {
    "cold_ttft_ms": "first token, cold",
    "warm_ttft_ms": "first token, warm",
    "cold_total_ms": "whole answer, cold",
    "warm_total_ms": "whole answer, warm",
    "prefill_tokens_per_s": "reads",
    "decode_tokens_per_s": "writes",
    "input_tokens": "tokens read",
    "output_tokens": "tokens written",
    "cpu_s": "CPU time, cold",
    "peak_memory_mb": "memory, most seen",
    "energy_j": "energy, cold",
    "cost": "cost of an answer",
    "load_s": "start",
}


def show(report: Report) -> None:
    """The figures, the answers side by side, and what is to be known of them."""
    _print(_title(report), *figures(report))
    if report.refinements:
        _print("Draft, then refine", *refining(report))
    for number, asked in enumerate(report.asked[:ANSWERS_SHOWN]):
        texts = {_name(report, leg): _answer(report, number, leg) for leg in LEGS}
        if (refinement := _refinement(report, number)) is not None and refinement.refined is not None:
            texts["refined"] = refinement.refined.text.strip()
        answers = Table(title=Text(_clipped(asked.prompt)))
        for name in texts:
            answers.add_column(Text(name), ratio=1, overflow="fold")
        answers.add_row(*map(Text, texts.values()))
        terminal.out.print(answers, soft_wrap=False)
    if (more := len(report.asked) - ANSWERS_SHOWN) > 0:
        terminal.out.print(f"The answers to {_count(more, 'more prompt')} are in the report of --page and --json.")
    for note in [*_notes(report), told(report)]:
        terminal.out.print(Text(note))


def _print(title: str, head: Sequence[str], rows: Sequence[Sequence[str | None]]) -> None:
    shown = Table(title=title)
    for number, name in enumerate(head):
        shown.add_column(Text(name), justify="right" if number else "left")
    for row in rows:
        shown.add_row(*(Text("–" if cell is None else cell) for cell in row))
    terminal.out.print(shown, soft_wrap=False)


def told(report: Report) -> str:
    """The result in words made of the figures."""
    averages = report.averages()
    slm, llm = averages["slm"], averages["llm"]
    small, large = (_name(report, leg) for leg in LEGS)
    said = []
    if "cold_ttft_ms" in slm and "cold_ttft_ms" in llm:
        words = _times(llm["cold_ttft_ms"] / slm["cold_ttft_ms"], "sooner than", "later than", "as soon as")
        both = f"{_shown('cold_ttft_ms', slm)} against {_shown('cold_ttft_ms', llm)}"
        said.append(f"The first token of {small} came {words} that of {large} ({both})")
    if "decode_tokens_per_s" in slm and "decode_tokens_per_s" in llm:
        words = _times(
            slm["decode_tokens_per_s"] / llm["decode_tokens_per_s"], "faster than", "slower than", "as fast as"
        )
        both = f"{slm['decode_tokens_per_s']:,.1f} against {llm['decode_tokens_per_s']:,.1f} tokens/s"
        said.append(f"it wrote {words} the other ({both})" if said else f"{small} wrote {words} {large} ({both})")
    sentences = [", and ".join(said) + "."] if said else []
    refining = report.refining()
    if refining.get("alone_total_ms"):
        share = refining["total_ms"] / refining["alone_total_ms"]
        sentences.append(f"A refined draft took {share:.1f} times as long as {large} alone.")
    if not report.complete:
        sentences.append("The run broke off before its end.")
    return " ".join(sentences) or "Nothing can be compared: not both models have answered."


def html(report: Report) -> str:
    """The whole report as one HTML document."""
    sections = [Section("Figures", [*_charts(report), table(*figures(report), caption=_title(report))])]
    if report.refinements:
        sections.append(Section("Draft, then refine", _refined_parts(report)))
    sections += [
        Section(f"{number + 1}. {_clipped(asked.prompt)}", _prompt_parts(report, number))
        for number, asked in enumerate(report.asked)
    ]
    sections.append(Section("How it was measured", [paragraph(words) for words in _method(report)]))
    title = " and ".join(_name(report, leg) for leg in LEGS)
    return page(f"{title} compared", told(report), sections, report.to_dict())


def _charts(report: Report) -> list[str]:
    averages = {_name(report, leg): known for leg, known in report.averages().items() if known}
    found = []
    for names, unit, caption in (
        (("cold_ttft_ms", "warm_ttft_ms", "cold_total_ms", "warm_total_ms"), "ms", "Time: less is better"),
        (("prefill_tokens_per_s", "decode_tokens_per_s"), "tokens/s", "Speed: more is better"),
    ):
        drawn = {
            model: {NAMES[name]: known[name] for name in names if name in known} for model, known in averages.items()
        }
        if any(drawn.values()):
            found.append(figure(charts.bars(drawn, unit=unit), caption))
    return found


def figures(report: Report, number: int | None = None) -> tuple[list[str], list[list[str | None]]]:
    """Head and rows: each figure of both models, and larger / small. Of one prompt, or averages over all."""
    both = report.averages() if number is None else {leg: report.figures(number, leg) for leg in LEGS}
    rows: list[list[str | None]] = []
    for name in FIGURES:
        if any(name in known for known in both.values()):
            ratio = both["llm"].get(name, 0) / both["slm"][name] if both["slm"].get(name) else 0
            cells = [_shown(name, both[leg], report.currency) for leg in LEGS]
            rows.append([NAMES[name], *cells, f"{ratio:.2f}" if ratio else None])
    loaded = {leg: model.load_s for leg, model in report.models.items()}
    if number is None and any(seconds is not None for seconds in loaded.values()):
        seconds = [{} if (one := loaded.get(leg)) is None else {"load_s": one} for leg in LEGS]
        rows.append([NAMES["load_s"], *(_shown("load_s", one) for one in seconds), None])
    return ["", *(_name(report, leg) for leg in LEGS), "larger / small"], rows


def refining(report: Report) -> tuple[list[str], list[list[str | None]]]:
    known = report.refining()
    rows: list[list[str | None]] = []
    for part, title in (("draft_", "draft"), ("refined_", "refined"), ("", "both")):
        names = ("ttft_ms", "total_ms", "output_tokens", "tokens_per_s", "cost")
        keys = {name: f"{part or BLENDED.get(name, '')}{name}" for name in names}
        own = {name: known[key] for name, key in keys.items() if key in known}
        rows.append([title, *(_shown(name, own, report.currency) for name in names)])
    return ["", "first token", "total", "tokens written", "speed", "cost"], rows


def _refined_parts(report: Report) -> list[str]:
    done = sum(one.whole for one in report.refinements)
    parts = []
    if done:
        parts.append(table(*refining(report), caption=f"Means over {_count(done, 'prompt')}"))
    parts.append(
        paragraph(
            "The speed of both is blended: the tokens of all drafts and refined answers after each one's first, divided"
            " by the seconds in which they were written. The first token of both is the first that a user sees, which is"
            " the draft's."
        )
    )
    return parts


def _prompt_parts(report: Report, number: int) -> list[str]:
    asked = report.asked[number]
    parts = [paragraph(asked.prompt)] if len(asked.prompt) > TITLE_CHARS else []
    if asked.silent:
        parts.append(paragraph(SILENT))
    runs = {leg: report.of(number, leg) for leg in LEGS}
    marks: dict[LegName, Sequence[tuple[int, int]]] = {}
    if all(runs.values()):
        marks["slm"], marks["llm"] = differences(runs["slm"][0].text, runs["llm"][0].text)
    columns = []
    for leg in LEGS:
        if runs[leg]:
            said = quoted(runs[leg][0].text, marks.get(leg, ())) + paragraph(_ending(report, number, leg))
        else:
            said = paragraph(_answer(report, number, leg))
        columns.append((_name(report, leg), said))
    parts.append(side_by_side(columns))
    if marks:
        parts.append(paragraph("Words that the other answer lacks are marked."))
    if (refinement := _refinement(report, number)) is not None:
        parts += _refinement_parts(refinement)
    if len(report.asked) > 1:
        parts.append(folded("Figures of this prompt", table(*figures(report, number))))
    sent = "".join(paragraph(f"{one['role']}:") + quoted(one["content"]) for one in asked.messages)
    parts.append(folded("What both were sent", sent))
    return parts


def _refinement_parts(refinement: Refinement) -> list[str]:
    if refinement.draft is None or refinement.refined is None:
        return [paragraph(f"Nothing was refined: {refinement.why}")]
    draft, refined = refinement.draft, refinement.refined
    lost, gained = differences(draft.text, refined.text)
    speed = blended(refinement.parts)
    whole = f"First token after {_ms(refinement.ttft_ms)}, whole after {_ms(refinement.total_ms)}"
    return [
        side_by_side(
            [
                (f"Draft: {draft.model}", quoted(draft.text, lost) + paragraph(_took(draft))),
                (f"Refined: {refined.model}", quoted(refined.text, gained) + paragraph(_took(refined))),
            ]
        ),
        paragraph(f"{whole}{f', {speed:,.1f} tokens/s over both' if speed is not None else ''}."),
    ]


def _took(run: Run) -> str:
    speed = run.decode_tokens_per_s
    tokens = f", {_count(run.output_tokens, 'token')}" if run.output_tokens is not None else ""
    return f"First token after {_ms(run.ttft_ms)}, total {_ms(run.total_ms)}{tokens}" + (
        f", {speed:,.1f} tokens/s." if speed is not None else "."
    )


def _ending(report: Report, number: int, leg: LegName) -> str:
    """What else is to be known of an answer."""
    runs = report.of(number, leg)
    words = [_took(runs[0])]
    if runs[0].finish_reason == "length":
        words.append(f"Cut off at {report.max_tokens} tokens.")
    if (same := report.same_text(number, leg)) is not None:
        texts = len({run.text for run in runs})
        words.append(f"All {len(runs)} answers were the same." if same else f"{len(runs)} answers, {texts} texts.")
    if (error := report.failure(number, leg)) is not None:
        words.append(f"Another time: {error}")
    return " ".join(words)


SILENT = "The documents hold too little of this prompt, so it was asked without passages."


def _notes(report: Report) -> list[str]:
    """What the tables do not say."""
    notes = [f"{_clipped(asked.prompt)}: {SILENT}" for asked in report.asked if asked.silent]
    for number, asked in enumerate(report.asked):
        differ = [_name(report, leg) for leg in LEGS if report.same_text(number, leg) is False]
        if differ:
            notes.append(f"{_clipped(asked.prompt)}: {' and '.join(differ)} did not always give the same answer.")
    for one in report.failures:
        notes.append(f"{_clipped(report.asked[one.prompt].prompt)}: {one.error}")
    for refinement in report.refinements:
        if refinement.why:
            notes.append(f"{_clipped(report.asked[refinement.prompt].prompt)}: nothing was refined: {refinement.why}")
    return notes


def _method(report: Report) -> list[str]:
    plan = report.plan
    passages = ", which the chat's own turn put behind passages of the documents" if plan.retrieve else ""
    lines = [
        f"Both models were sent the same messages: the prompt{passages}. They were asked at temperature {TEMPERATURE:g},"
        f" with seed {plan.seed} and for at most {report.max_tokens} tokens, one after the other, each in turn"
        " the first.",
        f"There {'was' if plan.repeat == 1 else 'were'} {_count(plan.repeat, 'round')} for each prompt. In a round a model"
        " answers cold, after its server was asked something else, so that it holds nothing of the prompt but what its"
        " template begins with; then warm, when the server has kept the prompt. Times begin when a request has been sent,"
        " the start with a model's server. Figures are medians of the rounds, and means of these over the prompts; of"
        " memory, the most that was seen. CPU time, energy and cost are those of a cold answer.",
    ]
    for leg in LEGS:
        if (model := report.models.get(leg)) is None:
            continue
        cache = "" if model.ours else " What its server kept of earlier prompts is not known."
        energy = report.energy(leg)
        lines.append(
            f"{SPOKEN[leg].capitalize()}: {model.name}, by {model.runs_on}, {model.where}.{cache}"
            f" Energy: {energy or 'not known'}."
        )
    lines.append(", ".join(f"{name} {value}" for name, value in machine().items() if value) + ".")
    return lines


def _refinement(report: Report, number: int) -> Refinement | None:
    return next((one for one in report.refinements if one.prompt == number), None)


def _answer(report: Report, number: int, leg: LegName) -> str:
    runs = report.of(number, leg)
    return runs[0].text.strip() if runs else report.failure(number, leg) or "not asked any more"


def _name(report: Report, leg: LegName) -> str:
    names = [model.name for model in report.models.values()]
    if leg not in report.models:
        return SPOKEN[leg]
    name = report.models[leg].name
    return name if names.count(name) == 1 else f"{name} ({SPOKEN[leg]})"


def _title(report: Report) -> str:
    prompts = _count(len(report.asked), "prompt")
    return f"{prompts}, {_count(report.plan.repeat, 'round')} of cold and warm"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _clipped(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TITLE_CHARS else f"{line[: TITLE_CHARS - 1].rstrip()}…"


def _times(ratio: float, more: str, less: str, same: str) -> str:
    if abs(ratio - 1) < AS_MUCH:
        return same
    return f"{ratio:.1f} times {more}" if ratio > 1 else f"{1 / ratio:.1f} times {less}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} ms"


def _shown(name: str, known: dict[str, float], currency: str = "") -> str | None:
    if (value := known.get(name)) is None:
        return None
    if name.endswith("_ms"):
        return _ms(value)
    if name.endswith("tokens_per_s"):
        return f"{value:,.1f} tokens/s"
    if name.endswith("_tokens"):
        return f"{value:,.0f}"
    if name == "cost":
        return f"{value:.4g} {currency}"
    return f"{value:,.2f} {name.rpartition('_')[2].replace('mb', 'MB').replace('j', 'J')}"
