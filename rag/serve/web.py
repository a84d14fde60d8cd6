"""The web server that carries the chat: where its files lie, how it starts.

Knows Chainlit's start-up and nothing of turns. What the chat does is app.py's.
"""

import asyncio
import logging
import os
import shutil
import sys
from pathlib import Path

from platformdirs import user_state_path

from rag.serve import login
from rag.serve.ending import Server
from rag.serve.ports import check_port
from rag.settings import PACKAGE, Settings, app_home
from rag.words import LANGUAGES

FURNITURE = (".chainlit", "public", "chainlit.md", *(f"chainlit_{tag}.md" for tag in LANGUAGES if tag != "en"))


def serve(host: str, port: int, *, open_browser: bool) -> None:
    """Run the chat until it is interrupted. A port that is taken, or a chat for anybody or nobody, is a UserError."""
    check_port(host, port)
    login.check(Settings.load(), host)
    os.environ["CHAINLIT_APP_ROOT"] = str(_app_root())
    login.set_cookie_name(port)

    # Chainlit reads its folder when it is imported. Its own command would also patch asyncio (nest_asyncio), which
    # slows every task of the process; this starts the same server without.
    import chainlit.config
    import uvicorn
    from chainlit.config import config, load_module

    # Chainlit deletes the whole folder of uploads when it ends, another chat's from the same checkout too. A port is one
    # chat's own, and what a crash left there is nobody's.
    chainlit.config.FILES_DIRECTORY /= str(port)
    shutil.rmtree(chainlit.config.FILES_DIRECTORY, ignore_errors=True)
    chainlit.config.FILES_DIRECTORY.mkdir(parents=True)

    from chainlit.auth import ensure_jwt_secret
    from chainlit.markdown import init_markdown
    from chainlit.server import app

    # It warns at every visit that there is no welcome text in the visitor's language.
    logging.getLogger("chainlit").setLevel(logging.ERROR)
    config.run.host = host
    config.run.port = port
    config.run.headless = not open_browser
    config.run.module_name = str(app_home() / "app.py")
    load_module(config.run.module_name)
    ensure_jwt_secret()  # type: ignore[no-untyped-call]
    init_markdown(config.root)
    server = Server(uvicorn.Config(app, host=host, port=port, log_level="error", timeout_graceful_shutdown=3))
    asyncio.run(server.serve())


def can_open_browser() -> bool:
    """Is there a desktop to open a page on?"""
    if sys.platform in ("win32", "darwin"):
        return sys.stdout.isatty()
    return sys.stdout.isatty() and bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _app_root() -> Path:
    """The folder that Chainlit reads its settings from and writes uploads to.

    An installed package may not be written to, so its furniture is copied to the user's state folder; a checkout is
    used as it is.
    """
    home = app_home()
    if home != PACKAGE / "bundle":
        return home
    root = user_state_path("smallfirst", appauthor=False) / "app"
    root.mkdir(parents=True, exist_ok=True)
    for name in FURNITURE:
        if (home / name).is_dir():
            shutil.copytree(home / name, root / name, dirs_exist_ok=True)
        else:
            shutil.copy2(home / name, root / name)
    return root
