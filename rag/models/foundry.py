"""Foundry Local through its own library: an ONNX model of the user's, or one of its catalogue, in a child process.

Knows how a model is named (a folder, or `foundry:NAME`), fetched, registered and served by `foundry-local-sdk`, and
what the library must be told and refused so that it stays on this machine as far as it can. The child's life is
`rag.models.child`'s. The library is imported in the child only: it is native code, and holds whole models.

Its web service asks nobody for a key and looks at neither Origin nor Host, so any page open in a browser could give it
work. It therefore listens on an address of this machine that is not easily guessed, and `rag.models.gate` stands
before it.

On its stdout the child tells, each as one JSON line:

    {"progress": {"phase": "fetching", "done_bytes": 1, "total_bytes": 2, "note": ""}}   while it works; any number
    {"failure": "..."}    why it cannot be; then it ends
    {"address": "http://127.0.0.1:PORT/catalogs/local", "model": "NAME:1", "provider": "CPU", "context_tokens": 8192}
"""

import argparse
import asyncio
import importlib.util
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlsplit

from rag.errors import UserError
from rag.models.child import (
    KEY_VARIABLE,
    Announcement,
    ChildServer,
    exit_with_parent,
    how_it_ended,
    python_command,
    status_of,
)
from rag.models.gate import Gate

if TYPE_CHECKING:
    from foundry_local_sdk import FoundryLocalManager, IModel

    from rag.settings import Settings

CONFIG = "genai_config.json"
"""What makes a folder an ONNX model of this kind."""
PREFIX = "foundry:"
INSTALL = "pip install 'smallfirst[foundry]'"
# The library asks its catalogue four times: 4 s where no name can be resolved, 30 s where nobody answers.
CATALOGUE_LIMIT_S = 45
# Longest silence of a download or of an execution provider's installation.
STALL_LIMIT_S = 120
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# The discard port of this machine, where nobody listens: a proxy that lets nothing through.
NOWHERE = "http://127.0.0.1:9"
PROGRESS_INTERVAL_S = 0.2
# Execution providers as the library and genai_config.json write them: for a person, and the device where none is told.
PROVIDERS: dict[str, tuple[str, str]] = {
    "cpu": ("", "CPU"),
    "cuda": ("CUDA", "GPU"),
    "dml": ("DirectML", "GPU"),
    "webgpu": ("WebGPU", "GPU"),
    "nvtensorrtrtx": ("TensorRT", "GPU"),
    "tensorrt": ("TensorRT", "GPU"),
    "migraphx": ("MIGraphX", "GPU"),
    "rocm": ("ROCm", "GPU"),
    "coreml": ("Core ML", ""),
    "openvino": ("OpenVINO", ""),
    "qnn": ("QNN", "NPU"),
    "vitisai": ("Vitis AI", "NPU"),
}


@dataclass(frozen=True)
class Source:
    """Which model: a folder of the user's, or a name in Foundry Local's catalogue."""

    folder: Path | None = None
    model: str | None = None
    """Alias or id."""

    @property
    def name(self) -> str:
        """For a person."""
        return self.folder.name if self.folder is not None else self.model or ""


@dataclass(frozen=True)
class Progress:
    """`total_bytes` is 0 where nobody told how large the model is; then `note` tells how far it is."""

    phase: Literal["fetching", "loading"]
    done_bytes: int = 0
    total_bytes: int = 0
    note: str = ""


def installed() -> bool:
    """Is the extra there?"""
    return importlib.util.find_spec("foundry_local_sdk") is not None


def is_onnx_folder(path: Path) -> bool:
    return (path / CONFIG).is_file()


def parse(model: str, variable: str) -> Source | None:
    """What the setting `variable` means by `model`; None when it means nothing of ours, a model on a server, say.

    Raises UserError for what is ours and cannot be.
    """
    if model.startswith(PREFIX):
        source = Source(model=model.removeprefix(PREFIX).strip())
        if not source.model:
            raise UserError(f"{variable} is {model!r}, which names no model. Write {PREFIX}phi-4-mini, for example.")
    else:
        folder = Path(model).expanduser()
        # A server's model may well have a slash in its name; only these can be nothing but a path.
        surely = folder.is_absolute() or model.startswith((".", "~"))
        if is_onnx_folder(folder) and (surely or "/" in model or os.sep in model):
            source = Source(folder=folder.resolve())
        elif surely and folder.is_dir():
            raise UserError(f"{variable} is {model}, a folder without {CONFIG}. Name one that holds an ONNX model.")
        elif surely and folder.suffix.lower() != ".gguf":
            raise UserError(f"{variable} is {model}, and there is no such folder. Name one that holds an ONNX model.")
        else:
            return None
    if not installed():
        raise UserError(f"{variable} is {model}, which Foundry Local's library runs. Install it: {INSTALL}")
    return source


def model_id(folder: Path) -> str:
    """The id under which a folder's model is registered: `name:version`, as Foundry Local writes its own.

    Foundry's own folders end with `-cpu-5` for version 5; any other folder's model is version 1.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-.") or "model"
    if versioned := re.fullmatch(r"(.+-(?:cpu|gpu|npu))-(\d+)", name):
        return f"{versioned[1]}:{int(versioned[2])}"
    return f"{name}:1"


def provider_of(execution_provider: str, device: str = "") -> str:
    """For a person: `CUDAExecutionProvider` is `CUDA GPU`."""
    short = execution_provider.removesuffix("ExecutionProvider")
    name, usual = PROVIDERS.get(short.lower(), (short, ""))
    return f"{name} {device or usual}".strip()


def provider_in(folder: Path) -> str:
    """The execution provider that a folder's configuration asks for; none is the CPU."""
    try:
        model = json.loads((folder / CONFIG).read_text("utf-8"))["model"]
        options = next(part for part in model.values() if isinstance(part, dict))["session_options"]
        return provider_of(next(iter(options["provider_options"][0])))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return "CPU"


class FoundryServer(ChildServer):
    """One model, served by Foundry Local's library in a child process that is restarted when it dies."""

    def __init__(
        self,
        source: Source,
        settings: "Settings",
        *,
        progress: Callable[[Progress], None] = lambda _: None,
        catalogue: str | None = None,
        catalogue_limit_s: float = CATALOGUE_LIMIT_S,
    ) -> None:
        """`progress` is called in the event loop. `catalogue`: the address of another catalogue than Microsoft's."""
        super().__init__(source.name)
        self.source = source
        self.home = settings.cache_dir / "foundry"
        """Where the library keeps its models, its registrations and its logs."""
        self.model_id = model_id(source.folder) if source.folder is not None else source.model or ""
        """What a request must say as its model. Of a catalogue's model it is known once it has started."""
        self.provider = ""
        """Execution provider and device, for a person; known once it has started."""
        self.context_tokens: int | None = None
        """The window, where the library tells it; known once it has started."""
        self._progress = progress
        self._catalogue = catalogue
        self._catalogue_limit_s = catalogue_limit_s
        self._told: str | None = None

    @property
    def _subject(self) -> str:
        folder = f" ({self.source.folder})" if self.source.folder is not None else ""
        return f"The model {self.name}{folder}"

    def _check(self) -> str | None:
        if not installed():
            return f"Foundry Local's library is not installed. Install it: {INSTALL}"
        if self.source.folder is not None and not is_onnx_folder(self.source.folder):
            return f"there is no {CONFIG} in it. Name a folder that holds an ONNX model."
        return None

    def _command(self) -> list[str]:
        # One word each, whatever the name begins with.
        arguments = [f"--home={self.home}"]
        if self.source.folder is not None:
            arguments += [f"--folder={self.source.folder}"]
        else:
            arguments += [f"--model={self.source.model}", f"--limit={self._catalogue_limit_s}"]
        if self._catalogue is not None:
            arguments += [f"--catalogue={self._catalogue}"]
        return python_command("rag.models.foundry", *arguments)

    def _environment(self) -> dict[str, str]:
        """A folder's model needs nobody outside, and the library reports its start to Microsoft even when told not to."""
        own = super()._environment()
        if self.source.folder is None:
            return own
        others = {name: value for name, value in own.items() if name.lower() not in PROXIES}
        return {**others, **dict.fromkeys(PROXIES, NOWHERE), **dict.fromkeys(map(str.upper, PROXIES), NOWHERE)}

    async def _address_of(self, process: asyncio.subprocess.Process) -> str | None:
        self._told = None
        assert process.stdout is not None
        while line := await process.stdout.readline():
            told: dict[str, Any] = json.loads(line)
            if "progress" in told:
                self._progress(Progress(**told["progress"]))
            elif "failure" in told:
                self._told = str(told["failure"])
            else:
                self.model_id = str(told["model"])
                self.provider = str(told["provider"])
                self.context_tokens = told["context_tokens"]
                return str(told["address"])
        return None

    def _answers(self, address: str) -> bool:
        parts = urlsplit(address)
        return status_of(f"{parts.scheme}://{parts.netloc}/status", {"Authorization": f"Bearer {self.api_key}"}) == 200

    def _reason(self, status: int, was_ready: bool) -> str:
        if self._told is not None and not was_ready:
            return self._told
        said = _plain(self._log[-1]) if self._log and not was_ready else ""
        how = how_it_ended(status)
        return f"{said} (the process {how})." if said else f"the process {how}."


# The child


class _CannotBe(Exception):
    """Why the model cannot be served, and what to do: the end of a sentence."""


class _Deadline:
    """Ends the process with a reason when too long nothing is heard: the library's own waits cannot be limited."""

    def __init__(self, teller: Announcement) -> None:
        self._teller = teller
        self._changed = threading.Condition()
        self._limit_s: float | None = None
        self._reason = ""
        self._version = 0
        threading.Thread(target=self._watch, name="watch the library", daemon=True).start()

    def set(self, limit_s: float | None, reason: str = "") -> None:
        """From now on so long; None: no limit."""
        with self._changed:
            self._limit_s, self._reason = limit_s, reason
            self._version += 1
            self._changed.notify()

    def heard(self) -> None:
        """The time begins anew."""
        with self._changed:
            self._version += 1
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while True:
                before = self._version
                self._changed.wait(self._limit_s)
                if self._version == before:
                    self._teller.say(failure=self._reason)
                    os._exit(1)


def serve(
    home: Path, folder: Path | None, model: str | None, catalogue: str | None, limit: float, parent: int
) -> NoReturn:
    """The child's whole life. It ends with its parent, by a signal, or with status 1 and a reason that was told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(parent)
    teller = Announcement()
    try:
        from foundry_local_sdk import FoundryLocalManager
        from foundry_local_sdk.exception import FoundryLocalException
    except Exception as error:
        # Also what the system's loader says of native libraries that do not fit it.
        teller.say(failure=f"Foundry Local's library cannot be loaded: {_plain(error)}. Install it again: {INSTALL}")
        sys.exit(1)
    try:
        FoundryLocalManager.initialize(_configuration(home, folder, catalogue))
        manager = FoundryLocalManager.instance
        assert manager is not None, "it was initialized"
        if folder is not None:
            if provider_in(folder) != "CPU":
                _bring_providers(manager, teller, _Deadline(teller))
            chosen = _registered(manager, folder)
            provider, path = provider_in(folder), "/catalogs/local"
        else:
            assert model is not None, "a folder or a name is given"
            chosen = _fetched(manager, model, teller, limit)
            runtime = chosen.info.runtime
            provider = provider_of(runtime.execution_provider, str(runtime.device_type or "")) if runtime else ""
            path = ""
        teller.say(progress=asdict(Progress("loading")))
        chosen.load()
        manager.start_web_service()
        assert manager.urls, "the service listens"
        service = urlsplit(manager.urls[0])
        facts = {"model": chosen.id, "provider": provider, "context_tokens": chosen.context_length or None}
    except _CannotBe as error:
        teller.say(failure=str(error))
        sys.exit(1)
    except FoundryLocalException as error:
        teller.say(failure=f"Foundry Local says: {_plain(error)}. Mend that, or choose another model.")
        sys.exit(1)
    except OSError as error:
        teller.say(failure=f"the disk does not allow it: {error}. Make room, or set RAG_CACHE_DIR to another folder.")
        sys.exit(1)

    async def pass_on() -> None:
        gate = Gate(service.hostname or "", service.port or 0, os.environ[KEY_VARIABLE])
        port = await gate.open()
        teller.tell(f"http://127.0.0.1:{port}{path}", **facts)
        await asyncio.Event().wait()

    asyncio.run(pass_on())
    raise AssertionError("the gate stands until the process ends")


def _configuration(home: Path, folder: Path | None, catalogue: str | None) -> Any:
    from foundry_local_sdk import Configuration

    # Each folder has a registry of its own: two folders of one name must not push each other out.
    models = home / "models" if folder is None else home / "registered" / sha256(str(folder).encode()).hexdigest()[:12]
    models.mkdir(parents=True, exist_ok=True)
    return Configuration(
        app_name="smallfirst",
        app_data_dir=str(home / "app"),
        model_cache_dir=str(models),
        logs_dir=str(home / "logs"),
        web=Configuration.WebService(urls=f"http://{_own_loopback()}:0"),
        disable_nonessential_telemetry=True,
        catalog_urls=[(catalogue, None)] if catalogue is not None else None,
    )


def _own_loopback() -> str:
    """One of the sixteen million addresses of this machine that begin with 127, so that no page finds what listens.

    macOS has only the first of them.
    """
    address = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(254) + 1}.{secrets.randbelow(254) + 1}"
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return "127.0.0.1"
    return address


def _registered(manager: "FoundryLocalManager", folder: Path) -> "IModel":
    """The folder's model in the library's local catalogue, where it stays from start to start."""
    from foundry_local_sdk import CatalogType, ModelInfoBuilder

    catalogue = manager.get_catalog(CatalogType.LOCAL)
    identity = model_id(folder)
    if (known := catalogue.get_model_variant(identity)) is not None:
        if known.context_length == _context_length(folder):
            return known
        # The folder was filled anew since.
        catalogue.unregister_model(identity)
    with ModelInfoBuilder() as about:
        about.set_string_property("task", "chat-completion")
        return catalogue.register_model(folder, identity, about)


def _context_length(folder: Path) -> int | None:
    """As the library reads it."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        length: int | None = config["model"].get("context_length") or config["search"].get("max_length")
        return length
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _fetched(manager: "FoundryLocalManager", wanted: str, teller: Announcement, catalogue_limit_s: float) -> "IModel":
    """The model of the catalogue, on the disk."""
    from foundry_local_sdk.exception import FoundryLocalException

    deadline = _Deadline(teller)
    _bring_providers(manager, teller, deadline)
    teller.say(progress=asdict(Progress("fetching", note="asking the catalogue")))
    deadline.set(catalogue_limit_s, UNREACHABLE)
    found = _find(manager, wanted)
    if not found.is_cached:
        size = (found.info.file_size_mb or 0) << 20
        told = float("-inf")

        def report(percent: float) -> None:
            nonlocal told
            deadline.heard()
            if time.monotonic() - told < PROGRESS_INTERVAL_S:
                return
            told = time.monotonic()
            note = "" if size else f"{percent:.0f} %"
            teller.say(progress=asdict(Progress("fetching", int(size * percent / 100), size, note)))

        deadline.set(
            STALL_LIMIT_S,
            f"nothing came from Foundry Local's servers for {STALL_LIMIT_S} seconds. Start again: what was fetched is"
            " kept.",
        )
        try:
            found.download(report)
        except FoundryLocalException as error:
            raise _CannotBe(
                f"it could not be fetched: {_plain(error)}. Look after the network and start again: what was fetched is"
                " kept."
            ) from error
    deadline.set(None)
    return found


UNREACHABLE = (
    "Foundry Local's catalogue cannot be reached, and the model was not fetched before. Connect to the network once,"
    " or name the folder of an ONNX model instead (docs/foundry.md)."
)


def _find(manager: "FoundryLocalManager", wanted: str) -> "IModel":
    """By alias, by id, or by id without its version."""
    catalogue = manager.catalog
    if (found := catalogue.get_model(wanted)) is not None:
        return found
    if not (models := catalogue.list_models()):
        raise _CannotBe(UNREACHABLE)
    if ":" in wanted:
        if (found := catalogue.get_model_variant(wanted)) is not None:
            return found
    else:
        versions = [one for model in models for one in model.variants if _same(one.info.name, wanted)]
        if versions:
            return max(versions, key=lambda one: one.info.version)
    if found := next((model for model in models if _same(model.alias, wanted)), None):
        return found
    raise _CannotBe(
        f"Foundry Local's catalogue has no model of that name. It has: {_listed(model.alias for model in models)}."
    )


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _bring_providers(manager: "FoundryLocalManager", teller: Announcement, deadline: _Deadline) -> None:
    """Install the execution providers that the library knows for this machine; without them it computes on the CPU."""
    from foundry_local_sdk.exception import FoundryLocalException

    if all(provider.is_registered for provider in manager.discover_eps()):
        return

    def report(name: str, percent: float) -> None:
        deadline.heard()
        teller.say(progress=asdict(Progress("fetching", note=f"{provider_of(name)}: {percent:.0f} %")))

    deadline.set(STALL_LIMIT_S, "the installation of an execution provider does not go on. Start again, or try later.")
    try:
        manager.download_and_register_eps(progress_callback=report)
    except FoundryLocalException as error:
        print(f"No execution provider could be installed: {error}", file=sys.stderr)
    deadline.set(None)


def _plain(error: object) -> str:
    """The library's errors begin with a file, a line and a function."""
    said = re.sub(r"^(\[\w+\] )?\S+\.(cc|h|cpp):\d+ .+?\)(?: const)? ", "", str(error).strip())
    return said.strip().rstrip(".")


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m rag.models.foundry", description="Serve one model; internal.")
    parser.add_argument("--home", required=True, type=Path)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--folder", type=Path)
    which.add_argument("--model")
    parser.add_argument("--catalogue")
    parser.add_argument("--limit", type=float, default=CATALOGUE_LIMIT_S)
    parser.add_argument("--parent", required=True, type=int)
    serve(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
