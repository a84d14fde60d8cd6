"""Make a large BEIR folder of real text from Debian's documentation packages.

    python benchmarks/debian_docs.py OUT [--passages N] [PACKAGE ...]

Fetches the packages with apt-get (nothing is installed), takes the text of their HTML pages, cuts it at headings and
paragraphs, leaves out repeats, and writes corpus.jsonl, queries.jsonl and qrels/test.tsv. A query is a heading that stands
once only in all of it, and the passages under it are its answers; the heading itself is not part of the passages, so that
a query does not find itself. This is a measure of speed; how well passages are found is measured on questions that people
asked.
"""

import argparse
import hashlib
import json
import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lxml.html

PACKAGES = (
    "python3.11-doc postgresql-doc-15 debian-handbook linux-doc-6.1 erlang-doc qtbase5-doc-html python-scipy-doc"
    " python-pandas-doc llvm-14-doc cmake-doc nodejs-doc python-django-doc libboost1.74-doc openjdk-17-doc ghc-doc"
    " libstdc++-12-doc rust-doc vtk9-doc wx3.2-doc python-sympy-doc qtdeclarative5-doc-html scala-doc groovy-doc"
).split() + [f"libreoffice-help-{tongue}" for tongue in "en-us de ru zh-tw fr es it pt nl pl sv ja cs hu fi tr".split()]
PASSAGE_CHARS = 700
LEAST_CHARS = 80
BLOCKS = {
    "p",
    "li",
    "dd",
    "dt",
    "pre",
    "td",
    "th",
    "div",
    "section",
    "blockquote",
    "table",
    "ul",
    "ol",
    "dl",
    "tr",
    "body",
}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
SILENT = {"script", "style", "nav", "head", "header", "footer", "form", "svg"}


def fetch(package: str, folder: Path) -> None:
    """Download and unpack one package."""
    subprocess.run(
        ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", package],
        cwd=folder,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(archive), str(folder / "tree")], check=True)
        archive.unlink()


def sections(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(heading, paragraphs) of one HTML page, in order."""
    try:
        root = lxml.html.fromstring(page.read_bytes())
    except (lxml.etree.ParserError, ValueError):
        return
    heading, paragraphs, piece = "", [], []

    def end_piece() -> None:
        text = " ".join("".join(piece).split())
        piece.clear()
        if text:
            paragraphs.append(text)

    for event, node in lxml.etree.iterwalk(root, events=("start", "end")):
        tag = node.tag if isinstance(node.tag, str) else ""
        if event == "start":
            if not tag or tag in SILENT:
                for child in list(node):
                    node.remove(child)
                node.text = None
                continue
            if tag in HEADINGS:
                end_piece()
                if paragraphs:
                    yield heading, paragraphs
                heading, paragraphs = " ".join(node.text_content().split()).rstrip("¶# "), []
                for child in list(node):
                    node.remove(child)
                continue
            if tag in BLOCKS:
                end_piece()
            piece.append(node.text or "")
        else:
            if tag in BLOCKS:
                end_piece()
            piece.append(node.tail or "")
    end_piece()
    if paragraphs:
        yield heading, paragraphs


def passages(paragraphs: list[str]) -> Iterator[str]:
    """Paragraphs joined up to the passage size; a longer one is cut at a space."""
    held = ""
    for paragraph in paragraphs:
        while len(paragraph) > PASSAGE_CHARS:
            cut = paragraph.rfind(" ", 1, PASSAGE_CHARS)
            cut = cut if cut > 0 else PASSAGE_CHARS
            yield from filter(None, [held, paragraph[:cut]])
            held, paragraph = "", paragraph[cut:].strip()
        if held and len(held) + 1 + len(paragraph) > PASSAGE_CHARS:
            yield held
            held = ""
        held = f"{held}\n{paragraph}".strip()
    if held:
        yield held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("packages", nargs="*", default=PACKAGES, metavar="PACKAGE")
    parser.add_argument("--passages", type=int, default=1_000_000, metavar="N", help="stop after N passages")
    arguments = parser.parse_args()

    seen: set[bytes] = set()
    under: dict[str, list[str]] = {}
    headings: Counter[str] = Counter()
    made = 0
    (arguments.out / "qrels").mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "corpus.jsonl", "w", encoding="utf-8") as corpus:
        for package in arguments.packages:
            if made >= arguments.passages:
                break
            before = made
            with tempfile.TemporaryDirectory() as folder:
                fetch(package, Path(folder))
                for page in sorted(p for p in Path(folder).rglob("*") if p.suffix in (".html", ".xhtml", ".htm")):
                    if page.is_symlink() or made >= arguments.passages:
                        continue
                    for heading, paragraphs in sections(page):
                        headings[heading] += 1
                        for text in passages(paragraphs):
                            digest = hashlib.sha256(text.encode()).digest()[:12]
                            if len(text) < LEAST_CHARS or digest in seen or made >= arguments.passages:
                                continue
                            seen.add(digest)
                            id = f"{package}-{made}"
                            json.dump({"_id": id, "title": "", "text": text}, corpus, ensure_ascii=False)
                            corpus.write("\n")
                            under.setdefault(heading, []).append(id)
                            made += 1
            print(f"{package}: {made - before:,} passages, {made:,} in all", flush=True)

    asked = [h for h, count in headings.items() if count == 1 and h in under and 3 <= len(h.split()) <= 12]
    random.Random(1).shuffle(asked)
    with (
        open(arguments.out / "queries.jsonl", "w", encoding="utf-8") as queries,
        open(arguments.out / "qrels" / "test.tsv", "w", encoding="utf-8") as judged,
    ):
        judged.write("query-id\tcorpus-id\tscore\n")
        for number, heading in enumerate(asked[:2000]):
            json.dump({"_id": f"q{number}", "text": heading}, queries, ensure_ascii=False)
            queries.write("\n")
            for id in under[heading]:
                judged.write(f"q{number}\t{id}\t1\n")
    print(f"{made:,} passages, {min(2000, len(asked)):,} queries in {arguments.out}")


if __name__ == "__main__":
    main()
