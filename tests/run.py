"""Runs the whole suite: bring a browser, Tesseract, PostgreSQL and an ONNX model, then three pytest processes, the browser's
beside the other two.

The browser driver runs an event loop of its own, beside which pytest's asyncio tests cannot run; and what needs the ONNX
model waits until that was made.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """A Chromium of the system, or the one that Playwright keeps."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def bring_browser() -> None:
    """Install Chromium if there is none; without one the browser tests skip and say so."""
    if find_browser() is not None:
        return
    install("Chromium", "chromium")
    if find_browser() is None:
        print("No Chromium found: asking Playwright for its own.", flush=True)
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)
    if find_browser() is None:
        print("No Chromium could be had: the browser tests will be skipped.", flush=True)


def install(what: str, package: str) -> None:
    """Debian's package, where this process may install it."""
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        print(f"No {what} found: installing Debian's.", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", package]):
            subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)


def begin_onnx_model() -> "subprocess.Popen[bytes] | None":
    """SmolLM2 for Foundry Local, made from its GGUF once, a minute; without it the tests marked foundry skip and say so."""
    if importlib.util.find_spec("foundry_local_sdk") is None:
        return None
    # The tests do not see the developer's settings either, so they look for it in the usual place.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAG_")}
    command = [sys.executable, "-m", "docs.onnx_from_gguf"]
    if shutil.which("nice"):
        command = ["nice", *command]  # the other tests run meanwhile
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)


def main() -> int:
    bring_browser()
    onnx_model = begin_onnx_model()
    if shutil.which("tesseract") is None:
        install("Tesseract", "tesseract-ocr")  # without it, the test that reads a scanned page skips and says so
    if shutil.which("postgres") is None and not any(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        install("PostgreSQL", "postgresql")  # the same for those that keep conversations in it

    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "pytest", *arguments, *sys.argv[1:]]

    # The browser's tests mostly wait, and let the others go first; what they say is shown when they are done.
    with tempfile.TemporaryFile("w+") as said:
        behind = command("tests/browser")
        if shutil.which("nice"):
            behind = ["nice", "-n", "5", *behind]
        browser = subprocess.Popen(behind, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        statuses = [subprocess.run(command("tests", "--ignore=tests/browser", "-m", "not foundry")).returncode]
        if onnx_model is not None:
            onnx_model.wait()
        statuses.append(subprocess.run(command("tests", "--ignore=tests/browser", "-m", "foundry")).returncode)
        statuses.append(browser.wait())
        said.seek(0)
        print(said.read(), flush=True)
    # Of a choice on the command line, not every part need hold a test.
    none = pytest.ExitCode.NO_TESTS_COLLECTED
    return max((status for status in statuses if status != none or not sys.argv[1:]), default=int(none))


if __name__ == "__main__":
    sys.exit(main())
