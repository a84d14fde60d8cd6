"""A run over a data set as a person sees it: a table in the terminal, and one HTML page.

Knows how figures are worded; measures nothing.
"""

from collections.abc import Mapping
from typing import Any

from rich.table import Column, Table

from rag import terminal
from rag.lab import charts
from rag.lab.judge import PROMPT
from rag.lab.machine import machine
from rag.lab.page import Section, figure, folded, page, paragraph, quoted, table
from rag.lab.quality import Report, Row
from rag.lab.rubric import DIMENSIONS, LEAST, MOST

NAMES = {
    "right": "right",
    "right_answerable": "right, of those that have an answer",
    "answered_answerable": "answered, of those that have an answer",
    "refused_unanswerable": "refused, of those that have none",
    "llm_calls": "given to the larger model",
    "ttft_ms_p50": "first token, median, ms",
    "total_ms_p50": "whole answer, median, ms",
    "output_tokens": "tokens written",
    "compute_s": "compute, seconds a question",
    "right_per_compute_s": "right answers a second of compute",
}
RAGAS_CAPTION = "Ragas, 0 to 1"


def show(report: Report) -> None:
    """The figures as a table, and what is to be known of them."""
    title = f"{report.dataset}, mode {report.mode}: {report.slm} and {report.llm}" + (
        "" if report.calibrated else " (not calibrated)"
    )
    # Beside other models there is no room for the intervals; the page and the JSON have them.
    intervals = {} if report.compared else report.intervals
    columns = [report.mode, *([] if report.compared else ["95%"]), *report.compared]
    shown = Table(
        Column("what", overflow="fold", min_width=32), *(Column(name, min_width=6) for name in columns), title=title
    )
    for name, value in report.metrics.items():
        low_high = intervals.get(name)
        shown.add_row(
            name,
            _short(value),
            *([] if report.compared else [f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else ""]),
            *(_short(other[name]) if name in other else "" for other in report.compared.values()),
        )
    terminal.out.print(shown)
    for note in notes(report):
        terminal.notices.print(note, markup=False)


def notes(report: Report) -> list[str]:
    """What must be known to read the figures rightly."""
    found = _shortfalls(report)
    if report.judge is not None:
        found.append(_judge(report))
    if report.ragas is not None:
        found += _ragas(report)
    return found


def _shortfalls(report: Report) -> list[str]:
    """What of the run was not measured, or failed."""
    found = []
    if len(report.rows) < report.asked:
        found.append(f"The run broke off: {len(report.rows)} of {report.asked} questions were asked.")
    elif not report.complete:
        found.append("The run broke off when all questions were asked, before the rest was measured.")
    if report.failed:
        found.append(f"{report.failed} questions got an error instead of an answer; they count as wrong.")
    return found


def told(report: Report) -> str:
    """The result in words made of the figures."""
    metrics = report.metrics
    by = {"slm": report.slm, "llm": report.llm}.get(report.mode, f"{report.slm} and {report.llm} together")
    said = [
        f"{by} answered {_percent(metrics['right'])} of {len(report.rows)} questions rightly"
        if report.rows
        else "No question was asked"
    ]
    if "right_answerable" in metrics and "refused_unanswerable" in metrics:
        said.append(
            f"{_percent(metrics['right_answerable'])} of those that have an answer, and refused"
            f" {_percent(metrics['refused_unanswerable'])} of those that have none"
        )
    sentences = [": ".join(said) + "."]
    if report.mode == "auto" and report.rows:
        sentences.append(f"The larger model was asked in {_percent(metrics['llm_calls'])} of the turns.")
    if not report.complete:
        sentences.append("The run broke off before its end.")
    return " ".join(sentences)


def html(report: Report) -> str:
    """The whole report as one HTML document."""
    sections = [Section("Right answers", _right(report))]
    if any(row.scores is not None for row in report.rows):
        sections.append(Section("Coherence, factuality, concision", _rubric(report)))
    if context := _context(report):
        sections.append(Section("What was found", context))
    if report.ragas is not None and report.ragas.means:
        sections.append(Section("Ragas", _ragas_parts(report)))
    if report.compared:
        sections.append(Section("Compared", [_comparison(report)]))
    sections.append(Section("Questions", [_overview(report), *(_question(row, report) for row in report.rows)]))
    sections.append(Section("How it was measured", [paragraph(words) for words in _method(report)]))
    return page(f"Answers to {report.dataset}", told(report), sections, report.to_dict())


def _right(report: Report) -> list[str]:
    metrics, intervals, parts = report.metrics, report.intervals, report.parts
    rows = []
    for name, title in NAMES.items():
        if name in metrics:
            low_high = intervals.get(name)
            rows.append([title, _short(metrics[name]), f"{low_high[0]:.2f}–{low_high[1]:.2f}" if low_high else None])
    found = [table(["", report.mode, "95%"], rows)]
    for what, of in parts.items():
        drawn = {"right": {f"{part} ({known['questions']:.0f})": known["right"] for part, known in of.items()}}
        found.append(figure(charts.bars(drawn, unit="share"), f"Right, by {what} (with the number of questions)"))
        head = [what, "questions", "right", "95%", "refused", "escalated", *DIMENSIONS]
        found.append(
            table(
                head,
                [
                    [
                        part,
                        f"{known['questions']:.0f}",
                        f"{known['right']:.2f}",
                        "{:.2f}–{:.2f}".format(*intervals[f"right_{part}"]),
                        f"{known['refused']:.2f}",
                        f"{known['llm_calls']:.2f}",
                        *(_score(known.get(f"rubric_{name}")) for name in DIMENSIONS),
                    ]
                    for part, known in of.items()
                ],
            )
        )
    return found


def _rubric(report: Report) -> list[str]:
    metrics = report.metrics
    drawn: dict[str, dict[str, float]] = {}
    for who, prefix in (("rules", "rubric_"), (f"judge: {(report.judge or {}).get('model')}", "grade_")):
        known: dict[str, float] = {
            name: metrics[f"{prefix}{name}"] for name in DIMENSIONS if f"{prefix}{name}" in metrics
        }
        if known:
            drawn[who] = known
    found = []
    if drawn:
        caption = f"Means over the questions that were answered, {LEAST:.0f} to {MOST:.0f}"
        found.append(figure(charts.bars(drawn, unit=f"{LEAST:.0f} to {MOST:.0f}"), caption))
    counts = []
    for name in DIMENSIONS:
        held = [
            value
            for row in report.rows
            if row.answered and row.scores is not None and (value := getattr(row.scores, name)) is not None
        ]
        shares = [sum(low <= value < low + 1 for value in held) for low in (1, 2, 3, 4)]
        counts.append([name, *shares, sum(value == MOST for value in held)])
    found.append(
        table(["by rules", "1 to 1.5", "2 to 2.5", "3 to 3.5", "4 to 4.5", "5"], counts, caption="How many answers")
    )
    if "rubric_factuality_auroc" in metrics:
        found.append(paragraph(_worth("The rules' factuality", metrics["rubric_factuality_auroc"])))
    if report.judge is not None:
        found.append(paragraph(_judge(report)))
    return found


def _worth(whose: str, auroc: float) -> str:
    return (
        f"{whose} put a right answer above a wrong one in {_percent(auroc)} of the pairs, among answered questions that"
        " have an answer (AUROC; 50% is chance)."
    )


def _judge(report: Report) -> str:
    """Who judged, and how far to believe it."""
    judge, metrics = report.judge, report.metrics
    assert judge is not None, "asked of a report with a judge"
    asked = sum(row.asked for row in report.rows)
    said = [
        f"Judge: {judge['model']} ({judge['runs_on']}, {judge['where']}), prompt {judge['prompt_version']};"
        f" {asked} answers were given to it"
    ]
    if asked:
        said[0] += f" and {_percent(metrics['grade_unscored'])} of them got no grades in the form that was asked for"
    agreed = [f"{name} {metrics[key]:.2f}" for name in DIMENSIONS if (key := f"grade_agreement_{name}") in metrics]
    if agreed:
        said.append(f"Rank correlation with the rules: {', '.join(agreed)}")
    sentences = ". ".join(said) + "."
    if "grade_factuality_auroc" in metrics:
        sentences += f" {_worth('Its factuality', metrics['grade_factuality_auroc'])}"
    return sentences


def _context(report: Report) -> list[str]:
    found = {name: value for name, value in report.metrics.items() if name.startswith("context_")}
    if not found:
        return []
    return [
        table(["", report.mode], [[name, f"{value:.3f}"] for name, value in found.items()]),
        paragraph(
            "Precision: how far in front the passages stand that hold evidence, among the first k that were found. Recall:"
            " the share of the evidence that they hold; context_recall_read is of what the model was shown."
        ),
    ]


def _ragas(report: Report) -> list[str]:
    scores = report.ragas
    assert scores is not None, "asked of a report with ragas"
    judge = f"judge: {report.judge['model']}" if report.judge is not None else "no judge"
    found = [f"Ragas {scores.version or '(not reached)'}, {judge}."]
    found += [f"Not measured: {name} ({why})." for name, why in scores.missing.items()]
    found += [f"No score in {count}: {why}" for why, count in scores.why.items()]
    return found


def _ragas_parts(report: Report) -> list[str]:
    scores = report.ragas
    assert scores is not None, "asked of a report with ragas"
    counts, means = scores.to_dict()["questions"], scores.means
    rows = [
        [name, f"{means[f'ragas_{name}']:.3f}", counts[name]] for name in scores.metrics if f"ragas_{name}" in means
    ]
    return [
        table(["", "mean", "questions"], rows, caption=RAGAS_CAPTION),
        *(paragraph(words) for words in _ragas(report)),
    ]


def _comparison(report: Report) -> str:
    metrics = report.metrics
    columns: list[Mapping[str, float]] = [metrics, *report.compared.values()]
    rows = [
        [title, *(_short(known[name]) if name in known else None for known in columns)]
        for name, title in NAMES.items()
        if any(name in known for known in columns)
    ]
    return table(["", report.mode, *report.compared], rows)


def _overview(report: Report) -> str:
    rows = []
    for row in report.rows:
        case = row.outcome.case
        rows.append([case.question, case.kind or None, _came_to(row), _yes(row.outcome.right), *_scores(row)])
    return table(["question", "kind", "answer", "right", *DIMENSIONS], rows, numbers_from=3)


def _question(row: Row, report: Report) -> str:
    """One question, to be opened: what was answered, what was right, and why it was scored so."""
    outcome = row.outcome
    case, turn = outcome.case, outcome.turn
    parts = [paragraph(f"Asked before it: {' / '.join(case.after)}")] if case.after else []
    if turn is not None:
        parts.append(quoted(turn.answer))
        by = turn.model or "no model"
        parts.append(paragraph(f"By {by}{', the larger model' if outcome.escalated else ''}; {_came_to(row)}."))
    else:
        parts.append(paragraph(f"It failed: {outcome.error}"))
    parts.append(paragraph(f"Gold: {'; '.join(case.answers)}" if case.answerable else "The documents hold no answer."))
    if row.scores is not None:
        given = [f"{name} {_score(getattr(row.scores, name)) or 'not scored'}" for name in DIMENSIONS]
        parts.append(paragraph(f"By rules: {', '.join(given)}."))
        if row.scores.deductions:
            lost = [[one.of, f"−{one.points:g}", one.why] for one in row.scores.deductions]
            parts.append(table(["lost in", "points", "why"], lost, numbers_from=9))
    if row.grades is not None:
        given = [f"{name} {getattr(row.grades, name)}" for name in DIMENSIONS]
        parts.append(paragraph(f"By the judge: {', '.join(given)}."))
    elif row.asked:
        parts.append(paragraph("The judge gave no grades."))
    measured = report.ragas.by_question.get(case.id, {}) if report.ragas is not None else {}
    if measured:
        given = [f"{name} {'none' if score is None else f'{score:.2f}'}" for name, score in measured.items()]
        parts.append(paragraph(f"By ragas: {', '.join(given)}."))
    read = row.to_dict()["read"]
    if read:
        parts.append(paragraph(f"Read: {'; '.join(read)}"))
    return folded(f"{_yes(outcome.right)}: {case.question}", "".join(parts))


def _method(report: Report) -> list[str]:
    settings, here = report.settings, machine()
    fitted = "calibrated for this pair" if report.calibrated else "not calibrated"
    found = [
        f"{len(report.rows)} of {report.asked} questions of {report.dataset} were put to the product, mode {report.mode},"
        " each in a conversation of its own, at temperature 0. An answer is right that holds a gold one, both without"
        " case, punctuation and articles; where the documents hold none, a refusal is right. Intervals are"
        " Wilson's, 95%.",
        f"Small model: {report.slm}, {settings.slm_passages} passages. Larger model: {report.llm},"
        f" {settings.llm_passages} passages. The small model's confidence was {fitted}.",
        "The rules give 1 to 5, in halves. Coherence: whole sentences in the question's language, nothing said again and"
        " again, not cut off. Factuality: how much of each statement stands in the passages that were read, beside the"
        " question's words, without numbers or names from nowhere. Concision: as long as a sentence with question and"
        " answer in it needs; each doubling costs two points. A refusal is worded by the product, so only its truth is"
        " scored. Rules do not see that an answer is wrong which looks supported: the gold ones alone tell what is right.",
        "Models are not asked again for what they were asked before with the same words; their times are those of then.",
    ]
    if report.judge is not None:
        found.append(
            f"The judge was asked with prompt {PROMPT}, at temperature 0, for the same three scores, from question,"
            " passages and answer; it did not see the gold answer. It does not judge what it has written itself."
        )
    if report.ragas is not None:
        found.append(
            "Ragas measured in a process of its own, with reports on its use switched off; its judge was asked by the"
            " product."
        )
    processor = f", {here['processor']}" if here.get("processor") else ""
    found.append(
        f"{here['system']}{processor}, {here['cores']} cores, {here['memory_gb']} GB; Python {here['python']}."
    )
    return [*found, *_shortfalls(report)]


def _came_to(row: Row) -> str:
    if row.outcome.error:
        return "failed"
    if row.outcome.refused:
        return "refused"
    return "escalated" if row.outcome.escalated else "answered"


def _scores(row: Row) -> list[Any]:
    return [_score(getattr(row.scores, name)) if row.scores is not None else None for name in DIMENSIONS]


def _score(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _yes(right: bool) -> str:
    return "right" if right else "wrong"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _short(value: float) -> str:
    if value >= 1 and value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.0f}"
