"""A small folder of documents and a file of questions about it, in our own form."""

import json
from pathlib import Path
from typing import Any

HARBOUR = """# Harbour

## Tides

The tide at Sandvik rises 4.2 metres in spring. It turns every six hours and twelve minutes.

## Lighthouse

The lighthouse keeper is Nils Holm. He lights the lamp at 21:30.
"""
TEA = """# Tea

Green tea is heated soon after pick-
ing. Black tea is left to oxidise for 90 minutes. Nils Holm drinks black tea.
"""

QUESTIONS: list[dict[str, Any]] = [
    {
        "id": "tide",
        "kind": "number",
        "question": "How high is the spring tide at Sandvik?",
        "answers": ["4.2"],
        "evidence": [{"source": "harbour.md", "quote": "rises 4.2 metres in spring"}],
    },
    {
        "id": "lamp",
        "kind": "follow-up",
        "question": "And at what time?",
        "after": ["Does the lighthouse keeper light a lamp?"],
        "answers": ["21:30"],
        "evidence": [{"source": "harbour.md", "quote": "lights the lamp at 21:30"}],
    },
    {
        "id": "both",
        "kind": "comparison",
        "language": "en",
        "question": "Which takes longer, the turn of the tide or the oxidising of black tea?",
        "answers": ["six hours", "6 hours"],
        "evidence": [
            {"source": "harbour.md", "quote": "turns every six hours"},
            {"source": "tea.md", "quote": "oxidise for 90 minutes"},
        ],
    },
    {
        "id": "keeper",
        "kind": "lookup",
        "question": "What is the keeper of the lighthouse called?",
        "answers": ["Nils Holm"],
        "evidence": [
            {
                "source": "harbour.md",
                "quote": "The lighthouse keeper is Nils Holm",
                "or": [{"source": "tea.md", "quote": "Nils Holm drinks black tea"}],
            }
        ],
    },
    {
        "id": "none",
        "kind": "unanswerable",
        "question": "How high is the lighthouse of Sandvik?",
        "about": "harbour.md",
    },
]


def documents(folder: Path) -> Path:
    """The folder `docs` in `folder`."""
    docs = folder / "docs"
    docs.mkdir()
    (docs / "harbour.md").write_text(HARBOUR)
    (docs / "tea.md").write_text(TEA)
    return docs


def written(folder: Path, questions: Any = QUESTIONS, **more: Any) -> Path:
    """A file of questions in `folder`, which asks of the folder `docs` beside it."""
    path = folder / "mine.json"
    path.write_text(json.dumps({"name": "mine", "version": 3, "docs": "docs", "questions": questions, **more}))
    return path
