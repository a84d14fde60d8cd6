"""Charts for a report's page: bars and lines, as SVG.

Knows how figures are drawn, by matplotlib; nothing of what they mean. Colours are the page's own (`rag.lab.page`), so that
a chart is dark where the page is, and text stays text, which can be searched and read aloud.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib wants colours, the page has names for them: each stands for one until the SVG is written.
_INK, _QUIET, _RULE = "#010101", "#010102", "#010103"
_SERIES = {f"#0101{16 + place:02x}": name for place, name in enumerate(("one", "two", "three", "four", "five", "six"))}
_NAMES = {_INK: "ink", _QUIET: "quiet", _RULE: "rule", **_SERIES}
_DASHES = ("-", "--", ":", "-.")
WIDTH_IN = 7.2


def bars(values: Mapping[str, Mapping[str, float]], *, unit: str, log: bool = False) -> str:
    """Horizontal bars, series -> label -> value, grouped by label from the top; a series need not have every label."""
    labels = list(dict.fromkeys(label for one in values.values() for label in one))
    thick = 0.8 / max(len(values), 1)
    figure, axes = _axes("x", 0.55 + max(len(labels), 1) * (0.18 + 0.2 * len(values)) + 0.24 * (len(values) > 1))
    for number, (series, one) in enumerate(values.items()):
        places = [labels.index(label) - 0.4 + thick * (number + 0.5) for label in one]
        drawn = axes.barh(places, list(one.values()), thick * 0.92, color=_colour(number), label=series)
        axes.bar_label(drawn, [_short(value) for value in one.values()], padding=3, color=_INK, fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.12)
    if not log and all(value >= 0 for one in values.values() for value in one.values()):
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    if len(values) > 1:
        _legend(axes, len(values))
    return _svg(figure)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[tuple[float, float, str]] = (),
) -> str:
    """Lines with their points, (x, y) in rising x; `marks` are points with words beside them."""
    figure, axes = _axes("both", 3.6)
    for number, (name, points) in enumerate(series.items()):
        across, up = [point[0] for point in points], [point[1] for point in points]
        style = _DASHES[number // len(_SERIES) % len(_DASHES)]
        dots = "o" if len(points) <= 24 else None
        axes.plot(across, up, style, marker=dots, markersize=4, color=_colour(number), label=name)
    for across_at, up_at, words in marks:
        axes.plot(across_at, up_at, "D", color=_INK, markersize=5)
        axes.annotate(words, (across_at, up_at), (6, 8), textcoords="offset points", color=_INK, fontsize=8)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    elif all(point[1] >= 0 for points in series.values() for point in points):
        axes.set_ylim(bottom=0)
    axes.set(xlabel=x, ylabel=y)
    _plain_ticks(axes, series, log_x=log_x)
    if len(series) > 1:
        _legend(axes, len(series))
    return _svg(figure)


def _axes(grid: Literal["x", "both"], height_in: float) -> "tuple[Figure, Axes]":
    import matplotlib
    from matplotlib.figure import Figure

    quiet: dict[Any, Any] = {
        "axes.edgecolor": _RULE,
        "axes.labelcolor": _QUIET,
        "xtick.color": _QUIET,
        "ytick.color": _INK,
    }
    rules: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": _RULE,
        "text.color": _INK,
        "font.size": 9,
    }
    with matplotlib.rc_context({**quiet, **rules}):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis=grid, linewidth=0.5)
        axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: "Axes", series: int) -> None:
    axes.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(series, 3), fontsize=8, labelcolor=_INK
    )


def _plain_ticks(axes: "Axes", series: Mapping[str, Sequence[tuple[float, float]]], *, log_x: bool) -> None:
    """Where few lengths or counts were measured, they are the ticks."""
    from matplotlib.ticker import NullLocator

    across = sorted({point[0] for points in series.values() for point in points})
    if log_x and len(across) <= 8:
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(across)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))


def _colour(number: int) -> str:
    return list(_SERIES)[number % len(_SERIES)]


def _short(value: float) -> str:
    """Three digits that count: 0.0123, 4.57, 123, 4,570."""
    if value == 0 or value != value:
        return "0" if value == 0 else "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _svg(figure: "Figure") -> str:
    import matplotlib

    out = io.StringIO()
    # The same figures give the same text; letters stay letters, in the page's own font.
    fixed: dict[Any, Any] = {"svg.hashsalt": "smallfirst", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(fixed):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", text)
    for colour, name in _NAMES.items():
        text = text.replace(colour, f"var(--{name})")
    return text
