"""What the models and the documents are doing, as JSON for the page's status line.

Knows how far things are, and nothing of what is asked: no question, answer or document name leaves through here.
"""

from fastapi import APIRouter

from rag.corpus.library import Library
from rag.models.legs import Legs


def router(legs: Legs, library: Library) -> APIRouter:
    """`GET /status`: both legs, the size of the library, and how far its reading is."""
    routes = APIRouter()

    @routes.get("/status")
    async def status() -> dict[str, object]:
        reading = library.reading
        return {
            "slm": legs.slm.to_dict(),
            "llm": legs.llm.to_dict(),
            "documents": {
                "files": library.files,
                "passages": len(library.index),
                "reading": reading and {"done": reading.done, "total": reading.total, "words": reading.words},
            },
        }

    return routes
