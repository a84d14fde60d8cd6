"""Charts for a report's page: bars and lines, as SVG.

Knows how figures are drawn; nothing of what they mean. Written by hand, because a library that draws takes a hundred
megabytes of everybody's disk, and these two kinds are all that a report needs. Colours are the page's own (`rag.lab.page`),
so a chart is dark where the page is; text stays text, and each figure tells its value to whoever points at it.
"""

import html
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

COLOURS = ("one", "two", "three", "four", "five", "six")
# Where there is no page around a chart (a notebook), in which these names have colours.
ALONE = dict(zip(COLOURS, ("#2a7f9e", "#c2571a", "#4b2e83", "#3a7d44", "#a03060", "#7a6a2f"), strict=True))
ALONE |= {"ink": "currentColor", "quiet": "#777", "rule": "#bbb"}
DASHES = ("", "6 3", "2 3")
WIDTH = 720
FONT = 12
LINES_HEIGHT = 280
LONGEST_LABEL = 260
MOST_MEASURED = 8
"""Where few places were measured, they are the ticks."""
MOST_DOTS = 24


def bars(values: Mapping[str, Mapping[str, float]], *, unit: str, log: bool = False) -> str:
    """Horizontal bars, series -> label -> value, grouped by label from the top; a series need not have every label.

    With `log`, only what is above 0 can be drawn, and the others' place says their value alone.
    """
    labels = list(dict.fromkeys(label for one in values.values() for label in one))
    drawn = [value for one in values.values() for value in one.values() if value > 0 or not log]
    thick, gap = (18, 12) if len(values) == 1 else (14, 14)
    left = min(LONGEST_LABEL, max((_wide(label) for label in labels), default=0)) + 12
    right = WIDTH - 12 - max((_wide(short(value)) for one in values.values() for value in one.values()), default=0)
    legend, top = _legend(list(values), left) if len(values) > 1 else ("", 4.0)
    bottom = top + len(labels) * (thick * len(values) + gap)
    low, high = _span(drawn, log=log, zero=True)
    place = _scale(low, high, left, right, log=log)
    parts = [legend, _ticks_below(_ticks(low, high, log=log), place, top, bottom), _below(unit, left, right, bottom)]
    for row, label in enumerate(labels):
        y = top + row * (thick * len(values) + gap) + gap / 2
        parts.append(_text(_cut(label), left - 8, y + thick * len(values) / 2, end=True))
        for number, (series, one) in enumerate(values.items()):
            if label not in one:
                continue
            value, bar = one[label], y + number * thick
            start, end = place(low if log else 0.0), place(max(value, low) if log else value)
            said = f"{series}, {label}: {short(value)} {unit}"
            parts.append(
                f'<rect x="{min(start, end):.1f}" y="{bar + 1:.1f}" width="{abs(end - start):.1f}" height="{thick - 2}"'
                f' style="fill:{_paint(_colour(number))}"><title>{html.escape(said)}</title></rect>'
            )
            parts.append(_text(short(value), max(start, end) + 5, bar + thick / 2))
    parts.append(_rule(place(low if log else 0.0), top, place(low if log else 0.0), bottom, "quiet"))
    return _svg(parts, bottom + 42)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[tuple[float, float, str]] = (),
) -> str:
    """Lines with their points, (x, y) in rising x; `marks` are points with words beside them.

    On a logarithmic axis only what is above 0 can be drawn; the rest is left out.
    """
    kept = {
        name: [point for point in points if (point[0] > 0 or not log_x) and (point[1] > 0 or not log_y)]
        for name, points in series.items()
    }
    across = sorted({point[0] for points in kept.values() for point in points})
    up = [point[1] for points in kept.values() for point in points]
    low_x, high_x = _span(across, log=log_x, zero=False)
    low_y, high_y = _span(up, log=log_y, zero=True)
    ticks_y = _ticks(low_y, high_y, log=log_y)
    left = max((_wide(short(tick)) for tick in ticks_y), default=0) + 28
    legend, top = _legend(list(series), left) if len(series) > 1 else ("", 8.0)
    bottom = top + LINES_HEIGHT
    put_x = _scale(low_x, high_x, left + 10, WIDTH - 24, log=log_x)
    put_y = _scale(low_y, high_y, bottom, top + 4, log=log_y)
    ticks_x = across if len(across) <= MOST_MEASURED else _ticks(low_x, high_x, log=log_x)
    parts = [legend, _ticks_below(ticks_x, put_x, top, bottom), _below(x, left, WIDTH, bottom)]
    for tick in ticks_y:
        at = put_y(tick)
        parts += [_rule(left, at, WIDTH - 12, at, "rule"), _text(short(tick), left - 6, at, end=True, quiet=True)]
    middle = (top + bottom) / 2
    parts.append(
        f'<text x="12" y="{middle:.0f}" transform="rotate(-90 12 {middle:.0f})" text-anchor="middle"'
        f' style="fill:{_paint("quiet")}">{html.escape(y)}</text>'
    )
    for number, (name, points) in enumerate(kept.items()):
        colour, dash = _colour(number), DASHES[number // len(COLOURS) % len(DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        path = " ".join(f"{put_x(a):.1f},{put_y(b):.1f}" for a, b in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke-width="2"{dashed} style="stroke:{_paint(colour)}"/>'
        )
        for a, b in points if len(points) <= MOST_DOTS else ():
            said = html.escape(f"{name}, {short(a)} {x}: {short(b)} {y}")
            parts.append(
                f'<circle cx="{put_x(a):.1f}" cy="{put_y(b):.1f}" r="3.5" style="fill:{_paint(colour)}">'
                f"<title>{said}</title></circle>"
            )
    for a, b, words in marks:
        if (a > 0 or not log_x) and (b > 0 or not log_y):
            at_x, at_y = put_x(a), put_y(b)
            parts.append(
                f'<path d="M{at_x:.1f} {at_y - 6:.1f}l6 6l-6 6l-6 -6z" style="fill:{_paint("ink")}"/>'
                + _text(words, at_x + 9, at_y - 10)
            )
    return _svg(parts, bottom + 42)


def short(value: float) -> str:
    """Three digits that count: 0.0123, 4.57, 123, 4,570."""
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _span(values: Iterable[float], *, log: bool, zero: bool) -> tuple[float, float]:
    """The ends of an axis that holds the values; with `zero`, that too, where the axis can."""
    held = list(values)
    if not held:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(held), max(held)
    if log and zero:
        low, high = 10.0 ** math.floor(math.log10(low)), high * 1.05
    elif zero:
        low, high = min(0.0, low), max(0.0, high)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low, low + 1)
    return low, high


def _scale(low: float, high: float, start: float, end: float, *, log: bool) -> Callable[[float], float]:
    """From a value to its place; `start` is `low`'s and `end` is `high`'s."""
    turn = math.log10 if log else float
    first, last = turn(low), turn(high)
    return lambda value: start + (turn(value) - first) / (last - first) * (end - start)


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    """Round numbers between the ends, about five: 1, 2 or 5 times a power of ten, on a logarithmic axis powers alone if
    there are enough."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1,), (1, 2, 5)):
            found = [step * 10.0**power for power in powers for step in steps]
            found = [tick for tick in found if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]
            if len(found) > 2:
                break
        return found
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _ticks_below(ticks: Sequence[float], place: Callable[[float], float], top: float, bottom: float) -> str:
    """A line up from each, and its number below where there is room for it."""
    parts = [_rule(place(tick), top, place(tick), bottom, "rule") for tick in ticks]
    free = -math.inf
    for tick in ticks:
        half = _wide(short(tick)) / 2
        if place(tick) - half >= free:
            parts.append(_text(short(tick), place(tick) - half, bottom + 12, quiet=True))
            free = place(tick) + half + 6
    return "".join(parts)


def _legend(names: Sequence[str], left: float) -> tuple[str, float]:
    """The series' names in rows, and where the chart below begins."""
    widths = [_wide(name) + 34 for name in names]
    places, at, row = [], left, 0
    for width in widths:
        if at + width > WIDTH and at > left:
            at, row = left, row + 1
        places.append((at, row))
        at += width
    parts = []
    for number, (name, (x, line)) in enumerate(zip(names, places, strict=True)):
        y = 8 + line * 18
        parts.append(
            f'<rect x="{x:.0f}" y="{y - 5}" width="14" height="10" style="fill:{_paint(_colour(number))}"/>'
            + _text(name, x + 20, y)
        )
    return "".join(parts), 8 + row * 18 + 16


def _below(words: str, left: float, right: float, bottom: float) -> str:
    return (
        f'<text x="{(left + right) / 2:.0f}" y="{bottom + 34:.0f}" text-anchor="middle" style="fill:{_paint("quiet")}">'
        f"{html.escape(words)}</text>"
    )


def _text(words: str, x: float, y: float, *, end: bool = False, quiet: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    colour = "quiet" if quiet else "ink"
    # A third of the letters' height below its middle, since not every reader of SVG knows how to centre a line.
    return f'<text x="{x:.1f}" y="{y + FONT / 3:.1f}"{anchor} style="fill:{_paint(colour)}">{html.escape(words)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{_paint(colour)}"/>'


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _paint(colour: str) -> str:
    return f"var(--{colour},{ALONE[colour]})"


def _wide(words: str) -> float:
    """About how wide it is: nobody measures letters here."""
    return sum(FONT if unicodedata.east_asian_width(one) in "WF" else FONT * 0.56 for one in words)


def _cut(words: str) -> str:
    if _wide(words) <= LONGEST_LABEL:
        return words
    ends = [end for end in range(len(words)) if _wide(words[:end]) <= LONGEST_LABEL - FONT]
    return f"{words[: ends[-1]].rstrip()}…"


def _svg(parts: Sequence[str], height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-size="{FONT}"'
        f' font-family="inherit">{"".join(parts)}</svg>'
    )
