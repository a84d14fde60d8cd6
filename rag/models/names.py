"""Which of a server's models is meant by a name: ids, ids without version, aliases.

Knows how each kind of server writes its ids. Asks nobody, and never guesses: a name that fits several different models
fits none, and whoever asked is told what there is. What may match, strongest first:

    exact       the id as the server writes it
    latest      `qwen3` is `qwen3:latest`, as Ollama has it, and never `qwen3:8b`
    case        the id in other letters
    version     the id without its version: `Phi-4-mini-instruct-generic-cpu` is `Phi-4-mini-instruct-generic-cpu:5`
    alias       the server's own alias; or what stands before execution provider and device: `phi-4-mini` is
                `Phi-4-mini-instruct-generic-cpu:5` and never `Phi-4-mini-reasoning-generic-cpu:3`
    publisher   the part after the last slash: `phi-4-mini` is `microsoft/phi-4-mini`
    file        without folder, `.gguf` and quantisation: `phi-4-mini` is `/models/phi-4-mini-Q4_K_M.gguf`
"""

import re
from collections.abc import Callable, Sequence

from rag.errors import ModelUnknown
from rag.models.discovery import FOUNDRY_ID, Offered, Server

MOST_LISTED = 12
"""Ids of one server in a message."""


def resolve(wanted: str, offered: Sequence[Offered], *, loaded_first: bool = True) -> Offered | None:
    """The model that is meant; None when none is, or when it could be several.

    Of one model's builds: one that is loaded, then NPU, GPU (a vendor's own before the generic one), CPU, then the
    highest version.
    """
    match = _match(wanted, offered, loaded_first)
    return match[1] if match else None


def choose(wanted: str, servers: Sequence[Server]) -> tuple[Server, Offered] | None:
    """The strongest match over all servers; among equals that of the earlier server."""
    matches = [(*match, server) for server in servers if (match := _match(wanted, server.models, True))]
    if not matches:
        return None
    _, offered, server = min(matches, key=lambda match: match[0])
    return server, offered


def unknown(wanted: str, servers: Sequence[Server]) -> ModelUnknown:
    """The error for a name that fits nothing: what was looked for, what there is, and what to do now.

    If the first server was named by the user, and only another one has the model, that is said: the addresses may have
    been exchanged.
    """
    if not servers:
        return ModelUnknown(
            f"No model {wanted!r}, and no model server was found. Start one, or name it with RAG_SLM_BASE_URL or"
            " RAG_LLM_BASE_URL."
        )
    first = servers[0]
    if elsewhere := choose(wanted, [server for server in servers if server.base_url != first.base_url]):
        return ModelUnknown(f"{_who(first)} has {_ids(first)}. {_elsewhere(wanted, first, elsewhere[0])}")
    for server in servers:
        if known := resolve(wanted, server.catalogue):
            name = known.alias or wanted
            return ModelUnknown(
                f"{_who(server)} knows {known.id} and cannot be asked it yet; it has {_ids(server)}. In a terminal"
                f" there: foundry model download {name}, then foundry model load {name}."
            )
    there = "; ".join(f"{_who(server)} has {_ids(server)}" for server in servers)
    variables = [f"RAG_{leg}_MODEL" for leg in ("SLM", "LLM") if len(servers) > 1 or leg in first.found_by]
    return ModelUnknown(
        f"No model {wanted!r}: {there}. Set {' or '.join(variables or ['RAG_SLM_MODEL', 'RAG_LLM_MODEL'])} to one of"
        " them."
    )


def _elsewhere(wanted: str, first: Server, other: Server) -> str:
    if first.found_by.endswith("_BASE_URL") and other.found_by.endswith("_BASE_URL"):
        return f"{wanted} is at {other.base_url} ({other.found_by}): are the two addresses swapped?"
    where = "runs here by itself" if other.kind == "embedded" else f"is at {other.base_url} ({other.title})"
    if not first.found_by.endswith("_BASE_URL"):
        return f"{wanted} {where}."
    mend = f"remove {first.found_by}" if other.kind == "embedded" else f"set {first.found_by} to that"
    return f"{wanted} {where}: {mend}."


def _who(server: Server) -> str:
    if server.kind == "embedded":
        return "this program itself"
    if server.found_by.endswith("_BASE_URL"):
        return f"{server.found_by} ({server.base_url})"
    return f"{server.title} at {server.base_url}"


def _ids(server: Server) -> str:
    ids = [offered.id for offered in server.models]
    if not ids:
        return "no models" if server.problem is None else f"no known models ({server.problem.rstrip('.')})"
    more = len(ids) - MOST_LISTED
    return ", ".join(ids[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


# Each kind of match gives the builds of one model, or nothing.


def _match(wanted: str, offered: Sequence[Offered], loaded_first: bool) -> tuple[int, Offered] | None:
    """How strong the strongest match is, 0 the strongest; and the best build of that model."""
    wanted = wanted.strip()
    if not wanted:
        return None
    for strength, kind in enumerate(_KINDS):
        if builds := kind(wanted, offered):
            return strength, min(builds, key=lambda build: _rank(build, loaded_first))
    return None


def _exact(wanted: str, offered: Sequence[Offered]) -> list[Offered]:
    return [one for one in offered if one.id == wanted]


def _latest(wanted: str, offered: Sequence[Offered]) -> list[Offered]:
    return [one for one in offered if one.id == f"{wanted}:latest"]


def _case(wanted: str, offered: Sequence[Offered]) -> list[Offered]:
    return _single([one for one in offered if one.id.lower() in (wanted.lower(), f"{wanted.lower()}:latest")])


def _version(wanted: str, offered: Sequence[Offered]) -> list[Offered]:
    return [one for one in offered if (parts := _VERSIONED.fullmatch(one.id)) and _same(parts["id"], wanted)]


def _alias(wanted: str, offered: Sequence[Offered]) -> list[Offered]:
    if told := [one for one in offered if one.alias is not None and _same(one.alias, wanted)]:
        return told
    named: dict[str, list[Offered]] = {}
    for one in offered:
        if parts := FOUNDRY_ID.fullmatch(one.id):
            named.setdefault(parts["name"].lower(), []).append(one)
    plain, *tuned = (named.get(f"{wanted.lower()}{tuning}", []) for tuning in ("", "-instruct", "-chat"))
    # Tuned in two ways, they are two models.
    return plain or (tuned[0] or tuned[1] if not all(tuned) else [])


def _publisher(wanted: str, offered: Sequence[Offered]) -> list[Offered]:
    return _single([one for one in offered if "/" in one.id and _same(one.id.rsplit("/", 1)[1], wanted)])


def _file(wanted: str, offered: Sequence[Offered]) -> list[Offered]:
    # Whoever names a file means the model in it, wherever it lies; a publisher before a slash is no folder.
    name = re.split(r"[\\/]", wanted)[-1][: -len(".gguf")] if wanted.lower().endswith(".gguf") else wanted
    return _single([one for one in offered if name.lower() in _forms(one.id)])


_KINDS: tuple[Callable[[str, Sequence[Offered]], list[Offered]], ...] = (
    _exact,
    _latest,
    _case,
    _version,
    _alias,
    _publisher,
    _file,
)
_VERSIONED = re.compile(r"(?P<id>.+):(?P<version>\d{1,9})")
# What is left off a file's name, from its end: `-00001-of-00002`, `-Q4_K_M`, `-UD-IQ2_XXS`, `:Q4_K_M`, `@4bit`, `-GGUF`.
_SUFFIX = re.compile(
    r"\.gguf|-\d{5}-of-\d{5}|[-._:](?:UD-)?(?:I?Q\d+(?:_\w+)?|TQ\d_\d|B?F16|F32|FP16|FP8|MXFP4(?:_\w+)?)|@[\w.]+|[-._]GGUF",
    re.IGNORECASE,
)


def _forms(id: str) -> set[str]:
    """A file's name, with less and less at its end; in lower case."""
    name = re.split(r"[\\/]", id)[-1].lower()
    forms = {name}
    while shorter := next((name[: cut.start()] for cut in _SUFFIX.finditer(name) if cut.end() == len(name)), ""):
        name = shorter
        forms.add(name)
    return forms


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def _single(found: list[Offered]) -> list[Offered]:
    return found if len({one.id for one in found}) == 1 else []


def _rank(offered: Offered, loaded_first: bool) -> tuple[bool, int, int]:
    """The lower, the better."""
    build, versioned = FOUNDRY_ID.fullmatch(offered.id), _VERSIONED.fullmatch(offered.id)
    device = 4
    if build:
        device = {"npu": 0, "gpu": 1, "cpu": 3}[build["device"].lower()]
        device += build["device"].lower() == "gpu" and build["ep"].lower() == "generic"
    return loaded_first and not offered.loaded, device, -int(versioned["version"]) if versioned else 0
