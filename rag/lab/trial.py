"""A pair of models tried out on a data set: both answer, a calibration is fitted, and what it is worth is measured.

Measured on questions of documents that the fit had not seen: each document in turn is left out, the rest is fitted, and the
left-out questions are asked again through the whole cascade, from recordings. A pair as it is can be evaluated, too, and
its answers graded. Knows the order of the work and what is reported; fitting is `calibration`'s, counting `quality`'s,
scoring `rubric`'s, drawing `pictures`'.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from rag import __version__, terminal
from rag.corpus.library import Library
from rag.errors import UserError
from rag.lab import answers, calibration, curves, quality, ragas_scores, rubric, samples
from rag.lab import judge as judges
from rag.lab.answers import Outcome
from rag.lab.calibration import Goal, Row
from rag.lab.dataset import Case, Dataset
from rag.lab.machine import machine
from rag.lab.recording import Recordings
from rag.models.legs import Legs
from rag.settings import Mode, Settings
from rag.turn.calibration import Calibration

Progress = Callable[[str, int, int], None]
"""What is being done, how many of how many are done."""

RECORDINGS = "recordings.sqlite"
ANSWERABLE_FOR_LLM = 0.75
"""Of the questions that the larger model is asked: they tell what a call gains; the others tell what it refuses."""


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    fitted: Calibration
    rows: Sequence[Row]
    auto: Sequence[Outcome]
    """Of the questions that both models answered, each by a cascade that was fitted without its document."""
    small: Sequence[Outcome]
    large: Sequence[Outcome]
    """The same questions, by each model alone."""
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    dataset: str
    goal: Goal

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": {name: round(value, 4) for name, value in self.metrics.items()},
            "intervals": {name: [round(low, 4), round(high, 4)] for name, (low, high) in self.intervals.items()},
            "dataset": self.dataset,
            "questions": len(self.rows),
            "answerable": sum(row.case.answerable for row in self.rows),
            "by_larger_model": len(self.auto),
            "documents": sorted({row.case.group for row in self.rows}),
            "slm": self.fitted.slm,
            "llm": self.fitted.llm,
            "goal": str(self.goal),
            "key": self.fitted.key,
            "version": __version__,
            "machine": machine(),
        }


class Rig:
    """The library over a data set, both legs and the recordings: what questions are put to."""

    def __init__(self, library: Library, legs: Legs, settings: Settings, recordings: Recordings) -> None:
        self.library = library
        self.legs = legs
        self.settings = settings
        self.recordings = recordings

    async def asking(
        self, cases: Sequence[Case], mode: Mode, *, fitted: Any = "find", progress: Progress | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Raises ModelError when a model fails question after question."""
        outcomes: list[Outcome] = []
        who = {"slm": self.legs.slm.model, "llm": self.legs.llm.model}.get(mode, "both models")
        asked = answers.ask(
            cases, mode, library=self.library, legs=self.legs, settings=self.settings, recordings=self.recordings,
            fitted=fitted,
        )  # fmt: skip
        async with aclosing(asked):
            async for outcome in asked:
                outcomes.append(outcome)
                if (failure := answers.failed_too_often(outcomes)) is not None:
                    raise failure
                if progress is not None:
                    progress(f"{who} answering", len(outcomes), len(cases))
                yield outcome

    async def ask(
        self, cases: Sequence[Case], mode: Mode, *, fitted: Any = "find", progress: Progress | None = None
    ) -> list[Outcome]:
        """All of them; raises as `asking` does."""
        async with aclosing(self.asking(cases, mode, fitted=fitted, progress=progress)) as outcomes:
            return [outcome async for outcome in outcomes]


@asynccontextmanager
async def rig(dataset: Dataset, settings: Settings) -> AsyncIterator[Rig]:
    """Everything opened; closed again at the end, the models too."""
    recordings = Recordings(settings.cache_dir / RECORDINGS)
    legs = Legs(settings)
    try:
        await legs.located()  # a report names models as their servers do
        async with answers.opened(dataset, settings) as library:
            yield Rig(library, legs, settings, recordings)
    finally:
        await legs.close()
        recordings.close()


async def run(
    dataset: Dataset,
    settings: Settings,
    goal: Goal,
    *,
    limit: int | None,
    llm_limit: int,
    labels: Sequence[Mapping[str, Any]] = (),
    progress: Progress,
    tell: Callable[[str], None],
) -> Trial:
    """Ask, fit, replay. What was answered before is not asked again, so a run that was stopped goes on.

    `labels` are what people said of answers in the chat; they are learnt from, and nothing is measured on them.
    """
    cases = answers.sample(dataset, limit)
    if len({case.group for case in cases}) < 3:
        raise UserError(
            f"{dataset.name} has questions on fewer than three documents: what is fitted on some must be tried on others."
        )
    own = {case.id for case in cases}
    for_llm = [
        case for case in answers.sample(dataset, llm_limit, answerable=ANSWERABLE_FOR_LLM) if case.id in own
    ]  # fmt: skip
    async with rig(dataset, settings) as opened:
        idf = opened.library.index.idf
        slm = await opened.ask(cases, "slm", fitted=None, progress=progress)
        llm = await opened.ask(for_llm, "llm", fitted=None, progress=progress)
        made = {o.case.id: calibration.written(o, idf, min_words=settings.min_words) for o in llm}
        rows = [
            Row(o.case, calibration.written(o, idf, min_words=settings.min_words), made.get(o.case.id)) for o in slm
        ]  # fmt: skip
        if goal.risk is not None:
            tell(calibration.feasible(rows, goal.risk))
        names = {"slm": opened.legs.slm.model, "llm": opened.legs.llm.model}
        said = calibration.from_labels(labels, names["slm"], min_words=settings.min_words)
        if labels:
            tell(f"{len(said)} of {len(labels)} labels from the chat are about answers of {names['slm']}.")
        fitted = calibration.fit([*rows, *said], goal, **names, settings=settings)
        auto: list[Outcome] = []
        groups = sorted({row.case.group for row in rows})
        for number, group in enumerate(groups, 1):
            progress("replaying on documents that were left out", number, len(groups))
            others = [*(row for row in rows if row.case.group != group), *said]
            held_out = [case for case in for_llm if case.group == group]
            if held_out:
                unseen = calibration.fit(others, goal, **names, settings=settings)
                auto.extend(await opened.ask(held_out, "auto", fitted=unseen))
    both = {outcome.case.id for outcome in auto}
    small = [outcome for outcome in slm if outcome.case.id in both]
    order = {outcome.case.id: place for place, outcome in enumerate(small)}
    auto.sort(key=lambda outcome: order[outcome.case.id])
    large = sorted(llm, key=lambda outcome: order[outcome.case.id])
    metrics, intervals = _measured(rows, auto, small, large)
    return Trial(fitted, rows, auto, small, large, metrics, intervals, dataset.name, goal)


async def evaluate(
    report: quality.Report,
    dataset: Dataset,
    settings: Settings,
    *,
    limit: int | None = None,
    compare: bool = False,
    between: str | None = None,
    judge: str | None = None,
    judge_url: str | None = None,
    ragas: str | None = None,
    progress: Progress,
) -> None:
    """Fill the report of one mode, question by question; what was answered before is not asked again.

    To `compare`, also each model alone, a random mix, and one model `between`. A `judge` is asked when all questions are
    answered, of each answer that it has not written. `ragas` is a Python that has it ("" is our own). Raises UserError
    for what cannot be done, ModelError for a model that is gone; the report keeps what was measured until then.
    """
    cases = answers.sample(dataset, limit)
    report.dataset, report.asked = dataset.name, len(cases)
    if ragas is not None:
        await ragas_scores.check(ragas)
    async with AsyncExitStack() as held:
        async with rig(dataset, settings) as opened:
            legs = opened.legs
            report.slm, report.llm = legs.slm.model, legs.llm.model
            judging = None
            if judge is not None:
                tested = {"slm": [report.slm], "llm": [report.llm]}.get(report.mode, [report.slm, report.llm])
                recordings = held.enter_context(closing(Recordings(settings.cache_dir / RECORDINGS)))
                judging = await held.enter_async_context(
                    judges.opened(judge, judge_url, settings, recordings, judged=tested)
                )
                report.judge = judging.to_dict()
            async with aclosing(opened.asking(cases, report.mode, progress=progress)) as outcomes:
                async for outcome in outcomes:
                    scores = rubric.of(outcome, opened.library.index.idf, tongue=settings.answer_language)
                    report.rows.append(quality.Row(outcome, scores))
            if compare:
                small = await opened.ask(cases, "slm", progress=progress)
                twice = report.slm == report.llm
                report.compared[f"{report.slm} (small)" if twice else report.slm] = quality.figures(small)
                large = await opened.ask(cases, "llm", progress=progress)
                report.compared[f"{report.llm} (larger)" if twice else report.llm] = quality.figures(large)
                calls = quality.figures(report.outcomes)["llm_calls"]
                report.compared[quality.RANDOM_MIX] = quality.random_mix(small, large, calls)
        if compare and between is not None:
            other = settings.model_copy(update={"slm_model": between, "slm_base_url": None})
            async with rig(dataset, other) as opened:
                alone = await opened.ask(cases, "slm", fitted=None, progress=progress)
                report.compared[opened.legs.slm.model] = quality.figures(alone)
        # The models under test have gone, so that the judge has the machine for itself.
        if judging is not None:
            await _judge(report, judging, progress)
        if ragas is not None:
            report.ragas = ragas_scores.Scores()
            found = samples.of(report.outcomes, dataset)
            await ragas_scores.score(report.ragas, found, judging, python=ragas, progress=progress)
    report.complete = True


async def _judge(report: quality.Report, judging: judges.Judge, progress: Progress) -> None:
    rows = [row for row in report.rows if row.answered]
    for number, row in enumerate(rows, 1):
        turn = row.outcome.turn
        assert turn is not None, "somebody answered"
        # Where a model could not answer, the other one did in its place.
        if turn.model is None or not judges.same(turn.model, judging.model):
            passages = [hit.passage.text for hit in rubric.evidence_of(row.outcome)]
            # A follow-up is only understood with what it follows.
            question = "\n".join([*row.outcome.case.after, turn.question])
            row.grades = await judging.grade(question, passages, rubric.unmarked(turn.answer))
            row.asked = True
        progress(f"{judging.model} judging", number, len(rows))


def show(trial: Trial) -> None:
    """The figures that decide, as a table."""
    table = Table("figure", "value", "95%", title=f"{trial.fitted.slm} and {trial.fitted.llm} on {trial.dataset}")
    for name, value in trial.metrics.items():
        low_high = trial.intervals.get(name)
        table.add_row(name, f"{value:,.3f}", f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "")
    terminal.out.print(table)


def ranked(rows: Sequence[Row], *, logprobs: bool | None = None) -> tuple[Sequence[Row], Any]:
    """Rows, and for each the probability that fits give which have not seen its document; none where most rows lack what
    they need. `logprobs` None takes them where the server reports them."""
    if logprobs is None:
        found = ranked(rows, logprobs=True)
        return found if len(found[0]) else ranked(rows, logprobs=False)
    names = calibration.WITH_LOGPROBS if logprobs else calibration.WITHOUT_LOGPROBS
    have = [row for row in rows if all(name in row.slm.features for name in names)]
    if len(have) < len(rows) / 2:
        return [], np.zeros(0)
    return have, calibration.unseen_scores(have, names)


def _measured(
    rows: Sequence[Row], auto: Sequence[Outcome], small: Sequence[Outcome], large: Sequence[Outcome]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name, logprobs in (("", True), ("_without_logprobs", False)):
        have, scores = ranked(rows, logprobs=logprobs)
        if not have:
            continue  # this server gives no logprobs
        right = np.array([float(row.slm.right) for row in have])
        yes = np.flatnonzero([row.case.answerable for row in have])
        groups = [have[int(place)].case.group for place in yes]
        metrics[f"auroc_answerable{name}"] = curves.auroc(scores[yes], right[yes])
        intervals[f"auroc_answerable{name}"] = curves.interval(
            lambda part, s=scores[yes], r=right[yes]: curves.auroc(s[part], r[part]), groups  # type: ignore[misc]
        )  # fmt: skip
        metrics[f"auroc_all{name}"] = curves.auroc(scores, right)
        metrics[f"ece{name}"] = curves.calibration_error(scores, right)
        metrics[f"ece_answerable{name}"] = curves.calibration_error(scores[yes], right[yes])
        both = [int(place) for place in yes if have[int(place)].llm is not None]
        if both:
            own = right[both]
            other = np.array([float(llm.right) for place in both if (llm := have[place].llm) is not None])
            gain = -scores[both]
            metrics[f"apgr{name}"] = curves.apgr(gain, own, other)
            intervals[f"apgr{name}"] = curves.interval(
                lambda part, g=gain, a=own, b=other: curves.apgr(g[part], a[part], b[part]),  # type: ignore[misc]
                [have[place].case.group for place in both],
            )
            metrics[f"apgr_oracle{name}"] = curves.apgr(other - own, own, other)
            for share in (0.5, 0.8, 0.95):
                metrics[f"cpt{share * 100:.0f}{name}"] = curves.calls_for(share, gain, own, other)
    for name, outcomes in (("auto", auto), ("slm", small), ("llm", large)):
        metrics |= {f"{name}_{key}": value for key, value in quality.figures(outcomes).items()}
        intervals |= {f"{name}_{key}": value for key, value in quality.intervals(outcomes).items()}
    leads = [(row.case.answerable, row.llm.lead) for row in rows if row.llm is not None and row.llm.lead is not None]
    if leads:
        metrics["auroc_check"] = curves.auroc([lead for _, lead in leads], [answerable for answerable, _ in leads])
    by_id = {row.case.id: row for row in rows}
    given_up = [o for o in auto if any(c.leg == "slm" and c.stopped for c in o.calls)]
    given_up += [o for o in auto if o.escalated and not any(c.leg == "slm" for c in o.calls)]
    if given_up:
        kept = [o for o in given_up if _would_be_kept(o, by_id)]
        metrics["given_up"] = len(given_up) / len(auto)
        metrics["given_up_falsely"] = len(kept) / len(given_up)
        early = metrics["auto_escalated_early"] * sum(outcome.escalated for outcome in auto)
        metrics["auto_escalated_early_falsely"] = len(kept) / early if early else 0.0
    points = [quality.figures(small), quality.figures(large)]
    mix = quality.random_mix(small, large, metrics["auto_llm_calls"])
    metrics |= {f"random_{name}": value for name, value in mix.items()}
    line = quality.at_equal_compute(quality.figures(auto), points)
    if line is not None:
        metrics["single_models_right_answerable_at_equal_compute"] = line
    best = max(point.get("right_per_compute_s", 0.0) for point in points)
    if best:
        metrics["right_per_compute_s_against_best_single"] = metrics["auto_right_per_compute_s"] / best
    return metrics, intervals


def _would_be_kept(outcome: Outcome, rows: dict[str, Row]) -> bool:
    """Would the whole draft have been accepted by the fit that gave it up?"""
    row, turn = rows[outcome.case.id], outcome.turn
    if turn is None or turn.fitted is None or row.slm.ruled_out:
        return False
    return turn.fitted.right.scorer.probability(row.slm.features) >= turn.fitted.right.at


def write(trial: Trial, folder: Path) -> Path:
    """The report as JSON and as a page for people, with its pictures; returns the page."""
    from rag.lab import pictures

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(trial.to_dict(), indent=1) + "\n", encoding="utf-8")
    page = folder / "report.md"
    page.write_text(pictures.page(trial, folder), encoding="utf-8")
    return page
