"""The weights that a browser may fetch: which there are, how far the server is with fetching them, and the bytes.

Knows the catalogue and the cache folder. An address holds the beginning of the file's hash, so that what a browser keeps
under it never changes; anything else that is asked for is not here. Only the smallest is fetched on a page's asking.
"""

import asyncio
import logging
import threading
from typing import Any, Final, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from rag.errors import RagError
from rag.models import weights
from rag.models.weights import CATALOGUE, Progress, Weights
from rag.serve.api_errors import ApiRoute
from rag.settings import Settings

log = logging.getLogger("smallfirst")

DEFAULT: Final = "smollm2-135m"
# wllama takes a model in one piece, and a browser no more than 2 GB of it.
LARGEST_BYTES: Final = 2_000_000_000

State = Literal["here", "absent", "fetching", "verifying", "failed"]


def file_of(model: Weights) -> str:
    """The last part of its address: it ends in .gguf, and changes with the bytes."""
    return f"{model.sha256[:16]}-{model.name}.gguf"


class Shelf:
    """What is on this server's disk for browsers; fetches the default when it is asked to."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models = {name: model for name, model in CATALOGUE.items() if model.size_bytes <= LARGEST_BYTES}
        self._pulling: asyncio.Task[None] | None = None
        self._progress: Progress | None = None
        self._failure = ""

    def fetch(self) -> None:
        """Begin to fetch the default model, if it is not here and nobody is at it."""
        model = self.models[DEFAULT]
        if weights.installed(model, self.settings.cache_dir) or (self._pulling and not self._pulling.done()):
            return
        self._failure = ""
        self._progress = Progress("fetching", 0, model.size_bytes)
        self._pulling = asyncio.create_task(self._pull(model))

    async def _pull(self, model: Weights) -> None:
        settings = self.settings
        cancelled = threading.Event()

        def note(progress: Progress) -> None:
            self._progress = progress

        try:
            await asyncio.to_thread(
                weights.pull,
                model,
                settings.cache_dir,
                weights_dir=settings.weights_dir,
                source=settings.weights_source,
                hub_url=settings.hub_url,
                progress=note,
                cancelled=cancelled,
            )
        except RagError as error:
            self._failure = str(error)
        except Exception as error:
            log.exception("Fetching %s failed", model.name)
            self._failure = f"{model.name} could not be fetched ({type(error).__name__}). The server's log says why."
        finally:
            # A thread cannot be ended from outside: when the server stops, it is told.
            cancelled.set()
            self._progress = None

    def state(self, model: Weights) -> State:
        if weights.installed(model, self.settings.cache_dir):
            return "here"
        if model.name == DEFAULT:
            if self._progress is not None:
                return self._progress.phase
            if self._failure:
                return "failed"
        return "absent"

    def to_dict(self, model: Weights) -> dict[str, Any]:
        state, progress = self.state(model), self._progress
        return {
            "name": model.name,
            "file": file_of(model),
            "bytes": model.size_bytes,
            "sha256": model.sha256,
            "license": model.license,
            "from": model.hub_repo,
            "state": state,
            "done_bytes": progress.done_bytes if progress and state in ("fetching", "verifying") else 0,
            "detail": self._failure if state == "failed" else "",
        }

    def listed(self) -> dict[str, Any]:
        """The default, and whatever else of the catalogue is on the disk, the smallest first."""
        offered = [model for model in self.models.values() if model.name == DEFAULT or self.state(model) == "here"]
        offered.sort(key=lambda model: model.size_bytes)
        return {"default": DEFAULT, "models": [self.to_dict(model) for model in offered]}


def router(shelf: Shelf) -> APIRouter:
    """`GET /ondevice/models`, `POST /ondevice/models` to have the default fetched, `GET /ondevice/models/<file>`."""
    routes = APIRouter(route_class=ApiRoute, include_in_schema=False)
    by_file = {file_of(model): model for model in shelf.models.values()}

    @routes.get("/ondevice/models")
    async def models() -> Response:
        return JSONResponse(shelf.listed(), headers={"Cache-Control": "no-store"})

    @routes.post("/ondevice/models")
    async def fetch() -> Response:
        shelf.fetch()
        return JSONResponse(shelf.listed(), 202, headers={"Cache-Control": "no-store"})

    @routes.api_route("/ondevice/models/{file}", methods=["GET", "HEAD"])
    async def model_file(request: Request, file: str) -> Response:
        model = by_file.get(file)
        path = weights.installed(model, shelf.settings.cache_dir) if model else None
        if model is None or path is None:
            raise HTTPException(404, f"There is no model at {request.url.path}.")
        headers = {"ETag": f'"{model.sha256}"', "Cache-Control": "public, max-age=31536000, immutable"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return FileResponse(path, media_type="application/octet-stream", headers=headers, stat_result=path.stat())

    return routes
