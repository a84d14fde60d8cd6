"""A report as one HTML file: Section, page.

Knows how a report is laid out on a screen, in the dark and on paper; nothing of what it reports. The file loads nothing:
its style, pictures and figures are inside, the figures once more as JSON that can be saved. Text is escaped here, so that
what a model wrote is never run.
"""

import errno
import html
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import UserError


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[str]
    """HTML, made by the functions below."""


def page(title: str, lead: str, sections: Sequence[Section], data: Mapping[str, Any]) -> str:
    """The whole document. `lead` says in words what came of it; `data` is the report as JSON."""
    body = [f"<header><h1>{html.escape(title)}</h1><p class=lead>{html.escape(lead)}</p></header>", "<main>"]
    for section in sections:
        body.append(f"<section><h2>{html.escape(section.title)}</h2>{''.join(section.parts)}</section>")
    # Inside a script element only "</" and "<!--" could end it or change how it is read.
    raw = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    body.append(
        "</main><footer><button id=save type=button hidden>Save the figures as JSON</button></footer>"
        f'<script id=data type="application/json">{raw}</script><script>{_SCRIPT}</script>'
    )
    return (
        '<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline';"
        " script-src 'unsafe-inline'; img-src data:\">"
        f"<meta name=color-scheme content='light dark'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "", numbers_from: int = 1) -> str:
    """Cells are shown as they are, None as a dash; columns from `numbers_from` on (0 is the first) are set as numbers."""

    def cell(tag: str, place: int, value: object) -> str:
        kind = " class=number" if place >= numbers_from else ""
        return f"<{tag}{kind}>{html.escape('–' if value is None else str(value))}</{tag}>"

    heads = "".join(cell("th", place, name) for place, name in enumerate(head))
    lines = ["".join(cell("td", place, value) for place, value in enumerate(row)) for row in rows]
    told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{row}</tr>" for row in lines)
    inside = f"<table>{told}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f"<div class=wide tabindex=0 role=region aria-label=Table>{inside}</table></div>"


def side_by_side(columns: Sequence[tuple[str, str]]) -> str:
    """Titles, and HTML under each; below one another where the screen is narrow."""
    parts = [f"<div><h3>{html.escape(title)}</h3>{inside}</div>" for title, inside in columns]
    return f"<div class=columns>{''.join(parts)}</div>"


def quoted(text: str, marked: Sequence[tuple[int, int]] = ()) -> str:
    """A text as it was written; of it the ranges [start, end) are marked, in order and without overlap."""
    parts, at = [], 0
    for start, end in marked:
        parts += [html.escape(text[at:start]), f"<mark>{html.escape(text[start:end])}</mark>"]
        at = end
    return f"<blockquote>{''.join(parts)}{html.escape(text[at:])}</blockquote>"


def folded(title: str, inside: str) -> str:
    """HTML that is shown when its title is opened, and on paper."""
    return f"<details><summary>{html.escape(title)}</summary>{inside}</details>"


def figure(svg: str, caption: str) -> str:
    told = html.escape(caption)
    return f'<figure><div role=img aria-label="{told}">{svg}</div><figcaption>{told}</figcaption></figure>'


def check(path: Path, flag: str = "--page") -> None:
    """UserError where no file can be written: said before what takes minutes, not after."""
    with _told(path, flag):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "It is a folder")
        tempfile.TemporaryFile(dir=path.parent).close()


def write(text: str, path: Path) -> None:
    """Whole or not at all. UserError where it cannot be written."""
    with _told(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def _umask() -> int:
    """What a new file is not to allow; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def _told(path: Path, flag: str = "--page") -> Iterator[None]:
    """What the system refuses is said to a person."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UserError(f"{path} cannot be written: {why}. Name another file with {flag}.") from None


_STYLE = """
:root{--paper:#fff;--ink:#1c1b22;--quiet:#63616d;--rule:#d9d7e0;--soft:#f5f4f8;--mark:#ffe9a8;
--one:#2a7f9e;--two:#c2571a;--three:#4b2e83;--four:#3a7d44;--five:#a03060;--six:#7a6a2f}
@media (prefers-color-scheme:dark){:root{--paper:#16151b;--ink:#eceaf2;--quiet:#a5a2b3;--rule:#3b3946;--soft:#211f29;
--mark:#5c4a10;--one:#6cc3e2;--two:#f2a06b;--three:#b79bf0;--four:#8ed19a;--five:#ee8fb4;--six:#d6c37a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.2rem 4rem;max-width:60rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:.6rem 0}
.lead{font-size:1.1rem;margin:0}figure{margin:1rem 0}figcaption,caption{color:var(--quiet);font-size:.9rem;text-align:left}
figure>div{overflow-x:auto}svg{width:100%;height:auto;min-width:34rem;max-width:46rem}.wide{overflow-x:auto}
table{border-collapse:collapse;min-width:min(100%,24rem);font-size:.92rem;margin:.6rem 0}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}th{font-weight:600}
.number{text-align:right;font-variant-numeric:tabular-nums}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr));gap:1rem}
blockquote{margin:.4rem 0;padding:.7rem 1rem;background:var(--soft);border-left:3px solid var(--rule);
white-space:pre-wrap;overflow-wrap:anywhere}
mark{background:var(--mark);color:inherit}details{margin:.4rem 0}summary{cursor:pointer}
button{font:inherit;padding:.4rem .9rem;border:1px solid var(--rule);border-radius:.4rem;
background:var(--soft);color:inherit}
@media print{:root{--paper:#fff;--ink:#000;--quiet:#444;--rule:#bbb;--soft:#fff;--mark:#eee;--one:#2a7f9e;--two:#c2571a;
--three:#4b2e83;--four:#3a7d44;--five:#a03060;--six:#7a6a2f}
body{padding:0;max-width:none;font-size:12px}footer{display:none}figure,tr{break-inside:avoid}h2,h3{break-after:avoid}
.wide,figure>div{overflow:visible}svg{min-width:0}table{font-size:.72rem;min-width:0}th,td{padding:.2rem .25rem}}
"""

# A link that is made from the page's own JSON needs no network; what is folded is opened before it is printed.
_SCRIPT = """
const save=document.getElementById("save");save.hidden=false;
save.onclick=()=>{const a=document.createElement("a");
a.href=URL.createObjectURL(new Blob([document.getElementById("data").textContent],{type:"application/json"}));
a.download="report.json";a.click();URL.revokeObjectURL(a.href)};
addEventListener("beforeprint",()=>document.querySelectorAll("details").forEach(one=>one.open=true));
"""
