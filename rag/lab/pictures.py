"""Pictures of a trial, and the page that shows them.

Knows what a risk-coverage curve, a reliability diagram and a curve of quality against calls look like; measures nothing.
Needs matplotlib, which is in the extra `lab`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.errors import UserError
from rag.lab import curves, quality

if TYPE_CHECKING:
    from rag.lab.trial import Trial

SMALL, LARGE, AUTO, QUIET = "#2a7f9e", "#c2571a", "#4b2e83", "#999999"


def page(trial: "Trial", folder: Path) -> str:
    """Markdown with the figures; the pictures are written into the folder as SVG, or the page says what they need."""
    try:
        draw(trial, folder)
        shown = "\n\n".join(
            f"![{title}]({name}.svg)"
            for name, title in (
                ("risk-coverage", "Share wrong among the drafts that are kept, by the share kept"),
                ("reliability", "Share right, by the confidence that was told"),
                ("quality-calls", "Right answers, by the share of questions that the larger model answers"),
                ("refusals", "Unanswerable questions refused, by answerable ones still answered"),
                ("quality-compute", "Right answers, by compute seconds"),
            )
        )
    except UserError as error:
        shown = f"No pictures: {error}"
    told = trial.to_dict()
    lines = [
        f"# {told['slm']} and {told['llm']} on {told['dataset']}",
        "",
        f"{told['questions']:,} questions ({told['answerable']:,} answerable) of {len(told['documents'])} documents;"
        f" {told['by_larger_model']:,} of them also by the larger model. Every figure is of questions whose document"
        f" the fit had not seen. Goal: {told['goal']}.",
        "",
        shown,
        "",
        "| figure | value | 95% |",
        "|---|---|---|",
    ]
    for name, value in told["metrics"].items():
        low_high = told["intervals"].get(name)
        lines.append(f"| {name} | {value:,.4g} | {f'{low_high[0]:.3f} to {low_high[1]:.3f}' if low_high else ''} |")
    return "\n".join(lines) + "\n"


def draw(trial: "Trial", folder: Path) -> None:
    """Five SVG files. UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("They need matplotlib. Get it with: pip install 'smallfirst[lab]'") from None
    matplotlib.use("svg")
    from matplotlib import pyplot

    from rag.lab.trial import ranked

    # The same figures give the same file.
    pyplot.rcParams |= {
        "svg.hashsalt": "smallfirst",
        # Text stays text: it can be searched, and the file is a fifth as long.
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }

    def saved(name: str, x: str, y: str, paint: Any) -> None:
        figure, axes = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
        paint(axes)
        axes.set(xlabel=x, ylabel=y)
        axes.legend(frameon=False)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)

    rows, scores = ranked(trial.rows)
    right = np.array([float(row.slm.right) for row in rows])
    yes = np.array([row.case.answerable for row in rows])

    def risk(axes: Any) -> None:
        for label, part, colour in (("answerable questions", yes, SMALL), ("all questions", np.ones_like(yes), QUIET)):
            axes.plot(*curves.risk_coverage(scores[part], right[part]), color=colour, label=label)
        best = np.sort(right[yes])[::-1]
        axes.plot(*curves.risk_coverage(best, best), color=SMALL, linestyle=":", label="perfect judge, answerable")
        axes.set(xlim=(0, 1), ylim=(0, 1))

    saved("risk-coverage", "share of the drafts that is kept", "share of the kept ones that is wrong", risk)

    def reliable(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=QUIET, linestyle=":", label="as told")
        said, so, counts = zip(*curves.reliability(scores, right), strict=True)
        axes.plot(said, so, color=AUTO, marker="o", label=f"all questions, {counts[0]} in each")
        axes.set(xlim=(0, 1), ylim=(0, 1))

    saved("reliability", "confidence", "share right", reliable)

    both = [
        (row.slm.right, row.llm.right, score)
        for row, score in zip(rows, scores, strict=True)
        if row.case.answerable and row.llm is not None
    ]
    own, other, said = (np.array(column, float) for column in zip(*both, strict=True))

    def by_calls(axes: Any) -> None:
        axes.plot(*curves.quality_by_calls(-said, own, other), color=AUTO, label="least confident first")
        axes.plot(*curves.quality_by_calls(other - own, own, other), color=QUIET, linestyle=":", label="perfect judge")
        axes.plot([0, 1], [own.mean(), other.mean()], color=QUIET, label="at random")
        auto = [outcome for outcome in trial.auto if outcome.case.answerable]
        calls = float(np.mean([outcome.escalated for outcome in auto]))
        axes.plot(calls, float(np.mean([o.right for o in auto])), "D", color=AUTO, label="Auto, as a whole")
        axes.plot(0, own.mean(), "o", color=SMALL, label=trial.fitted.slm)
        axes.plot(1, other.mean(), "o", color=LARGE, label=trial.fitted.llm)

    saved("quality-calls", "share of the questions that the larger model answers", "share right, answerable", by_calls)

    def refusing(axes: Any) -> None:
        asked = [(row.case.answerable, row.llm.lead) for row in trial.rows if row.llm and row.llm.lead is not None]
        if not asked:
            return
        answerable, leads = (np.array(column, float) for column in zip(*asked, strict=True))
        lines = np.sort(np.append(leads, [leads.min() - 1, leads.max() + 1]))
        answered = [float((leads[answerable == 1] >= line).mean()) for line in lines]
        refused = [float((leads[answerable == 0] < line).mean()) for line in lines]
        axes.plot(answered, refused, color=LARGE, label=f"{trial.fitted.llm}, its own Yes or No")
        told = quality.figures(trial.auto)
        if "refused_unanswerable" in told:
            axes.plot(
                told["answered_answerable"], told["refused_unanswerable"], "D", color=AUTO, label="Auto, as a whole"
            )
        axes.plot(0.9, 0.6, "x", color=QUIET, label="goal")

    saved("refusals", "answerable questions still answered", "unanswerable questions refused", refusing)

    def by_compute(axes: Any) -> None:
        for outcomes, label, colour, mark in (
            (trial.small, trial.fitted.slm, SMALL, "o"),
            (trial.large, trial.fitted.llm, LARGE, "o"),
            (trial.auto, "Auto", AUTO, "D"),
        ):
            told = quality.figures(outcomes)
            axes.plot(told["compute_s"], told["right_answerable"], mark, color=colour, label=label)
        ends = [quality.figures(outcomes) for outcomes in (trial.small, trial.large)]
        axes.plot(
            [end["compute_s"] for end in ends],
            [end["right_answerable"] for end in ends],
            color=QUIET,
            label="random mix",
        )

    saved("quality-compute", "compute seconds for each question", "share right, answerable", by_compute)
