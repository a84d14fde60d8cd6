"""Folders, disk, memory and processor, against what the chosen models need of them.

Writes nothing that stays.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_state_path

from rag.checks.subject import SPOKEN, Seen, Subject, aside, bad, child, last_line, mb, note, ok, others_may_read, pip
from rag.settings import PACKAGE, Settings, app_home

if TYPE_CHECKING:
    from rag.models.places import LegName
    from rag.models.weights import Weights

# Below this nothing can be kept: SQLite needs room for its log.
LEAST_DISK_BYTES = 32_000_000
# What a model run here takes, measured with the three of the catalogue at 4096 tokens: 269, 697 and 2,006 MB resident
# for files of 98, 491 and 1,117 MB. The rest of the chat takes about 200 MB.
MEMORY_OF_FILE, MEMORY_BESIDES_BYTES, CHAT_BYTES = 1.7, 120_000_000, 250_000_000
# Instructions that llama.cpp has faster code for, as it spells them and as processors announce them.
FASTER = {"AVX512": "avx512f", "AVX_VNNI": "avx_vnni", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16"}
FASTER |= {"AMX_INT8": "amx_int8", "DOTPROD": "asimddp", "MATMUL_INT8": "i8mm", "SVE": "sve"}
NO_INSTRUCTIONS = ("LLAMAFILE", "OPENMP", "REPACK")
"""Among llama.cpp's words on what it was compiled with."""
NEEDED = ("AVX2", "FMA", "F16C", "BMI2")
"""What xllamacpp is compiled for, where processors are x86-64."""
# A signal where there are signals, else Windows' status.
ILLEGAL_INSTRUCTION = (-4, 0xC000001D)


async def folders(subject: Subject) -> Seen:
    """Can what is to be kept be written, and is it kept from others?"""
    embedded = await subject.embedded()
    fetching = any(path is None for path, _ in embedded.values())
    return await aside(lambda: _folders(subject.settings, fetching))


def _folders(settings: Settings, fetching: bool) -> Seen:
    cache, data = settings.cache_dir, settings.data_dir
    if why := _unwritable(data):
        return bad(f"{data} (conversations) cannot be written: {why}", "Make it writable, or set RAG_DATA_DIR.")
    if why := _unwritable(_root() / ".files"):
        return bad(f"{_root() / '.files'} (uploads under way) cannot be written: {why}", "Make it writable.")
    if why := _unwritable(cache):
        detail = f"{cache} (models, the index) cannot be written: {why}"
        mend = "Make it writable, or set RAG_CACHE_DIR."
        return bad(detail, mend) if fetching else note(f"{detail}; documents are read anew at each start", mend)
    if data.is_dir() and others_may_read(data):
        return note(f"Others on this machine may look into {data}, where conversations are kept",
                    f"Make it yours alone: chmod 700 {data}")  # fmt: skip
    return ok(f"{cache} and {data} can be written")


def _root() -> Path:
    """Where Chainlit's uploads go: an installed package has its furniture copied to where it may be written."""
    home = app_home()
    return user_state_path("smallfirst", appauthor=False) / "app" if home == PACKAGE / "bundle" else home


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written there, or made where it is to be; by trying, since rights alone do not tell."""
    there = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.expanduser().absolute()
    return next((one for one in (folder, *folder.parents) if one.exists()), folder)


async def disk(subject: Subject) -> Seen:
    """Room for the models that are missing, and for conversations."""
    embedded = await subject.embedded()
    missing = {leg: one for leg, (path, one) in embedded.items() if path is None and one is not None}
    return await aside(lambda: _disk(subject.settings, missing))


def _disk(settings: Settings, missing: "Mapping[LegName, Weights]") -> Seen:
    from rag.models.weights import SPARE_BYTES

    free_data = shutil.disk_usage(_existing(settings.data_dir)).free
    if free_data < LEAST_DISK_BYTES:
        return bad(f"{mb(free_data)} free in {settings.data_dir}: conversations cannot be kept",
                   "Free some space, or set RAG_DATA_DIR to a folder on another disk.")  # fmt: skip
    free = shutil.disk_usage(_existing(settings.cache_dir)).free
    detail = f"{mb(free)} free for models in {settings.cache_dir}"
    if not missing:
        return ok(detail)
    # The parts of a model and the whole that they make lie there together, one model after the other.
    sizes = [one.size_bytes for one in {one.name: one for one in missing.values()}.values()]
    need = sum(sizes) + max(sizes) + SPARE_BYTES
    detail += f"; {mb(need)} are needed while {' and '.join(one.name for one in missing.values())} are fetched"
    if free >= need:
        return ok(detail)
    mend = "Free some space, or set RAG_CACHE_DIR to a folder on another disk."
    fits = "slm" not in missing or free >= 2 * missing["slm"].size_bytes + SPARE_BYTES
    return note(f"{detail}: not all of them fit", mend) if fits else bad(detail, mend)


async def memory(subject: Subject) -> Seen:
    """Of models that run here; what a server takes is the server's business."""
    import psutil

    needs: dict[LegName, float] = {}
    for leg, (path, one) in (await subject.embedded()).items():
        size = one.size_bytes if one is not None else path.stat().st_size if path is not None else 0
        needs[leg] = size * MEMORY_OF_FILE + MEMORY_BESIDES_BYTES
    memory = psutil.virtual_memory()
    total = min(memory.total, _memory_limit() or memory.total)
    free = min(memory.available, total)
    whole = sum(needs.values()) + CHAT_BYTES
    each = "".join(f", {mb(need)} of it the {SPOKEN[leg]}" for leg, need in needs.items())
    detail = f"{mb(free)} of {mb(total)} free; the chat takes about {mb(whole)}{each}"
    mend = "Choose smaller models (smallfirst models list), or a model server on another machine."
    if total < needs.get("slm", 0) + CHAT_BYTES:
        return bad(detail, mend)
    if total < whole:
        return note(f"{detail}: both models together do not fit", mend)
    if free < whole:
        # A chat that runs already has its models in memory.
        return note(detail, "Unless the chat runs already: end other programs, or choose smaller models.")
    return ok(detail)


def _memory_limit() -> int | None:
    """What a container may use, bytes."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            return int(Path(path).read_text())
    return None


async def processor(subject: Subject) -> Seen:
    """What llama.cpp's code was compiled for, against what this processor has."""
    from rag.models import processor

    status, out, said = await child("import xllamacpp; print(xllamacpp.get_system_info())")
    has = await aside(processor.instructions)
    name = f"{await aside(processor.name)}, {processor.physical_cores()} cores"
    if program := await aside(lambda: _own_llama(subject.settings)):
        return ok(f"{name}; models are run by {program}")
    if status in ILLEGAL_INSTRUCTION:
        lacks = ", ".join(one for one in NEEDED if one.lower() not in has) or "an instruction"
        return bad(f"{name}; llama.cpp as it comes needs {lacks}, which this processor lacks",
                   "Compile it for this one: smallfirst models build; or use a model server.")  # fmt: skip
    if status != 0:
        return bad(f"{name}; llama.cpp cannot be loaded: {last_line(said, status)}", f"Install it again: {pip()}")
    compiled = [one for one in re.findall(r"(\w+) = 1", out) if one not in NO_INSTRUCTIONS]
    detail = f"{name}; llama.cpp uses {', '.join(compiled) or 'nothing beyond the usual'}"
    if more := [one for one, flag in FASTER.items() if flag in has and one not in compiled]:
        return note(f"{detail}, and leaves out {', '.join(more)}", "For faster models, once: smallfirst models build")
    return ok(detail)


def _own_llama(settings: Settings) -> Path | None:
    """The program that runs models in the place of the package."""
    from rag.models import native

    return settings.llama_server or native.find(settings.cache_dir)
