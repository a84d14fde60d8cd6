"""What tests of Foundry Local stand on: a real ONNX model, and a catalogue and a network of their own."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from docs.onnx_from_gguf import build, default_folder, has_tools
from rag.errors import WeightsError
from rag.models import foundry
from rag.settings import Settings


def onnx_folder() -> Path:
    """SmolLM2 as ONNX: the one in the user's cache folder, made there if the tools for it are. Skips without."""
    if not foundry.installed():
        pytest.skip(f"Foundry Local's library is not installed: {foundry.INSTALL}")
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    folder = default_folder(settings.cache_dir)
    if not foundry.is_onnx_folder(folder):
        if not has_tools(settings.cache_dir):
            pytest.skip(f"no ONNX model at {folder}: `python -m docs.onnx_from_gguf` makes one, in about a minute")
        try:
            build(None, None, settings)
        except WeightsError as error:
            pytest.skip(f"no ONNX model can be made without its weights: {error}")
    return folder


def copied(folder: Path, to: Path, **config: Any) -> Path:
    """The same model under another name; `config` changes what genai_config.json says of it."""
    to.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name != foundry.CONFIG:
            os.symlink(file, to / file.name)
    about = json.loads((folder / foundry.CONFIG).read_text())
    about["model"].update(config)
    (to / foundry.CONFIG).write_text(json.dumps(about))
    return to


class Outside:
    """Stands where a proxy would: notes which hosts a program asks for, and lets nothing through."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._note, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """For a child that is to believe in it. Loopback is not asked through it."""
        address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        return {**dict.fromkeys(("https_proxy", "HTTPS_PROXY", "http_proxy"), address), "no_proxy": "127.0.0.1"}

    def _note(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    words = connection.recv(4096).decode(errors="replace").split()
                except OSError:
                    continue
                # CONNECT host:443 HTTP/1.1
                self.asked.append(words[1].rsplit(":", 1)[0] if len(words) > 1 else "")

    def close(self) -> None:
        self._listening.close()


class Catalogue(ThreadingHTTPServer):
    """Foundry Local's catalogue, with models of the test's own: alias, name, version."""

    daemon_threads = True

    def __init__(self, *models: tuple[str, str, int]) -> None:
        self.models = models
        super().__init__(("127.0.0.1", 0), _Listing)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/asset-gallery/v1.0/models"


class _Listing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Catalogue

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wanted = {value for one in asked["filters"] if one["field"] == "name" for value in one["values"]}
        listed = [_entry(*model) for model in self.server.models if not wanted or model[1] in wanted]
        body = json.dumps({"totalCount": len(listed), "value": listed}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _entry(alias: str, name: str, version: int) -> dict[str, Any]:
    variant = {"modelType": "ONNX", "device": "cpu", "executionProvider": "CPUExecutionProvider", "fileSizeBytes": 9e7}
    return {
        "assetId": f"azureml://registries/none/models/{name}/versions/{version}",
        "entityId": f"{name}:{version}",
        "annotations": {
            "tags": {"alias": alias, "task": "chat-completion"},
            "systemCatalogData": {"publisher": "Test"},
        },
        "properties": {
            "id": f"{name}:{version}",
            "name": name,
            "version": version,
            "variantInfo": {"parents": [], "variantMetadata": {**variant, "fileSizeBytes": 90_000_000}},
        },
    }


@contextmanager
def catalogue(*models: tuple[str, str, int]) -> Iterator[Catalogue]:
    serving = Catalogue(*models)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        yield serving
    finally:
        serving.shutdown()
        serving.server_close()


def fetched(folder: Path, home: Path, name: str, version: int) -> None:
    """The model lies in the library's cache as if it had been fetched from the catalogue."""
    place = copied(folder, home / "models" / "Test" / f"{name}-{version}")
    (place / "inference_model.json").write_text(json.dumps({"Name": f"{name}:{version}", "PromptTemplate": None}))
