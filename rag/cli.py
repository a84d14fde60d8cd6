"""The terminal door: arguments in, text or JSON out.

Knows argv and exit statuses; every turn goes through `cascade.answer`. With --json the very last line of standard output
is one JSON document.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing, closing, suppress
from pathlib import Path
from typing import Any

from rag import __version__
from rag.errors import ModelError, RagError, UserError
from rag.lab import commands as lab
from rag.settings import MODES, Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 on success, 2 for what the user can mend, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except RagError as error:
        print(f"smallfirst: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("smallfirst: stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="smallfirst", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"smallfirst {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    docs = argparse.ArgumentParser(add_help=False)
    docs.add_argument("--docs", type=Path, metavar="DIR", help="folder of documents (RAG_DOCS)")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON document as the last line")

    def command(name: str, run: Any, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        text = help[0].upper() + help[1:] + "."
        added = commands.add_parser(name, help=help, description=text, parents=list(parents))
        added.set_defaults(run=run)
        return added

    chat = command("chat", _chat, "chat in the browser", docs)
    chat.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: %(default)s)")
    chat.add_argument("--port", type=int, default=8000, metavar="P", help="port to listen on (default: %(default)s)")
    chat.add_argument("--no-open", action="store_true", help="do not open a browser")

    serve = command("serve", _serve, "the OpenAI-compatible API alone, without the chat", docs)
    serve.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, metavar="P", help="port to listen on (default: %(default)s)")

    ask = command("ask", _ask, "ask one question and print the answer", docs, as_json)
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--attach", type=Path, metavar="FILE", action="append", default=[], help="one more document")
    ask.add_argument("--mode", choices=MODES, help="who answers (RAG_MODE)")

    command("index", _index, "read the documents and tell what was found in each", docs, as_json)

    search = command("search", _search, "find passages without asking a model", docs, as_json)
    search.add_argument("query", metavar="QUERY")
    search.add_argument("--top-k", type=int, metavar="N", help="passages to show (RAG_TOP_K)")

    models = command("models", _models, "the models that run here and on servers of this machine")
    actions = models.add_subparsers(required=True, metavar="ACTION", dest="action")
    actions.add_parser("list", help="which there are, and what is known of each", parents=[as_json])
    pull = actions.add_parser("pull", help="fetch and verify one model")
    pull.add_argument("name", metavar="NAME")
    probe = actions.add_parser("probe", help="try what a model server can do, and remember it", parents=[as_json])
    probe.add_argument("url", metavar="URL", help="its address, as in http://127.0.0.1:11434/v1")
    probe.add_argument("--model", metavar="NAME", help="one of its models; all that are loaded if none is named")
    actions.add_parser("build", help="compile llama.cpp for this processor: faster, once, a few minutes")

    doctor = command("doctor", _doctor, "look at everything that the chat needs, and say what to do", as_json)
    doctor.add_argument("--host", default="127.0.0.1", metavar="H", help="address of the chat (default: %(default)s)")
    doctor.add_argument("--port", type=int, default=8000, metavar="P", help="port of the chat (default: %(default)s)")
    doctor.add_argument("--deep", action="store_true", help="also hash the model files and try each model server")

    labels = command("labels", _labels, "show what was said of answers in the chat, or delete it", as_json)
    labels.add_argument("--clear", action="store_true", help="delete all of it")

    users = command("users", _users, "say who may sign in to the chat (RAG_LOGIN=password)")
    deeds = users.add_subparsers(required=True, metavar="ACTION", dest="action")
    deeds.add_parser("list", help="their names", parents=[as_json])
    for name, help in (("add", "a new user, whose password is asked for"), ("passwd", "another password for a user")):
        added = deeds.add_parser(name, help=help)
        added.add_argument("name", metavar="NAME")
        added.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    deeds.add_parser("remove", help="a user who may not sign in any more").add_argument("name", metavar="NAME")

    lab.add(command, as_json, docs, kept_turns=_kept_turns)
    return parser


def command_help() -> str:
    """The text of `smallfirst --help`, 100 columns wide wherever it is made."""
    parser = _parser()
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    return parser.format_help().strip()


_DESCRIPTION = (
    "A chat over your own documents, on your own machine: a small model answers first, a larger one when it must."
)


def _chat(arguments: argparse.Namespace) -> None:
    from rag.serve import web

    # app.py reads its settings from the environment, as it does under `chainlit run`.
    if arguments.docs is not None:
        os.environ["RAG_DOCS"] = str(arguments.docs)
    settings = Settings.load()
    if not settings.docs.is_dir():
        raise UserError(f"No folder of documents at {settings.docs}. Make it, or name another with --docs.")
    web.serve(arguments.host, arguments.port, open_browser=not arguments.no_open and web.can_open_browser())


def _serve(arguments: argparse.Namespace) -> None:
    from rag.serve import server

    server.serve(arguments.host, arguments.port, Settings.load(docs=arguments.docs))


def _ask(arguments: argparse.Namespace) -> None:
    asyncio.run(_ask_once(arguments))


async def _ask_once(arguments: argparse.Namespace) -> None:
    from rag import terminal
    from rag.corpus.library import Library
    from rag.models.legs import Legs
    from rag.telemetry import Telemetry
    from rag.turn import cascade
    from rag.turn.session import Session

    settings = Settings.load(docs=arguments.docs, mode=arguments.mode)
    library = Library(settings)
    terminal.read(library)
    session = Session(library, settings.mode)
    for path in arguments.attach:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}. Check the name and the permissions.") from None
        report = session.attachments.add(data, path.name)
        terminal.notices.print(report.line, markup=False)

    legs = Legs(settings)
    with suppress(ModelError):  # whoever is asked will tell
        await legs.located()
    telemetry = Telemetry(settings.otlp_endpoint, __version__)
    try:
        first = legs.llm if settings.mode == "llm" else legs.slm
        if not first.state.usable:
            first.start()
            await terminal.show_starting(first)
        live = terminal.is_interactive() and not arguments.json
        shown = False
        async with aclosing(
            cascade.answer(arguments.question, session=session, legs=legs, settings=settings, observers=(telemetry,))
        ) as events:
            async for event in events:
                match event:
                    case cascade.Token(text=text) if live:
                        sys.stdout.write(text)
                        sys.stdout.flush()
                        shown = True
                    case cascade.Retracted() if shown:
                        sys.stdout.write("\n")
                        terminal.notices.print("That was thought aloud; the answer follows.", markup=False)
                    case cascade.Escalating(reason=reason):
                        if shown:
                            sys.stdout.write("\n")
                        terminal.notices.print(f"Asking the other model: {reason}.", markup=False)
                    case cascade.Failed():
                        raise event.error
                    case cascade.Answered(turn=turn) if arguments.json:
                        print(json.dumps(turn.to_dict(), ensure_ascii=False))
                    case cascade.Answered(turn=turn):
                        if shown:
                            sys.stdout.write("\n")
                        streamed = shown and bool(turn.drafts) and turn.answer.startswith(turn.drafts[-1].text.strip())
                        terminal.print_turn(turn, streamed=streamed)
    finally:
        await legs.close()
        telemetry.close()
        session.attachments.close()
        library.close()


def _index(arguments: argparse.Namespace) -> None:
    from rag import terminal
    from rag.corpus.library import Library

    settings = Settings.load(docs=arguments.docs)
    began = time.perf_counter()
    library = Library(settings)
    opened = set(terminal.read(library, tell_bad=False))
    seconds = time.perf_counter() - began
    shown = terminal.notices if arguments.json else terminal.out
    for report in library.reports:
        kept = "" if report.source in opened else " (unchanged)"
        shown.print(f"{report.line}{kept}", markup=False)
    shown.print(
        f"{library.files} files, {len(library.index):,} passages in {settings.docs}, ready after {seconds:.2f} s;"
        f" searched by {library.engine.name}",
        markup=False,
    )
    if arguments.json:
        report_dicts = [report.to_dict() for report in library.reports]
        totals = {
            "opened": sorted(opened),
            "passages": len(library.index),
            "engine": library.engine.name,
            "duration_ms": round(seconds * 1000, 1),
        }
        print(json.dumps({"files": report_dicts, **totals}, ensure_ascii=False))
    library.close()


def _search(arguments: argparse.Namespace) -> None:
    from rag import terminal
    from rag.corpus.library import Library

    settings = Settings.load(docs=arguments.docs, top_k=arguments.top_k)
    library = Library(settings)
    terminal.read(library)
    hits = asyncio.run(library.index.search(arguments.query, settings.top_k))
    if arguments.json:
        print(json.dumps({"query": arguments.query, "hits": [hit.to_dict() for hit in hits]}, ensure_ascii=False))
        return
    for hit in hits:
        terminal.out.print(f"{hit.score:6.2f}  {hit.passage.place}")
        terminal.out.print(f"        {' '.join(hit.passage.text.split())[:160]}")
    if not hits:
        terminal.notices.print("No passage shares a word with the query.")


def _models(arguments: argparse.Namespace) -> None:
    from rag import inventory, terminal
    from rag.models import native, weights

    settings = Settings.load()
    match arguments.action:
        case "pull":
            path = terminal.pull(weights.find(arguments.name), settings)
            terminal.out.print(str(path))
        case "build":
            with terminal.counting() as count:
                path = native.build(
                    settings.cache_dir, lambda made: count(f"{made.phase} {made.note}".strip(), made.done, made.total)
                )
            terminal.out.print(f"Models that run here use it from the next start: {path}")
        case "probe":
            asyncio.run(_probe(arguments, settings))
        case "list":
            taken = asyncio.run(inventory.take(settings))
            if arguments.json:
                print(json.dumps(taken.to_dict(), ensure_ascii=False))
            else:
                inventory.show(taken)


async def _probe(arguments: argparse.Namespace, settings: Settings) -> None:
    from rag import terminal
    from rag.models import capabilities, discovery, names

    key = settings.key_for(arguments.url)
    server = await discovery.identify(arguments.url, found_by="the command line", api_key=key)
    if arguments.model is not None:
        offered = names.resolve(arguments.model, server.models)
        if offered is None and server.models:
            raise names.unknown(arguments.model, [server])
        ids = [offered.id if offered else arguments.model]
    else:
        ids = [one.id for one in server.models if one.loaded is not False]
    if not ids:
        why = server.problem or "none is loaded; name one with --model"
        raise UserError(f"No model to try at {server.base_url}: {why.rstrip('.')}.")
    tried = capabilities.Tried(settings.cache_dir)
    windows = {one.id: one.context_tokens for one in server.models}
    seen = {}
    for model in ids:
        terminal.notices.print(f"Trying {model} at {server.base_url}", markup=False)
        seen[model] = await capabilities.probe(
            server.base_url,
            model,
            api_key=key,
            timeout_s=settings.first_token_timeout_s,
            context_tokens=windows.get(model),
            tell=lambda words: terminal.notices.print(f"  {words}", markup=False),
        )
        tried.put(server.base_url, model, server.version, seen[model])
    if arguments.json:
        print(json.dumps({"server": server.to_dict(), "capabilities": {m: c.to_dict() for m, c in seen.items()}}))
        return
    for model, found in seen.items():
        capabilities.show(model, found)


def _doctor(arguments: argparse.Namespace) -> int:
    from rag import doctor, terminal

    findings = asyncio.run(
        doctor.examine(
            Settings.load(),
            host=arguments.host,
            port=arguments.port,
            deep=arguments.deep,
            tell=lambda words: terminal.notices.print(words, markup=False),
        )
    )
    if arguments.json:
        print(json.dumps(doctor.to_dict(findings), ensure_ascii=False))
    else:
        doctor.show(findings)
    return int(not doctor.works(findings))


def _labels(arguments: argparse.Namespace) -> None:
    from rag import terminal
    from rag.lab.labels import FILE, Labels, show

    with closing(Labels(Settings.load().cache_dir / FILE)) as labels:
        if arguments.clear:
            terminal.notices.print(f"Deleting {len(labels):,} labels in {labels.path}", markup=False)
            labels.clear()
        rows = labels.rows()
        if arguments.json:
            print(json.dumps({"labels": rows}, ensure_ascii=False))
        elif rows:
            show(rows)
        elif not arguments.clear:
            terminal.notices.print(
                f"Nothing was said of an answer yet. It would be kept in {labels.path}", markup=False
            )


def _users(arguments: argparse.Namespace) -> None:
    from rag.serve.users import Users

    settings = Settings.load()
    users = Users(settings.data_dir)
    match arguments.action:
        case "list" if arguments.json:
            print(json.dumps({"users": users.names()}, ensure_ascii=False))
        case "list":
            for name in users.names():
                print(name)
            if not users.names():
                print(f"There is no user yet. They would be kept in {users.path}", file=sys.stderr)
        case "add":
            name = users.free(arguments.name)
            users.add(name, _password(name, arguments.password_stdin))
            print(f"{name} may sign in.")
            if settings.login != "password":
                print("The chat asks for passwords when it is started with RAG_LOGIN=password.", file=sys.stderr)
        case "passwd":
            name = users.known(arguments.name)
            users.change(name, _password(name, arguments.password_stdin))
            print(f"{name} has another password. Whoever was signed in with the former one is not any more.")
        case "remove":
            name = users.remove(arguments.name)
            print(f"{name} may not sign in any more. Their conversations are still in {settings.data_dir}")


def _password(name: str, from_stdin: bool) -> str:
    """Asked for twice, or the first line of standard input."""
    from getpass import getpass

    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    try:
        password = getpass(f"Password of {name}: ")
        again = getpass("Once more: ")
    except EOFError:
        raise UserError("No password was typed. Type it, or give it with --password-stdin.") from None
    if password != again:
        raise UserError("These are two passwords. Nothing was changed; type the same one twice.")
    return password


def _kept_turns() -> list[dict[str, Any]]:
    """The dictionaries of all turns in the conversations that are kept here, oldest first; each has `asked_at`, too."""
    with tempfile.TemporaryDirectory() as folder:
        # Chainlit writes its configuration into the folder in which it is imported.
        os.environ["CHAINLIT_APP_ROOT"] = folder
        from rag.serve import exports, history, history_sqlite
    del os.environ["CHAINLIT_APP_ROOT"]
    settings = Settings.load()
    if settings.database_url is None and not (settings.data_dir / history_sqlite.FILE).exists():
        return []

    async def read() -> list[dict[str, Any]]:
        kept = history.open_history(settings)
        try:
            return await exports.turns(kept)
        finally:
            await kept.close()

    return asyncio.run(read())


if __name__ == "__main__":
    sys.exit(main())
