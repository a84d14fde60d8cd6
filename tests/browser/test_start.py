"""The first minutes on a new machine: the weights are on their way, and the page says so."""

import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from rag.models.weights import find

from ..product import chat, free_port
from .conftest import tab


@pytest.fixture
def slow_hub() -> Iterator[str]:
    """A model hub that sends a third of the small model, then nothing until the test is over."""
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            size = find("smollm2-135m").size_bytes
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(bytes(size // 3))
            over.wait()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    over.set()
    server.shutdown()
    server.server_close()


def test_a_model_on_its_way_is_shown_and_a_question_waits_for_it(
    browser: Browser, slow_hub: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    environment = {"RAG_CACHE_DIR": str(cache), "RAG_WEIGHTS_SOURCE": "hub", "RAG_HUB_URL": slow_hub}
    environment |= {"RAG_SLM_MODEL": "smollm2-135m"}
    with chat(free_port(), tmp_path / "chat.log", ready=False, **environment) as url, tab(browser, url) as page:
        status = page.page.get_by_test_id("model-status")
        expect(status).to_contain_text("Small model: fetching")
        expect(status).to_contain_text("of 98 MB")
        page.send("What does the name ONNX stand for?")
        expect(
            page.page.get_by_text(re.compile(r"Waiting for the small model: fetching \d+ of 98 MB")).first
        ).to_be_visible()
        assert list(cache.glob("*.gguf")) == [], "what is not whole never has the model's name"
        page.page.locator("#stop-button").click()
        expect(page.page.get_by_text("Stopped.", exact=True).first).to_be_visible()
