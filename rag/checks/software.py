"""Python, its environment, and the packages in it.

Compares with what our own package says that it needs. Knows nothing of settings.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from rag.checks.subject import Seen, Subject, bad, child, last_line, note, ok, pip, version_of

OLDEST, NEWEST = (3, 11), (3, 13)
"""Python versions, both included."""


def python(subject: Subject) -> Seen:
    bits = struct.calcsize("P") * 8
    detail = f"{platform.python_implementation()} {platform.python_version()}, {bits}-bit"
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return bad(detail, "Install Python 3.11, 3.12 or 3.13 and make a new environment with it.")
    if bits < 64:
        return bad(f"{detail}: models do not fit into its memory", "Install a 64-bit Python.")
    return ok(detail)


def environment(subject: Subject) -> Seen:
    """Which `smallfirst` would a terminal start?"""
    own = Path(sysconfig.get_path("scripts"))
    command = own / ("smallfirst.exe" if os.name == "nt" else "smallfirst")
    isolated = sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ
    mend = f"Call {command}, or put its folder first in the PATH."
    if (script := own / ("Activate.ps1" if os.name == "nt" else "activate")).is_file():
        mend = f"Activate this environment: {script if os.name == 'nt' else f'source {script}'}"
    found = shutil.which("smallfirst")
    if found is None:
        return note(f"{sys.prefix} is not active: its smallfirst is not on the PATH", mend)
    if Path(found).resolve().parent != own.resolve():
        return note(f"{sys.prefix} is not active: smallfirst on the PATH is {found}", mend)
    if not isolated:
        return note(f"Installed among the packages of other programs in {sys.prefix}",
                    "Where they get in each other's way, make an environment: python -m venv .venv")  # fmt: skip
    return ok(f"{sys.prefix} is active")


def packages(subject: Subject) -> Seen:
    """Against what our own package says that it needs."""
    try:
        requirements = importlib.metadata.requires("smallfirst") or []
    except importlib.metadata.PackageNotFoundError:
        return note("Not installed as a package, so what it needs is not known", f"Install it: {pip()}")
    versions = {name: version_of(name) for name, _, extra in map(requirement, requirements) if not extra}
    lacking = unmet(requirements)
    if lacking:
        return bad(f"Missing or too old: {'; '.join(lacking)}", f"Install what is missing: {pip()}")
    shown = ", ".join(f"{name} {versions[name]}" for name in ("chainlit", "openai", "xllamacpp") if name in versions)
    extras = sorted({extra for _, _, extra in map(requirement, requirements) if extra})
    whole = [extra for extra in extras if not unmet(requirements, extra)]
    return ok(f"{shown} and {len(versions) - 3} more; extras: {', '.join(whole) or 'none'}")


def requirement(line: str) -> tuple[str, str, str]:
    """Name, versions and extra of a line such as `asyncpg>=0.30; extra == 'postgres'`.

    Ours have no other markers, and no versions but numbers; the package that reads all of them may be what is missing.
    """
    wanted, _, marker = line.partition(";")
    found = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*(.*)", wanted)
    assert found is not None, f"a requirement begins with a name: {line!r}"
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
    return found[1], found[2].strip(" ()"), extra[1] if extra else ""


def unmet(
    requirements: Iterable[str],
    extra: str = "",
    version_of: Callable[[str], str | None] = lambda name: version_of(name),
) -> list[str]:
    """What of the requirements without an extra, or of that extra, is not here as it should be, for a person."""
    lacking = []
    for name, versions, of in map(requirement, requirements):
        if of != extra or name == "smallfirst":
            continue
        here = version_of(name)
        if here is None:
            lacking.append(f"{name} is missing")
        elif not satisfies(here, versions):
            lacking.append(f"{name} is {here}, and {versions} is needed")
    return lacking


def satisfies(version: str, versions: str) -> bool:
    """Is it one of `>=2.12,<3`? By the numbers that it begins with: 3.0rc1 counts as 3.0."""
    have = _numbers(version)
    holds: dict[str, Callable[[tuple[int, ...]], bool]] = {
        ">=": lambda wanted: have >= wanted,
        "<=": lambda wanted: have <= wanted,
        "==": lambda wanted: have == wanted,
        "!=": lambda wanted: have != wanted,
        ">": lambda wanted: have > wanted,
        "<": lambda wanted: have < wanted,
    }
    for one in filter(None, (part.strip() for part in versions.split(","))):
        found = re.match(r"(>=|<=|==|!=|>|<)\s*(.+)", one)
        if found is not None and not holds[found[1]](_numbers(found[2])):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()  # 3.0 is 3
    return tuple(numbers)


async def web(subject: Subject) -> Seen:
    """Chainlit as the chat starts it. In a child: importing it reads a configuration, and makes folders where it runs."""
    code = "from chainlit.server import app, sio; from rag.serve.hardening import harden; harden(app, sio)"
    version = version_of("chainlit") or "is missing"
    with tempfile.TemporaryDirectory(prefix="smallfirst-") as folder:
        status, _, said = await child(code, CHAINLIT_APP_ROOT=folder)
    if status == 0:
        return ok(f"Chainlit {version}; the holes that it comes with are closed")
    # One that cannot be hardened says so.
    return bad(f"Chainlit {version} cannot be started: {last_line(said, status)}", f"Install what is known: {pip()}")
