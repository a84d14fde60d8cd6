"""How a turn and a download look in a terminal.

Progress and notices go to standard error, answers to standard output. Knows how things are shown; decides nothing.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from rag.corpus.library import Library
from rag.models import weights
from rag.models.legs import SPOKEN, Leg
from rag.settings import Settings
from rag.turn.cascade import Turn

notices = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True, markup=False)


class _Bar:
    """One model's download; made visible by its first byte, gone at its end. Each notice is said once."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._said: set[str] = set()
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def update(self, phase: str, done_bytes: int, total_bytes: int, note: str) -> None:
        if note and note not in self._said:
            self._said.add(note)
            notices.print(f"{self._model}: {note}", markup=False)
        if phase not in ("fetching", "verifying") or not total_bytes:
            self.close()
            return
        if self._progress is None:
            if not notices.is_terminal:
                notices.print(f"{self._model}: fetching {total_bytes / 1e6:,.0f} MB", markup=False)
            columns = (
                "{task.description}",
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=notices, transient=True)
            self._task = self._progress.add_task("")
            self._progress.start()
        self._progress.update(self._task, description=f"{phase} {self._model}", completed=done_bytes, total=total_bytes)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


async def show_starting(leg: Leg, *, tell_failed: bool = True) -> None:
    """A progress bar until the leg is usable or has failed; one line at the end, of a failure only if `tell_failed`."""
    bar = _Bar(leg.model)
    try:
        async with aclosing(leg.changes()) as states:
            async for state in states:
                failed = state.phase == "failed"
                bar.update(state.phase, state.done_bytes, state.total_bytes, "" if failed else state.detail)
                if state.usable or failed:
                    break
    finally:
        bar.close()
    if failed and tell_failed:
        notices.print(f"The {SPOKEN[leg.name]} ({leg.model}) is not available: {state.detail}", markup=False)
    elif state.phase == "ready":
        notices.print(f"The {SPOKEN[leg.name]} ({leg.model}) is ready.", markup=False)


def read(library: Library, *, tell_bad: bool = True) -> list[str]:
    """Bring the library up to date behind a progress bar; then a line for each document that could not be read.

    Returns the sources that were opened.
    """
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=notices, transient=True, disable=not notices.is_terminal)
    task = progress.add_task("Reading documents", total=None, visible=False)
    with progress:
        opened = library.update(
            lambda p: progress.update(task, completed=p.done, total=p.total or None, visible=p.total > 0)
        )
    for report in library.reports if tell_bad else ():
        if report.error is not None:
            notices.print(report.line, markup=False)
    return opened


def pull(chosen: weights.Weights, settings: Settings) -> Path:
    """Fetch one model behind a progress bar; Ctrl-C stops it and leaves what can be resumed."""
    bar = _Bar(chosen.name)
    try:
        return weights.pull(
            chosen,
            settings.cache_dir,
            weights_dir=settings.weights_dir,
            source=settings.weights_source,
            hub_url=settings.hub_url,
            progress=lambda p: bar.update(p.phase, p.done_bytes, p.total_bytes, p.note),
            cancelled=None,
        )
    finally:
        bar.close()


@contextmanager
def counting() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for a long count, which is told what is done, how many and of how many."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notices, transient=True, disable=not notices.is_terminal) as progress:
        task = progress.add_task("", total=None)
        said = ""

        def count(what: str, done: int, total: int) -> None:
            nonlocal said
            if what != said:
                said = what
                progress.reset(task)
                if not notices.is_terminal:
                    notices.print(f"{what}: {total:,}", markup=False)
            progress.update(task, description=what, completed=done, total=total)

        yield count


def print_turn(turn: Turn, *, streamed: bool) -> None:
    """The answer unless it was streamed, its sources, notes and times."""
    if not streamed:
        out.print(turn.answer)
    for citation in turn.citations:
        out.print(f"  [{citation.marker}] {citation.passage.place}")
    for note in turn.notes:
        notices.print(note, markup=False)
    notices.print(summary(turn), style="dim", markup=False)


def summary(turn: Turn) -> str:
    """One line: who answered, why, and how long it took."""
    trace = turn.trace
    parts = [turn.model or "no model was asked"]
    if turn.verdict is not None:
        parts.append(f"escalated: {turn.verdict.reason}" if turn.escalated else turn.verdict.reason)
    if trace.ttft_ms is not None:
        parts.append(f"first token {trace.ttft_ms / 1000:.2f} s")
    parts.append(f"total {trace.total_ms / 1000:.2f} s")
    return " · ".join(parts)


def is_interactive() -> bool:
    """Is a person reading standard output as it comes?"""
    return sys.stdout.isatty()
